"""Does a network with BatchNorm train in fewer steps?"""

from __future__ import annotations

import math

from .. import data, networks
from ..experiment import Claim, Context, Experiment, Measured, Metric, Panel
from ..training import predicted, steps_to, training

TASKS = {
    "digits, CNN": (0.3, lambda seed: data.digits(seed), lambda norm, d: networks.cnn(norm)),
    "digits, MLP": (0.3, lambda seed: data.digits(seed), lambda norm, d: networks.mlp(norm)),
    "breast cancer": (0.1, lambda seed: data.table("breast_cancer", seed), lambda norm, d: _dense(norm, d)),
    "diabetes": (0.4, lambda seed: data.table("diabetes", seed), lambda norm, d: _dense(norm, d)),
}
"""The loss that is to be reached, the data and the network."""
RATES = (0.1, 0.5)
STEPS = 120


def _dense(norm: networks.Norm, of: data.Data) -> object:
    return networks.mlp(norm, width=32, inputs=of.x.shape[1], outputs=of.classes or 1)


def _score(model: object, of: data.Data) -> float:
    out = predicted(model, of.held_x)  # type: ignore[arg-type]
    if of.classes:
        return 100 * (out.argmax(1) == of.held_y).float().mean().item()
    return 100 * (1 - (out.squeeze(1) - of.held_y).square().mean() / of.held_y.var()).item()


def measure(context: Context, task: str, norm: networks.Norm) -> Measured:
    """Train at two rates."""
    goal, load, make = TASKS[task]
    of, kept = load(context.seed), Measured({})
    steps: dict[float, int] = {}
    ends: dict[float, tuple[float, float]] = {}
    for rate in RATES[:1] if context.tiny else RATES:
        batch = min(64, len(of.x) // 2)
        with training(
            lambda: make(norm, of), of, seed=context.seed, steps=context.steps(STEPS), lr=rate, batch=batch
        ) as done:
            steps[rate] = steps_to(done.loss, goal)
            ends[rate] = (done.final_loss if math.isfinite(done.final_loss) else math.inf, _score(done.model, of))
            if rate == 0.1:
                kept.courses["loss"] = ([float(s) for s in done.run.steps], [float(v) for v in done.run.loss])
                kept.keep(done)
    kept.values = {"steps": steps[0.1], "steps_best": min(steps.values()), "score": min(ends.values())[1]}
    return kept


NORMS = {"BatchNorm": networks.batch, "no norm": networks.none}
SETTINGS = {(name, task): {"task": task, "norm": norm} for task in TASKS for name, norm in NORMS.items()}


EXPERIMENT = Experiment(
    name="training-speed",
    axis="task",
    settings=SETTINGS,
    measure=measure,
    metrics=(
        Metric("steps", "steps, rate 0.1", digits=2),
        Metric("steps_best", "steps, better of two rates", digits=2),
        Metric("score", "held-out accuracy (diabetes: R²), %"),
    ),
    claims=(
        *(
            Claim(f"{task}: fewer steps at the same rate", "steps", ("BatchNorm", task), ("no norm", task), less=True)
            for task in TASKS
        ),
        *(
            Claim(
                f"{task}: fewer steps, each at its better rate",
                "steps_best",
                ("BatchNorm", task),
                ("no norm", task),
                less=True,
            )
            for task in TASKS
        ),
    ),
    panels=(
        Panel(
            "loss",
            "step",
            "training loss",
            course=True,
            log_y=True,
            title="digits, CNN, rate 0.1",
            only=(("BatchNorm", "digits, CNN"), ("no norm", "digits, CNN")),
        ),
        Panel("steps_best", "", "steps to the loss", title="each at its better rate"),
    ),
    maps=(("BatchNorm", "digits, CNN"),),
)
