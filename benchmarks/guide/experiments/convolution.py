"""What is different in a convolution?"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn

from .. import data, networks
from ..experiment import Claim, Context, Experiment, Measured, Metric, Panel
from ..training import training

SIZES = (8, 32)


class PerPlace(nn.Module):
    """BatchNorm with statistics, gamma and beta of each channel and place, as a dense layer has.

    Args:
        channels: Channels of the input.
        places: Its places.
    """

    def __init__(self, channels: int, places: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(channels * places)

    def forward(self, x: Tensor) -> Tensor:
        """Normalize each place by itself."""
        out: Tensor = self.norm(x.flatten(1)).view_as(x)
        return out


def per_place() -> nn.Sequential:
    """The CNN with such norms."""
    places = iter((64, 64, 16))
    return networks.cnn(lambda channels: PerPlace(channels, next(places)))


NETWORKS: dict[str, tuple[Callable[[int], data.Data], Callable[[], nn.Module], int]] = {
    "dense, digits": (data.digits, lambda: networks.mlp(networks.batch), 1),
    "convolution, digits": (data.digits, lambda: networks.cnn(networks.batch), 64),
    "convolution, photographs": (
        data.photographs,
        lambda: networks.cnn(networks.batch, channels=(8, 8, 16), planes=3, outputs=2),
        256,
    ),
    "convolution, a norm for each place": (data.digits, per_place, 1),
}


def measure(context: Context, network: str, size: int) -> Measured:
    """Train; then measure the noise of the batch means at fixed weights, from the flight record."""
    load, make, places = NETWORKS[network]
    of = load(context.seed)
    with training(make, of, seed=context.seed, steps=context.steps(40), lr=0.1 * size / 64, batch=size) as done:
        kept = Measured({"accuracy": done.accuracy}).keep(done)
        model = done.model
    with training(lambda: model, of, seed=context.seed, steps=context.steps(50), lr=0.0, batch=size) as still:
        first = still.run.layers[0]
        means, variances = (still.monitor.history(first, name) for name in ("batch_mean", "batch_var"))
        worth = float((variances.mean(0) / means.var(0)).nanmedian())
    kept.values |= {"values": float(size * places), "worth": worth, "share": 100 * worth / (size * places)}
    return kept


EXPERIMENT = Experiment(
    name="convolution",
    axis="batch",
    settings={(network, size): {"network": network, "size": size} for network in NETWORKS for size in SIZES},
    measure=measure,
    metrics=(
        Metric("values", "values a channel"),
        Metric("worth", "worth independent values", log=True),
        Metric("share", "share, %"),
        Metric("accuracy", "held-out accuracy, %"),
    ),
    claims=(
        Claim(
            "Batch 8, digits: a convolution's mean is worth more than a dense layer's",
            "worth",
            ("convolution, digits", 8),
            ("dense, digits", 8),
        ),
        Claim(
            "Batch 8, photographs: the same",
            "worth",
            ("convolution, photographs", 8),
            ("dense, digits", 8),
        ),
        Claim(
            "Batch 8: a value of a photograph is worth less than one of a dense layer",
            "share",
            ("convolution, photographs", 8),
            ("dense, digits", 8),
            less=True,
        ),
        Claim(
            "Batch 8: a norm for each channel is better than one for each place",
            "accuracy",
            ("convolution, digits", 8),
            ("convolution, a norm for each place", 8),
        ),
        Claim(
            "Batch 32: a norm for each channel is better than one for each place",
            "accuracy",
            ("convolution, digits", 32),
            ("convolution, a norm for each place", 32),
        ),
    ),
    panels=(
        Panel("worth", "samples of a batch", log_x=True, log_y=True),
        Panel("accuracy", "samples of a batch", log_x=True),
    ),
    maps=(("convolution, photographs", 8),),
)
