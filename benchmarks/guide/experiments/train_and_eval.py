"""Training mode against evaluation mode."""

from __future__ import annotations

import copy

import torch
from torch import nn

from .. import data, networks
from ..experiment import Claim, Context, Experiment, Measured, Metric, Panel
from ..training import accuracy, training

RATES = (0.1, 1.0)
AT = 10


@torch.no_grad()
def in_training_mode(model: nn.Module, x: torch.Tensor, y: torch.Tensor, size: int) -> float:
    """Accuracy when each batch is normalized by its own statistics, in percent; of a copy, whose buffers may move."""
    other = copy.deepcopy(model).train()
    right = [(other(part).argmax(1) == y[i * size : i * size + size]).float() for i, part in enumerate(x.split(size))]
    return 100 * torch.cat(right).mean().item()


def measure(context: Context, rate: float, shifted: bool) -> Measured:
    """Train, and judge held-out digits in both modes."""
    of = data.digits(context.seed)
    seen = of.changed(0.6, 0.8) if shifted else of

    def both(model: nn.Module) -> dict[str, float]:
        return {
            "training": in_training_mode(model, seen.held_x, seen.held_y, 64),
            "evaluation": accuracy(model, seen.held_x, seen.held_y),
        }

    with training(
        lambda: networks.cnn(networks.batch),
        of,
        seed=context.seed,
        steps=context.steps(100),
        lr=rate,
        every=AT,
        measure=both,
    ) as done:
        parts = {mode: [value for _, value in done.seen[mode]] for mode in ("training", "evaluation")}
        x = [float(step) for step, _ in done.seen["training"]]
        gap = [a - b for a, b in zip(parts["training"], parts["evaluation"], strict=True)]
        return Measured(
            {
                "early": gap[0],
                "late": gap[-1],
                "training": parts["training"][-1],
                "evaluation": parts["evaluation"][-1],
            },
            {"gap": (x, gap)},
        ).keep(done)


EXPERIMENT = Experiment(
    name="train-and-eval",
    axis="rate",
    settings={
        (name, rate): {"rate": rate, "shifted": shifted}
        for name, shifted in (("same data", False), ("changed data", True))
        for rate in RATES
    },
    measure=measure,
    metrics=(
        Metric("early", f"gap after {AT} steps, points"),
        Metric("late", "gap after 100 steps, points"),
        Metric("training", "accuracy in training mode, %"),
        Metric("evaluation", "in evaluation mode, %"),
    ),
    claims=(
        Claim(
            "The gap at a rate of 1 is larger than at 0.1, at the end",
            "late",
            ("same data", 1.0),
            ("same data", 0.1),
        ),
        Claim("The gap is larger on changed data", "late", ("changed data", 0.1), ("same data", 0.1)),
        Claim(
            "Early on, the gap is larger at a rate of 1",
            "early",
            ("same data", 1.0),
            ("same data", 0.1),
        ),
        Claim(
            "On the same data, evaluation at a rate of 0.1 is better than at 1",
            "evaluation",
            ("same data", 0.1),
            ("same data", 1.0),
        ),
    ),
    panels=(Panel("gap", "step", "training − evaluation, points", course=True),),
    maps=(("same data", 0.1), ("same data", 1.0)),
)
