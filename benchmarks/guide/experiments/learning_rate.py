"""How high can the learning rate be?"""

from __future__ import annotations

from .. import data, networks
from ..experiment import Claim, Context, Experiment, Measured, Metric, Panel, Results
from ..training import training

RATES = (0.01, 0.1, 1.0, 3.0, 10.0)
NETWORKS = {
    "CNN, BatchNorm": lambda: networks.cnn(networks.batch),
    "CNN, no norm": lambda: networks.cnn(networks.none),
    "MLP, BatchNorm": lambda: networks.mlp(networks.batch),
    "MLP, no norm": lambda: networks.mlp(networks.none),
}
ENOUGH = 80.0
"""The accuracy of a network that trained."""
LOST = 50.0
"""Below it, a training is lost."""


def measure(context: Context, network: str, rate: float) -> Measured:
    """Train at the rate."""
    of = data.digits(context.seed)
    with training(NETWORKS[network], of, seed=context.seed, steps=context.steps(100), lr=rate) as done:
        return Measured({"accuracy": done.accuracy}).keep(done)


def facts(r: Results) -> dict[str, str]:
    """The highest rate at which every seed of a network trained, and what was said of those that were lost."""
    lost = [(n, x) for n in NETWORKS if "Batch" in n for x in RATES for v in r.values((n, x), "accuracy") if v < LOST]
    named = sum(r.causes(key)["learning-rate-too-high"] for key in dict.fromkeys(lost))
    # Rates are raised until a seed fails; a network may fail at the lowest ones because they are too low.
    highest = {n: max((x for x in RATES if min(r.values((n, x), "accuracy")) >= ENOUGH), default=0.0) for n in NETWORKS}
    return {
        **{f"reach, {n}": f"up to a rate of {rate:g}" if rate else "at no rate" for n, rate in highest.items()},
        "enough": f"{ENOUGH:.0f}",
        "lost": str(len(lost)),
        "named": str(named),
    }


EXPERIMENT = Experiment(
    name="learning-rate",
    axis="rate",
    settings={(network, rate): {"network": network, "rate": rate} for network in NETWORKS for rate in RATES},
    measure=measure,
    metrics=(Metric("accuracy", "held-out accuracy, %"),),
    claims=(
        Claim(
            "CNN: better with BatchNorm at a rate of 0.1", "accuracy", ("CNN, BatchNorm", 0.1), ("CNN, no norm", 0.1)
        ),
        Claim("CNN: better with BatchNorm at a rate of 1", "accuracy", ("CNN, BatchNorm", 1.0), ("CNN, no norm", 1.0)),
        Claim("MLP: better with BatchNorm at a rate of 1", "accuracy", ("MLP, BatchNorm", 1.0), ("MLP, no norm", 1.0)),
        Claim(
            "MLP with BatchNorm: a rate of 10 is worse than 0.1",
            "accuracy",
            ("MLP, BatchNorm", 0.1),
            ("MLP, BatchNorm", 10.0),
        ),
        Claim(
            "CNN: BatchNorm is better at a rate of 0.01, too",
            "accuracy",
            ("CNN, BatchNorm", 0.01),
            ("CNN, no norm", 0.01),
        ),
    ),
    panels=(Panel("accuracy", "learning rate", log_x=True),),
    maps=(("MLP, BatchNorm", 10.0), ("MLP, BatchNorm", 0.1)),
    facts=facts,
)
