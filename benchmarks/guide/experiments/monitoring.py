"""What the batch statistics tell of the architecture and the learning rate."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import nn

from .. import data, networks
from ..experiment import Claim, Context, Experiment, Measured, Metric, Panel, Results
from ..training import training


def _same(model: nn.Module) -> None:
    pass


@torch.no_grad()
def _constant(model: nn.Module) -> None:
    for layer in model.modules():
        if isinstance(layer, nn.Conv2d):
            layer.weight.fill_(0.1)


@torch.no_grad()
def _negative(model: nn.Module) -> None:
    for layer in model.modules():
        if isinstance(layer, nn.BatchNorm1d):
            layer.bias.fill_(-4.0)


FAULTS: dict[str, tuple[float, float, float, int, Callable[[nn.Module], None]]] = {
    "none": (0.05, 1.0, 0.0, 64, _same),
    "learning rate 30": (30.0, 1.0, 0.0, 64, _same),
    "input not standardized": (0.05, 40.0, 400.0, 64, _same),
    "constant weights": (0.05, 1.0, 0.0, 64, _constant),
    "beta of −4": (0.05, 1.0, 0.0, 64, _negative),
    "batches of 2": (0.05 / 32, 1.0, 0.0, 2, _same),
}
"""The rate, a factor and a shift of the input, the batch, and what is done to the network."""


def measure(context: Context, fault: str, network: str) -> Measured:
    """Train with the fault."""
    rate, scale, shift, batch, change = FAULTS[fault]
    of = data.digits(context.seed).changed(scale, shift)
    make = (lambda: networks.cnn(networks.batch)) if network == "CNN" else (lambda: networks.mlp(networks.batch))
    with training(make, of, seed=context.seed, steps=context.steps(100), lr=rate, batch=batch, before=change) as done:
        first, last = done.run.layers[0], done.run.layers[-1]
        offset = []
        for layer in (first, last):
            means, variances = (done.run.history(layer, name)[1] for name in ("batch_mean", "batch_var"))
            with np.errstate(all="ignore"):
                offset.append(float(np.nanmedian(np.abs(means[-10:]) / np.sqrt(variances[-10:] + 1e-5))))
        with np.errstate(all="ignore"):
            end = float(np.nanmedian(variances[-10:]))
        kept = Measured({"variance": end, "offset": offset[0], "accuracy": done.accuracy}).keep(done)
        kept.values["named"] = float(bool(kept.causes))
        return kept


def facts(r: Results) -> dict[str, str]:
    """In how many trainings with a fault, and without, bnmonitor opened an incident."""
    named = {key: sum(r.values(key, "named")) for key in r.experiment.settings}
    sound = [key for key in named if key[1] == "none"]
    return {
        "faulty": str((len(named) - len(sound)) * r.seeds),
        "named": f"{sum(times for key, times in named.items() if key not in sound):.0f}",
        "sound": str(len(sound) * r.seeds),
        "alarms": f"{sum(named[key] for key in sound):.0f}",
    }


EXPERIMENT = Experiment(
    name="monitoring",
    axis="fault",
    settings={
        (network, fault): {"fault": fault, "network": network}
        for network, faults in (
            ("CNN", tuple(FAULTS)),
            ("MLP", ("none", "learning rate 30")),
        )
        for fault in faults
    },
    measure=measure,
    metrics=(
        Metric("variance", "batch variance, last norm", log=True),
        Metric("offset", "mean, first norm, σ"),
        Metric("accuracy", "held-out accuracy, %"),
    ),
    claims=(
        Claim(
            "CNN: a learning rate of 30 shows in the variance", "variance", ("CNN", "learning rate 30"), ("CNN", "none")
        ),
        Claim(
            "CNN: inputs that are not standardized show in the mean",
            "offset",
            ("CNN", "input not standardized"),
            ("CNN", "none"),
        ),
        Claim("CNN: constant weights cost accuracy", "accuracy", ("CNN", "none"), ("CNN", "constant weights")),
        Claim(
            "CNN: inputs that are not standardized cost accuracy",
            "accuracy",
            ("CNN", "none"),
            ("CNN", "input not standardized"),
        ),
    ),
    panels=(Panel("variance", "", log_y=True, only=("CNN",)), Panel("offset", "", only=("CNN",))),
    maps=(("CNN", "none"), ("CNN", "learning rate 30")),
    facts=facts,
)
