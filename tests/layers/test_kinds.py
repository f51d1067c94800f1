"""The contract of a kind of layer: that its facts in ``bnmonitor.layers.KINDS`` are true of its layers.

For a new kind, add a subclass of :class:`KindContract` here, and its variants to ``tests/end_to_end/kinds.py``.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar

import pytest
import torch
from torch import Tensor, nn

from bnmonitor import Monitor, remedies
from bnmonitor.layers import KINDS, Family, Kind, as_normalized, discover, kind_of
from tests.models import FrozenBatchNorm2d

CHANNELS, MOMENTUM, STEPS = 4, 0.25, 5


class KindContract(ABC):
    """What every kind of layer has to keep.

    A subclass says how a layer is made and what a training batch adds to its running statistics.
    """

    family: ClassVar[Family]
    """The name of the kind."""

    @abstractmethod
    def make(self) -> nn.Module:
        """Return a layer for images of :data:`CHANNELS` channels, with momentum :data:`MOMENTUM` if it has one."""

    @abstractmethod
    def statistics(self, x: Tensor) -> tuple[Tensor, Tensor] | None:
        """Return the mean and variance that a training forward on ``x`` averages in; None if it keeps nothing."""

    @property
    def kind(self) -> Kind:
        [kind] = [kind for kind in KINDS if kind.name == self.family]
        return kind

    def layer(self) -> nn.Module:
        torch.manual_seed(0)
        return self.make().double().train()

    def batches(self, count: int) -> list[Tensor]:
        generator = torch.Generator().manual_seed(1)
        shape = (8, CHANNELS, 3, 5)
        return [2 + i + (1 + i) * torch.randn(shape, generator=generator, dtype=torch.float64) for i in range(count)]

    def test_only_this_kind_recognizes_the_layer(self) -> None:
        layer = self.layer()
        assert [kind.name for kind in KINDS if kind.recognizes(layer)] == [self.family]
        assert kind_of(layer) is self.kind
        assert kind_of(nn.Conv2d(3, 4, 1)) is None

    def test_the_table_lists_it_with_its_facts(self) -> None:
        table = discover({"": nn.Sequential(nn.Linear(2, 2), self.layer())}).table
        assert (table.names, table.family, table.channels) == (("1",), (self.family,), (CHANNELS,))
        assert table.which("normalizes_batch").tolist() == [self.kind.normalizes_batch]
        assert table.which("has_modes").tolist() == [self.kind.has_modes]

    def test_a_sample_depends_on_the_others_only_if_the_kind_normalizes_the_batch(self) -> None:
        x, other = self.batches(2)
        first = torch.cat([x[:1], other[1:]])
        same = torch.equal(self.layer()(x)[0], self.layer()(first)[0])
        assert same is not self.kind.normalizes_batch

    def test_the_mode_changes_the_output_only_if_the_kind_has_modes(self) -> None:
        [x] = self.batches(1)
        same = torch.equal(self.layer()(x), self.layer().eval()(x))
        assert same is not self.kind.has_modes

    def test_a_training_forward_averages_its_statistics_in(self) -> None:
        layer, [x] = self.layer(), self.batches(1)
        before = [layer.running_mean.clone(), layer.running_var.clone()]
        layer(x)
        found = self.statistics(x)
        added = before if found is None else [b + MOMENTUM * (f - b) for b, f in zip(before, found, strict=True)]
        torch.testing.assert_close([layer.running_mean, layer.running_var], added, rtol=1e-12, atol=1e-12)

    def test_updates_are_counted_or_are_one_write_each(self) -> None:
        layer, [x] = self.layer(), self.batches(1)
        buffers = (layer.running_mean, layer.running_var)
        before = [b._version for b in buffers]
        layer(x)
        written = [b._version - v for b, v in zip(buffers, before, strict=True)]
        counter = layer._buffers.get("num_batches_tracked")
        if not self.kind.counts_updates:
            assert written == [1, 1]
        elif counter is None:
            assert written == [0, 0], "without a counter it must not be updated"
        else:
            assert int(counter) == 1

    def test_without_momentum_it_averages_all_batches_or_keeps_its_statistics(self) -> None:
        layer, batches = self.layer(), self.batches(3)
        before = layer.running_mean.clone()
        found = [self.statistics(x) for x in batches]
        if not hasattr(layer, "momentum"):
            assert found == [None] * 3
            return
        layer.momentum = None
        for x in batches:
            layer(x)
        means = torch.stack([each[0] for each in found if each is not None])
        expected = means.mean(0) if self.kind.averages_cumulatively else before
        torch.testing.assert_close(layer.running_mean, expected, rtol=1e-12, atol=1e-12)

    def test_gamma_and_beta_are_where_the_kind_says(self) -> None:
        layer = self.layer()
        holds = layer._buffers if self.kind.affine_in_buffers else layer._parameters
        assert all(isinstance(holds.get(name), Tensor) for name in ("weight", "bias"))

    def test_a_training_is_recorded(self) -> None:
        layer = self.layer()
        optimizer = torch.optim.SGD(list(layer.parameters()) or [torch.zeros(1)], lr=0.1)
        states, truths = [], []
        with Monitor(nn.Sequential(layer), sinks=[], on_alert="log") as monitor:
            for x in self.batches(STEPS):
                optimizer.zero_grad()
                layer(x.clone().requires_grad_()).square().mean().backward()
                states.append([t.detach().clone() for t in (layer.running_mean, layer.weight, layer.bias)])
                optimizer.step()
                truths.append(self.statistics(x))
                monitor.step()
                states[-1][1:] = [layer.weight.detach().clone(), layer.bias.detach().clone()]
            recorded = {name: monitor.history("0", name).double() for name in (*NAMES, "batch_mean", "batch_var")}
        for name, rows in zip(NAMES, zip(*states, strict=True), strict=True):
            assert torch.equal(recorded[name], torch.stack(list(rows)))
        known = [truth for truth in truths if truth is not None]
        if not known:
            assert recorded["batch_mean"].isnan().all()
            return
        for name, rows in zip(("batch_mean", "batch_var"), zip(*known, strict=True), strict=True):
            torch.testing.assert_close(recorded[name], torch.stack(list(rows)), rtol=1e-9, atol=1e-9)

    def test_freezing_keeps_the_statistics_of_a_kind_with_modes(self) -> None:
        model, [x] = nn.Sequential(self.layer()), self.batches(1)
        before = {name: t.clone() for name, t in model.state_dict().items()}
        if not self.kind.has_modes:
            with pytest.raises(ValueError, match="no normalization layer to treat"):
                remedies.freeze(model)
            return
        assert remedies.freeze(model) == ("0",)
        model.train()(x)
        assert all(torch.equal(t, before[name]) for name, t in model.state_dict().items())


NAMES = ("running_mean", "gamma", "beta")


class TestBatch(KindContract):
    family = "batch"

    def make(self) -> nn.Module:
        return nn.BatchNorm2d(CHANNELS, momentum=MOMENTUM)

    def statistics(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return x.mean((0, 2, 3)), x.var((0, 2, 3))


class TestInstance(KindContract):
    family = "instance"

    def make(self) -> nn.Module:
        return nn.InstanceNorm2d(CHANNELS, momentum=MOMENTUM, affine=True, track_running_stats=True)

    def statistics(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return x.mean((2, 3)).mean(0), x.var((2, 3)).mean(0)


class TestFrozen(KindContract):
    family = "frozen"

    def make(self) -> nn.Module:
        return FrozenBatchNorm2d(CHANNELS)

    def statistics(self, x: Tensor) -> None:
        return None


def test_every_kind_keeps_the_contract() -> None:
    assert sorted(contract.family for contract in KindContract.__subclasses__()) == sorted(kind.name for kind in KINDS)


class _Spiking(nn.BatchNorm2d):
    """Takes ``[T, N, C, H, W]``."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.flatten(0, 1)).view(x.shape)


