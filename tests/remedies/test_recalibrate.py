"""Recalibration against float64 statistics of every value that a layer was given."""

from __future__ import annotations

import copy
import math
import random
from collections import namedtuple
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from bnmonitor import Monitor
from bnmonitor.remedies.freezing import freeze
from bnmonitor.remedies.population import merge, row_moments
from bnmonitor.remedies.recalibration import recalibrate

Pair = namedtuple("Pair", "images labels")


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


class Net(nn.Module):
    """Convolution and linear parts, a shared layer called twice, a cumulative average, dropout."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU())
        self.conv, self.twice = nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8, momentum=0.01)
        self.drop = nn.Dropout(0.5)
        self.head = nn.Sequential(nn.Linear(8, 5), nn.BatchNorm1d(5, momentum=None), nn.ReLU(), nn.Linear(5, 2))

    def forward(self, images: Tensor) -> Tensor:
        x = self.first(images)
        x = self.twice(self.conv(x)).relu()
        x = self.twice(self.conv(x) + 1).relu()
        return self.head(self.drop(x.mean((2, 3))))  # type: ignore[no-any-return]


def some_images(count: int = 150, offset: float = 3.0, seed: int = 1) -> Tensor:
    g = torch.Generator().manual_seed(seed)
    return torch.randn(count, 3, 8, 8, generator=g) * torch.linspace(0.5, 4, count)[:, None, None, None] + offset


def batches(size: int = 32, **more: Any) -> list[Tensor]:
    """The last one is smaller."""
    return list(some_images(**more).split(size))


def layers(model: nn.Module) -> dict[str, nn.Module]:
    return {n: m for n, m in model.named_modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)}


def truth(model: nn.Module, loader: list[Tensor]) -> dict[str, tuple[Tensor, Tensor]]:
    """The slow and obvious way: keep every value in float64, and take its mean and variance."""
    model = copy.deepcopy(model).double().eval()
    seen: dict[str, list[Tensor]] = {name: [] for name in layers(model)}
    for name, layer in layers(model).items():
        layer.train()

        def keep(_: nn.Module, args: tuple[Tensor, ...], kept: list[Tensor] = seen[name]) -> None:
            kept.append(args[0].transpose(0, 1).flatten(1))

        layer.register_forward_pre_hook(keep)
    with torch.no_grad():
        for batch in loader:
            model(batch.double())
    every = {name: torch.cat(values, 1) for name, values in seen.items() if values}
    return {name: (values.mean(1), values.var(1)) for name, values in every.items()}


def assert_equal_to_truth(model: nn.Module, expected: dict[str, tuple[Tensor, Tensor]]) -> None:
    for name, (mean, var) in expected.items():
        layer = layers(model)[name]
        sigma = (var + layer.eps).sqrt()
        assert ((layer.running_mean.double() - mean).abs() / sigma).max() < 1e-5, name
        assert (((layer.running_var.double() + layer.eps).sqrt() - sigma).abs() / sigma).max() < 1e-5, name


def state_of(model: nn.Module) -> list[Any]:
    return [
        {k: v.clone() for k, v in model.state_dict().items()},
        [(m.training, getattr(m, "momentum", None)) for m in model.modules()],
        [len(m._forward_pre_hooks) + len(m._forward_hooks) for m in model.modules()],
        [p.requires_grad for p in model.parameters()],
    ]


def assert_same_state(a: list[Any], b: list[Any]) -> None:
    assert a[1:] == b[1:]
    assert all(torch.equal(v, b[0][k]) or v.isnan().any() for k, v in a[0].items())


# -- the numbers -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("offset", [0.0, 30.0])
def test_statistics_are_those_of_every_value_in_float64(training: bool, offset: float) -> None:
    model, loader = Net().train(training), batches(offset=offset)
    before, expected = state_of(model), truth(model, loader)
    done = recalibrate(model, loader, progress=False)
    assert_equal_to_truth(model, expected)
    assert (done.batches, done.skipped, done.untouched) == (5, 0, ())
    assert list(done.moved) == list(layers(model))
    assert state_of(model)[1:] == before[1:], "modes, momenta, hooks and what is trained are as they were"
    assert int(model.head[1].num_batches_tracked) == 5


def test_spread_between_batches_counts_which_an_average_of_batch_variances_misses() -> None:
    model = nn.Sequential(nn.BatchNorm1d(1))
    far_apart = [torch.randn(64, 1) + 100 * i for i in range(4)]
    recalibrate(model, far_apart, progress=False)
    assert float(model[0].running_var) == pytest.approx(float(torch.cat(far_apart).var()), rel=1e-6)
    assert float(model[0].running_var) > 1e4


def test_large_mean_with_a_small_deviation_does_not_cancel() -> None:
    model = nn.Sequential(nn.BatchNorm2d(2))
    values = [1000 + 0.1 * torch.randn(64, 2, 4, 4, generator=torch.Generator().manual_seed(i)) for i in range(6)]
    every = torch.cat(values).double().transpose(0, 1).flatten(1)
    recalibrate(model, values, progress=False)
    # The buffers are float32, in which a thousand has steps of 6e-5.
    assert (model[0].running_mean.double() - every.mean(1)).abs().max() < 6e-5
    assert ((model[0].running_var.double() - every.var(1)) / every.var(1)).abs().max() < 1e-5


@pytest.mark.parametrize("shape", [(16, 3, 64), (1, 3, 8, 8), (64, 3, 1, 1), (8, 3, 4, 4, 4)])
@pytest.mark.parametrize("offset", [0.0, 4.0])
def test_moments_by_rows_are_those_of_every_value_or_none(shape: tuple[int, ...], offset: float) -> None:
    values = torch.randn(shape, generator=torch.Generator().manual_seed(4)) + offset
    every = values.double().transpose(0, 1).flatten(1)
    mean, var = row_moments(values) or pytest.fail("this is what it is for")
    assert (mean - every.mean(1)).abs().max() < 1e-6
    assert ((var - every.var(1, unbiased=False)) / var).abs().max() < 1e-5
    assert row_moments(values + 100) is None, "too far from 0"
    assert row_moments(values.transpose(0, 1)) is None or shape[0] == 1
    assert row_moments(values.flatten(1)) is None
    assert row_moments(values.half()) is None


@pytest.mark.parametrize("split", [[150], [1, 149], [2, 3, 145], [75, 0, 75]])
def test_merge_does_not_depend_on_how_the_values_were_split(split: list[int]) -> None:
    values = torch.randn(150, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(3)) * 7 + 1e3
    parts = [
        (
            torch.full((4,), float(len(p)), dtype=torch.float64),
            p.mean(0) if len(p) else torch.full((4,), torch.nan, dtype=torch.float64),
            (p - p.mean(0)).square().sum(0),
        )
        for p in values.split(split)
    ]
    zero = tuple(torch.zeros(3, 4, dtype=torch.float64))
    for each in parts:
        zero = merge(zero, each)
    assert torch.allclose(zero[1], values.mean(0), rtol=1e-14)
    assert torch.allclose(zero[2] / 149, values.var(0), rtol=1e-12)


def test_nan_in_the_old_statistics_does_not_stay() -> None:
    model, loader = Net(), batches()
    expected = truth(model, loader)
    for layer in layers(model).values():
        layer.running_mean.fill_(math.nan)
        layer.running_var.fill_(math.inf)
    recalibrate(model, loader, progress=False)
    assert_equal_to_truth(model, expected)


def test_dropout_is_off_while_the_layers_see_the_batch() -> None:
    model = nn.Sequential(nn.Dropout(0.9), nn.BatchNorm1d(3)).train()
    loader = [torch.ones(50, 3) + 0.1 * torch.randn(50, 3) for _ in range(3)]
    recalibrate(model, loader, progress=False)
    assert torch.allclose(model[1].running_mean, torch.cat(loader).mean(0), atol=1e-6)


# -- what it takes -----------------------------------------------------------------------------------------------------


class Named(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(3)

    def forward(self, values: Tensor, scale: float = 1.0) -> Tensor:
        return self.norm(values * scale)  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    "wrap",
    [
        lambda x: x,
        lambda x: (x, torch.zeros(1)),
        lambda x: [x, "a label"],
        lambda x: Pair(x, 3),
        lambda x: {"values": x, "labels": torch.zeros(1)},
        lambda x: ({"values": x, "scale": 1.0}, 0),
    ],
)
def test_batches_come_in_every_usual_shape(wrap: Any) -> None:
    values = torch.randn(4, 20, 3)
    model = Named()
    recalibrate(model, [wrap(x) for x in values], progress=False)
    assert torch.allclose(model.norm.running_mean, values.flatten(0, 1).mean(0), atol=1e-6)


def test_forward_of_ones_own_and_a_limit_of_batches() -> None:
    values = torch.randn(4, 20, 3)
    model = Named()
    endless = ({"x": {"y": v}} for _ in iter(int, 1) for v in values)
    done = recalibrate(model, endless, forward=lambda m, b: m(b["x"]["y"]), max_batches=3, progress=False)
    assert done.batches == 3
    assert torch.allclose(model.norm.running_mean, values[:3].flatten(0, 1).mean(0), atol=1e-6)


def test_batch_with_one_value_per_channel_is_left_out_and_counted() -> None:
    values = torch.randn(41, 3)
    model = Named()
    done = recalibrate(model, values.split(20), progress=False)
    assert (done.batches, done.skipped) == (2, 1)
    assert torch.allclose(model.norm.running_mean, values[:40].mean(0), atol=1e-6)


def test_layers_that_are_excluded_frozen_or_never_called_stay_as_they_are() -> None:
    model, loader = Net(), batches()
    model.unused = nn.BatchNorm2d(4)
    freeze(model, include=["first.*"])
    kept = {n: layers(model)[n].running_mean.clone() for n in ("first.1", "twice", "unused")}
    momentum = model.unused.momentum
    done = recalibrate(model, loader, exclude=["twice"], progress=False)
    assert done.untouched == ("unused",)
    assert "unused" in str(done)
    assert list(done.moved) == ["head.1"]
    assert all(torch.equal(layers(model)[n].running_mean, value) for n, value in kept.items())
    assert (model.unused.momentum, int(model.unused.num_batches_tracked)) == (momentum, 0)


@pytest.mark.parametrize("in_place", [True, False])
def test_compiled_model_is_run_as_it_is_written(in_place: bool) -> None:
    model, loader = Net().eval(), batches()
    expected = truth(model, loader)
    compiled: Any = model
    if in_place:
        model.compile(backend="eager")
    else:
        compiled = torch.compile(model, backend="eager")
    with torch.no_grad():
        compiled(loader[0])
    recalibrate(compiled, loader, progress=False)
    assert_equal_to_truth(model, expected)


def test_a_batch_of_names_goes_to_a_forward_that_takes_any() -> None:
    class AnyNames(Net):
        def forward(self, **batch: Tensor) -> Tensor:
            return super().forward(batch["images"] + batch["shift"])

    one, other = Net(), AnyNames()
    recalibrate(one, [b + 1 for b in batches()], progress=False)
    recalibrate(other, [{"images": b, "shift": torch.ones(())} for b in batches()], progress=False)
    assert_same_state(state_of(other), state_of(one))


# -- what it refuses ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"max_batches": 0}, ValueError, "max_batches=0 must be 1 or more"),
        ({"max_batches": True}, TypeError, "max_batches=True must be an int"),
        ({"forward": 3}, TypeError, "forward=3 must be a callable"),
        ({"include": "head"}, TypeError, "pass \\('head',\\)"),
        ({"include": ["haed.*"]}, ValueError, "matches no BatchNorm layer"),
        ({"loader": 5}, TypeError, "loader must be an iterable of batches, got int"),
        ({"loader": []}, ValueError, "the loader gave no batch"),
        ({"loader": [{"pictures": torch.zeros(2, 3, 8, 8)}]}, TypeError, "pass forward=lambda"),
        ({"loader": [torch.full((4, 3, 8, 8), math.nan)]}, ValueError, "not finite in first.1"),
        ({"forward": lambda m, b: None}, ValueError, "no BatchNorm layer was called"),
        ({"model": nn.Linear(2, 2)}, ValueError, "no BatchNorm layer to treat"),
        ({"model": "resnet"}, TypeError, "got str"),
    ],
)
def test_bad_input_gets_one_clear_sentence_and_changes_nothing(
    change: dict[str, Any], error: type[Exception], words: str
) -> None:
    model = Net()
    given = {"model": model, "loader": batches(), "progress": False, **change}
    before = state_of(model)
    with pytest.raises(error, match=words):
        recalibrate(**given)
    assert_same_state(state_of(model), before)


def test_frozen_layers_alone_and_a_batch_of_another_shape_later_are_refused() -> None:
    model = Net()
    with pytest.raises(TypeError) as raised:
        recalibrate(model, [batches()[0], {"pictures": batches()[0]}], progress=False)
    assert "pass forward=" not in str(raised.value), "the first batch went through as it is"
    freeze(model)
    with pytest.raises(ValueError, match="every BatchNorm layer is frozen or keeps no running statistics"):
        recalibrate(model, batches(), progress=False)


@pytest.mark.parametrize("stop", [RuntimeError, KeyboardInterrupt])
def test_exception_in_the_middle_puts_everything_back(stop: type[BaseException]) -> None:
    model = Net()
    recalibrate(model, batches(seed=9), progress=False)
    before = state_of(model)

    def breaking() -> Iterator[Tensor]:
        yield from batches()
        raise stop("gone")

    with pytest.raises(stop, match="gone"):
        recalibrate(model, breaking(), progress=False)
    assert_same_state(state_of(model), before)


# -- several processes -------------------------------------------------------------------------------------------------


def _worker(rank: int, world: int, out: str) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", f"file://{out}/store", rank=rank, world_size=world)
    model = nn.parallel.DistributedDataParallel(Net())
    share = [batches()[:1], batches()[1:]][rank]  # of different lengths
    done = recalibrate(model, share, progress=False)
    torch.save({"state": model.module.state_dict(), "batches": done.batches}, f"{out}/{rank}.pt")
    del model
    torch.distributed.barrier()  # gloo aborts a process whose peer is gone while one of its threads still waits
    torch.distributed.destroy_process_group()


def test_processes_merge_their_shares_and_agree(tmp_path: Path) -> None:
    torch.multiprocessing.spawn(_worker, (2, str(tmp_path)), nprocs=2)
    one, two = (torch.load(tmp_path / f"{rank}.pt") for rank in (0, 1))
    assert (one["batches"], two["batches"]) == (1, 4)
    assert all(torch.equal(v, two["state"][k]) for k, v in one["state"].items())
    model = Net()
    expected = truth(model, batches())
    model.load_state_dict(one["state"])
    assert_equal_to_truth(model, expected)
    assert int(model.twice.num_batches_tracked) == 5


# -- with the monitor --------------------------------------------------------------------------------------------------


def test_stale_statistics_are_cleared_by_it() -> None:
    torch.manual_seed(0)
    x = torch.randn(640, 6) * 2 + 5
    model = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8, momentum=0.01), nn.ReLU(), nn.Linear(8, 2))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    loader = DataLoader(TensorDataset(x), 64, shuffle=True)
    monitor = Monitor(model, optimizer=optimizer, sinks=[], on_alert="log", window=32)
    with monitor:

        def train(epochs: int) -> None:
            for _ in range(epochs):
                for (batch,) in loader:
                    model(batch).square().mean().backward()
                    optimizer.step()
                    monitor.step()

        train(35)
        with torch.no_grad():
            model[0].bias += 3.0  # the network has moved on, and momentum is too small to follow
        train(14)
        [told] = [a for a in monitor.alerts if a.code == "BN304"]
        assert told.state == "open"
        assert "recalibrate" in told.advice
        with monitor.evaluation():
            recalibrate(model, loader, progress=False)
        train(14)
    assert monitor.alerts[monitor.alerts.index(next(a for a in monitor.alerts if a.code == "BN304"))].state == "cleared"


@pytest.mark.parametrize("when", ["validation", "end"])
def test_callback_recalibrates_and_training_goes_on_with_the_batches_it_would_have_had(when: str) -> None:
    import lightning.pytorch as pl

    from bnmonitor.remedies.callbacks import Recalibrate

    class Module(pl.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.net, self.seen, self.noise = Net(), [], []
            self.statistics: list[Tensor] = []

        def forward(self, images: Tensor) -> Tensor:
            return self.net(images)  # type: ignore[no-any-return]

        def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
            self.seen.append(float(batch[0].mean()))
            self.noise.append(random.random())
            return self(batch[0]).square().mean()

        def validation_step(self, batch: list[Tensor], batch_idx: int) -> None:
            self.statistics.append(self.net.twice.running_mean.clone())

        def configure_optimizers(self) -> Any:
            return torch.optim.SGD(self.parameters(), lr=0.0)

    def fit(callbacks: list[Any]) -> Module:
        pl.seed_everything(3, verbose=False)
        module = Module()
        generator = torch.Generator().manual_seed(5)
        data = DataLoader(TensorDataset(some_images(128)), 32, shuffle=True, generator=generator)
        trainer = pl.Trainer(
            accelerator="cpu", max_epochs=2, val_check_interval=2, logger=False, callbacks=callbacks,
            enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
        )  # fmt: skip
        trainer.fit(module, data, [[some_images(32)]])
        return module

    plain, callback = fit([]), Recalibrate(when=when)  # type: ignore[arg-type]
    treated = fit([callback])
    assert treated.seen == plain.seen
    assert treated.noise == plain.noise
    assert callback.last is not None
    assert callback.last.batches == 4
    expected = truth(treated.net, [some_images(128)[i : i + 32] for i in range(0, 128, 32)])
    mean, var = expected["twice"]
    final = treated.statistics[-1] if when == "validation" else treated.net.twice.running_mean
    assert ((final - mean) / var.sqrt()).abs().max() < 0.1, "shuffled batches differ a little"
    assert ((plain.statistics[-1] - mean) / var.sqrt()).abs().max() > 0.5


def test_callback_refuses_another_moment() -> None:
    from bnmonitor.remedies.callbacks import Recalibrate

    with pytest.raises(ValueError, match="when='validaton' must be 'validation' or 'end'; did you mean 'validation'"):
        Recalibrate(when="validaton")  # type: ignore[arg-type]
