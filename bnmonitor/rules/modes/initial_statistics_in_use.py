"""BN404: a layer that normalizes with its initial running statistics."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from bnmonitor._text import number
from bnmonitor.measures import initial_statistics, initial_weight
from bnmonitor.results import Severity
from bnmonitor.rules.base import Finding, Rule, last_run
from bnmonitor.window import Window


@dataclass(frozen=True, kw_only=True)
class InitialStatisticsInUse(Rule):
    """A layer is evaluated, or runs frozen, with running statistics that never saw data.

    ## What it does
    Flags layers with a running mean of 0 and a running variance of 1 in every channel, which real data never gives, and
    layers that no training step has updated whose statistics a few probe forwards (in a constructor, a model summary,
    a count of operations) have mixed into 0 and 1. An evaluation after the first training step must have used these
    values, or the layer must run in evaluation mode during training.

    In a file, ``bnmonitor audit`` says how many layers that are: all, or some, as of a checkpoint that was loaded by
    halves. A model that is as it was made is a note.

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

    So does one that a forward of zeros has moved to a variance of .9:

    >>> [finding] = InitialStatisticsInUse().check(make_window(training=False, updates=0, seen=0, running_var=0.9))
    >>> "0.9" in finding.message
    True

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
    them: ``torch.optim.swa_utils.update_bn(loader, model)``. When you copy a network, copy its buffers as well. A class
    of its own that calls ``F.batch_norm`` has to pass ``training=self.training``: without it nothing is ever updated.

    ## Thresholds
    0 and 1 are compared exactly. After probe forwards, the counter of updates says how much of them is left: at least
    30 %, eleven forwards at momentum .1. The values have to agree: no running variance lies below what is left of the
    initial 1, as those of data do in some channel. Probes of zeros are recognized without a counter.

    ## Look-alikes
    In every training from scratch, the sanity check and a validation before the first training step evaluate such
    layers: neither counts. A target network that waits for its first copy (gamma and beta are still those of a new
    layer, it runs without gradients, and a layer of the same name is trained) does not count either. Layers that
    training has updated a few times are BN303's.

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
        frozen = ~window.training[-1] & ledger.called
        if not (ledger.initial | frozen).any():
            return []
        var, untrained = window.running_var[-1], window.baseline.updates == 0
        exact, mixed = initial_statistics(window.layers, window.running_mean[-1], var, initial_weight(window))
        frozen &= (exact | (mixed & untrained)) & ~_awaits_copy(window)
        own_forward = window.facts.own_forward or ("",) * len(window.layers)
        deaf = (window.training[-1] & ledger.called & ~ledger.updated & untrained).tolist()
        found = []
        for layer in (frozen | ledger.initial).nonzero().flatten().tolist():
            how = "runs in evaluation mode during training" if frozen[layer] else "is evaluated"
            if not mixed[layer]:
                what = "the initial statistics, exactly 0 and 1"
            else:
                middle = number(float(var[window.layers.span(layer)].median()))
                what = (
                    f"statistics that never saw data: the initial 0 and 1 after a few probe forwards, variance {middle}"
                )
            found.append(
                Finding(
                    severity=Severity.ERROR,
                    layer=layer,
                    first_step=self._began(window, layer) if frozen[layer] else window.steps[-1],
                    value=0.0,
                    threshold=0.0,
                    message=f"the layer {how} with {what}: it does not normalize",
                    advice=f"the forward of {own_forward[layer]} updates nothing in training: pass "
                    "training=self.training to F.batch_norm, or call super().forward"
                    if deaf[layer] and own_forward[layer]
                    else "load the statistics with the weights (check what load_state_dict(strict=False) returns), "
                    "or estimate them: torch.optim.swa_utils.update_bn(loader, model)",
                )
            )
        return found

    def _began(self, window: Window, layer: int) -> int:
        """The step since which the layer runs in evaluation mode."""
        return window.steps[len(window) - max(1, int(last_run(~window.training[:, layer]).sum()))]


def _awaits_copy(window: Window) -> Tensor:
    """Layers of a target network before its first copy: their twins train, and they are as made: ``[L]`` bool."""
    sample, any_of = window.sample, window.layers.segments.any
    aside = window.auxiliary if sample is None else window.auxiliary | ((sample.idle > 0) & (sample.calls == 0))
    aside = aside & (window.baseline.updates == 0)
    if not aside.any():
        return aside
    new = ~any_of((window.gamma[-1] != 1) | (window.beta[-1] != 0))
    trains = window.training[-1] & ~aside
    twin, names = window.layers.twins(aside, trains), window.layers.names
    another = [j >= 0 and not _are_neighbors(names[i], names[j]) for i, j in enumerate(twin.tolist())]
    return aside & new & torch.tensor(another, dtype=torch.bool, device="cpu")


def _are_neighbors(name: str, other: str) -> bool:
    """Whether two layers lie at two numbers of one sequence, rather than in two networks."""
    differ = [pair for pair in zip(name.split("."), other.split("."), strict=False) if pair[0] != pair[1]]
    return bool(differ) and all(part.isdigit() for part in differ[0])
