from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from bnmonitor import Monitor
from bnmonitor.layers import ROOT, LayerTable, discover
from tests.models import ARCHITECTURES, Shared, UNet, train


class OwnNorm(nn.BatchNorm2d):
    pass


def table(*channels: int) -> LayerTable:
    count = len(channels)
    return LayerTable(
        names=tuple(f"layer{i}" for i in range(count)),
        channels=channels,
        kinds=("BatchNorm2d",) * count,
        eps=tuple(10.0 ** -(i + 1) for i in range(count)),
        momentum=(0.1,) * count,
        affine=(True,) * count,
        tracking=(True,) * count,
        family=("batch",) * count,
    )


def names(model: nn.Module, **arguments: tuple[str, ...]) -> tuple[str, ...]:
    return discover({"": model}, **arguments).table.names


def three() -> nn.Module:
    return nn.ModuleDict(
        {
            "stem": nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)),
            "head": nn.Sequential(nn.BatchNorm2d(5), nn.BatchNorm2d(6)),
        }
    )


def test_every_kind_of_batchnorm_is_found_with_its_facts() -> None:
    model = nn.ModuleList(
        [
            nn.BatchNorm1d(2, eps=1e-3),
            nn.BatchNorm2d(3, momentum=None),
            nn.BatchNorm3d(4, affine=False),
            nn.SyncBatchNorm(5, track_running_stats=False),
            OwnNorm(6, momentum=0.25),
            nn.LazyBatchNorm2d(),
            nn.InstanceNorm2d(7, momentum=None, track_running_stats=True),
            nn.InstanceNorm2d(7),
            nn.LayerNorm(8),
            nn.GroupNorm(1, 9),
        ]
    )
    found = discover({"": model})
    assert found.table == LayerTable(
        names=("0", "1", "2", "3", "4", "6"),
        channels=(2, 3, 4, 5, 6, 7),
        kinds=("BatchNorm1d", "BatchNorm2d", "BatchNorm3d", "SyncBatchNorm", "OwnNorm", "InstanceNorm2d"),
        synced=(3,),
        eps=(1e-3, 1e-5, 1e-5, 1e-5, 1e-5, 1e-5),
        momentum=(0.1, None, 0.1, 0.1, 0.25, 0.0),
        affine=(True, True, False, True, True, False),
        tracking=(True, True, True, False, True, True),
        family=("batch",) * 5 + ("instance",),
    )
    assert found.modules == tuple(model[i] for i in (0, 1, 2, 3, 4, 6))
    assert found.lazy == 1


def test_a_conversion_to_sync_batchnorm_after_construction_is_seen_at_the_start() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4))
    monitor = Monitor(model, sinks=[])
    nn.SyncBatchNorm.convert_sync_batchnorm(model)
    assert monitor.layers.kinds == ("BatchNorm2d",)
    with monitor:
        assert monitor.layers.kinds == ("SyncBatchNorm",)


def test_layers_are_in_order_of_definition_before_and_of_execution_after_the_first_step() -> None:
    model = ARCHITECTURES["unet"].build()
    monitor = Monitor(model, sinks=[], on_alert="log")
    assert monitor.layers.names == ("up_bn", "bottom_bn", "down_bn")
    assert monitor.layers.channels == (4, 8, 8)
    with monitor:
        train(model, ARCHITECTURES["unet"].batches(1), monitor=monitor)
        assert monitor.layers.names == ("down_bn", "bottom_bn", "up_bn")
        assert monitor.layers.channels == (8, 8, 4)


