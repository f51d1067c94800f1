"""The healthy suite: sound trainings, plain and harsh. Not one of them deserves a warning."""

from __future__ import annotations

from dataclasses import dataclass, replace

from tests.end_to_end.faults.injection import Injection
from tests.end_to_end.faults.networks import ALL, NETWORKS, Network
from tests.end_to_end.faults.recipes import PLAIN, ROTATION, Recipe
from tests.end_to_end.faults.sound import (
    Adapted,
    Averaged,
    AveragedAnew,
    AveragedFrozen,
    AveragedSwapped,
    Dropped,
    FineTuning,
    Frozen,
    FrozenStatistics,
    Mixup,
    Probed,
    Pruned,
    Reestimated,
    SanityChecked,
    ScaleSearch,
    StillTeacher,
    StochasticDepth,
    Target,
    TwinViews,
    Uncentered,
    Varied,
)
from tests.end_to_end.faults.trial import Outcome, Trial

STEPS = 180
"""Of a run under a plain recipe: past every warm-up and several windows long."""


@dataclass(frozen=True)
class Case:
    """One sound training."""

    name: str
    network: str
    recipe: Recipe
    injection: Injection
    seed: int = 0

    @property
    def key(self) -> str:
        return f"{self.name}/{self.network}/{self.seed}"

    def run(self) -> Outcome:
        outcome = Trial(NETWORKS[self.network], self.recipe, self.injection, self.seed).run()
        outcome.name = self.name
        return outcome


def _batch(network: Network, recipe: Recipe) -> Recipe:
    """No more samples a batch than a small data set can give four times."""
    return replace(recipe, batch=min(recipe.batch, 32)) if "small" in network.traits else recipe


def _plain() -> list[Case]:
    cases = []
    for i, recipe in enumerate(ROTATION):
        for network in ALL:
            # The gate of this one normalizes 16 values then, and lags: evaluated with re-estimated statistics it is up
            # to 36 points better in the middle of the training, which BN304 says. It is not sound.
            if network.name == "squeeze" and recipe.batch < 32:
                continue
            lr = 0.02 if network.name == "patients" and recipe.optimizer == "sgd" else recipe.lr
            lr = min(lr, 2e-3) if network.name in ("gan", "transformer") and recipe.optimizer == "sgd" else lr
            chosen = replace(_batch(network, recipe), lr=lr)
            if network.name in ("gan", "transformer"):
                chosen = replace(chosen, optimizer="adam" if chosen.optimizer == "sgd" else chosen.optimizer)
            cases.append(Case(f"recipe-{i}", network.name, chosen, Injection(steps=STEPS)))
    return cases


def _each(name: str, networks: str, injection: Injection, recipe: Recipe = PLAIN) -> list[Case]:
    return [Case(name, n, _batch(NETWORKS[n], recipe), injection) for n in networks.split()]


def _harsh() -> list[Case]:
    plain, long = Injection(steps=STEPS), Injection(steps=500, evaluate_every=400)
    kept = replace(PLAIN, drop_last=False)
    # At .05 the statistics of a residual network lag, and the probe rightly says so: estimated anew, they classify up
    # to 21 points more of the validation set. At .01 no seed of 0 to 4 is warned of; nor are vectors at .05, rightly.
    gentle = replace(PLAIN, lr=0.01)
    return [
        *_each("high-rate", "residual chain squeeze mlp conv1d", plain, replace(PLAIN, lr=0.4, schedule="cosine")),
        *_each("last-batch-kept", "residual mlp wine conv3d ghost", plain, kept),
        *_each("momentum-.01", "residual chain depthwise mlp dense", long, replace(PLAIN, momentum=0.01, lr=0.02)),
        *_each("momentum-.03", "preactivation unet conv1d", long, replace(PLAIN, momentum=0.03, lr=0.02)),
        *_each("accumulation", "residual mlp transformer", plain, replace(PLAIN, accumulate=4, lr=0.02)),
        *_each("clipped", "chain depthwise unet", plain, replace(PLAIN, clip=1.0, lr=0.2)),
        *_each("decayed", "residual mlp", plain, replace(PLAIN, decay=5e-4, spare=False)),
        *_each(
            "long", "residual depthwise gan", Injection(steps=900, evaluate_every=200), replace(ROTATION[2], batch=64)
        ),
        *_each("linear-probe", "residual depthwise mlp dense", Frozen(steps=120)),
        *_each("correct-freeze", "residual chain conv1d mlp", Frozen(steps=STEPS, share=0.5)),
        *_each("frozen-statistics", "residual chain squeeze", FrozenStatistics(steps=120), replace(PLAIN, lr=1e-3)),
        *_each("fine-tuning", "residual depthwise mlp conv3d", FineTuning(steps=STEPS), replace(PLAIN, lr=0.01)),
        *_each(
            "uncentered", "residual chain conv1d mlp", Uncentered(steps=240), replace(PLAIN, optimizer="plain", lr=0.2)
        ),
        *_each("pruned", "residual chain mlp", Pruned(steps=STEPS)),
        *_each("re-estimated", "residual mlp depthwise", Reestimated(steps=170)),
        *_each("dropout-in-evaluation", "residual dense", Dropped(steps=120)),
        *_each("averaged", "residual", Averaged(steps=STEPS), gentle),
        *(replace(case, seed=1) for case in _each("averaged", "mlp", Averaged(steps=STEPS))),
        *_each("averaged-slowly", "residual conv1d", Averaged(steps=STEPS, decay=0.97), gentle),
        *_each("averaged-anew", "residual mlp depthwise", AveragedAnew(steps=STEPS), gentle),
        *_each("average-swapped", "residual mlp", AveragedSwapped(steps=STEPS), gentle),
        *_each(
            "average-swapped-anew", "chain dense", AveragedSwapped(steps=STEPS, anew=True, use_buffers=False), gentle
        ),
        *_each("averaged-frozen", "residual chain", AveragedFrozen(steps=120), replace(PLAIN, lr=1e-3)),
        *_each("target", "residual mlp", Target(steps=STEPS), gentle),
        *_each("adapted", "residual conv1d", Adapted(steps=STEPS)),
        *_each("twin-views", "residual chain mlp", TwinViews(steps=STEPS)),
        *_each("test-time-views", "residual conv1d", Varied(steps=120)),
        *_each("still-teacher", "residual mlp", StillTeacher(steps=120)),
        *_each("scale-search", "residual chain", ScaleSearch(steps=120)),
        *_each("stochastic-depth", "preactivation chain transformer", StochasticDepth(steps=STEPS)),
        *_each("mixup", "residual conv1d", Mixup(steps=STEPS)),
        *_each("probed", "residual chain depthwise mlp", Probed(steps=STEPS), ROTATION[0]),
        *(
            replace(case, seed=seed)
            for seed in (1, 3, 4)
            for case in _each("probed-vectors", "mlp wine ghost", Probed(steps=STEPS))
        ),
        *_each("sanity-checked", "residual siamese", SanityChecked(steps=100)),
    ]


HEALTHY: tuple[Case, ...] = (*_plain(), *_harsh())
"""Every sound training, run once with its own seed."""
