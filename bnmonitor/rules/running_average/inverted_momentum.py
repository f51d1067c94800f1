"""BN301: a momentum in the convention of another framework."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from bnmonitor._text import listing, number, weight
from bnmonitor.results import Severity
from bnmonitor.rules.base import Finding, Rule, first
from bnmonitor.window import Window


@dataclass(frozen=True, kw_only=True)
class InvertedMomentum(Rule):
    """Momentum is so large that the running statistics are hardly more than the last batch.

    ## What it does
    Looks at the momentum of every layer that trains. One alert for all affected layers. Also warns if the momentum
    differs ninefold between layers of one model.

    ## Why is this bad?
    In PyTorch, momentum is the weight of the *new* batch. In Keras, TensorFlow and Caffe, momentum is the weight of the
    *old* average: their .99 is .01 here. At .9 the running statistics remember 1.2 batches, and evaluation depends on
    the last batch.

    ## Example
    >>> from bnmonitor.testing import make_window
    >>> [finding] = InvertedMomentum().check(make_window(momentum=0.99))
    >>> str(finding.severity), finding.value
    ('error', 0.99)

    PyTorch's default stays quiet:

    >>> InvertedMomentum().check(make_window(momentum=0.1))
    []

    ## Code
    Wrong::

        nn.BatchNorm2d(64, momentum=0.99)  # Keras's

    Right::

        nn.BatchNorm2d(64, momentum=0.01)  # one minus Keras's

    ## What to do
    Write ``momentum=0.01`` for another framework's .99, and ``0.1`` for its .9, or set it on an existing model:
    ``bnmonitor.remedies.set_momentum(model, 0.01)``. A trained model needs no new training:
    ``bnmonitor.remedies.recalibrate(model, loader)`` estimates its running statistics again.

    ## Thresholds
    The average keeps ``m / (2 - m)`` of the variance between batches: 5 % at .1, 33 % at ``warn_from = .5``, 82 % at
    ``error_from = .9``. ``mixed_ratio = 9`` between the largest and the smallest momentum of a model.

    ## Look-alikes
    BN302 judges a momentum of exactly 1. Statistics for each task in meta-learning: ignore the rule there.

    ## References
    pytorch/vision#8250; eriklindernoren/PyTorch-YOLOv3#230; huggingface/transformers#19454.
    """

    code: ClassVar[str] = "BN301"
    name: ClassVar[str] = "inverted-momentum"
    severity: ClassVar[Severity] = Severity.WARNING

    warn_from: float = 0.5
    error_from: float = 0.9
    mixed_ratio: float = 9.0

    def check(self, window: Window) -> list[Finding]:
        """Judge the momentum of all layers that update their statistics."""
        updated = (window.updates > 0).any(0).tolist()
        momenta = {i: m for i, m in enumerate(_rounded(window.momentum[-1])) if updated[i] and m > 0}
        inverted = {i: m for i, m in momenta.items() if self.warn_from <= m < 1}
        if inverted:
            return [self._inverted(window, inverted)]
        if momenta and max(momenta.values()) >= self.mixed_ratio * min(momenta.values()) * (1 - 1e-9):
            return [self._mixed(window, momenta)]
        return []

    def _inverted(self, window: Window, found: dict[int, float]) -> Finding:
        layer = max(found, key=lambda i: found[i])
        worst = found[layer]
        error = worst >= self.error_from
        remembered = number((2 - worst) / worst)
        return Finding(
            severity=Severity.ERROR if error else Severity.WARNING,
            layer=layer,
            layers=(layer, *(i for i in sorted(found) if i != layer)),
            first_step=first((window.momentum[:, layer] - worst).abs() < 1e-6, window),
            value=worst,
            threshold=self.error_from if error else self.warn_from,
            message=f"momentum {weight(worst)} is the weight of the newest batch in PyTorch: the running statistics "
            f"remember {remembered} {'batch' if remembered == '1' else 'batches'}",
            advice=f"call bnmonitor.remedies.set_momentum(model, momentum={number(max(0.01, 1 - worst))}): PyTorch's "
            "momentum is one minus Keras's",
        )

    def _mixed(self, window: Window, momenta: dict[int, float]) -> Finding:
        usual, _ = Counter(momenta.values()).most_common(1)[0]
        odd = [i for i, m in momenta.items() if m != usual]
        values = sorted(set(momenta.values()))
        ratio = values[-1] / values[0]
        return Finding(
            severity=Severity.WARNING,
            layer=odd[0],
            layers=tuple(odd),
            first_step=window.steps[0],
            value=ratio,
            threshold=self.mixed_ratio,
            message=f"momentum differs {number(ratio)}-fold within the model: {listing(map(weight, values))}",
            advice=f"call bnmonitor.remedies.set_momentum(model, momentum={weight(usual)}), the value of most layers",
        )


def _rounded(momentum: Tensor) -> list[float]:
    """Momenta as written in code; a cumulative average is NaN, which no comparison selects."""
    return [round(m, 6) for m in momentum.tolist()]
