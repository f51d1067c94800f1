"""BN805: a gradient penalty through a normalization."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from bnmonitor.results import Severity
from bnmonitor.rules.base import Finding, Rule
from bnmonitor.window import Window


@dataclass(frozen=True, kw_only=True)
class NormUnderPerSampleGradients(Rule):
    """A gradient penalty goes through layers that couple the samples of a batch.

    ## What it does
    Looks for a gradient with respect to the network's input that keeps its own graph (``create_graph=True``), in a
    sampled step. Flags the layers in training mode that this gradient passed through. One alert for the model.

    ## Why is this bad?
    The penalty of WGAN-GP, R1 and similar methods bounds the slope of the critic at each sample by itself. A layer that
    normalizes by the batch makes each output depend on all inputs. The gradient then contains the effect of a sample on
    the other samples, and the penalty bounds something else.

    ## Example
    >>> from bnmonitor.testing import make_structure, make_window
    >>> [finding] = NormUnderPerSampleGradients().check(
    ...     make_window(facts={"structure": make_structure(per_sample=True)})
    ... )
    >>> str(finding.severity), finding.layers
    ('warning', (0,))

    In evaluation mode each output depends on its own sample only:

    >>> NormUnderPerSampleGradients().check(
    ...     make_window(training=False, facts={"structure": make_structure(per_sample=True)})
    ... )
    []

    ## What to do
    Use LayerNorm, InstanceNorm or no normalization in the critic, as the paper does.

    ## Thresholds
    None: whether such a gradient passed through is a fact.

    ## Look-alikes
    Adversarial examples take gradients with respect to the input without a graph, and meta-learning takes gradients
    with a graph with respect to parameters: the rule flags neither.

    ## References
    Gulrajani et al., Improved training of Wasserstein GANs, 2017, section 4; eriklindernoren/Keras-GAN#48.
    """

    code: ClassVar[str] = "BN805"
    name: ClassVar[str] = "norm-under-per-sample-gradients"
    severity: ClassVar[Severity] = Severity.WARNING
    needs: ClassVar[frozenset[str]] = frozenset({"dataflow"})

    def check(self, window: Window) -> list[Finding]:
        """Find the layers that a gradient penalty passes through."""
        structure = window.facts.structure
        places = structure.places if structure is not None else ()
        by_batch = (window.training[-1] & window.layers.which("normalizes_batch")).tolist()
        at = tuple(i for i, place in enumerate(places) if place.per_sample and by_batch[i])
        if not at:
            return []
        return [
            Finding(
                severity=Severity.WARNING,
                layer=at[0],
                layers=at,
                first_step=window.steps[0],
                value=float(len(at)),
                threshold=0.0,
                message="a gradient penalty passes through the layer in training mode: each output depends on the "
                "whole batch, so the penalty does not bound the slope at each sample",
                advice="use LayerNorm, InstanceNorm or no normalization in the critic",
            )
        ]
