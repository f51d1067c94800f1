"""BN407: an auxiliary network with running statistics that its own forwards update."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from bnmonitor.results import Severity
from bnmonitor.rules.base import Finding, Rule, first
from bnmonitor.window import EVALUATIONS, Window


@dataclass(frozen=True, kw_only=True)
class AuxiliaryNetworkUpdates(Rule):
    """A sub-network that no optimizer trains, such as a teacher or a target network, updates its running statistics.

    ## What it does
    Flags layers in training mode that update their running statistics in their own forwards, in a sub-network that has
    none of its parameters in any optimizer.

    ## Why is this bad?
    The parameters of a teacher or a target network are loaded, or follow those of another network; its running
    statistics come from its latest inputs. In evaluation mode the two no longer belong together, and in training mode
    its output depends on the batch.

    ## Example
    >>> from bnmonitor.testing import make_window
    >>> [finding] = AuxiliaryNetworkUpdates().check(make_window(facts={"auxiliary": ("teacher",)}))
    >>> str(finding.severity), "teacher" in finding.message
    ('warning', True)

    One whose parameters follow those of a trained network, and that is not evaluated, is an info, told once:

    >>> gamma = [[1 + 0.01 * step] * 3 for step in range(64)]
    >>> window = make_window(facts={"auxiliary": ("teacher",)}, gamma=gamma)
    >>> [finding] = AuxiliaryNetworkUpdates().check(window)
    >>> str(finding.severity)
    'info'

    A teacher in evaluation mode stays quiet:

    >>> AuxiliaryNetworkUpdates().check(make_window(facts={"auxiliary": ("teacher",)}, training=False, updates=0))
    []

    ## What to do
    Put the sub-network into evaluation mode after every ``model.train()``, and copy or average its buffers together
    with its parameters (``AveragedModel(use_buffers=True)``; in a Polyak update, loop over ``buffers()`` as well).

    ## Thresholds
    None: it is a fact that no optimizer has its parameters, and that its running statistics change.

    ## Look-alikes
    BYOL and MoCo run the network that follows in training mode on purpose: nobody evaluates it, and its own batches fit
    its slow parameters. As long as it is not evaluated, that is an info. Training does not call an ``AveragedModel``
    with averaged buffers, so it stays quiet. BN402 judges a part with a gamma and beta that do not change.

    ## References
    DLR-RM/stable-baselines3#1004, #553; clovaai/overhaul-distillation#37; facebookresearch/unbiased-teacher#47.
    """

    code: ClassVar[str] = "BN407"
    name: ClassVar[str] = "auxiliary-network-updates"
    severity: ClassVar[Severity] = Severity.WARNING
    needs: ClassVar[frozenset[str]] = frozenset({"buffers", "ledger", "optimizer", "whole"})
    exact: ClassVar[bool] = True
    yields_to: ClassVar[frozenset[str]] = frozenset({"BN402"})

    least_steps: int = 5

    def check(self, window: Window) -> list[Finding]:
        """Find the layers of untrained sub-networks that their own forwards update."""
        auxiliary = window.facts.auxiliary
        if not any(auxiliary) or len(window) < self.least_steps:
            return []
        recent = window.last(self.least_steps)
        evaluated = window.ledger.evaluated[EVALUATIONS].any(0)
        followed = (window.gamma[1:] != window.gamma[:-1]).any(0)
        quiet = window.layers.segments.any(followed) & ~evaluated
        moving = recent.training[-1] & (recent.updates > 0).any(0) & window.ran_in_training()
        return [
            Finding(
                severity=Severity.INFO if quiet[layer] else Severity.WARNING,
                layer=layer,
                first_step=first((window.updates[:, layer] > 0) & window.training[:, layer], window),
                value=float(recent.updates[:, layer].sum()),
                threshold=0.0,
                message=f"no optimizer trains {auxiliary[layer]!r}, but its forwards update its running statistics",
                advice=f"put {auxiliary[layer]!r} into evaluation mode after every model.train(), and copy or average "
                "its buffers together with its parameters",
            )
            for layer in moving.nonzero().flatten().tolist()
            if auxiliary[layer]
        ]
