"""Random windows for testing rules, and how to join two of them or shuffle the channels of one."""

from __future__ import annotations

import math
from dataclasses import fields, replace
from typing import Any

import torch
from torch import Tensor

from bnmonitor.layers import LayerTable
from bnmonitor.testing.windows import in_a_row
from bnmonitor.window import (
    PHASES,
    Bare,
    Baseline,
    EvaluationGap,
    Facts,
    HeldOut,
    Ledger,
    Loader,
    Moments,
    Operation,
    Place,
    Producer,
    RankStatistics,
    Sample,
    Structure,
    Window,
)

OF_RANKS = ("batch_mean", "batch_var", "batch_spread", "mean_spread", "var_spread")
OF_HELD_OUT = ("mean", "var", "running_mean", "running_var", "middle_mean", "middle_var", "noise_mean", "noise_log_var")


def random_window(seed: int, steps: int, channels: list[int], *, wild: bool = True, run: int | None = None) -> Window:
    """Make a window of anything: calm layers and broken ones, with NaN and infinity in a third of them.

    Args:
        seed: Of all values that belong to a layer.
        steps: Steps in the window.
        channels: Channels of each layer.
        wild: Whether some values are NaN or infinite.
        run: Seed of what belongs to the run (learning rates, the sampled step); ``seed`` by default. Two windows with
            the same ``run`` can be joined by :func:`joined_windows`.
    """
    rng = torch.Generator().manual_seed(seed)
    of_run = torch.Generator().manual_seed(seed if run is None else run)

    def coin(p: float, *shape: int) -> Tensor:
        return torch.rand(shape, generator=rng) < p

    count, width = len(channels), sum(channels)
    layers = LayerTable(
        names=tuple(f"layer{i}" for i in range(count)),
        channels=tuple(channels),
        kinds=("BatchNorm2d",) * count,
        eps=tuple(1e-5 if bool(c) else 1e-3 for c in coin(0.8, count)),
        momentum=tuple(None if bool(c) else 0.1 for c in coin(0.1, count)),
        affine=tuple(coin(0.8, count).tolist()),
        tracking=(True,) * count,
        family=tuple("batch" for _ in channels),
    )
    owner = layers.owner

    def sprinkled(values: Tensor) -> Tensor:
        if not wild:
            return values
        spoiled = coin(0.35, count)[owner] & coin(0.2, *values.shape)
        strange = torch.tensor([math.nan, math.inf, -math.inf, 0.0])
        return torch.where(spoiled, strange[torch.randint(4, values.shape, generator=rng)], values)

    def signed(p: float, log_scale: float) -> Tensor:
        """Per channel a calm value, or with probability p one of any size; with noise from step to step."""
        size = torch.where(coin(p, width), (log_scale * torch.randn(width, generator=rng)).exp(), 0.1)
        noise = 1 + 0.3 * torch.randn(steps, width, generator=rng) * coin(0.7, count)[owner]
        return torch.randn(width, generator=rng).sign() * size * noise

    def positive(p: float, log_scale: float) -> Tensor:
        return signed(p, log_scale).abs().mul(10)

    broken = torch.rand(1, generator=rng).item()
    rows = {
        "batch_mean": signed(broken, 3.0),
        "batch_var": positive(broken, 9.0),
        "running_mean": signed(broken, 3.0),
        "running_var": positive(broken, 9.0),
        "gamma": torch.where(coin(0.4, count)[owner], 1e-4, 1.0) * torch.ones(steps, width),
        "beta": torch.where(coin(0.4, count)[owner] & coin(0.7, width), -7.0, 0.2) * torch.ones(steps, width),
        "gamma_grad": torch.where(coin(0.5, width), 0.0, 0.01) * torch.ones(steps, width),
        "beta_grad": torch.where(coin(0.5, width), 0.0, 0.01) * torch.ones(steps, width),
        "shift": signed(broken, 2.0),
        "ratio": signed(broken, 2.0).exp(),
    }
    ledger, bare = _random_ledger(seed, count, steps)
    rows["running_mean"][:, ledger.initial[owner]], rows["running_var"][:, ledger.initial[owner]] = 0.0, 1.0
    layers = replace(layers, tracking=tuple((~bare).tolist()))
    training = coin(0.7, count).expand(steps, count) ^ (coin(0.1, steps, count) if wild else False)

    def moments() -> Moments:
        return Moments(
            **{f.name: sprinkled(signed(0.5, 2.0)[0].abs().clamp(max=1.0)) for f in fields(Moments)},
        )

    sampled_at = int(torch.randint(steps, (), generator=of_run))
    sample = Sample(
        step=sampled_at,
        calls=torch.ones(count, dtype=torch.int64),
        eval_calls=coin(0.3, count).long(),
        size=torch.full((count,), 64),
        values=torch.full((count,), 64),
        input=moments(),
        output=moments(),
        between=sprinkled(torch.rand(width, generator=rng)),
        input_dtypes=_typed(torch.float16, count, seed),
        looked=torch.full((count,), 64),
        distance=_random_distance(seed, count),
        padding=torch.rand(count, generator=torch.Generator().manual_seed(seed)) ** 4,
        side_calls=(3 * _random_distance(seed + 1, count)[0]).long(),
        side_size=torch.full((count,), 32),
        side_distance=_random_distance(seed + 2, count),
        unevenness=torch.rand(width, generator=torch.Generator().manual_seed(seed + 1)),
        uneven_beyond=torch.rand(2, count, generator=torch.Generator().manual_seed(seed + 3)),
        paired=torch.rand(count, generator=torch.Generator().manual_seed(seed + 5)) / 4,
        stirred=torch.randn(2, width, generator=torch.Generator().manual_seed(seed + 4)) / 10,
        data=torch.rand(2, count, generator=torch.Generator().manual_seed(seed + 2)) * 10,
    )
    distance = sprinkled(signed(0.5, 1.0)[0].abs())
    of_ranks: dict[str, Any] = dict.fromkeys(OF_RANKS, distance)
    ranks = RankStatistics(
        step=sampled_at,
        world_size=2,
        size=torch.full((count,), 64.0),
        **of_ranks,
    )
    sizes = torch.randint(1, 20, (count,), generator=rng).float()
    return Window(
        layers=layers,
        steps=tuple(range(steps)),
        updates=(training & ~coin(0.1, steps, count)).long(),
        training=training,
        recovery=torch.zeros(steps, count, dtype=torch.int64),
        momentum=torch.tensor([m if m is not None else math.nan for m in layers.momentum]).expand(steps, count),
        variance=torch.ones(steps, count),
        baseline=Baseline(
            log_var=sprinkled(torch.where(coin(0.9, width), 0.0, 3.0)),
            spread=torch.full((width,), 0.1),
            offset=sprinkled(torch.rand(width, generator=rng))[:count],
            batch_distance=torch.where(torch.arange(count) == 0, torch.nan, 0.02),
            jump=torch.where(torch.arange(count) == 0, torch.nan, 0.02),
            rate=torch.full((count,), 0.5),
            alive=coin(0.8, width),
            gamma=torch.where(coin(0.8, width), 1.0, 0.0),
            mean=sprinkled(torch.zeros(width)),
            initial=(torch.rand(count, generator=torch.Generator().manual_seed(seed)) < 0.8).double(),
            var=sprinkled(torch.ones(width)),
            updates=torch.where(coin(0.8, count), 1000, 3),
            forgotten=torch.where(coin(0.8, count), 100.0, 0.1).double(),
            sizes=torch.where(coin(0.9, count), sizes, math.nan),
            values=torch.where(coin(0.5, count), sizes, 1e5),
        ),
        facts=Facts(
            affine_trains=coin(0.6, count),
            optimizers=True,
            learning_rates=tuple(torch.rand(steps, generator=of_run).tolist()),
            ranks=ranks,
            evaluation="validation" if seed % 3 else "",
            decay=torch.where(torch.arange(count) % 2 == seed % 2, 0.05, 0.0) * (seed % 5 > 0),
            decoupled=torch.full((count,), seed % 4 < 2),
            buffer_dtypes=_typed(torch.bfloat16, count, seed + 1),
            **_of_the_run(steps, seed if run is None else run),
            gaps=EvaluationGap(
                step=sampled_at, gap=_random_distance(seed + 1, count)[0], size=torch.full((count,), 64)
            ),
            own_forward=tuple("BatchNorm2d" if bool(c) else "" for c in bare),
            auxiliary=tuple("teacher" if bool(c) else "" for c in bare | ledger.initial),
            structure=Structure(
                producer_trains=tuple(bool(c) for c in coin(0.6, count)),
                consumers=tuple(("relu",) if bool(c) else ("add",) for c in coin(0.8, count)),
                places=tuple(_some_place(p, seed + i, channels[i]) for i, p in enumerate(in_a_row(count))),
                bare=(Bare(name="conv", nonlinearity="relu", first=False, near=0),) * (seed % 3 == 0),
                normalized=seed % 7,
            ),
            held_out=tuple(_some_evaluation(seed + i, channels, sampled_at) for i in range(2)),
        ),
        sample=sample if bool(torch.rand((), generator=of_run) < 0.7) else None,
        ledger=ledger,
        fresh=min(10, steps),
        **dict[str, Any]((name, sprinkled(row)) for name, row in rows.items()),
    )


