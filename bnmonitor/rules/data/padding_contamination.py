"""BN604: padding that is counted as data."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from bnmonitor._text import number
from bnmonitor.results import Severity
from bnmonitor.rules.base import Finding, Rule, sampled
from bnmonitor.window import Window


@dataclass(frozen=True, kw_only=True)
class PaddingContamination(Rule):
    """A good part of the positions that a layer normalizes over is padding at the end of sequences.

    ## What it does
    In sampled steps, it looks at layers with an input ``[N, C, L]`` for positions at the end of a sequence at which all
    channels stay as they are to the last one.

    ## Why is this bad?
    The layer takes padding for data. With a share ``p`` of zeros the mean is ``1 - p`` of what it was, and the square
    likewise; how large ``p`` is depends on the longest sequence of the batch, so that a sequence comes out different by
    whom it is with.

    ## Example
    >>> from bnmonitor.testing import padded_window
    >>> [finding] = PaddingContamination().check(padded_window(0.2))
    >>> str(finding.severity), round(finding.value, 3)
    ('warning', 0.2)

    A little at the end stays quiet:

    >>> PaddingContamination().check(padded_window(0.05))
    []

    ## What to do
    Put sequences of like length into a batch; normalize with a mask; or use LayerNorm, for which each position stands
    alone. Repeating the sequence instead of padding it with zeros keeps its moments.

    ## Thresholds
    ``warn_above = .1`` and ``error_above = .3`` of all positions: the mean is off by that share.

    ## Look-alikes
    Sequences that are constant throughout, and channels that a ReLU has silenced while others vary, are not counted.
    Nor are images with a black margin: only inputs of three axes are looked at.

    ## References
    pytorch/pytorch#70529; tensorflow/tensorflow#30161; SeanNaren/deepspeech.pytorch#312.
    """

    code: ClassVar[str] = "BN604"
    name: ClassVar[str] = "padding-contamination"
    severity: ClassVar[Severity] = Severity.WARNING
    needs: ClassVar[frozenset[str]] = frozenset({"samples"})

    warn_above: float = 0.1
    error_above: float = 0.3

    def check(self, window: Window) -> list[Finding]:
        """Find the layers with much padding in the last sample."""
        padding = window.sample.padding if window.sample is not None else None
        if padding is None or padding.dim() == 0:
            return []
        at = (padding > self.warn_above) & window.training[-1] & window.layers.which("normalizes_batch")
        found = []
        for layer in at.nonzero().flatten().tolist():
            value = float(padding[layer])
            error = value > self.error_above
            found.append(
                Finding(
                    severity=Severity.ERROR if error else Severity.WARNING,
                    layer=layer,
                    first_step=sampled(window),
                    value=value,
                    threshold=self.error_above if error else self.warn_above,
                    message=f"{number(100 * value)} % of the positions it normalizes over are constant ends of "
                    "sequences, as padding is: they pull mean and variance towards it",
                    advice="batch sequences of like length, normalize with a mask, or use LayerNorm",
                )
            )
        return found
