"""What the sampled steps, and the looks into evaluations, showed of each layer."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from functools import cached_property

import torch
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Moments:
    """Activation statistics of one side of every layer, from a sampled step; all ``[C]``, NaN where not called.

    Of large layers they are taken over a part of the batch: :attr:`Sample.looked` says of how many samples. The calls
    of a step are taken together.

    Attributes:
        mean: Mean.
        var: Variance (divided by the number of values).
        skewness: Third standardized moment: 0 if symmetric, about 1.6 behind a ReLU; NaN for a constant.
        kurtosis: Fourth standardized moment: 3 for a Gaussian, more with heavier tails; NaN for a constant.
        min: Smallest value.
        max: Largest value.
        nonpositive: Share of values that are not positive.
        saturation: Share of values pinned at the channel's smallest or largest value, one of each not counted: what a
            clamp leaves (ReLU at 0, ReLU6 at 0 and 6, hard sigmoid, a sigmoid that has run into 1, white and black
            pixels, the end of a dtype's range). 0 where nothing clamps; near 1 for a constant.
        nonfinite: Share of values that are NaN or infinite.
    """

    mean: Tensor
    var: Tensor
    skewness: Tensor
    kurtosis: Tensor
    min: Tensor
    max: Tensor
    nonpositive: Tensor
    saturation: Tensor
    nonfinite: Tensor


def _none() -> Tensor:
    return torch.zeros((), dtype=torch.int64, device="cpu")


@dataclass(frozen=True, kw_only=True)
class Sample:
    """Activation statistics of one sampled step.

    Attributes:
        step: The step's number.
        calls: ``[L]`` int64, how often each layer was called, side calls left out.
        eval_calls: ``[L]`` int64, how many of these calls were in evaluation mode.
        idle: ``[L]`` int64, calls besides, in evaluation mode and without a gradient, as of a teacher.
        distance: ``[4, L]``, how far apart the inputs of the layer's calls in training mode are, as described at
            :func:`bnmonitor.measures.call_distances`; NaN for a layer that was called once.
        recomputed: ``[L]`` int64, calls besides, within the backward and in training mode.
        size: ``[L]`` int64, samples that were normalized together in the layer's last call (``x.shape[0]``).
        values: ``[L]`` int64, values per channel in that call.
        input: Moments of the layer's input.
        output: Moments of the layer's output; ``nonpositive`` is the share that a ReLU behind it turns to zero. NaN in
            channels whose output is not what the layer computed, as a hook has changed it in a way that autograd does
            not see.
        looked: ``[L]`` int64, independent samples that ``input`` and ``output`` are taken over, in all calls: whole
            samples, a few if they are large. 0 where this is not known.
        level: ``[C]`` mean of the input over the samples of ``between``: of at least 16 whole ones in each call, if the
            batch has so many. None where it is not known.
        between: ``[C]`` unbiased variance, over the samples of a batch, of each sample's own mean. Were the samples
            drawn independently, the batch mean would vary by ``between / size`` from batch to batch. NaN for a single
            sample.
        unevenness: ``[C]`` variance, over the samples of a batch, of each sample's own variance around the batch mean,
            relative to the square of their mean. Were the samples drawn independently, the log of the batch variance
            would vary by ``unevenness / size`` from batch to batch. Known only of layers that see the data and were
            called once; NaN for others, None where it is not known of any.
        uneven_beyond: ``[2, L]`` share of that which is left without what all channels have in common, and kurtosis of
            the samples' variances, alike.
        paired: ``[L]`` correlation of the samples of such a layer with those half a batch later, in their means: near 1
            where two views of the same samples are in one batch, 0 of independent ones.
        stirred: ``[2, C]`` what the step's update of the weights right before such a layer changed in the same samples:
            in the mean, in deviations, and in the log variance. NaN where there was no update.
        padding: ``[L]`` share of positions at constant ends of the sequences of an input ``[N, C, L]``, and of rows of
            padding in an input ``[R, C]``; NaN for others.
        data: ``[2, L]`` scale of the data that the layer reads, itself or through one operation with weights: mean
            square, and distance of the mean from zero in deviations, in the middle channel. NaN for a layer that reads
            something else, and where it is not known.
        rate: The learning rate in force, the largest of all parameter groups; NaN where it is not known.
        input_dtypes: Type of each layer's input in that call; None for a layer not called, empty where unknown.
        side_calls: ``[L]`` int64, calls besides, in training mode and under ``no_grad``, of a layer that was called
            with gradients as well: ``calls`` and the moments are without them.
        side_size: ``[L]`` int64, samples in the last of them; 0 without one.
        side_distance: ``[4, L]``, how far the inputs of the side calls, all together, are from those of the others, as
            ``distance``; NaN without one.
    """

    step: int
    calls: Tensor
    eval_calls: Tensor
    size: Tensor
    values: Tensor
    input: Moments
    output: Moments
    between: Tensor
    input_dtypes: tuple[torch.dtype | None, ...] = ()
    idle: Tensor = field(default_factory=_none)
    recomputed: Tensor = field(default_factory=_none)
    distance: Tensor = field(default_factory=lambda: torch.full((4, 1), torch.nan, dtype=torch.float64, device="cpu"))
    padding: Tensor | None = None
    looked: Tensor = field(default_factory=_none)
    level: Tensor | None = None
    side_calls: Tensor = field(default_factory=_none)
    side_size: Tensor = field(default_factory=_none)
    side_distance: Tensor = field(
        default_factory=lambda: torch.full((4, 1), torch.nan, dtype=torch.float64, device="cpu")
    )
    unevenness: Tensor | None = None
    uneven_beyond: Tensor | None = None
    paired: Tensor | None = None
    stirred: Tensor | None = None
    data: Tensor | None = None
    rate: float = math.nan

    @cached_property
    def noise(self) -> float:
        """The largest difference in :attr:`distance`, in multiples of its noise; 0 where no layer was called twice."""
        return _most(self.distance[1::2])

    @cached_property
    def side_noise(self) -> float:
        """The same of :attr:`side_distance`."""
        return _most(self.side_distance[1::2])


def _most(values: Tensor) -> float:
    return float(values.nan_to_num(nan=0.0, posinf=math.inf).clamp(min=0).max()) if values.numel() else 0.0


@dataclass(frozen=True, kw_only=True)
class EvaluationGap:
    """What an extra forward at the start of an evaluation showed of each layer.

    Attributes:
        step: The last training step before it.
        gap: ``[L]`` relative difference of the layer's outputs with batch statistics and with running statistics; NaN
            for a layer that was not compared.
        size: ``[L]`` int64, samples in the batch.
    """

    step: int
    gap: Tensor
    size: Tensor

    def joined(self, other: EvaluationGap) -> EvaluationGap:
        """Return both results in one; of a layer that the other one compared, the other one's."""
        new = ~other.gap.isnan()
        return replace(self, gap=other.gap.where(new, self.gap), size=other.size.where(new, self.size))


@dataclass(frozen=True, kw_only=True)
class HeldOut:
    """What the layers that see the data, or have dropout before them, were given in a validation or test.

    Attributes:
        step: The last training step before it.
        size: ``[L]`` int64, samples that were looked at; 0 where none was.
        mean: ``[C]`` mean of the layer's input; NaN where it was not looked at.
        var: ``[C]`` its variance.
        running_mean: ``[C]`` the running mean that was in force.
        running_var: ``[C]`` the running variance that was in force.
        middle_mean: ``[C]`` median, over the batches that were looked at, of the mean; None where it is not known.
        middle_var: ``[C]`` the same of the variance within a batch.
        noise_mean: ``[C]`` standard error of ``middle_mean``, from the spread of the batches; NaN for a few of them.
        noise_log_var: ``[C]`` the same of the log of ``middle_var``.
    """

    step: int
    size: Tensor
    mean: Tensor
    var: Tensor
    running_mean: Tensor
    running_var: Tensor
    middle_mean: Tensor | None = None
    middle_var: Tensor | None = None
    noise_mean: Tensor | None = None
    noise_log_var: Tensor | None = None
