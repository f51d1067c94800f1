"""Is the noise of small batches a regularizer?"""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor, nn

from .. import data, networks
from ..experiment import Claim, Context, Experiment, Measured, Metric, Panel, Results
from ..training import loss_of, predicted, training

GROUPS = (8, 32, 128)
SAMPLES = 256


@torch.no_grad()
def noise(model: nn.Sequential, x: Tensor, group: int) -> float:
    """Spread of the group means of the first norm's input around the mean of all, in deviations, median channel."""
    before = model[:2](x)
    means = torch.stack([part.mean(0) for part in before.split(group) if len(part) == group])
    spread: Tensor = (means - before.mean(0)).square().mean(0).sqrt() / before.std(0)
    return float(spread.median())


def measure(context: Context, group: int) -> Measured:
    """Train long on few samples, normalized over groups of the batch."""
    of = data.digits(context.seed).first(SAMPLES)
    norm = partial(networks.Ghost, group=group) if group else networks.none
    with training(
        lambda: networks.mlp(norm), of, seed=context.seed, steps=context.steps(100), lr=0.1, batch=128
    ) as done:
        out = predicted(done.model, of.held_x)
        return Measured(
            {
                "accuracy": done.accuracy,
                "held_loss": float(loss_of(of)(out, of.held_y)),
                "train_loss": done.final_loss,
                "noise": noise(done.model, data.digits(context.seed).x, group) if group else 0.0,  # type: ignore[arg-type]
            }
        ).keep(done)


def facts(r: Results) -> dict[str, str]:
    """The size of a group with the lowest held-out loss."""
    return {"best": str(min(GROUPS, key=lambda group: r.of("BatchNorm", group, "held_loss").mean))}


EXPERIMENT = Experiment(
    name="regularization",
    axis="samples of a group",
    settings={
        **{("BatchNorm", group): {"group": group} for group in GROUPS},
        ("no norm", 0): {"group": 0},
    },
    measure=measure,
    metrics=(
        Metric("accuracy", "held-out accuracy, %"),
        Metric("held_loss", "held-out loss"),
        Metric("train_loss", "training loss at the end", log=True),
        Metric("noise", "noise of a group's mean, σ"),
    ),
    claims=(
        Claim(
            "The fit is worse in groups of 8 than in one of 128",
            "train_loss",
            ("BatchNorm", 128),
            ("BatchNorm", 8),
            less=True,
        ),
        Claim(
            "Groups of 32 have a lower held-out loss than one of 128",
            "held_loss",
            ("BatchNorm", 32),
            ("BatchNorm", 128),
            less=True,
        ),
        Claim(
            "Groups of 8 have a higher held-out accuracy than one of 128",
            "accuracy",
            ("BatchNorm", 8),
            ("BatchNorm", 128),
        ),
        Claim("One group of 128 generalizes better than no norm", "accuracy", ("BatchNorm", 128), ("no norm", 0)),
    ),
    panels=(
        Panel("held_loss", "samples of a group", log_x=True, only=("BatchNorm",)),
        Panel("train_loss", "samples of a group", log_x=True, log_y=True, only=("BatchNorm",)),
    ),
    maps=(("BatchNorm", 8),),
    facts=facts,
)
