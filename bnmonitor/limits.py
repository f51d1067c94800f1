"""Numbers that more than one room goes by: each is defined here, and nowhere else. Free of torch.

A rule takes them as the defaults of its fields; the measures, the summary, the reports and the tab take them as they
are.
"""

FLIGHT_BYTES = 256 * 2**20
"""Most bytes of a run's flight record."""

LAG_MEAN = 0.1
"""Distance of batch mean and running mean, in standard deviations: from here on the running statistics lag."""

LAG_LOG_DEVIATION = 0.2
"""The same for the log ratio of batch deviation and running deviation."""

SEVERE_LAG_MEAN = 0.25
"""Distance of batch mean and running mean from which a lag makes an evaluation wrong."""

SEVERE_LAG_LOG_DEVIATION = 0.7
"""The same for the log ratio of batch deviation and running deviation."""

DEAD_GAMMA = 0.01
"""A channel is dead if its gamma is below this share of its start."""

DEAD_BETA = -3.1
"""A channel in front of a ReLU is dead if beta is below so many gammas: one value in a thousand is still positive."""

ALWAYS_ZERO = 0.999
"""Share of outputs that are not positive from which a channel counts as never positive."""

MANY_DEAD = 0.1
"""Share of a layer's channels that may be dead without an alert."""

INITIAL_WEIGHT = 0.05
"""Weight of mean 0 and variance 1 in the running statistics below which a layer has warmed up."""

RAW = 1e3
"""Mean square of the data, or variance in the first layer, above which the data cannot have been normalized."""

FLAT = 10.0
"""A variance below so many eps is decided by eps: the output is a twentieth smaller than it should be."""

ALIVE = 100.0
"""A channel is alive once its batch variance has been this many eps."""

GAP_WARNING = 0.25
"""Distance of outputs in training mode and evaluation mode, relative to those in training mode, that is too large."""

GAP_ERROR = 0.5
"""Distance of the same outputs from which evaluation is wrong."""

GAP_SAMPLES = 32
"""Samples per channel from which that distance is judged."""

SMALL_BATCH = 16
"""Samples normalized together below which a batch is too small to describe the data well."""

TINY_BATCH = 5
"""Samples normalized together below which a batch cannot describe the data."""
