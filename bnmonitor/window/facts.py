"""What is known of the run besides the statistics."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from bnmonitor.window.sample import EvaluationGap, HeldOut
from bnmonitor.window.structure import Structure


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
class GatheredAffine:
    """Gamma and beta of all channels at one step, of which each process holds a part: ``[C]`` float64 each.

    Attributes:
        step: The step's number.
        known: ``[C]`` bool, the processes know this channel's gamma and beta; NaN stands for those they do not.
        gamma: Gamma.
        beta: Beta.
        gamma_start: Gamma at the start.
        gamma_grad: Largest size of gamma's gradient in the newest steps, ten at least; NaN where it is not known of so
            many, and in layers that are not split.
    """

    step: int
    known: Tensor
    gamma: Tensor
    beta: Tensor
    gamma_start: Tensor
    gamma_grad: Tensor


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
        distance: ``[W]`` how far the running statistics of each process were from the mean of all in an exchange
            before, in standard deviations, in the layer where they were furthest; NaN where unknown.
        affine: Gamma and beta as they came last, with ``gather_affine=True`` where they are split over the processes;
            else None.
    """

    step: int
    world_size: int
    size: Tensor
    batch_mean: Tensor
    batch_var: Tensor
    batch_spread: Tensor
    mean_spread: Tensor
    var_spread: Tensor
    distance: Tensor | None = None
    affine: GatheredAffine | None = None


@dataclass(frozen=True, kw_only=True)
class Facts:
    """What is known of the run besides the statistics.

    Attributes:
        affine_trains: ``[L]`` bool, gamma or beta needs a gradient and, where optimizers are known, is in one.
        optimizers: Whether the optimizers are known.
        learning_rates: The largest learning rate in force at each step of the window; NaN where unknown.
        losses: The loss at each step of the window, which may be NaN; None where it is unknown.
        loss_start: The lowest of the first three losses of the run; NaN where unknown.
        loss_best: The lowest median of ten losses in a row so far, likewise.
        world_size: Processes that train together; 1 where unknown.
        structure: The network around the layers by the autograd graph, once a step has been sampled.
        decay: ``[L]`` largest weight decay on gamma or beta, 0 without; None where unknown.
        decoupled: ``[L]`` bool, whether it acts on the parameters themselves, as in AdamW, not through the gradient.
        group: ``[L]`` int64, position of the parameter group that trains gamma or beta, -1 for none.
        group_rates: The learning rate of each parameter group now, NaN where unknown.
        buffer_dtypes: Type of each layer's running statistics; None for a layer without, empty where unknown.
        train_loader: What the training loader tells; None where unknown.
        val_loader: What the validation loader tells; None where unknown.
        accumulate: Micro-batches per optimizer step.
        scales: The gradient scaler's scale after each step of the window, NaN where unknown; empty without a scaler.
        skipped_steps: Whether the scaler skipped the optimizer at each step of the window; empty without one.
        ranks: The statistics of all processes at the last step that they exchanged.
        epoch_steps: Training steps in the first epoch that was seen to end; 0 before.
        evaluation: The phase of the evaluation that is about to begin; empty in the middle of training.
        auxiliary: Of each layer the sub-network it belongs to, if no optimizer trains any of it; else, and where that
            is not known, empty.
        unregistered: Descriptions of normalization layers that ran in training mode and are part of no model.
        unwatched: What the batch normalizations are that belong to no watched layer, by the name of their module.
        gaps: What an extra forward showed; None in the middle of training, and without ``probe=True``.
        averaged_gaps: The same of averaged weights, as the latest evaluation began to use them.
        own_forward: Of each layer the subclass of BatchNorm with a forward of its own that it is, or was before a
            conversion to SyncBatchNorm; else empty.
        converts: Whether the Trainer converts the model to SyncBatchNorm.
        averages_without_buffers: Whether the Trainer evaluates averaged weights whose buffers are not averaged.
        optimizer_count: Number of optimizers that are known.
        untouched: Whether the optimizers are known to have no parameter of the models, such as those of other copies.
        held_out: The latest validations and tests, two at most, the newest last.
        untrained: Whether there was no training step, but an evaluation only.
        thawed: The step after which more parameters were trained than ever before, as where layers are unfrozen; None
            if there was none.
        quantized: Whether somebody asks how the model quantizes: it is prepared for that, or audited.
        ending: Whether the training ends now.
        rewritten: ``[L]`` bool, something other than a training step has set the running statistics since the last one;
            None where that was not looked at.
        pruned: Tells of a layer, by its position and number of channels, which of them the operation before it has been
            pruned of: ``[C]`` bool, or None where that is unknown. It waits for the device that the mask is on, so that
            a rule asks only before it tells of something. None: nothing is known.
    """

    affine_trains: Tensor
    optimizers: bool = False
    learning_rates: tuple[float, ...] = ()
    losses: tuple[float | None, ...] = ()
    loss_start: float = float("nan")
    loss_best: float = float("nan")
    world_size: int = 1
    structure: Structure | None = None
    decay: Tensor | None = None
    decoupled: Tensor | None = None
    group: Tensor | None = None
    group_rates: tuple[float, ...] = ()
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
    unregistered: tuple[str, ...] = ()
    unwatched: Mapping[str, str] = field(default_factory=dict)
    optimizer_count: int = 0
    untouched: bool = False
    gaps: EvaluationGap | None = None
    averaged_gaps: EvaluationGap | None = None
    own_forward: tuple[str, ...] = ()
    converts: bool = False
    averages_without_buffers: bool = False
    untrained: bool = False
    thawed: int | None = None
    quantized: bool = False
    ending: bool = False
    pruned: Callable[[int, int], Tensor | None] | None = None

    @property
    def known_losses(self) -> tuple[float, ...]:
        """The losses of the steps of which one is known, the newest last."""
        return tuple(loss for loss in self.losses if loss is not None)
