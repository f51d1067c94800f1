"""BN511: a compiled evaluation that uses the parameters and statistics of its first call for ever."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from bnmonitor.results import Severity
from bnmonitor.rules.base import Finding, Rule
from bnmonitor.window import Window


@dataclass(frozen=True, kw_only=True)
class FrozenCompiledEvaluation(Rule):
    """A compiled model is trained and evaluated in turn while inductor freezes what it compiles for inference.

    ## What it does
    With ``torch._inductor.config.freezing``, a graph that is compiled without gradients holds parameters and running
    statistics as constants. Flags the layers whose parameters or statistics have changed since the first such
    evaluation, if an evaluation runs a compiled graph again.

    ## Why is this bad?
    Every later evaluation uses the weights and statistics of the first one: the accuracy stands still while the network
    learns, and the best checkpoint is chosen by numbers of another network.

    ## Example
    >>> from bnmonitor.testing import make_window
    >>> [finding] = FrozenCompiledEvaluation().check(make_window(ledger={"folded": True}))
    >>> str(finding.severity)
    'error'

    A compiled model that is not frozen stays quiet:

    >>> FrozenCompiledEvaluation().check(make_window())
    []

    ## Code
    Wrong::

        torch._inductor.config.freezing = True  # in a program that trains
        model = torch.compile(model)

    Right::

        model = torch.compile(model)  # freeze once the training is over

    ## What to do
    Leave freezing off while the model trains: ``torch._inductor.config.freezing = False``, or unset the environment
    variable ``TORCHINDUCTOR_FREEZING``. After a change call ``torch._dynamo.reset()``.

    ## Thresholds
    None: the values have changed or they have not.

    ## Look-alikes
    The first evaluation with freezing uses the values of its own time. A model that is only evaluated does not change.
    Evaluations that run the model without compiling it call the hooks of its layers, and do not count.
    ``torch.compile(model, options={"freezing": True})`` alone freezes nothing: dynamo asks the setting of the process.
    It does with ``torch._dynamo.config.prepare_freezing``. Options are noted in what ``torch.compile`` returns, so that
    this is seen where just that is watched: ``Monitor(compiled)``, not ``Monitor(model)`` beside it.

    ## References
    PyTorch: ``torch._inductor.config.freezing``.
    """

    code: ClassVar[str] = "BN511"
    name: ClassVar[str] = "frozen-compiled-evaluation"
    severity: ClassVar[Severity] = Severity.ERROR
    needs: ClassVar[frozenset[str]] = frozenset({"ledger"})
    exact: ClassVar[bool] = True

    def check(self, window: Window) -> list[Finding]:
        """Find the layers that the latest evaluation ran with constants of an earlier one."""
        folded = window.ledger.folded
        if not folded.any():
            return []
        layers = tuple(folded.nonzero().flatten().tolist())
        return [
            Finding(
                severity=Severity.ERROR,
                layer=layers[0],
                layers=layers,
                first_step=window.steps[-1],
                value=float(len(layers)),
                threshold=0.0,
                message="the compiled evaluation holds the parameters and running statistics of its first call as "
                "constants (inductor's freezing), and training has changed them since",
                advice="turn freezing off while the model trains (torch._inductor.config.freezing = False, or unset "
                "TORCHINDUCTOR_FREEZING, or torch.compile without that option), and call torch._dynamo.reset()",
            )
        ]
