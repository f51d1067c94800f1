"""What happens to the gradient on its way through the layers?"""

from __future__ import annotations

import math

from torch import nn

from .. import data, networks
from ..experiment import Claim, Context, Experiment, Measured, Metric, Panel, Results, number
from ..training import loss_of, training

DEPTH = 20
KINDS = {
    "BatchNorm": (networks.batch, False),
    "no norm, default weights": (networks.none, False),
    "no norm, He weights": (networks.none, True),
}


def initialized(model: nn.Module) -> None:
    """Give weights their variance by He et al. (2015)."""
    for layer in model.modules():
        if isinstance(layer, nn.Linear):
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
            nn.init.zeros_(layer.bias)


def norms(model: nn.Sequential, of: data.Data) -> list[float]:
    """Norm of the loss's gradient by the output of each hidden dense layer, from the first to the last."""
    model.train()
    outputs, x = [], of.x[:64]
    for part in model:
        x = part(x)
        if isinstance(part, nn.Linear) and part is not model[-1]:
            x.retain_grad()
            outputs.append(x)
    loss_of(of)(x, of.y[:64]).backward()
    found = [float(out.grad.norm()) for out in outputs]
    model.zero_grad()
    return found


def per_layer(found: list[float]) -> float:
    """By how much the gradient grows from one layer to the one before it, on average."""
    return (found[0] / found[-1]) ** (1 / (len(found) - 1)) if found[-1] > 0 and found[0] > 0 else math.nan


def measure(context: Context, kind: str) -> Measured:
    """Measure at the start and after some steps."""
    norm, he = KINDS[kind]
    of, start = data.digits(context.seed), []

    def before(model: nn.Module) -> None:
        if he:
            initialized(model)
        state = {name: value.clone() for name, value in model.state_dict().items()}
        start.extend(norms(model, of))  # type: ignore[arg-type]
        model.load_state_dict(state)

    with training(
        lambda: networks.mlp(norm, depth=DEPTH), of, seed=context.seed, steps=context.steps(60), lr=0.01, before=before
    ) as done:
        end = norms(done.model, of)  # type: ignore[arg-type]
        places = [float(n) for n in range(1, DEPTH + 1)]
        return Measured(
            {"start": per_layer(start), "end": per_layer(end), "accuracy": done.accuracy},
            {"at_start": (places, start), "at_end": (places, end)},
        ).keep(done)


def facts(r: Results) -> dict[str, str]:
    """By how much the first layer's gradient exceeds the last one's."""
    return {"times": number(r.of("BatchNorm", "", "start").mean ** (DEPTH - 1), 2), "depth": str(DEPTH)}


EXPERIMENT = Experiment(
    name="gradient-norms",
    axis="",
    settings={(kind, ""): {"kind": kind} for kind in KINDS},
    measure=measure,
    metrics=(
        Metric("start", "factor per layer, at the start", log=True),
        Metric("end", "factor per layer, after 60 steps", log=True),
        Metric("accuracy", "held-out accuracy, %"),
    ),
    claims=(
        Claim(
            "Gradients vanish less with BatchNorm than with default weights",
            "start",
            ("BatchNorm", ""),
            ("no norm, default weights", ""),
        ),
        Claim(
            "With BatchNorm they are as level as with He's weights, or more",
            "start",
            ("BatchNorm", ""),
            ("no norm, He weights", ""),
            less=True,
        ),
        Claim(
            "Training levels the gradients of BatchNorm",
            "end",
            ("BatchNorm", ""),
            ("no norm, He weights", ""),
            less=True,
        ),
        Claim("Better accuracy than with He's weights", "accuracy", ("BatchNorm", ""), ("no norm, He weights", "")),
    ),
    panels=(
        Panel("at_start", "layer", "gradient norm", course=True, log_y=True, title="at the start"),
        Panel("at_end", "layer", "gradient norm", course=True, log_y=True, title="after 60 steps"),
    ),
    maps=(("BatchNorm", ""),),
    facts=facts,
)
