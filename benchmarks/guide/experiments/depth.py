"""How deep can a network without shortcuts be?"""

from __future__ import annotations

from .. import data, networks
from ..experiment import Claim, Context, Experiment, Measured, Metric, Panel
from ..training import training

DEPTHS = (2, 10, 30)
NORMS = {"BatchNorm": networks.batch, "no norm": networks.none}


def measure(context: Context, norm: str, depth: int) -> Measured:
    """Train a stack of dense layers."""
    of = data.digits(context.seed)
    with training(
        lambda: networks.mlp(NORMS[norm], depth=depth, width=32),
        of,
        seed=context.seed,
        steps=context.steps(100),
        lr=0.03,
    ) as done:
        return Measured({"accuracy": done.accuracy, "loss": done.final_loss}).keep(done)


EXPERIMENT = Experiment(
    name="depth",
    axis="hidden layers",
    settings={(norm, depth): {"norm": norm, "depth": depth} for norm in NORMS for depth in DEPTHS},
    measure=measure,
    metrics=(Metric("accuracy", "held-out accuracy, %"), Metric("loss", "training loss at the end")),
    claims=(
        *(
            Claim(f"Better with BatchNorm at {depth} layers", "accuracy", ("BatchNorm", depth), ("no norm", depth))
            for depth in DEPTHS
        ),
        Claim("With BatchNorm, 30 layers are worse than 2", "accuracy", ("BatchNorm", 2), ("BatchNorm", 30)),
    ),
    panels=(Panel("accuracy", "hidden layers", log_x=True),),
    maps=(("BatchNorm", 30), ("no norm", 30)),
)
