"""What is known at a check, as flat tensors: a step (Frame), the last steps (Window), a sample, the facts."""

from __future__ import annotations

from dataclasses import dataclass, field, fields, replace
from typing import Any

import torch
from torch import Tensor

from bnmonitor.layers import LayerTable
from bnmonitor.ledger import Ledger
from bnmonitor.structure import Structure

CHANNEL_STATISTICS = (
    "batch_mean",
    "batch_var",
    "running_mean",
    "running_var",
    "gamma",
    "beta",
    "gamma_grad",
    "beta_grad",
    "shift",
    "ratio",
)
"""The statistics of a step that have a value per channel."""

LAYER_STATISTICS = ("updates", "training", "recovery", "momentum", "variance")
"""The statistics of a step that have a value per layer."""


@dataclass(frozen=True, kw_only=True)
class Frame:
    """One training step of every layer.

    Attributes:
        step: The step's number.
        batch_mean: ``[C]`` mean of the batch, recovered from the running mean; NaN where it could not be.
        batch_var: ``[C]`` unbiased variance of the batch, recovered alike.
        running_mean: ``[C]`` after the step.
        running_var: ``[C]`` after the step (PyTorch keeps the unbiased variance).
        gamma: ``[C]`` the layer's ``weight``; 1 for a layer without, NaN where it is computed of something else, as by
            pruning or a parametrization.
        beta: ``[C]`` the layer's ``bias``; 0 for a layer without.
        gamma_grad: ``[C]`` gradient of gamma; NaN where there was none.
        beta_grad: ``[C]`` gradient of beta, alike.
        shift: ``[C]`` ``(batch_mean - running_mean) / sqrt(running_var + eps)`` against the running statistics
            before the step: the ``d`` of Batch Renormalization (Ioffe 2017).
        ratio: ``[C]`` square root of ``(batch_var + eps) / (running_var + eps)``, alike: its ``r``.
        updates: ``[L]`` int64, how often the running statistics were updated in the step.
        training: ``[L]`` bool, whether the layer was in training mode at the end of the step.
        recovery: ``[L]`` int64, a :class:`~bnmonitor.statistics.Recovery`.
        momentum: ``[L]``, NaN for a cumulative average (momentum None).
        variance: ``[L]`` mean of the layer's batch variances; NaN where none was recovered.
    """

    step: int
    batch_mean: Tensor
    batch_var: Tensor
    running_mean: Tensor
    running_var: Tensor
    gamma: Tensor
    beta: Tensor
    gamma_grad: Tensor
    beta_grad: Tensor
    shift: Tensor
    ratio: Tensor
    updates: Tensor
    training: Tensor
    recovery: Tensor
    momentum: Tensor
    variance: Tensor


@dataclass(frozen=True, kw_only=True)
class Moments:
    """Activation statistics of one side of every layer, from a sampled step; all ``[C]``, NaN where not called.

    Of large layers they are taken over a part of the batch. The calls of a step are taken together.

    Attributes:
        mean: Mean.
        var: Variance (divided by the number of values).
        skewness: Third standardized moment: 0 if symmetric, about 1.6 behind a ReLU; NaN for a constant.
        kurtosis: Fourth standardized moment: 3 for a Gaussian, more with heavier tails; NaN for a constant.
        min: Smallest value.
        max: Largest value.
        nonpositive: Share of values that are not positive.
        saturation: Share of values pinned at the channel's smallest or largest value, one of each not counted: what a
            clamp leaves (ReLU at 0, ReLU6 at 0 and 6, hard sigmoid, a sigmoid that has run into 1, white and black
            pixels, the end of a dtype's range). 0 where nothing clamps; near 1 for a constant.
        nonfinite: Share of values that are NaN or infinite.
    """

    mean: Tensor
    var: Tensor
    skewness: Tensor
    kurtosis: Tensor
    min: Tensor
    max: Tensor
    nonpositive: Tensor
    saturation: Tensor
    nonfinite: Tensor


def _none() -> Tensor:
    return torch.zeros((), dtype=torch.int64, device="cpu")


