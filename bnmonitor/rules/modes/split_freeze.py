"""BN403: a layer that trains on batch statistics and is evaluated with running statistics that do not change."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from bnmonitor._text import number
from bnmonitor.measures import median
from bnmonitor.results import Severity
from bnmonitor.rules.base import Finding, Rule, onset
from bnmonitor.window import Window


@dataclass(frozen=True, kw_only=True)
class SplitFreeze(Rule):
    """Training uses the statistics of the batch, evaluation uses running statistics that are no longer updated.

    ## What it does
    Flags layers in training mode that have running statistics while ``track_running_stats`` is False. It is an error if
    the last sampled batch shows that the running statistics are far from the data.

    ## Why is this bad?
    With the flag off the layer still normalizes each training batch by itself, but no longer updates the running
    statistics; evaluation still uses them. The layer is half frozen: training never sees the function that evaluation
    computes. Lightning's ``BaseFinetuning.freeze(train_bn=False)`` leaves layers in this state.

    ## Example
    >>> from bnmonitor.testing import make_window
    >>> [finding] = SplitFreeze().check(make_window(updates=0, ledger={"tracks": False}))
    >>> str(finding.severity)
    'warning'

    A layer frozen in evaluation mode, where both use the same statistics, stays quiet:

    >>> SplitFreeze().check(make_window(updates=0, training=False, ledger={"tracks": False}))
    []

    ## Code
    Wrong::

        model.bn.track_running_stats = False

    Right::

        bnmonitor.remedies.freeze(model, include=["bn"])

    ## What to do
    Freeze by mode instead: call ``layer.eval()`` after every ``model.train()``, and set ``track_running_stats`` back to
    True. With ``BackboneFinetuning``, override ``freeze_before_training`` to do that.

    ## Thresholds
    The flags are facts. ``error_lag = .25`` standard deviations between the sampled batch and the running mean in the
    median channel: twice the distance of one batch in a healthy run, and enough to hurt validation.

    ## Look-alikes
    A layer made with ``track_running_stats=False`` has no running statistics at all: BN408 judges it.

    ## References
    Lightning-AI/pytorch-lightning#13902, #15062, #20629, #21531; pytorch/pytorch#37823.
    """

    code: ClassVar[str] = "BN403"
    name: ClassVar[str] = "split-freeze"
    severity: ClassVar[Severity] = Severity.WARNING
    needs: ClassVar[frozenset[str]] = frozenset({"buffers", "ledger"})
    exact: ClassVar[bool] = True

    error_lag: float = 0.25

    def check(self, window: Window) -> list[Finding]:
        """Find the layers in training mode that do not update the running statistics they have."""
        tracking = torch.tensor(window.layers.tracking, dtype=torch.bool, device="cpu")
        split = window.training[-1] & tracking & ~window.ledger.tracks & window.ledger.called
        if not split.any():
            return []
        lag = self._lag(window)
        return [self._finding(window, i, float(lag[i])) for i in split.nonzero().flatten().tolist()]

    def _lag(self, window: Window) -> Tensor:
        """Distance of the last sampled batch from the running mean, in standard deviations; 0 where it is unknown."""
        if window.sample is None:
            return torch.zeros(len(window.layers), device="cpu")
        scale = (window.running_var[-1] + window.layers.eps_by_channel).sqrt()
        return median((window.sample.input.mean - window.running_mean[-1]).abs() / scale, window).nan_to_num(0.0)

    def _finding(self, window: Window, layer: int, lag: float) -> Finding:
        error = lag > self.error_lag
        still = window.training[:, layer] & (window.updates[:, layer] == 0)
        far = f"; the batches are {number(lag)} standard deviations away from them" if error else ""
        return Finding(
            severity=Severity.ERROR if error else Severity.WARNING,
            layer=layer,
            first_step=onset(still, window),
            value=lag,
            threshold=self.error_lag if error else 0.0,
            message="track_running_stats is False in training mode: the layer trains on the statistics of the batch, "
            f"and is evaluated with running statistics that do not change{far}",
            advice="set track_running_stats back to True and freeze by mode: layer.eval() after every model.train()",
        )