def _random_distance(seed: int, layers: int) -> Tensor:
    """Calls that differ or not, by chance or not."""
    scale = torch.tensor([[1.0], [9.0], [2.0], [9.0]])
    return torch.rand(4, layers, generator=torch.Generator().manual_seed(seed + 2)) * scale


def _typed(dtype: torch.dtype, count: int, seed: int) -> tuple[torch.dtype, ...]:
    """A quarter of the layers in half precision."""
    half = torch.rand(count, generator=torch.Generator().manual_seed(seed)) < 0.25
    return tuple(dtype if h else torch.float32 for h in half.tolist())


def _of_the_run(steps: int, seed: int) -> dict[str, Any]:
    """Facts of any run: its loader, its processes, its accumulation and its gradient scaler."""
    rng = torch.Generator().manual_seed(seed)

    def one_of(*choices: Any) -> Any:
        return choices[int(torch.randint(len(choices), (), generator=rng))]

    return {
        "world_size": one_of(1, 8),
        "accumulate": one_of(1, 8),
        "train_loader": one_of(None, Loader(batch_size=8, samples=one_of(801, 804), drop_last=False), Loader()),
        "skipped_steps": one_of((), tuple(torch.rand(steps, generator=rng).lt(0.1).tolist())),
        "unregistered": one_of((), ("8 channels, behind conv",)),
        "optimizer_count": one_of(1, 2),
        "converts": one_of(False, True),
    }


