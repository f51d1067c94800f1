"""What momentum of the running statistics does to evaluation."""

from __future__ import annotations

from functools import partial

import numpy as np
from torch import nn

from .. import data, networks
from ..experiment import Claim, Context, Experiment, Measured, Metric, Panel
from ..training import accuracy, loss_of, predicted, training

MOMENTA = (0.001, 0.01, 0.1, 1.0)


def measure(context: Context, momentum: float) -> Measured:
    """Train, and evaluate on the way."""
    of = data.digits(context.seed)

    def evaluate(model: nn.Module) -> dict[str, float]:
        out = predicted(model, of.held_x)
        return {
            "loss": float(loss_of(of)(out, of.held_y)),
            "accuracy": accuracy(model, of.held_x, of.held_y),
        }

    every = 2 if context.tiny else 4
    with training(
        lambda: networks.cnn(partial(networks.batch, momentum=momentum)),
        of,
        seed=context.seed,
        steps=context.steps(100),
        batch=16,
        every=every,
        measure=evaluate,
    ) as done:
        points = done.seen["accuracy"]
        x, y = [float(step) for step, _ in points], [value for _, value in points]
        late = np.log([value for step, value in done.seen["loss"] if step > x[-1] / 2])
        return Measured(
            {"early": dict(points).get(20, y[0]), "end": y[-1], "jitter": float(np.abs(np.diff(late)).mean())},
            {"accuracy": (x, y)},
        ).keep(done)


EXPERIMENT = Experiment(
    name="momentum",
    axis="momentum",
    settings={("BatchNorm", momentum): {"momentum": momentum} for momentum in MOMENTA},
    measure=measure,
    metrics=(
        Metric("early", "accuracy after 20 steps, %"),
        Metric("end", "accuracy after 100 steps, %"),
        Metric("jitter", "jump of the log loss"),
    ),
    claims=(
        Claim("After 20 steps 0.1 is better than 0.001", "early", ("BatchNorm", 0.1), ("BatchNorm", 0.001)),
        Claim("After 100 steps 0.1 is better than 0.001", "end", ("BatchNorm", 0.1), ("BatchNorm", 0.001)),
        Claim("After 100 steps 0.1 is better than 1", "end", ("BatchNorm", 0.1), ("BatchNorm", 1.0)),
        Claim("Evaluation jumps less at 0.1 than at 1", "jitter", ("BatchNorm", 0.1), ("BatchNorm", 1.0), less=True),
        Claim(
            "Evaluation jumps less at 0.01 than at 0.1", "jitter", ("BatchNorm", 0.01), ("BatchNorm", 0.1), less=True
        ),
    ),
    panels=(
        Panel(
            "accuracy",
            "step",
            "held-out accuracy, %",
            course=True,
            only=(("BatchNorm", 0.001), ("BatchNorm", 0.01), ("BatchNorm", 0.1), ("BatchNorm", 1.0)),
        ),
        Panel("jitter", "momentum", log_x=True),
    ),
    maps=(("BatchNorm", 0.001),),
)
