"""What momentum of the running statistics does to evaluation."""

from __future__ import annotations

from functools import partial

import numpy as np
from torch import nn

from .. import data, networks
from ..experiment import Claim, Context, Experiment, Measured, Metric, Panel
from ..training import loss_of, predicted, training

MOMENTA = (0.001, 0.01, 0.1, 1.0)
RATES = (0.1, 0.01)


def measure(context: Context, momentum: float, rate: float) -> Measured:
    """Train, and evaluate on the way."""
    of = data.digits(context.seed)

    def evaluate(model: nn.Module) -> dict[str, float]:
        out = predicted(model, of.held_x)
        right = (out.argmax(1) == of.held_y).float().mean()
        return {"loss": float(loss_of(of)(out, of.held_y)), "accuracy": 100 * float(right)}

    with training(
        lambda: networks.cnn(partial(networks.batch, momentum=momentum)),
        of,
        seed=context.seed,
        steps=context.steps(120),
        lr=rate,
        batch=16,
        every=2 if context.tiny else 10,
        measure=evaluate,
    ) as done:
        points = done.seen["accuracy"]
        x, y = [float(step) for step, _ in points], [value for _, value in points]
        late = np.log([value for step, value in done.seen["loss"] if step >= x[-1] / 2])
        return Measured(
            {"early": dict(points).get(20, y[0]), "end": y[-1], "jitter": float(np.abs(np.diff(late)).mean())},
            {"accuracy": (x, y)},
        ).keep(done)


EXPERIMENT = Experiment(
    name="momentum",
    axis="momentum",
    settings={
        (f"rate {rate:g}", momentum): {"momentum": momentum, "rate": rate}
        for rate in RATES
        for momentum in MOMENTA
        if rate == 0.01 or momentum >= 0.1
    },
    measure=measure,
    metrics=(
        Metric("early", "accuracy after 20 steps, %"),
        Metric("end", "after 120 steps, %"),
        Metric("jitter", "jump of the log loss"),
    ),
    claims=(
        Claim("Rate 0.01, 120 steps: 0.1 is better than 0.001", "end", ("rate 0.01", 0.1), ("rate 0.01", 0.001)),
        Claim("Rate 0.01, 120 steps: 0.1 is better than 1", "end", ("rate 0.01", 0.1), ("rate 0.01", 1.0)),
        Claim("Rate 0.1, 120 steps: 0.1 is better than 1", "end", ("rate 0.1", 0.1), ("rate 0.1", 1.0)),
        Claim("Rate 0.01, 20 steps: 0.1 is better than 0.01", "early", ("rate 0.01", 0.1), ("rate 0.01", 0.01)),
        Claim(
            "Rate 0.01: evaluation jumps less at 0.1 than at 1",
            "jitter",
            ("rate 0.01", 0.1),
            ("rate 0.01", 1.0),
            less=True,
        ),
    ),
    panels=(
        Panel("end", "momentum", "accuracy after 120 steps, %", log_x=True),
        Panel(
            "accuracy",
            "step",
            "held-out accuracy, %",
            course=True,
            only=tuple(("rate 0.01", momentum) for momentum in MOMENTA),
            title="rate 0.01",
        ),
    ),
    maps=(("rate 0.01", 0.001), ("rate 0.01", 0.1)),
)