def test_reordering_takes_every_value_along_to_its_layer() -> None:
    model = ARCHITECTURES["unet"].build()
    assert isinstance(model, UNet)
    for i, bn in enumerate((model.up_bn, model.bottom_bn, model.down_bn)):
        bn.momentum = 0.1 * (i + 1)
        nn.init.constant_(bn.weight, i + 1)
        nn.init.constant_(bn.running_mean, i - 7)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    seen: dict[str, Tensor] = {}

    def keep(module: nn.Module, args: tuple[Tensor, ...]) -> None:
        name = next(n for n, m in model.named_modules() if m is module)
        seen[name] = args[0].detach().mean((0, 2, 3))

    handles = [bn.register_forward_pre_hook(keep) for bn in (model.up_bn, model.bottom_bn, model.down_bn)]
    with Monitor(model, sinks=[], on_alert="log") as monitor:
        train(model, ARCHITECTURES["unet"].batches(1), optimizer=optimizer, monitor=monitor)
    for handle in handles:
        handle.remove()
    for name in monitor.layers.names:
        bn = model.get_submodule(name)
        assert torch.equal(monitor.history(name, "gamma")[0], bn.weight.detach())
        assert torch.equal(monitor.history(name, "running_mean")[0], bn.running_mean)
        torch.testing.assert_close(monitor.history(name, "batch_mean")[0], seen[name], rtol=0, atol=1e-4)


def test_a_layer_that_the_first_step_did_not_call_comes_last() -> None:
    a, unused, b = nn.BatchNorm1d(2), nn.BatchNorm1d(3), nn.BatchNorm1d(2)
    order = {id(b): 0, id(a): 1}
    found = discover({"": nn.ModuleList([a, unused, b])}, order=order)
    assert found.table.names == ("2", "0", "1")
    assert found.modules == (b, a, unused)


def test_a_shared_module_is_listed_once_under_its_first_name() -> None:
    assert names(Shared()) == ("bn",)
    bn = nn.BatchNorm1d(2)
    assert discover({"a": nn.Sequential(bn), "b": nn.Sequential(bn)}).table.names == ("a.0",)


def test_a_mapping_of_models_prefixes_the_names() -> None:
    found = discover({"generator": three(), "critic": nn.BatchNorm1d(2)})
    assert found.table.names == ("generator.stem.1", "generator.head.0", "generator.head.1", "critic")


def test_two_models_whose_layers_would_have_one_name_are_refused() -> None:
    inner = nn.Sequential(nn.BatchNorm1d(3))
    outer = nn.ModuleDict({"b": nn.Sequential(nn.BatchNorm1d(3))})
    with pytest.raises(ValueError, match=r"two BatchNorm layers would both be named 'a\.b\.0': give the models"):
        discover({"a": outer, "a.b": inner})


def test_a_root_that_is_itself_a_batchnorm_has_a_name_and_is_watched() -> None:
    bn = nn.BatchNorm1d(3)
    with Monitor(bn, sinks=[], on_alert="log", sample_every_n_steps=1) as monitor:
        for _ in range(3):
            bn(torch.randn(64, 3)).sum().backward()
            monitor.step()
    assert monitor.layers.names == (ROOT,)
    assert not monitor.history(ROOT, "batch_mean").isnan().any()
    assert not bn._forward_hooks


def test_globs_choose_the_layers() -> None:
    model = three()
    assert names(model, include=("head.*",)) == ("head.0", "head.1")
    assert names(model, exclude=("*.1",)) == ("head.0",)
    assert names(model, include=("stem*", "head.1"), exclude=("head.*",)) == ("stem.1",)
    assert names(model, include=()) == ()


@pytest.mark.parametrize("argument", ["include", "exclude"])
def test_a_glob_that_matches_nothing_is_an_error_that_names_the_nearest(argument: str) -> None:
    with pytest.raises(ValueError, match=rf"{argument}='heads\.0' matches no .*did you mean 'head\.0'"):
        names(three(), **{argument: ("heads.0",)})
    with pytest.raises(ValueError, match="STEM"):
        names(three(), **{argument: ("STEM.1",)})


def test_a_glob_is_no_error_where_there_is_no_layer_at_all() -> None:
    assert names(nn.Linear(2, 2), include=("nothing",)) == ()


def test_a_model_without_batchnorm_is_said_to_be_unwatched_and_harmless() -> None:
    model = nn.Linear(2, 2)
    with pytest.warns(UserWarning, match="no BatchNorm layer"):
        monitor = Monitor(model, sinks=[])
    with monitor:
        model(torch.randn(4, 2)).sum().backward()
        monitor.step()
        with monitor.evaluation():
            pass
    assert monitor.steps == ()
    assert len(monitor.layers) == len(monitor.summary()) == 0


