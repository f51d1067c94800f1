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
    Flags layers in training mode through which, in a sampled step, a gradient with respect to the network's input went
    that keeps a graph of its own (``create_graph=True``). One alert for the model.

    ## Why is this bad?
    The penalty of WGAN-GP, R1 and their like bounds the slope of the critic at each sample by itself. A layer that
    normalizes by the batch makes each output depend on all inputs: the gradient that is taken contains what a sample
    does to the others, and the penalty bounds something else.

    ## Example
    >>> from bnmonitor.testing import make_structure, make_window
    >>> [finding] = NormUnderPerSampleGradients().check(
    ...     make_window(facts={"structure": make_structure(per_sample=True)})
    ... )
    >>> str(finding.severity), finding.layers
    ('warning', (0,))

    In evaluation mode the samples are apart:

    >>> NormUnderPerSampleGradients().check(
    ...     make_window(training=False, facts={"structure": make_structure(per_sample=True)})
    ... )
    []

    ## What to do
    LayerNorm, InstanceNorm or no normalization in the critic, as the paper does.

    ## Thresholds
    None: whether such a gradient went through is a fact.

    ## Look-alikes
    Adversarial examples take gradients with respect to the input without a graph, and meta-learning takes gradients
    with a graph with respect to parameters: both are left alone.

    ## References
    Gulrajani et al., Improved training of Wasserstein GANs, 2017, section 4; eriklindernoren/Keras-GAN#48.
    """

    code: ClassVar[str] = "BN805"
    name: ClassVar[str] = "norm-under-per-sample-gradients"
    severity: ClassVar[Severity] = Severity.WARNING
    needs: ClassVar[frozenset[str]] = frozenset({"dataflow"})

    def check(self, window: Window) -> list[Finding]:
        """Find the layers that a gradient penalty goes through."""
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
                message="a gradient penalty is taken through it in training mode: each output depends on the whole "
                "batch, and the penalty bounds no sample's own slope",
                advice="use LayerNorm, InstanceNorm or no normalization in the critic",
            )
        ]
