"""Running averages against precise statistics."""

from __future__ import annotations

import copy
import warnings

from torch import nn

from bnmonitor.remedies import recalibrate

from .. import data, networks
from ..experiment import Claim, Context, Experiment, Measured, Metric, Panel
from ..training import loss_of, predicted, training

RATES = (0.05, 0.5)
MANY = (32, 256, 1024)
EVERY = 20


def measure(context: Context, rate: float, momentum: float) -> Measured:
    """Train, and evaluate with the running averages and with statistics for the weights as they are."""
    of = data.digits(context.seed)

    def loss(model: nn.Module) -> float:
        return float(loss_of(of)(predicted(model, of.held_x), of.held_y))

    def both(model: nn.Module) -> dict[str, float]:
        found = {"ema": loss(model)}
        for samples in MANY:
            other = copy.deepcopy(model)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                recalibrate(other, [of.x[:samples]], progress=False)
            found[f"precise_{samples}"] = loss(other)
        return found

    with training(
        lambda: networks.cnn(lambda channels: networks.batch(channels, momentum=momentum)),
        of,
        seed=context.seed,
        steps=context.steps(100),
        lr=rate,
        every=6 if context.tiny else EVERY,
        measure=both,
    ) as done:
        x = [float(step) for step, _ in done.seen["ema"]]
        courses = {name: (x, [value for _, value in points]) for name, points in done.seen.items()}
        at = {"early": 0, "late": -1}
        values = {
            f"{name}_{when}": courses[name][1][place] for when, place in at.items() for name in ("ema", *_precise())
        }
        return Measured(
            {**values, **{f"gap_{when}": values[f"ema_{when}"] / values[f"precise_1024_{when}"] for when in at}},
            courses,
        ).keep(done)


def _precise() -> tuple[str, ...]:
    return tuple(f"precise_{samples}" for samples in MANY)


EXPERIMENT = Experiment(
    name="precise-statistics",
    axis="rate",
    settings={
        (f"momentum {momentum:g}", rate): {"rate": rate, "momentum": momentum}
        for momentum in (0.1, 0.01)
        for rate in RATES
    },
    measure=measure,
    metrics=(
        Metric("gap_early", "loss, running / precise, after 20 steps", log=True),
        Metric("gap_late", "after 100 steps", log=True),
        Metric("ema_early", "loss, running, after 20 steps", log=True),
        Metric("precise_32_early", "precise of 32", log=True),
        Metric("precise_256_early", "precise of 256", log=True),
        Metric("precise_1024_early", "precise of 1,024", log=True),
    ),
    claims=(
        Claim(
            "Early, the gap is larger at a rate of 0.5 than at 0.05",
            "gap_early",
            ("momentum 0.1", 0.5),
            ("momentum 0.1", 0.05),
        ),
        Claim(
            "Rate 0.5, early: precise statistics have a lower loss than running ones",
            "precise_1024_early",
            ("momentum 0.1", 0.5),
            ("momentum 0.1", 0.5),
            less=True,
            against="ema_early",
        ),
        Claim(
            "Rate 0.5, late: the same",
            "precise_1024_late",
            ("momentum 0.1", 0.5),
            ("momentum 0.1", 0.5),
            less=True,
            against="ema_late",
        ),
        Claim(
            "Rate 0.5: the gap is smaller after 100 steps than after 20",
            "gap_late",
            ("momentum 0.1", 0.5),
            ("momentum 0.1", 0.5),
            less=True,
            against="gap_early",
        ),
        Claim(
            "Rate 0.5, early: 256 samples are better than 32",
            "precise_256_early",
            ("momentum 0.1", 0.5),
            ("momentum 0.1", 0.5),
            less=True,
            against="precise_32_early",
        ),
        Claim(
            "Rate 0.05, early: the gap is larger with a momentum of 0.01",
            "gap_early",
            ("momentum 0.01", 0.05),
            ("momentum 0.1", 0.05),
        ),
        Claim(
            "Rate 0.05, late: the gap is larger with a momentum of 0.01",
            "gap_late",
            ("momentum 0.01", 0.05),
            ("momentum 0.1", 0.05),
        ),
    ),
    panels=(
        Panel(
            "ema",
            "step",
            "held-out loss",
            course=True,
            log_y=True,
            title="rate 0.5, momentum 0.1",
            only=(("momentum 0.1", 0.5),),
        ),
        Panel("gap_early", "learning rate", log_x=True, log_y=True),
    ),
    maps=(("momentum 0.1", 0.5),),
)