@dataclass(frozen=True, kw_only=True)
class Sample:
    """Activation statistics of one sampled step.

    Attributes:
        step: The step's number.
        calls: ``[L]`` int64, how often each layer was called.
        eval_calls: ``[L]`` int64, how many of these calls were in evaluation mode.
        idle: ``[L]`` int64, calls besides, in evaluation mode and without a gradient, as of a teacher.
        apart: ``[4, L]``, how far apart the inputs of the layer's calls in training mode are, as described at
            :func:`bnmonitor.mixture.apart`; NaN for a layer that was called once.
        recomputed: ``[L]`` int64, calls besides, within the backward and in training mode.
        size: ``[L]`` int64, samples that were normalized together in the layer's last call (``x.shape[0]``).
        values: ``[L]`` int64, values per channel in that call.
        input: Moments of the layer's input.
        output: Moments of the layer's output; ``nonpositive`` is the share that a ReLU behind it turns to zero.
        between: ``[C]`` unbiased variance, over the samples of a batch, of each sample's own mean. Were the samples
            drawn independently, the batch mean would vary by ``between / size`` from batch to batch. NaN for a single
            sample.
        padding: ``[L]`` share of positions at constant ends of the sequences of an input ``[N, C, L]``; NaN for others.
        input_dtypes: Type of each layer's input in that call; None for a layer not called, empty where unknown.
    """

    step: int
    calls: Tensor
    eval_calls: Tensor
    size: Tensor
    values: Tensor
    input: Moments
    output: Moments
    between: Tensor
    input_dtypes: tuple[torch.dtype | None, ...] = ()
    idle: Tensor = field(default_factory=_none)
    recomputed: Tensor = field(default_factory=_none)
    apart: Tensor = field(default_factory=lambda: torch.full((4, 1), torch.nan, dtype=torch.float64, device="cpu"))
    padding: Tensor | None = None


@dataclass(frozen=True, kw_only=True)
class Gaps:
    """What an extra forward at the start of an evaluation told of each layer.

    Attributes:
        step: The last training step before it.
        gap: ``[L]`` relative difference of the layer's outputs with batch statistics and with running statistics; NaN
            for a layer that was not compared.
        size: ``[L]`` int64, samples in the batch.
    """

    step: int
    gap: Tensor
    size: Tensor

    def joined(self, other: Gaps | None) -> Gaps:
        """Return what both told, of a layer the other one's if it was compared there."""
        if other is None:
            return self
        new = ~other.gap.isnan()
        return replace(self, gap=other.gap.where(new, self.gap), size=other.size.where(new, self.size))


@dataclass(frozen=True, kw_only=True)
class HeldOut:
    """What the layers that see the data, or have dropout before them, were given in a validation or test.

    Attributes:
        step: The last training step before it.
        size: ``[L]`` int64, samples that were looked at; 0 where none was.
        mean: ``[C]`` mean of the layer's input; NaN where it was not looked at.
        var: ``[C]`` its variance.
        running_mean: ``[C]`` the running mean that was in force.
        running_var: ``[C]`` the running variance that was in force.
    """

    step: int
    size: Tensor
    mean: Tensor
    var: Tensor
    running_mean: Tensor
    running_var: Tensor


