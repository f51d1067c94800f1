"""An error in the callback itself ends the watch and not the fit."""

from __future__ import annotations

import importlib
from typing import Any

import pytest
import torch

from bnmonitor import BatchNormMonitor, BatchNormWarning
from tests.end_to_end.test_promises import hooks, same
from tests.lightning.test_callback import PACKAGES, a_module, a_trainer, loader

PARTS = (
    "bnmonitor.lightning.callback.own_forwards",
    "bnmonitor.lightning.callback.Monitor.from_settings",
    "bnmonitor.lightning.callback.beside_bar",
    "bnmonitor.lightning.callback.converts_to_sync_batchnorm",
    "bnmonitor.lightning.callback._loaders",
    "bnmonitor.lightning.callback.steps_taken",
    "bnmonitor.lightning.trainer.TrainerActions.publish",
    "bnmonitor.monitor.Monitor.end_evaluation",
    "bnmonitor.monitor.Monitor.close",
)


def fitted(lightning: Any, *callbacks: Any) -> dict[str, Any]:
    module = a_module(lightning)
    a_trainer(lightning, *callbacks).fit(module, loader(4), loader(1))
    assert hooks(module) == 0
    return {"state": dict(module.state_dict()), "torch": torch.get_rng_state()}


@pytest.mark.filterwarnings("ignore:.*does not have many workers", "ignore:.*You defined a `validation_step`")
@pytest.mark.parametrize("part", PARTS, ids=lambda part: part.rsplit(".", 1)[-1])
def test_an_error_in_the_callback_ends_the_watch_and_not_the_fit(part: str, monkeypatch: pytest.MonkeyPatch) -> None:
    alone = fitted(importlib.import_module(PACKAGES[0]))

    def broken(*_: Any, **__: Any) -> Any:
        raise AttributeError("no such attribute in this version of Lightning")

    callback = BatchNormMonitor(sinks=[])
    monkeypatch.setattr(part, broken)
    with pytest.warns(BatchNormWarning, match="stopped watching, training goes on: AttributeError: no such") as warned:
        watched = fitted(importlib.import_module(PACKAGES[0]), callback)
    assert same(alone, watched)
    assert len([w for w in warned if issubclass(w.category, BatchNormWarning)]) == 1
    assert callback.gave_up
