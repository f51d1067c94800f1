"""Modes and bookkeeping under a Lightning Trainer with callbacks that change both."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from bnmonitor import Alert, BatchNormMonitor, Severity
from tests.lightning.test_callback import a_body, a_module, a_trainer, lightning, loader, one_thread

__all__ = ["lightning", "one_thread"]


def reported(callback: BatchNormMonitor) -> dict[str, Alert]:
    return {a.code: a for a in callback.alerts if a.code.startswith(("BN4", "BN5")) and a.severity > Severity.INFO}


def fit(lightning: Any, module: Any, *callbacks: Any, **more: Any) -> BatchNormMonitor:
    callback = BatchNormMonitor(sinks=[], on_alert="log", sample_every_n_steps=10, select=("all",), probe=True)
    usual = {"max_epochs": 3, "num_sanity_val_steps": 2}
    a_trainer(lightning, callback, *callbacks, **{**usual, **more}).fit(module, loader(12), loader(2))
    return callback


def test_an_ordinary_fit_with_sanity_check_validation_and_probe_is_quiet(lightning: Any) -> None:
    callback = fit(lightning, a_module(lightning))
    assert reported(callback) == {}
    window = callback.monitor.window()
    assert window is not None
    assert window.ledger.of("evaluated", "sanity").all()
    assert window.ledger.of("evaluated", "validation").all()
    assert not window.ledger.seen[2:].any()


def test_bn406_a_validation_step_that_trains(lightning: Any) -> None:
    module = a_module(lightning)
    plain = module.validation_step
    module.validation_step = lambda batch, batch_idx: (module.train(), plain(batch, batch_idx))[1]
    found = reported(fit(lightning, module))
    assert "BN406" in found
    assert found["BN406"].layers == ("body.1", "body.4")
    assert "the sanity check" in found["BN406"].message


@pytest.mark.parametrize("use_buffers", [True, False])
def test_bn505_depends_on_whether_weight_averaging_averages_the_buffers(lightning: Any, use_buffers: bool) -> None:
    averaging = lightning.callbacks.EMAWeightAveraging(use_buffers=use_buffers, decay=0.9)
    found = reported(fit(lightning, a_module(lightning), averaging))
    assert list(found) == ([] if use_buffers else ["BN505"])


def test_stochastic_weight_averaging_is_quiet(lightning: Any) -> None:
    averaging = lightning.callbacks.StochasticWeightAveraging(swa_lrs=0.01, swa_epoch_start=1)
    assert reported(fit(lightning, a_module(lightning), averaging)) == {}


def finetuning(lightning: Any, **arguments: Any) -> Any:
    base = lightning.callbacks.BaseFinetuning

    class Backbone(base):  # type: ignore[misc, valid-type]
        def freeze_before_training(self, pl_module: Any) -> None:
            self.freeze(pl_module.body, **arguments)

        def finetune_function(self, pl_module: Any, epoch: int, optimizer: torch.optim.Optimizer) -> None:
            if epoch == 1:
                self.unfreeze_and_add_param_group(pl_module.body, optimizer, lr=0.01)

    return Backbone()


def test_a_backbone_that_is_unfrozen_with_its_normalization_trained_throughout_is_quiet(lightning: Any) -> None:
    assert reported(fit(lightning, a_module(lightning, a_body()), finetuning(lightning, train_bn=True))) == {}


def test_bn403_freezing_without_its_normalization(lightning: Any) -> None:
    found = reported(fit(lightning, a_module(lightning, a_body()), finetuning(lightning, train_bn=False)))
    assert "BN403" in found
    assert found["BN403"].layers == ("body.1", "body.4")


class Fused(nn.BatchNorm2d):
    """Applies a ReLU in its forward."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x).relu()


def test_bn504_a_conversion_that_the_trainer_makes(lightning: Any) -> None:
    body = a_body()
    body[4] = Fused(8)
    found = reported(fit(lightning, a_module(lightning, body), sync_batchnorm=True))
    assert found["BN504"].layers == ("body.4",)
    assert reported(fit(lightning, a_module(lightning), sync_batchnorm=True)) == {}


def test_the_learning_rate_finder_is_quiet(lightning: Any) -> None:
    finder = lightning.callbacks.LearningRateFinder(num_training_steps=15)
    module = a_module(lightning)
    module.lr = 0.05
    assert reported(fit(lightning, module, finder)) == {}