@dataclass(frozen=True, kw_only=True)
class Loader:
    """What a loader tells of its batches; None where it does not.

    Attributes:
        batch_size: Samples in a batch, on each process.
        samples: Samples that an epoch draws, on each process.
        drop_last: Whether an incomplete last batch is left out.
        shuffled: Whether samples are drawn in random order.
        complete: Whether an epoch goes on to the last batch.
    """

    batch_size: int | None = None
    samples: int | None = None
    drop_last: bool | None = None
    shuffled: bool | None = None
    complete: bool = True

    @property
    def batches(self) -> int | None:
        """Batches in an epoch, an incomplete last one included; None if that is unknown."""
        return -(-self.samples // self.batch_size) if self.samples and self.batch_size else None

    @property
    def leftover(self) -> int | None:
        """Samples in an incomplete last batch that is trained on: 0 if there is none, None if that is unknown."""
        if self.drop_last or not self.complete:
            return 0
        return self.samples % self.batch_size if self.samples and self.batch_size else None


@dataclass(frozen=True, kw_only=True)
class RankStatistics:
    """What all processes that train together had at one step.

    Attributes:
        step: The step's number.
        world_size: Number of processes.
        size: ``[L]`` mean number of values per channel that one process normalized together; NaN where unknown.
        batch_mean: ``[C]`` mean of the batches of all processes together.
        batch_var: ``[C]`` unbiased variance of them all, by the parallel formula (Chan, Golub and LeVeque 1983).
        batch_spread: ``[C]`` how far the batch means of two processes are apart, as a root mean square in deviations.
        mean_spread: ``[C]`` the same of their running means.
        var_spread: ``[C]`` the same of the logs of their running variances.
    """

    step: int
    world_size: int
    size: Tensor
    batch_mean: Tensor
    batch_var: Tensor
    batch_spread: Tensor
    mean_spread: Tensor
    var_spread: Tensor


@dataclass(frozen=True, kw_only=True)
class Facts:
    """What is known of the run besides the statistics.

    Attributes:
        affine_trains: ``[L]`` bool, gamma or beta needs a gradient and, where optimizers are known, is in one.
        optimizers: Whether the optimizers are known.
        learning_rates: The largest learning rate in force at each step of the window; NaN where unknown.
        world_size: Processes that train together; 1 where unknown.
        structure: What the autograd graph told, once a step has been seen.
        decay: ``[L]`` largest weight decay on gamma or beta, 0 without; None where unknown.
        decoupled: ``[L]`` bool, whether it acts on the parameters themselves, as in AdamW, not through the gradient.
        buffer_dtypes: Type of each layer's running statistics; None for a layer without, empty where unknown.
        train_loader: What the training loader tells; None where unknown.
        val_loader: What the validation loader tells; None where unknown.
        accumulate: Micro-batches per optimizer step.
        scales: The gradient scaler's scale after each step of the window, NaN where unknown; empty without a scaler.
        skipped_steps: Whether the scaler skipped the optimizer at each step of the window; empty without one.
        ranks: What all processes had at the last step at which they told each other.
        epoch_steps: Training steps in the first epoch that was seen to end; 0 before.
        evaluation: The phase of the evaluation that is about to begin; empty in the middle of training.
        auxiliary: Of each layer the sub-network it belongs to, if no optimizer trains any of it; else, and where that
            is not known, empty.
        strays: Descriptions of normalization layers that ran in training mode and are part of no model.
        gaps: What an extra forward told; None in the middle of training, and without ``probe=True``.
        averaged_gaps: The same of averaged weights, as the latest evaluation began to use them.
        own_forward: Of each layer the subclass of BatchNorm with a forward of its own that it is, or was before a
            conversion to SyncBatchNorm; else empty.
        converts: Whether the Trainer converts the model to SyncBatchNorm.
        averages_without_buffers: Whether the Trainer evaluates averaged weights whose buffers are not averaged.
        optimizer_count: Number of optimizers that are known.
        held_out: The latest validations and tests, two at most, the newest last.
        untrained: Whether there was no training step, but an evaluation only.
        rewritten: ``[L]`` bool, something other than a training step has set the running statistics since the last one;
            None where that was not looked at.
    """

    affine_trains: Tensor
    optimizers: bool = False
    learning_rates: tuple[float, ...] = ()
    world_size: int = 1
    structure: Structure | None = None
    decay: Tensor | None = None
    decoupled: Tensor | None = None
    buffer_dtypes: tuple[torch.dtype | None, ...] = ()
    train_loader: Loader | None = None
    val_loader: Loader | None = None
    accumulate: int = 1
    scales: tuple[float, ...] = ()
    skipped_steps: tuple[bool, ...] = ()
    ranks: RankStatistics | None = None
    epoch_steps: int = 0
    evaluation: str = ""
    held_out: tuple[HeldOut, ...] = ()
    rewritten: Tensor | None = None
    auxiliary: tuple[str, ...] = ()
    strays: tuple[str, ...] = ()
    optimizer_count: int = 0
    gaps: Gaps | None = None
    averaged_gaps: Gaps | None = None
    own_forward: tuple[str, ...] = ()
    converts: bool = False
    averages_without_buffers: bool = False
    untrained: bool = False


@dataclass(frozen=True, kw_only=True)
class Baseline:
    """What each layer and channel was like when it was well, or when watching began.

    Attributes:
        log_var: ``[C]`` robust log of the batch variance after warm-up; NaN before.
        spread: ``[C]`` median absolute deviation of that log from step to step, alike.
        unrest: ``[L]`` how far the batches were from the running statistics while the layer was calm, in deviations;
            NaN before warm-up.
        jump: ``[L]`` how far the mean moved from batch to batch in such times, likewise.
        rate: ``[L]`` highest learning rate so far, but for the newest steps; 0 where unknown.
        offset: ``[L]`` robust median of ``abs(mean) / sigma`` after warm-up; NaN before.
        alive: ``[C]`` bool, the batch variance was once well above eps.
        gamma: ``[C]`` gamma at the start.
        mean: ``[C]`` running mean at the start.
        var: ``[C]`` running variance at the start.
        initial: ``[L]`` weight that mean 0 and variance 1 had in the running statistics at the start; 0 once something
            other than training has set them.
        updates: ``[L]`` int64, updates seen since the start.
        forgotten: ``[L]``, minus the log of the weight that the initial statistics still have after these updates.
        sizes: ``[L]`` median number of samples per call over the samples taken; NaN where none was.
        values: ``[L]`` median number of values per channel over the samples taken; NaN where none was.
    """

    log_var: Tensor
    spread: Tensor
    offset: Tensor
    unrest: Tensor
    jump: Tensor
    rate: Tensor
    alive: Tensor
    gamma: Tensor
    mean: Tensor
    var: Tensor
    initial: Tensor
    updates: Tensor
    forgotten: Tensor
    sizes: Tensor
    values: Tensor

    def save(self) -> dict[str, Tensor]:
        """Return the baseline as plain tensors by name, for a checkpoint."""
        return {f.name: getattr(self, f.name).clone() for f in fields(self)}


@dataclass(frozen=True, kw_only=True)
class Window:
    """The last ``T`` steps, with what they are judged against.

    The statistics are those of :class:`Frame`, with a leading axis of steps: ``[T, C]`` and ``[T, L]``.
    """

    layers: LayerTable
    steps: tuple[int, ...]
    batch_mean: Tensor
    batch_var: Tensor
    running_mean: Tensor
    running_var: Tensor
    gamma: Tensor
    beta: Tensor
    gamma_grad: Tensor
    beta_grad: Tensor
    shift: Tensor
    ratio: Tensor
    updates: Tensor
    training: Tensor
    recovery: Tensor
    momentum: Tensor
    variance: Tensor
    baseline: Baseline
    facts: Facts
    sample: Sample | None = None
    ledger: Ledger = field(default_factory=lambda: Ledger.blank(0))
    """Who ran and updated the layers; a window made without one gets an empty one."""
    fresh: int = field(default=0)
    """How many of the steps are new since the last check."""
    memo: dict[str, Any] = field(default_factory=dict, init=False, repr=False, compare=False)
    """What was computed of this very window; a window made from it by ``replace`` begins with none."""

    def __post_init__(self) -> None:
        if self.ledger.called.numel() != len(self.layers):
            object.__setattr__(self, "ledger", Ledger.blank(len(self.layers)))

    def __len__(self) -> int:
        return len(self.steps)

    def frame(self, position: int) -> Frame:
        """Return one step of the window."""
        rows = {name: getattr(self, name)[position] for name in CHANNEL_STATISTICS + LAYER_STATISTICS}
        return Frame(step=self.steps[position], **rows)

    def last(self, steps: int) -> Window:
        """Return the same window with only its newest steps."""
        rows = {name: getattr(self, name)[-steps:] for name in CHANNEL_STATISTICS + LAYER_STATISTICS}
        return replace(self, steps=self.steps[-steps:], fresh=min(self.fresh, steps), **rows)

    def ran_in_training(self) -> Tensor:
        """``[L]`` bool: the layer's own forward ran in training, as far as the last sample tells."""
        called = self.ledger.called
        return called if self.sample is None else called & (self.sample.calls > self.sample.eval_calls)

    @property
    def beside(self) -> Tensor:
        """``[L]`` bool: the layer is of an average of the weights, or of another network beside the trained one."""
        named = torch.tensor([*map(bool, self.facts.auxiliary)] or False, dtype=torch.bool, device="cpu")
        return self.ledger.averaged | named

    @property
    def copied(self) -> Tensor:
        """``[L]`` bool: such a layer that no training step ran, as far as is known: its updates are another layer's."""
        if self.sample is None:
            return self.beside
        return self.beside & (self.sample.calls == 0) & (self.sample.idle == 0)

    def learning_rate(self, position: int = -1) -> float:
        """The learning rate in force at a step of the window; NaN where unknown."""
        rates = self.facts.learning_rates
        return rates[position] if len(rates) == len(self) and rates else float("nan")
