"""How small may a batch be, and what is better then?"""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

from .. import data, networks
from ..experiment import Claim, Context, Experiment, Measured, Metric, Panel
from ..training import training

SIZES = (2, 4, 32)
EPOCHS = 3
NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "MLP, BatchNorm": lambda: networks.mlp(networks.batch),
    "MLP, GroupNorm": lambda: networks.mlp(networks.group),
    "MLP, LayerNorm": lambda: networks.mlp(networks.layer),
    "CNN, BatchNorm": lambda: networks.cnn(networks.batch),
    "CNN, GroupNorm": lambda: networks.cnn(networks.group),
}


def measure(context: Context, network: str, size: int) -> Measured:
    """Train for as many samples in batches of this size."""
    of = data.digits(context.seed).first(500)
    steps = context.steps(EPOCHS * len(of.x) // size)
    with training(NETWORKS[network], of, seed=context.seed, steps=steps, lr=0.1 * size / 32, batch=size) as done:
        return Measured({"accuracy": done.accuracy, "loss": done.final_loss}).keep(done)


EXPERIMENT = Experiment(
    name="batch-size",
    axis="batch",
    settings={
        (network, size): {"network": network, "size": size}
        for network in NETWORKS
        for size in SIZES
        if size == 2 or network.endswith("BatchNorm") or (size == 32 and network.startswith("MLP"))
        if size != 4 or network.startswith("MLP")
    },
    measure=measure,
    metrics=(Metric("accuracy", "held-out accuracy, %"), Metric("loss", "training loss at the end", log=True)),
    claims=(
        Claim(
            "MLP: BatchNorm at 2 samples is worse than at 32", "accuracy", ("MLP, BatchNorm", 32), ("MLP, BatchNorm", 2)
        ),
        Claim(
            "MLP: BatchNorm at 4 samples is worse than at 32", "accuracy", ("MLP, BatchNorm", 32), ("MLP, BatchNorm", 4)
        ),
        Claim("MLP, 2 samples: GroupNorm is better", "accuracy", ("MLP, GroupNorm", 2), ("MLP, BatchNorm", 2)),
        Claim("MLP, 2 samples: LayerNorm is better", "accuracy", ("MLP, LayerNorm", 2), ("MLP, BatchNorm", 2)),
        Claim(
            "MLP, 32 samples: BatchNorm is better than GroupNorm",
            "accuracy",
            ("MLP, BatchNorm", 32),
            ("MLP, GroupNorm", 32),
        ),
        Claim(
            "CNN: BatchNorm at 2 samples is worse than at 32", "accuracy", ("CNN, BatchNorm", 32), ("CNN, BatchNorm", 2)
        ),
        Claim("CNN, 2 samples: GroupNorm is better", "accuracy", ("CNN, GroupNorm", 2), ("CNN, BatchNorm", 2)),
    ),
    panels=(Panel("accuracy", "samples of a batch", log_x=True),),
    maps=(("MLP, BatchNorm", 2), ("MLP, BatchNorm", 32)),
)
