"""BN507: a normalization layer that ran and belongs to no model."""

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
    Looks for normalizations in training mode in the autograd graph of a sampled step, whose gamma is a parameter of no
    watched model and of no optimizer.

    ## Why is this bad?
    A layer that is made inside ``forward``, or kept in a plain list or dict, is not known to the model: ``eval()`` does
    not reach it, no optimizer trains it, ``state_dict`` does not save it, ``to(device)`` leaves it behind. One that is
    made anew in every forward never keeps a statistic at all.

    ## Example
    >>> from bnmonitor.testing import make_window
    >>> [finding] = UnregisteredLayer().check(make_window(facts={"unregistered": ("8 channels, behind conv",)}))
    >>> str(finding.severity), finding.layer
    ('error', None)

    Where every layer that ran is part of the model it stays quiet:

    >>> UnregisteredLayer().check(make_window())
    []

    ## What to do
    Make the layer in ``__init__`` and assign it to an attribute; keep several in ``nn.ModuleList`` or
    ``nn.ModuleDict``.

    ## Thresholds
    None: a parameter belongs to a model or it does not.

    ## Look-alikes
    A second network that was not given to the monitor, but is in an optimizer, is not the model's fault. A layer with
    ``affine=False`` has no gamma to tell it by, and is not seen. Neither is one in a part that is checkpointed with
    ``use_reentrant=True``.

    ## References
    pytorch/pytorch#46818; feinanshan/FANet#5.
    """

    code: ClassVar[str] = "BN507"
    name: ClassVar[str] = "unregistered-layer"
    severity: ClassVar[Severity] = Severity.ERROR
    needs: ClassVar[frozenset[str]] = frozenset({"samples", "whole"})
    exact: ClassVar[bool] = True

    def check(self, window: Window) -> list[Finding]:
        """Name what ran and belongs to no model."""
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
                advice="make it in __init__ and assign it to an attribute, or keep it in nn.ModuleList: eval(), "
                "the optimizer and state_dict do not know it",
            )
        ]
