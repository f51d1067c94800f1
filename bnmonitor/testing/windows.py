"""Windows made up for a test: healthy but for what is given."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from bnmonitor.layers import LayerTable
from bnmonitor.testing.samples import Values, make_sample
from bnmonitor.window import PHASES, Bare, Facts, HeldOut, Ledger, Place, Sample, Structure, Window


def make_window(
    *,
    channels: Sequence[int] | None = None,
    steps: int = 64,
    momentum: float | None = 0.1,
    training: bool | Sequence[bool] | Tensor = True,
    updates: int | Tensor = 1,
    sizes: Values = 64,
    values: Values | None = None,
    affine_trains: bool | Sequence[bool] = True,
    relu: bool = False,
    learning_rate: float = 0.1,
    offset: float = 0.0,
    level: float = 1.0,
    start_gamma: Values = 1.0,
    start_mean: Values = 0.0,
    sample: Sample | None = None,
    evaluation: str = "",
    seen: int | None = None,
    chain: bool = False,
    decay: float = 0.0,
    decoupled: bool = False,
    facts: Mapping[str, Any] | None = None,
    ledger: Mapping[str, Mapping[str, int] | bool] | None = None,
    **statistics: Values,
) -> Window:
    """Make a window of one healthy layer, but for what is given.

    A statistic is a number, one value per channel, or ``[steps, channels]``; the number of channels follows from the
    longest. ``channels`` splits them into layers.

    Args:
        channels: Channels of each layer; one layer of all by default.
        steps: Steps in the window.
        momentum: Of every layer.
        training: Mode of the layers, all or each, or ``[steps, layers]``.
        updates: Updates of the running statistics per step, or ``[steps, layers]``.
        sizes: Samples that were normalized together, as the samples taken say, in all layers or each.
        values: Values per channel, likewise; ``sizes`` by default.
        affine_trains: Whether gamma and beta train, all or each.
        relu: Whether a ReLU is all that reads each layer's output.
        learning_rate: In force throughout.
        offset: The baseline's middle ``abs(mean) / sigma``.
        level: The baseline's batch variance.
        start_gamma: Gamma at the start.
        start_mean: Running mean at the start.
        sample: Activation statistics.
        evaluation: Phase of the evaluation that is about to begin, and of the one that ended last.
        seen: Updates since the start, which was at mean 0 and variance 1; None: long forgotten.
        chain: Whether each layer follows the one before without a skip connection.
        decay: Weight decay on gamma and beta.
        decoupled: Whether it acts on the parameters themselves, as in AdamW.
        facts: Other fields of :class:`~bnmonitor.window.Facts`, such as ``{"accumulate": 4}``.
        ledger: Fields of :class:`~bnmonitor.window.Ledger`, the same for all layers: ``{"initial": True}``, or by phase
            ``{"seen": {"validation": 3}}``.
        statistics: Any statistic per channel of :class:`~bnmonitor.window.Window`.
    """
    given = {name: torch.as_tensor(v, dtype=torch.float32) for name, v in statistics.items()}
    width = max([t.shape[-1] for t in given.values() if t.dim()], default=sum(channels) if channels else 3)
    sizes_of = tuple(channels) if channels else (width,)
    layers = LayerTable(
        names=tuple(f"layer{i}" for i in range(len(sizes_of))),
        channels=sizes_of,
        kinds=("BatchNorm2d",) * len(sizes_of),
        eps=(1e-5,) * len(sizes_of),
        momentum=(momentum,) * len(sizes_of),
        affine=(True,) * len(sizes_of),
        tracking=(True,) * len(sizes_of),
        family=tuple("batch" for _ in sizes_of),
    )

    def spread(value: Values) -> Tensor:
        return torch.as_tensor(value, dtype=torch.float32).expand(steps, width).clone()

    def each(value: bool | Sequence[bool]) -> Tensor:
        return torch.as_tensor(value).expand(len(layers)).clone()

    def course(value: int | Sequence[bool] | Tensor) -> Tensor:
        return torch.as_tensor(value).expand(steps, len(layers)).clone()

    usual: dict[str, Values] = {
        "batch_mean": 0.0,
        "batch_var": 1.0,
        "running_mean": 0.0,
        "running_var": 1.0,
        "gamma": 1.0,
        "beta": 0.0,
        "gamma_grad": 0.01,
        "beta_grad": 0.01,
    }
    known: dict[str, Any] = {name: spread(value) for name, value in {**usual, **given}.items()}
    eps = layers.eps_by_channel.float()
    scale = (known["running_var"] + eps).sqrt()
    known.setdefault("shift", (known["batch_mean"] - known["running_mean"]) / scale)
    known.setdefault("ratio", (known["batch_var"] + eps).sqrt() / scale)
    count = len(layers)
    structure = Structure(
        producer_trains=(True,) * count,
        consumers=(("relu",) if relu else ("add",),) * count,
        places=in_a_row(count) if chain else (),
    )
    blank = Window.neutral(layers, range(steps))
    known |= {"updates": course(updates), "training": course(training), "recovery": torch.zeros_like(blank.recovery)}
    known["variance"] = torch.stack([v.mean(-1) for v in torch.split(known["batch_var"], list(sizes_of), -1)], -1)
    return replace(
        blank,
        baseline=replace(
            blank.baseline,
            log_var=torch.full((width,), math.log(level)),
            spread=torch.full((width,), 0.1),
            offset=torch.full((count,), offset),
            batch_distance=torch.full((count,), 0.05),
            jump=torch.full((count,), 0.05),
            rate=torch.full((count,), learning_rate),
            alive=torch.ones(width, dtype=torch.bool),
            gamma=spread(start_gamma)[0],
            mean=spread(start_mean)[0],
            var=torch.ones(width),
            initial=torch.ones(count, dtype=torch.float64),
            updates=torch.full((count,), 1000 if seen is None else seen),
            forgotten=torch.full((count,), 1e4 if seen is None else -seen * math.log1p(-(momentum or 0.0))).double(),
            sizes=torch.as_tensor(sizes).float().expand(count).clone(),
            values=torch.as_tensor(sizes if values is None else values).float().expand(count).clone(),
        ),
        facts=replace(
            Facts(
                affine_trains=each(affine_trains),
                optimizers=True,
                learning_rates=(learning_rate,) * steps,
                structure=structure,
                evaluation=evaluation,
                decay=torch.full((count,), decay),
                decoupled=torch.full((count,), decoupled),
            ),
            **(facts or {}),
        ),
        sample=sample,
        ledger=_ledger(count, steps, {**_cold(evaluation, momentum, seen), **(ledger or {})}),
        fresh=min(10, steps),
        **known,
    )


def in_a_row(count: int) -> tuple[Place, ...]:
    """Places of layers that lie in one chain, an operation with weights before each."""
    return tuple(
        Place(
            order=i,
            calls=1,
            predecessors=(i - 1,) if i else (),
            follows=i - 1 if i else None,
            root=not i,
            depth=i,
            distance=i + 1,
        )
        for i in range(count)
    )


def make_structure(*, layers: int = 1, bare: Sequence[Bare] = (), normalized: int = 0, **place: Any) -> Structure:
    """Make the structure of layers that all sit alike.

    Args:
        layers: Number of layers.
        bare: Convolutions without a normalization.
        normalized: Number of convolutions with one.
        place: Fields of :class:`~bnmonitor.window.Place`.
    """
    return Structure(
        producer_trains=(True,) * layers,
        consumers=(("add",),) * layers,
        places=(Place(**place),) * layers,
        names=tuple(f"layer{i}" for i in range(layers)),
        bare=tuple(bare),
        normalized=normalized,
    )


def drawn_window(*, spread: float = 1.0, turns: float = 0.0, drift: float = 0.0, steps: int = 64) -> Window:
    """Make a window of one layer that sees the data, whose batches are 64 samples each.

    Args:
        spread: Variance of the batch mean, over what independent samples give.
        turns: How far every other batch is shifted, in deviations.
        drift: How far the mean moves over the window, in deviations.
        steps: Steps in the window.
    """
    size, channels = 64, 16
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(steps, channels, generator=generator) * (spread / size) ** 0.5
    time = torch.arange(steps)[:, None]
    means = noise + turns * (time % 2) + drift * time / steps
    window = make_window(steps=steps, batch_mean=means, facts={"structure": make_structure(root=True)})
    sample = make_sample(window.layers, size=size, between=1.0)
    return replace(window, sample=sample)


def path_window(distance: float, *, steps: int = 64) -> Window:
    """Make a window of two layers, the second of which gets its input by one of two paths in each step.

    Args:
        distance: How far the batch means of the two paths are apart, in deviations.
        steps: Steps in the window.
    """
    channels, generator = 16, torch.Generator().manual_seed(0)
    means = 0.02 * torch.randn(steps, 2 * channels, generator=generator)
    means[:, channels:] += distance * (torch.rand(steps, 1, generator=generator) < 0.5)
    structure = make_structure(layers=2)
    return make_window(
        channels=[channels] * 2, batch_mean=means, facts={"structure": replace(structure, places=in_a_row(2))}
    )


def held_out_window(*, mean: float = 0.0, var: float = 1.0, size: int = 512, evaluations: int = 1) -> Window:
    """Make a window of one layer that sees the data, after validations in which it had a mean and a variance."""
    window = make_window(facts={"structure": make_structure(root=True)})
    zeros, ones = torch.zeros(window.layers.total), torch.ones(window.layers.total)
    seen = HeldOut(
        step=window.steps[-1],
        size=torch.full((len(window.layers),), size),
        mean=zeros + mean,
        var=ones * var,
        running_mean=zeros,
        running_var=ones,
    )
    return replace(window, facts=replace(window.facts, held_out=(seen,) * evaluations))


def padded_window(share: float) -> Window:
    """Make a window of one layer over sequences, a share of whose positions was padding in the last sample."""
    window = make_window()
    sample = make_sample(window.layers, step=window.steps[-1])
    return replace(window, sample=replace(sample, padding=torch.full((len(window.layers),), share)))


def _cold(evaluation: str, momentum: float | None, seen: int | None) -> dict[str, Any]:
    """What an evaluation so many updates after the start leaves in the ledger."""
    if seen is None or evaluation in ("", "sanity"):
        return {}
    return {"cold": (1 - (momentum or 0.0)) ** seen, "times": 1, "tested": evaluation in ("test", "predict")}


def _ledger(layers: int, steps: int, given: Mapping[str, Mapping[str, int] | bool]) -> Ledger:
    ledger = Ledger.blank(layers).copied(steps=steps)
    ledger.called.fill_(True)
    for name, value in given.items():
        if isinstance(value, Mapping):
            for phase, number in value.items():
                getattr(ledger, name)[PHASES.index(phase)] = number
        else:
            getattr(ledger, name).fill_(value)
    return ledger
