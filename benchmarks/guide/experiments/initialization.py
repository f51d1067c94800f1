"""How much does the scale of the first weights matter?"""

from __future__ import annotations

import torch
from torch import nn

from .. import data, networks
from ..experiment import Claim, Context, Experiment, Measured, Metric, Panel, Results, number
from ..training import training

SCALES = (0.01, 0.1, 1.0, 10.0)
NORMS = {"BatchNorm": networks.batch, "no norm": networks.none}


@torch.no_grad()
def scaled(model: nn.Module, scale: float) -> None:
    """Multiply the weights of all hidden layers."""
    for layer in [m for m in model.modules() if isinstance(m, nn.Linear)][:-1]:
        layer.weight.mul_(scale)


def measure(context: Context, norm: str, scale: float) -> Measured:
    """Train from weights of another scale."""
    of = data.digits(context.seed)
    with training(
        lambda: networks.mlp(NORMS[norm], depth=5),
        of,
        seed=context.seed,
        steps=context.steps(100),
        lr=0.05,
        before=lambda model: scaled(model, scale),
    ) as done:
        return Measured({"accuracy": done.accuracy}).keep(done)


def facts(r: Results) -> dict[str, str]:
    """The worst accuracy over the scales."""
    return {f"worst, {norm}": number(min(r.of(norm, scale, "accuracy").mean for scale in SCALES)) for norm in NORMS}


EXPERIMENT = Experiment(
    name="initialization",
    axis="scale of the weights",
    settings={(norm, scale): {"norm": norm, "scale": scale} for norm in NORMS for scale in SCALES},
    measure=measure,
    metrics=(Metric("accuracy", "held-out accuracy, %"),),
    claims=(
        *(
            Claim(
                f"Better with BatchNorm at {scale:g} times the scale",
                "accuracy",
                ("BatchNorm", scale),
                ("no norm", scale),
            )
            for scale in SCALES
        ),
        Claim(
            "With BatchNorm, ten times the scale is worse than the usual",
            "accuracy",
            ("BatchNorm", 1.0),
            ("BatchNorm", 10.0),
        ),
    ),
    panels=(Panel("accuracy", "scale of the first weights", log_x=True),),
    maps=(("BatchNorm", 10.0), ("no norm", 0.01)),
    facts=facts,
)
