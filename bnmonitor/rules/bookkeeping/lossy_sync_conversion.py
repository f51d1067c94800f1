"""BN504: a conversion to SyncBatchNorm that loses a layer's own forward."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from bnmonitor.results import Severity
from bnmonitor.rules.base import Finding, Rule
from bnmonitor.window import Window


@dataclass(frozen=True, kw_only=True)
class LossySyncConversion(Rule):
    """The conversion to SyncBatchNorm replaces, or has replaced, a layer that has a forward of its own.

    ## What it does
    Flags layers of a subclass of BatchNorm that overrides ``forward``, if the Trainer converts the model
    (``sync_batchnorm=True``), or if such a layer has become a ``SyncBatchNorm`` since the monitor was attached.

    ## Why is this bad?
    ``convert_sync_batchnorm`` replaces every subclass of BatchNorm by a bare ``SyncBatchNorm``. It silently removes an
    activation or a dropout that the subclass applied in its forward: the result is a different network.

    ## Example
    >>> from bnmonitor.testing import make_window
    >>> facts = {"own_forward": ("BatchNormAct2d",), "converts": True}
    >>> import dataclasses
    >>> window = make_window(facts=facts)
    >>> fused = dataclasses.replace(window, layers=dataclasses.replace(window.layers, kinds=("BatchNormAct2d",)))
    >>> [finding] = LossySyncConversion().check(fused)
    >>> str(finding.severity)
    'error'

    A subclass that does not override the forward loses nothing and stays quiet:

    >>> LossySyncConversion().check(make_window(facts={"converts": True}))
    []

    ## What to do
    Convert with a function that supports the class, such as ``timm.layers.convert_sync_batchnorm``, before the Trainer
    does; in Lightning, pass your own ``LayerSync`` plugin in place of ``sync_batchnorm=True``.

    ## Thresholds
    None: whether a class overrides ``forward`` is a fact.

    ## Look-alikes
    Subclasses that only change defaults. A conversion before the monitor was made cannot be detected.

    ## References
    pytorch/pytorch#187298; huggingface/pytorch-image-models#1254.
    """

    code: ClassVar[str] = "BN504"
    name: ClassVar[str] = "lossy-sync-conversion"
    severity: ClassVar[Severity] = Severity.ERROR
    needs: ClassVar[frozenset[str]] = frozenset()
    exact: ClassVar[bool] = True

    def check(self, window: Window) -> list[Finding]:
        """Find the layers that lose their forward."""
        facts, kinds = window.facts, window.layers.kinds
        found = []
        for layer, (own, kind) in enumerate(zip(facts.own_forward, kinds, strict=False)):
            replaced = bool(own) and kind == "SyncBatchNorm" != own
            if replaced or (facts.converts and own == kind):
                how = (
                    "has been replaced by a bare SyncBatchNorm"
                    if replaced
                    else "becomes a bare SyncBatchNorm on several devices"
                )
                found.append(
                    Finding(
                        severity=Severity.ERROR,
                        layer=layer,
                        first_step=window.steps[0],
                        value=0.0,
                        threshold=0.0,
                        message=f"a {own}, which has a forward of its own, {how}: the other operations of its forward "
                        "are lost",
                        advice="convert with a function that supports the class (timm.layers.convert_sync_batchnorm), "
                        "or pass your own LayerSync plugin in place of sync_batchnorm=True",
                    )
                )
        return found
