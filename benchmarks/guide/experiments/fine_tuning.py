"""What to do with the statistics in fine-tuning."""

from __future__ import annotations

import copy
import warnings
from functools import cache

import torch
from torch import nn

from bnmonitor.remedies import freeze, recalibrate

from .. import data, networks
from ..experiment import Claim, Context, Experiment, Measured, Metric, Panel
from ..training import accuracy, training

RATE, HEAD_RATE, HIGH = 0.0005, 0.02, 0.01
"""Learning rates of the whole network, of the head alone, and one that is twenty times higher."""
WAYS = {
    "as it is": 0.0,
    "statistics only": 0.0,
    "updated": RATE,
    "frozen": RATE,
    "re-estimated": RATE,
    "updated, rate 0.01": HIGH,
    "re-estimated, rate 0.01": HIGH,
    "head only, frozen": HEAD_RATE,
    "head only, leaking": HEAD_RATE,
}
FEW = 64


@cache
def pretrained(seed: int, steps: int) -> nn.Module:
    """A network that knows the digits as they are."""
    with training(lambda: networks.cnn(networks.batch), data.digits(seed), seed=seed, steps=steps, lr=0.05) as done:
        return done.model


def measure(context: Context, way: str, size: int) -> Measured:
    """Fine-tune on few digits that are brighter and have less contrast."""
    source = data.digits(context.seed)
    target = source.changed(0.4, 1.5)
    few = target.first(FEW)
    model = copy.deepcopy(pretrained(context.seed, context.steps(100)))
    kept = copy.deepcopy(model[-1])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if way.startswith(("statistics only", "re-estimated")):
            recalibrate(model, list(few.x.split(16)), progress=False)
        if way.startswith("head only"):
            model[:-1].requires_grad_(False)
        if way.startswith(("frozen", "re-estimated", "head only, frozen")):
            freeze(model)
    if not WAYS[way]:
        return Measured({"target": accuracy(model, target.held_x, target.held_y), "source": _of(model, source)})
    with training(lambda: model, few, seed=context.seed, steps=context.steps(100), lr=WAYS[way], batch=size) as done:
        found = {"target": accuracy(done.model, target.held_x, target.held_y)}
        if way.startswith("head only"):
            done.model[-1] = kept
        return Measured({**found, "source": _of(done.model, source)}).keep(done)


@torch.no_grad()
def _of(model: nn.Module, of: data.Data) -> float:
    return accuracy(model, of.held_x, of.held_y)


EXPERIMENT = Experiment(
    name="fine-tuning",
    axis="batch",
    settings={
        (way, size): {"way": way, "size": size}
        for way in WAYS
        for size in (2, 8)
        if size == 8 or way in ("updated", "frozen", "re-estimated")
    },
    measure=measure,
    metrics=(Metric("target", "accuracy on the new digits, %"), Metric("source", "on the old ones, %")),
    claims=(
        Claim("Batch 8: updating is better than freezing the old statistics", "target", ("updated", 8), ("frozen", 8)),
        Claim(
            "New statistics without any training are better than training with the old ones",
            "target",
            ("statistics only", 8),
            ("frozen", 8),
        ),
        Claim("Batch 2: re-estimating is better than updating", "target", ("re-estimated", 2), ("updated", 2)),
        Claim(
            "At twenty times the rate, statistics that are frozen are worse than updated ones",
            "target",
            ("updated, rate 0.01", 8),
            ("re-estimated, rate 0.01", 8),
        ),
        Claim("A leaking freeze forgets the old digits", "source", ("head only, frozen", 8), ("head only, leaking", 8)),
        Claim(
            "A leaking freeze is better on the new digits",
            "target",
            ("head only, leaking", 8),
            ("head only, frozen", 8),
        ),
    ),
    panels=(
        Panel("target", "samples of a batch", log_x=True, only=("updated", "frozen", "re-estimated")),
        Panel("source", "samples of a batch", log_x=True, only=("updated", "head only, frozen", "head only, leaking")),
    ),
    maps=(("head only, leaking", 8),),
)