class _ChannelsLast(nn.BatchNorm2d):
    """Takes ``[N, H, W, C]``."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.movedim(-1, 1)).movedim(1, -1)


class _AnyAxes(nn.BatchNorm2d):
    """Takes ``[N, C, ...]``, whatever follows."""

    def _check_input_dim(self, x: Tensor) -> None:
        pass


@pytest.mark.parametrize(
    ("layer", "shape", "axis"),
    [
        (nn.BatchNorm1d(6), (4, 6, 6), 1),
        (nn.BatchNorm2d(6), (6, 6, 6, 6), 1),
        (nn.BatchNorm1d(5, affine=False, track_running_stats=False), (4, 6, 5), 1),
        (_AnyAxes(6), (4, 6, 6, 5, 5), 1),
        (_AnyAxes(6), (4, 6, 5, 5, 6), 1),
        (_Spiking(6), (6, 6, 6, 6, 6), 2),
        (_Spiking(6), (3, 6, 6, 5, 5), 2),
        (_ChannelsLast(6), (4, 5, 6, 6), 3),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, nn.Module) else str(value),
)
def test_sizes_that_are_alike_by_chance_do_not_move_the_channels(
    layer: nn.Module, shape: tuple[int, ...], axis: int
) -> None:
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    channels_first = as_normalized(layer, x).movedim(1, 0).flatten(1)
    torch.testing.assert_close(channels_first.mean(1), x.movedim(axis, 0).flatten(1).mean(1))
