"""BN510: a normalization of the model that bnmonitor does not watch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from bnmonitor._text import count, listing
from bnmonitor.results import Severity
from bnmonitor.rules.base import Finding, Rule
from bnmonitor.window import Window


@dataclass(frozen=True, kw_only=True)
class UnwatchedNormalization(Rule):
    """The model has a batch normalization that belongs to no watched layer.

    ## What it does
    Looks for modules that keep the average of a mean and of a variance (``running_mean`` and ``running_var``,
    ``moving_mean`` and ``moving_var``, of any shape with one axis), or that appear as a batch normalization in the
    autograd graph of a sampled step, and are no layer that bnmonitor records: a class of its own that calls
    ``F.batch_norm``, a part that TorchScript has compiled, an exported graph. Names them, once.

    ## Why is this bad?
    It need not be. But no rule judges these normalizations, and nothing that bnmonitor says of the model's health is
    about them.

    ## Example
    >>> from bnmonitor.testing import make_window
    >>> [finding] = UnwatchedNormalization().check(make_window(facts={"unwatched": {"norm1": "a class of its own"}}))
    >>> str(finding.severity), finding.modules
    ('info', ('norm1',))

    If every normalization is watched, the rule stays quiet:

    >>> UnwatchedNormalization().check(make_window())
    []

    ## Code
    Wrong::

        class Norm(nn.Module):  # nobody can tell that it is a BatchNorm
            def forward(self, x):
                return F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, self.training)

    Right::

        class Norm(nn.BatchNorm2d):  # has running_mean, running_var, weight and bias
            def forward(self, x):
                return F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, self.training)

    ## What to do
    Derive the class from ``nn.BatchNorm1d``, ``2d`` or ``3d``, and keep the statistics in the ``running_mean`` and
    ``running_var`` that it has then: it is watched, whatever its forward does. Watch a model before it is exported,
    scripted or compiled by another tool. Layers that ``include`` or ``exclude`` leave out on purpose are not named.

    ## Thresholds
    None: a module is watched or it is not.

    ## Look-alikes
    Modules with the buffers of a frozen BatchNorm are watched, and so are InstanceNorm with running statistics. Other
    normalizations (GroupNorm, LayerNorm) keep no running statistics, and nothing of them is to be watched. Modules that
    standardize observations by all that they have seen (reinforcement learning) are right as they are: they have no
    gamma, and count samples or sum in double precision.

    ## References
    AntreasAntoniou/HowToTrainYourMAMLPytorch#3; mapillary/inplace_abn#45.
    """

    code: ClassVar[str] = "BN510"
    name: ClassVar[str] = "unwatched-normalization"
    severity: ClassVar[Severity] = Severity.INFO
    exact: ClassVar[bool] = True
    untrained: ClassVar[bool] = True
    without_layers: ClassVar[bool] = True

    def check(self, window: Window) -> list[Finding]:
        """Report the normalizations that are not watched."""
        unwatched = window.facts.unwatched
        if not unwatched:
            return []
        kinds = listing(dict.fromkeys(unwatched.values()), 2)
        graph = all("TorchScript" in why or "exported" in why for why in unwatched.values())
        return [
            Finding(
                severity=Severity.INFO,
                layer=None,
                first_step=window.steps[0],
                value=float(len(unwatched)),
                threshold=0.0,
                message=f"{count(len(unwatched), 'normalization')} not watched, of which no rule knows anything: "
                f"{listing(unwatched, 3)} ({kinds})",
                advice="watch the model that it was exported or compiled from: Monitor(model)"
                if graph
                else "derive the class from nn.BatchNorm2d (or 1d, 3d) and keep the statistics in its running_mean and "
                "running_var: it is watched then, whatever its forward does",
                modules=tuple(unwatched),
            )
        ]