def lazy_model() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.LazyBatchNorm2d(), nn.ReLU(), nn.Flatten(), nn.LazyLinear(2))


def run(model: nn.Module, monitor: Monitor, steps: int) -> None:
    for _ in range(steps):
        model(torch.randn(64, 3, 5, 5)).sum().backward()
        monitor.step()


def test_a_lazy_layer_is_watched_once_the_first_step_has_made_it_real() -> None:
    model = lazy_model()
    monitor = Monitor(model, sinks=[], on_alert="log", sample_every_n_steps=1)
    assert len(monitor.layers) == 0
    assert len(monitor.summary()) == 0
    with monitor:
        run(model, monitor, 4)
    assert monitor.layers.names == ("1",)
    assert monitor.layers.channels == (4,)
    assert monitor.steps == (1, 2, 3)
    assert not monitor.history("1", "batch_var").isnan().any()
    assert all(not module._forward_hooks for module in model.modules())


def test_a_lazy_layer_made_real_by_an_evaluation_loses_no_step() -> None:
    model = lazy_model()
    with Monitor(model, sinks=[], on_alert="log") as monitor:
        with monitor.evaluation("sanity"), torch.no_grad():
            model.eval()(torch.randn(2, 3, 5, 5))
        model.train()
        run(model, monitor, 3)
    assert monitor.steps == (0, 1, 2)
    assert monitor.summary().rows[0].recovery == ""
    assert [sample.step for sample in monitor.samples] == [0]


def test_a_lazy_layer_that_is_never_called_does_not_hide_the_others() -> None:
    model = nn.ModuleDict({"used": nn.BatchNorm2d(3), "unused": nn.LazyBatchNorm2d()})
    with Monitor(model, sinks=[], on_alert="log", check_every_n_steps=2) as monitor:
        for _ in range(5):
            model["used"](torch.randn(64, 3, 2, 2)).sum().backward()
            monitor.step()
    assert monitor.layers.names == ("used",)
    assert monitor.steps == (0, 1, 2, 3, 4)


def test_an_excluded_lazy_layer_is_not_waited_for() -> None:
    model = nn.ModuleDict({"used": nn.BatchNorm2d(3), "lazy": nn.LazyBatchNorm2d()})
    assert discover({"": model}, exclude=("lazy",)).lazy == 0


def test_a_layer_replaced_before_the_start_is_found_anew() -> None:
    model = three()
    monitor = Monitor(model, sinks=[])
    model["head"][0] = nn.BatchNorm2d(9)
    assert monitor.layers.channels == (4, 5, 6)
    with monitor:
        assert monitor.layers.channels == (4, 9, 6)


def test_offsets_and_owners_lay_the_layers_end_to_end() -> None:
    layers = table(2, 0, 3)
    assert len(layers) == 3
    assert layers.offsets == (0, 2, 2, 5)
    assert layers.total == 5
    assert layers.owner.tolist() == [0, 0, 2, 2, 2]
    assert layers.eps_by_channel.tolist() == pytest.approx([0.1, 0.1, 0.001, 0.001, 0.001])
    assert [layers.span(i) for i in range(3)] == [slice(0, 2), slice(2, 2), slice(2, 5)]


def test_locate_counts_channels_within_the_layer() -> None:
    mask = torch.tensor([False, True, True, False, True])
    assert [table(2, 0, 3).locate(mask, i) for i in range(3)] == [(1,), (), (0, 2)]


def test_index_finds_a_layer_or_names_the_nearest() -> None:
    layers = table(2, 3)
    assert layers.index("layer1") == 1
    with pytest.raises(KeyError, match="no BatchNorm layer is named 'layer2'; did you mean 'layer"):
        layers.index("layer2")


def test_an_empty_table_has_no_channels() -> None:
    layers = table()
    assert layers.offsets == (0,)
    assert layers.total == len(layers) == 0
    assert layers.owner.shape == layers.eps_by_channel.shape == (0,)
