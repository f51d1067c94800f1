"""BN507: a normalization layer that ran but belongs to no model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from bnmonitor.results import Severity
from bnmonitor.rules.base import Finding, Rule
from bnmonitor.window import Window


@dataclass(frozen=True, kw_only=True)
class UnregisteredLayer(Rule):
    """A BatchNorm took part in a training step, but is not among the modules of the model.

    ## What it does
    Looks in the autograd graph of a sampled step for normalizations in training mode with a gamma that is a parameter
    of no monitored model and of no optimizer.

    ## Why is this bad?
    The model does not know a layer that its ``forward`` makes, or that it keeps in a plain list or dict: ``eval()``
    does not reach the layer, no optimizer trains it, ``state_dict`` does not save it, and ``to(device)`` does not move
    it. A layer that every forward makes again never accumulates running statistics at all.

    ## Example
    >>> from bnmonitor.testing import make_window
    >>> [finding] = UnregisteredLayer().check(make_window(facts={"unregistered": ("8 channels, behind conv",)}))
    >>> str(finding.severity), finding.layer
    ('error', None)

    If every layer that ran is part of the model, the rule stays quiet:

    >>> UnregisteredLayer().check(make_window())
    []

    ## Code
    Wrong::

        self.layers = [nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8)]  # a plain list: not in parameters(), never saved

    Right::

        self.layers = nn.ModuleList([nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8)])

    ## What to do
    Make the layer in ``__init__`` and assign it to an attribute; keep several layers in ``nn.ModuleList`` or
    ``nn.ModuleDict``.

    ## Thresholds
    None: a parameter belongs to a model or it does not.

    ## Look-alikes
    A second network that the monitor does not know, but an optimizer trains, is not a fault of the model. The rule does
    not see a layer with ``affine=False``, which has no gamma to recognize it by. Nor does it see a layer in a part that
    is checkpointed with ``use_reentrant=True``.

    ## References
    pytorch/pytorch#46818; feinanshan/FANet#5.
    """

    code: ClassVar[str] = "BN507"
    name: ClassVar[str] = "unregistered-layer"
    severity: ClassVar[Severity] = Severity.ERROR
    needs: ClassVar[frozenset[str]] = frozenset({"samples", "whole"})
    exact: ClassVar[bool] = True

    def check(self, window: Window) -> list[Finding]:
        """Report the normalizations that ran and belong to no model."""
        unregistered = window.facts.unregistered
        if not unregistered:
            return []
        return [
            Finding(
                severity=Severity.ERROR,
                layer=None,
                first_step=window.steps[0],
                value=float(len(unregistered)),
                threshold=0.0,
                message=f"a BatchNorm that is not among the model's modules ran in training: {'; '.join(unregistered)}",
                advice="make the layer in __init__ and assign it to an attribute, or keep it in nn.ModuleList: eval(), "
                "the optimizer and state_dict do not reach it otherwise",
            )
        ]
