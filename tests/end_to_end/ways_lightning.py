"""A fit with and without the callback, and its true statistics, recorded by a callback of the tests."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from bnmonitor import BatchNormMonitor
from bnmonitor.window import Recovery
from tests.end_to_end.test_promises import same
from tests.lightning.test_callback import hooks as hooks_of
from tests.recording.test_recovery import states


def truth(lightning: Any) -> Any:
    """A callback with the true batch means of every step in float64, by layer: a mean over the calls of the step."""

    class Truth(lightning.Callback):  # type: ignore[misc]
        def __init__(self) -> None:
            self.rows: dict[str, list[list[Tensor]]] = {}
            self.on = False

        def on_fit_start(self, trainer: Any, pl_module: Any) -> None:
            for name, module in pl_module.named_modules():
                if isinstance(module, nn.modules.batchnorm._BatchNorm):
                    module.register_forward_pre_hook(self.hook(name, module))

        def hook(self, name: str, own: nn.Module) -> Callable[..., None]:
            def hook(module: nn.Module, args: tuple[Tensor, ...]) -> None:
                if module is own and module.training and self.on:
                    self.rows[name][-1].append(args[0].detach().double().transpose(0, 1).flatten(1).mean(1))

            self.rows[name] = []
            return hook

        def on_train_batch_end(self, *_: Any) -> None:
            self.on = False  # what comes now may be the trial steps of a finder

        def on_train_batch_start(self, *_: Any) -> None:
            self.on = True
            for rows in self.rows.values():
                rows.append([])

    return Truth()


def fitted(
    lightning: Any, make: Callable[[], Any], fit: Callable[[Any, Any], None], callbacks: Callable[[], list[Any]] = list
) -> tuple[BatchNormMonitor, Any]:
    """Fit with and without the monitor, in both orders of the callbacks, and compare what is left behind."""
    left = []
    for order in (0, 1, 2):
        module, taken = make(), truth(lightning)
        monitor = BatchNormMonitor(sinks=[], on_alert="log", sample_every_n_steps=3, check_every_n_steps=4)
        others = [taken, *callbacks()]
        given = [others, [monitor, *others], [*others, monitor]][order]
        fit(given, module)
        optimizers = module.optimizers()
        listed = optimizers if isinstance(optimizers, list) else [optimizers]
        left.append([dict(module.state_dict()), [o.state_dict() for o in listed], torch.get_rng_state()])
        if order:
            assert same(left[0], left[-1])
            assert hooks_of(module) == len(taken.rows)
            check(monitor, taken)
    return monitor, taken


def check(callback: BatchNormMonitor, taken: Any) -> None:
    """Check that every recovered value is true, and every missing one has a reason."""
    monitor = callback.monitor
    for name in monitor.layers.names:
        got = monitor.history(name, "batch_mean")
        found, rows = states(monitor, name), taken.rows[name][-len(monitor.steps) :]
        assert len(rows) == len(got)
        for calls, mean, state in zip(rows, got, found, strict=True):
            assert bool(mean.isnan().all()) == (state > Recovery.AVERAGED)
            if state is Recovery.EXACT:
                assert len(calls) == 1
                torch.testing.assert_close(mean.double(), calls[0], rtol=1e-3, atol=1e-4)
            elif state is Recovery.AVERAGED:
                weights = [0.9 ** (len(calls) - 1 - i) for i in range(len(calls))]
                true = sum(w * c for w, c in zip(weights, calls, strict=True)) / sum(weights)
                torch.testing.assert_close(mean.double(), true, rtol=1e-3, atol=1e-4)


def all_states(callback: BatchNormMonitor) -> list[Recovery]:
    [found] = {tuple(states(callback.monitor, name)) for name in callback.monitor.layers.names}
    return list(found)