def _seen_of_evaluations(seed: int, wrong: Tensor) -> dict[str, Tensor]:
    """What evaluations leave in a ledger: cold statistics, updates, and layers that they missed."""
    rng, layers = torch.Generator().manual_seed(seed), len(wrong)

    def coin(p: float, *shape: int) -> Tensor:
        return (torch.rand(shape, generator=rng) < p) & wrong

    shape = (len(PHASES), layers)
    return {
        "updated": ~coin(0.3, layers),
        "cold": torch.rand(layers, generator=rng).double().where(coin(0.5, layers), 0.0),
        "times": 1 + 2 * coin(0.5, layers).long(),
        "tested": coin(0.5, layers),
        "leaks": coin(0.2, *shape).long(),
        "clean": torch.randint(5, shape, generator=rng),
        "gap": torch.zeros(shape, dtype=torch.int64),
        "drift": torch.rand(2, layers, generator=rng).double(),
        "missed": torch.zeros(shape, dtype=torch.bool),
        "folded": coin(0.1, layers),
    }


def _random_ledger(seed: int, layers: int, steps: int) -> tuple[Ledger, Tensor]:
    """Make a ledger in which about every second layer is in order; also return which layers keep no statistics."""
    rng = torch.Generator().manual_seed(seed + 7)

    def coin(p: float, *shape: int) -> Tensor:
        return torch.rand(shape, generator=rng) < p

    wrong = coin(0.5, layers)
    shape = (len(PHASES), layers)
    ledger = Ledger(
        steps=steps,
        seen=(coin(0.3, *shape) & wrong).long() * 3,
        expected=torch.zeros(shape, dtype=torch.int64),
        latest=(coin(0.2, *shape) & wrong).long() * 3,
        evaluated=coin(0.5, *shape),
        called=~(coin(0.3, layers) & wrong),
        initial=coin(0.3, layers) & wrong,
        tracks=~(coin(0.3, layers) & wrong),
        averaged=coin(0.1, layers),
        uses_training_statistics=coin(0.2, layers) & wrong,
        swapped=coin(0.2, layers),
        steps_stale=(coin(0.2, layers) & wrong).long() * 40,
        distance=torch.rand(2, layers, generator=rng).double().where(wrong, 0.0),
        **_seen_of_evaluations(seed + 11, wrong),
    )
    return ledger, coin(0.2, layers) & wrong & ~ledger.initial


def _some_place(place: Place, seed: int, channels: int) -> Place:
    """Put anything around a layer."""
    rng = torch.Generator().manual_seed(seed)

    def coin() -> bool:
        return bool(torch.rand((), generator=rng) < 0.4)

    relu = Operation(kind="relu", role="nonlinearity")
    drop = Operation(kind="dropout", role="dropout", name="drop")
    producer = Producer(
        kind="convolution",
        role="weights",
        name="conv",
        features=channels,
        bias=coin(),
        shared=coin(),
        features_last=coin(),
    )
    return replace(
        place,
        shape=(4, channels, 7),
        producers=(producer,),
        between=(relu,) * coin(),
        dropouts=(drop,) * coin(),
        dropout=0.5,
        per_sample=coin(),
    )


def _some_evaluation(seed: int, channels: list[int], step: int) -> HeldOut:
    """Make an evaluation of anything."""
    rng = torch.Generator().manual_seed(seed)
    rows = {name: torch.rand(sum(channels), generator=rng) for name in OF_HELD_OUT}
    return HeldOut(step=step, size=torch.full((len(channels),), 512), **rows)
