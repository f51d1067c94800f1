from __future__ import annotations

import sys
from importlib import import_module
from importlib.util import find_spec
from types import ModuleType
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor, nn

from tests.integrations.common import (
    BATCH,
    EPOCHS,
    RATE,
    STEPS,
    TOO_HIGH,
    Truth,
    data,
    evaluated,
    gradients_seen,
    network,
    seed,
    serious,
    state,
    without_and_with,
)

pytest.importorskip("skorch", reason="skorch is not installed: make test-integrations")

from sklearn.base import clone
from sklearn.model_selection import GridSearchCV
from skorch import NeuralNetClassifier
from skorch.dataset import Dataset
from skorch.helper import predefined_split

from bnmonitor.integrations.skorch import BatchNormCallback


def net_of(module: nn.Module, *callbacks: Any, kind: Any = NeuralNetClassifier, **options: Any) -> Any:
    x, y = data(96, 2)
    arguments = {
        "criterion": nn.CrossEntropyLoss,
        "optimizer": torch.optim.SGD,
        "lr": RATE,
        "max_epochs": EPOCHS,
        "batch_size": BATCH,
        "iterator_train__shuffle": True,
        "train_split": predefined_split(Dataset(x.numpy(), y.numpy())),
        "callbacks": list(callbacks),
        "verbose": 0,
        **options,
    }
    return kind(module, **arguments)


def fit(module: nn.Module, *callbacks: Any, **options: Any) -> Any:
    seed(3)
    x, y = data()
    return net_of(module, *callbacks, **options).fit(x.numpy(), y.numpy())


def callback_of(net: Any) -> BatchNormCallback:
    return next(each for _, each in net.callbacks_ if isinstance(each, BatchNormCallback))


def test_a_sound_training_is_the_same_and_its_numbers_are_true() -> None:
    def train(watched: bool) -> tuple[dict[str, Tensor], Any]:
        module = network()
        truth = Truth(module[4])
        net = fit(module, *([BatchNormCallback(sinks=[])] if watched else []))
        return state(net.module_), (net, truth)

    net, truth = without_and_with(train)
    callback = callback_of(net)
    monitor = callback.monitor
    assert monitor.failure == ""
    assert monitor.steps[-1] == STEPS - 1
    assert truth.error(monitor, "4") < 1e-4
    assert gradients_seen(monitor, "4") == 1.0
    assert evaluated(monitor, "4")
    assert serious(callback.incidents) == []
    assert monitor.summary().loss > 0


def test_a_rate_that_is_too_high_is_found_and_stops_the_fit() -> None:
    net = fit(network(), BatchNormCallback(sinks=[], on_alert="stop"), lr=TOO_HIGH)
    callback = callback_of(net)
    assert serious(callback.incidents)
    assert callback.monitor.steps[-1] < STEPS - 1


def test_a_search_clones_the_callback_and_sets_its_arguments() -> None:
    net = net_of(network(), BatchNormCallback(sinks=[], check_every_n_steps=5), train_split=None, max_epochs=1)
    copied = clone(net).initialize()
    assert callback_of(copied).watch.settings.check_every_n_steps == 5
    copied.set_params(callbacks__BatchNormCallback__check_every_n_steps=7).initialize()
    assert callback_of(copied).watch.settings.check_every_n_steps == 7
    x, y = data(128)
    search = GridSearchCV(net, {"lr": [0.01, 0.1]}, cv=2, refit=True).fit(x.numpy(), y.numpy())
    assert len(callback_of(search.best_estimator_).monitor.steps) == 4


class Missing(ModuleType):
    __path__: ClassVar[list[str]] = []  # of a package

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return type(name, (), {})


@pytest.fixture
def braindecode(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The library, which imports a torchaudio that it needs for a few models: one of another PyTorch is not loaded."""
    if find_spec("braindecode") is None:
        pytest.skip("braindecode is not installed: make test-integrations")
    try:
        import torchaudio  # noqa: F401
    except (ImportError, OSError):
        for name in [name for name in sys.modules if name.partition(".")[0] == "torchaudio"]:
            monkeypatch.delitem(sys.modules, name)
        parts = {name: Missing(f"torchaudio.{name}") for name in ("functional", "transforms")}
        whole = Missing("torchaudio")
        for name, module in {
            "torchaudio": whole,
            **{f"torchaudio.{name}": part for name, part in parts.items()},
        }.items():
            monkeypatch.setitem(sys.modules, name, module)
        vars(whole).update(parts)
    return import_module("braindecode")


def test_braindecode_is_a_net_of_skorch(braindecode: Any) -> None:
    x = torch.randn(640, 3, 80, generator=torch.Generator().manual_seed(1))
    y = (x[:, 0].mean(1) > 0).long()

    def train(watched: bool) -> tuple[dict[str, Tensor], Any]:
        seed(0)
        model = braindecode.models.ShallowFBCSPNet(
            3, 2, n_times=80, filter_time_length=9, pool_time_length=20, pool_time_stride=5, n_filters_time=8,
            n_filters_spat=8,
        )  # fmt: skip
        layer = next(m for m in model.modules() if isinstance(m, nn.BatchNorm2d))
        truth = Truth(layer)
        seed(3)
        net = net_of(
            model,
            *([BatchNormCallback(sinks=[])] if watched else []),
            kind=braindecode.EEGClassifier,
            train_split=predefined_split(Dataset(x[:64].numpy(), y[:64].numpy())),
            classes=[0, 1],
        ).fit(x.numpy(), y.numpy())
        return state(net.module_), (net, truth)

    net, truth = without_and_with(train)
    callback = callback_of(net)
    [name] = callback.monitor.layers.names
    assert truth.error(callback.monitor, name) < 1e-4
    assert evaluated(callback.monitor, name)
    assert [said for said in serious(callback.incidents) if "BN303" not in said] == []
