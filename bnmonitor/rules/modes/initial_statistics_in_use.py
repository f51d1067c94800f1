"""BN404: a layer that normalizes with its initial running statistics."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from bnmonitor.results import Severity
from bnmonitor.rules.base import Finding, Rule, last_run
from bnmonitor.window import Window


@dataclass(frozen=True, kw_only=True)
class InitialStatisticsInUse(Rule):
    """A layer is evaluated, or runs frozen, with running statistics of exactly 0 and 1.

    ## What it does
    Flags layers with a running mean of 0 and a running variance of 1 in every channel, which real data never gives. An
    evaluation after the first training step must have used these values, or the layer must run in evaluation mode
    during training.

    ## Why is this bad?
    The layer does not normalize at all: it only applies gamma and beta. Everything after it sees a distribution that it
    was not trained on. The usual causes are a frozen layer in a network that was never trained, a checkpoint without
    the statistics that was loaded with ``strict=False``, and a copy of a network that received the parameters but not
    the buffers.

    ## Example
    >>> from bnmonitor.testing import make_window
    >>> [finding] = InitialStatisticsInUse().check(make_window(training=False, updates=0))
    >>> str(finding.severity)
    'error'

    A layer frozen with statistics of real data stays quiet:

    >>> InitialStatisticsInUse().check(make_window(training=False, updates=0, running_mean=[0.2, -0.1]))
    []

    ## Code
    Wrong::

        model.load_state_dict(weights, strict=False)  # the file has no running_mean and no running_var
        model.eval()

    Right::

        missing, _ = model.load_state_dict(weights, strict=False)
        assert not any("running_" in name for name in missing)
        # or estimate them:
        bnmonitor.remedies.recalibrate(model, train_loader)

    ## What to do
    Load the running statistics with the weights, and check what ``load_state_dict(strict=False)`` returns; or estimate
    them: ``torch.optim.swa_utils.update_bn(loader, model)``. When you copy a network, copy its buffers as well.

    ## Thresholds
    None: the rule compares the values exactly.

    ## Look-alikes
    In every training from scratch, the sanity check and a validation before the first training step evaluate such
    layers: neither counts.

    ## References
    pytorch/vision#5443; odegeasslbc/FastGAN-pytorch#4; boschresearch/OASIS#21.
    """

    code: ClassVar[str] = "BN404"
    name: ClassVar[str] = "initial-statistics-in-use"
    severity: ClassVar[Severity] = Severity.ERROR
    needs: ClassVar[frozenset[str]] = frozenset({"buffers", "ledger"})
    exact: ClassVar[bool] = True
    yields_to: ClassVar[frozenset[str]] = frozenset({"BN302", "BN403"})
    untrained: ClassVar[bool] = True

    def check(self, window: Window) -> list[Finding]:
        """Find the layers that normalize with 0 and 1."""
        ledger = window.ledger
        suspects = ledger.initial | (~window.training[-1] & ledger.called)
        if not suspects.any():
            return []
        initial = self._initial(window, window.last(1))[-1]
        frozen = initial & ~window.training[-1] & ledger.called
        found = []
        for layer in (frozen | ledger.initial).nonzero().flatten().tolist():
            how = "runs in evaluation mode during training" if frozen[layer] else "is evaluated"
            found.append(
                Finding(
                    severity=Severity.ERROR,
                    layer=layer,
                    first_step=self._began(window, layer) if frozen[layer] else window.steps[-1],
                    value=0.0,
                    threshold=0.0,
                    message=f"the layer {how} with the initial statistics, exactly 0 and 1: it does not normalize",
                    advice="load the statistics with the weights (check what load_state_dict(strict=False) returns), "
                    "or estimate them: torch.optim.swa_utils.update_bn(loader, model)",
                )
            )
        return found

    def _initial(self, window: Window, part: Window) -> Tensor:
        other = (part.running_mean != 0) | (part.running_var != 1)
        return torch.stack([~window.layers.segments.any(row) for row in other])

    def _began(self, window: Window, layer: int) -> int:
        """The step since which the layer runs in evaluation mode."""
        return window.steps[len(window) - max(1, int(last_run(~window.training[:, layer]).sum()))]
