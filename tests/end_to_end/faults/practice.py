"""Sound trainings as people really train, each done as a careful person does it and evaluated regularly."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from tests.end_to_end.faults.cases import Case, each
from tests.end_to_end.faults.injection import Injection
from tests.end_to_end.faults.objectives import (
    Adversarial,
    Bootstrapped,
    Contrasted,
    CriticFirst,
    MeanTeacher,
    MomentumContrast,
    PseudoLabels,
)
from tests.end_to_end.faults.procedures import (
    GENTLE,
    Balanced,
    BehindReLU,
    CutMix,
    Federated,
    GrowingBatches,
    Lookahead,
    MetaLearned,
    MultiScale,
    Narrow,
    QuasiNewton,
    SharpnessAware,
    Unfrozen,
    UnitRange,
)
from tests.end_to_end.faults.recipes import PLAIN
from tests.end_to_end.faults.sound import AveragedAnew, Mixup, StillTeacher, StochasticDepth

REGULAR: dict[str, Any] = {"steps": 200, "evaluate_every": 50}
"""A fit of a few epochs, evaluated about once in each."""

_ADAM = replace(PLAIN, optimizer="adam", lr=2e-3, decay=0.0)

PRACTICE: tuple[Case, ...] = (
    *each("sharpness-aware", "chain mlp wine", SharpnessAware(**REGULAR), GENTLE),
    *each("momentum-contrast", "residual", MomentumContrast(**REGULAR), replace(PLAIN, batch=64)),
    *each("bootstrapped", "residual", Bootstrapped(**REGULAR), replace(_ADAM, batch=64)),
    *each("contrasted", "residual", Contrasted(**REGULAR), replace(_ADAM, batch=64)),
    *each("mean-teacher", "chain mlp", MeanTeacher(**REGULAR), GENTLE),
    *each("distilled", "mlp conv1d", StillTeacher(**REGULAR), GENTLE),
    *each("mixed-up", "chain mlp", Mixup(**REGULAR), replace(PLAIN, schedule="cosine")),
    *each("cut-mixed", "chain residual", CutMix(**REGULAR), GENTLE),
    *each("multi-scale", "chain residual", MultiScale(**REGULAR), GENTLE),
    *each("quasi-newton", "mlp conv1d", QuasiNewton(steps=80, evaluate_every=20), replace(PLAIN, batch=256)),
    *each("random-depth", "preactivation", StochasticDepth(**REGULAR), GENTLE),
    *each("critic-first", "gan", CriticFirst(steps=120, evaluate_every=40), replace(_ADAM, lr=5e-4, batch=16)),
    *each("federated", "mlp chain wine", Federated(steps=240, evaluate_every=40), GENTLE),
    *each("lookahead", "mlp chain", Lookahead(**REGULAR), GENTLE),
    *each("meta-learned", "mlp chain", MetaLearned(**REGULAR), GENTLE),
    *each("pseudo-labels", "mlp chain", PseudoLabels(**REGULAR), replace(GENTLE, batch=64)),
    *each("pseudo-labels-at-once", "mlp chain", PseudoLabels(**REGULAR, apart=False), GENTLE),
    *each("adversarial", "mlp chain", Adversarial(**REGULAR), GENTLE),
    *each("one-cycle", "mlp chain", Injection(**REGULAR), replace(_ADAM, schedule="onecycle", lr=1e-2)),
    *each("warm-restarts", "mlp chain", Injection(**REGULAR), replace(PLAIN, schedule="restarts")),
    *each("growing-batches", "mlp chain", GrowingBatches(**REGULAR), GENTLE),
    *each("gradually-unfrozen", "chain mlp", Unfrozen(**REGULAR), GENTLE),
    *each("class-balanced", "mlp chain", Balanced(**REGULAR), GENTLE),
    *each("accumulated", "mlp chain", Injection(**REGULAR), replace(GENTLE, accumulate=2, batch=64)),
    *each("averaged-and-recalibrated", "mlp chain", AveragedAnew(**REGULAR), GENTLE),
    *each("behind-relu", "chain", BehindReLU(**REGULAR), _ADAM),
    *each("behind-relu-narrow", "chain", BehindReLU(**REGULAR, channels=8), _ADAM),
    *each("unit-range", "chain residual depthwise", UnitRange(**REGULAR), _ADAM),
    *each("narrow", "chain mlp", Narrow(**REGULAR), _ADAM),
    *each("depthwise", "depthwise", Injection(**REGULAR), _ADAM),
    *each("high-rate-that-trains", "mlp chain", Injection(**REGULAR), replace(PLAIN, lr=0.2, schedule="cosine")),
    *each("adamw-with-decay", "mlp residual", Injection(**REGULAR), replace(_ADAM, optimizer="adamw", decay=0.05)),
    *each("rmsprop", "mlp chain", Injection(**REGULAR), replace(_ADAM, optimizer="rmsprop", lr=1e-3)),
    *each("sanity-check-first", "mlp chain", Injection(**REGULAR, sanity=True), GENTLE),
)
