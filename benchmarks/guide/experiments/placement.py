"""Before or after the ReLU?"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

from .. import data, networks
from ..experiment import Claim, Context, Experiment, Measured, Metric, Panel
from ..training import training

RATES = (0.1, 1.0)
NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "plain, before": lambda: networks.cnn(networks.batch),
    "plain, after": lambda: networks.cnn(networks.batch, order="after"),
    "plain, no norm": lambda: networks.cnn(networks.none),
    "residual, before": lambda: networks.residual(networks.batch),
    "residual, after": lambda: networks.residual(networks.batch, order="after"),
    "residual, preactivation": lambda: networks.residual(networks.batch, order="preactivation"),
}


@torch.no_grad()
def dead(model: nn.Module, x: torch.Tensor) -> float:
    """Share of the channels of all ReLUs that are zero for every sample, in percent."""
    found: list[torch.Tensor] = []
    hooks = [
        part.register_forward_hook(lambda part, given, out: found.append(out.transpose(0, 1).flatten(1).amax(1) <= 0))
        for part in model.modules()
        if isinstance(part, nn.ReLU)
    ]
    model.eval()(x)
    for hook in hooks:
        hook.remove()
    return 100 * torch.cat(found).float().mean().item()


def measure(context: Context, network: str, rate: float) -> Measured:
    """Train, and count dead channels."""
    of = data.digits(context.seed)
    with training(NETWORKS[network], of, seed=context.seed, steps=context.steps(100), lr=rate) as done:
        return Measured({"accuracy": done.accuracy, "dead": dead(done.model, of.x)}).keep(done)


EXPERIMENT = Experiment(
    name="placement",
    axis="rate",
    settings={(network, rate): {"network": network, "rate": rate} for network in NETWORKS for rate in RATES},
    measure=measure,
    metrics=(Metric("accuracy", "held-out accuracy, %"), Metric("dead", "dead channels, %")),
    claims=(
        Claim(
            "Plain, rate 0.1: before is better than after",
            "accuracy",
            ("plain, before", 0.1),
            ("plain, after", 0.1),
        ),
        Claim(
            "Residual, rate 0.1: preactivation is better than before",
            "accuracy",
            ("residual, preactivation", 0.1),
            ("residual, before", 0.1),
        ),
        Claim(
            "Residual, rate 1: preactivation is better than before",
            "accuracy",
            ("residual, preactivation", 1.0),
            ("residual, before", 1.0),
        ),
        Claim(
            "Plain, rate 1: fewer dead channels with the norm before than after",
            "dead",
            ("plain, before", 1.0),
            ("plain, after", 1.0),
            less=True,
        ),
        Claim(
            "Plain, rate 1: fewer dead channels with the norm before than without",
            "dead",
            ("plain, before", 1.0),
            ("plain, no norm", 1.0),
            less=True,
        ),
    ),
    panels=(
        Panel("accuracy", "learning rate", log_x=True),
        Panel("dead", "learning rate", log_x=True),
    ),
    maps=(("plain, before", 1.0),),
)
