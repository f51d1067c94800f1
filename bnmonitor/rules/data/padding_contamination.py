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
    """A large share of the positions that a layer normalizes over is padding at the ends of sequences.

    ## What it does
    In sampled steps, looks at layers with an input ``[N, C, L]``. It counts the positions at the end, or at the start,
    of each sequence over which all channels stay constant. The outermost positions, at most a quarter of the sequence,
    may differ: behind a wide kernel they see the zeros that a convolution adds to its input.

    In an input ``[R, C]``, it looks for sequences, or graphs, that were laid end to end after they had been filled up
    to one length: runs of equal rows that all end, or all begin, at multiples of one number, six of them at least, and
    not all equally long. It counts their rows.

    ## Why is this bad?
    The layer treats padding as data. With a share ``p`` of zeros, the mean is ``1 - p`` of its true value, and so is
    the mean square. How large ``p`` is depends on the longest sequence of the batch, so the output of a sequence
    depends on the other sequences in its batch.

    ## Example
    >>> from bnmonitor.testing import padded_window
    >>> [finding] = PaddingContamination().check(padded_window(0.2))
    >>> str(finding.severity), round(finding.value, 3)
    ('warning', 0.2)

    A little padding at the end stays quiet:

    >>> PaddingContamination().check(padded_window(0.03))
    []

    ## What to do
    Put sequences of similar length into one batch, normalize with a mask, or use LayerNorm, which normalizes each
    position by itself. Repeating the sequence instead of padding it with zeros keeps its mean and variance. Where rows
    are the positions, give the layer the real ones alone: ``out[mask] = norm(x[mask])``.

    ## Thresholds
    ``warn_above = .05`` and ``error_above = .3`` of all positions: the mean is off by that share. In small trainings,
    zeros in .1 of the positions cost two to five points of accuracy on unpadded sequences, and .05 one or two.

    ## Look-alikes
    Sequences that are constant throughout do not count, nor do channels that a ReLU has silenced while others vary, nor
    ends that are equally long in all sequences of the batch, as upsampling by repetition makes them. Images with a
    black margin do not count either: the rule looks only at inputs with two or three axes. Equal rows elsewhere, as of
    categories, end anywhere.

    ## References
    pytorch/pytorch#70529; tensorflow/tensorflow#30161; SeanNaren/deepspeech.pytorch#312.
    """

    code: ClassVar[str] = "BN604"
    name: ClassVar[str] = "padding-contamination"
    severity: ClassVar[Severity] = Severity.WARNING
    needs: ClassVar[frozenset[str]] = frozenset({"samples"})

    warn_above: float = 0.05
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
                    message=f"{number(100 * value)} % of the positions that the layer normalizes over are constant "
                    "ends of sequences, which looks like padding: they distort the mean and variance",
                    advice="normalize the real positions alone, as norm(x[mask]); batch sequences of similar length; "
                    "or use LayerNorm",
                )
            )
        return found
