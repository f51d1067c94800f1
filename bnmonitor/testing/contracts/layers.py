"""What a kind of layer promises."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from bnmonitor.layers import discover
from bnmonitor.monitor import Monitor
from bnmonitor.testing.contracts.layer_case import LayerCase, Reference
from bnmonitor.window import Recovery

STEPS = 8
KNOWN = (Recovery.EXACT, Recovery.AVERAGED, Recovery.OBSERVED)
"""Marks of steps for which the batch statistics are recorded."""


class LayerKindContract:
    """A kind of layer is found, its statistics are true or missing with a reason, and its training is not changed.

    Derive a class whose name begins with ``Test`` and give it a fixture ``case`` that returns a :class:`LayerCase`.
    """

    def test_it_is_found_once(self, case: LayerCase) -> None:
        """Discovery lists every layer under one name, with its channels."""
        model = case.build()
        model(case.batches(1)[0])  # a lazy layer is real from its first forward on
        table = discover({"": model}).table
        assert table.names == case.layers
        assert set(table.channels) <= {case.channels}

    def test_what_is_recorded_is_the_truth(self, case: LayerCase) -> None:
        """Batch mean and variance equal the float64 reference within the errors of the case."""
        if case.recovery in KNOWN and case.layers:
            mean, var = errors(case)
            assert mean <= case.mean
            assert var <= case.var

    def test_what_cannot_be_known_is_missing_with_the_reason(self, case: LayerCase) -> None:
        """Where a batch cannot be recovered the history is NaN, and the summary says why."""
        if case.recovery not in KNOWN:
            monitor, _ = recorded(case)
            assert len(monitor.steps) == STEPS
            for name in case.layers:
                assert monitor.history(name, "batch_mean").isnan().all()
                assert monitor.history(name, "batch_var").isnan().all()
            assert {row.recovery for row in monitor.summary()} == {case.recovery.reason}

    def test_evaluation_mode_is_reported(self, case: LayerCase) -> None:
        """A layer in evaluation mode is listed as such, and its fixed statistics are not taken for those of a batch."""
        monitor, _ = recorded(case, evaluating=True)
        rows = monitor.summary().rows if monitor.steps else ()
        assert [row.training for row in rows] == [False] * len(case.layers)
        for name in case.layers:
            if monitor.history(name, "running_mean").isfinite().any():
                assert monitor.history(name, "batch_mean").isnan().all()

    def test_it_trains_as_without_the_monitor(self, case: LayerCase) -> None:
        """Parameters, buffers, attributes and random state are the same to the last bit, and no hook is left."""
        (alone, attributes), (watched, found) = (outcome(case, watch=watch) for watch in (False, True))
        assert attributes == found
        assert list(alone) == list(watched)
        assert all(torch.equal(alone[key], watched[key]) for key in alone)


def train(
    model: nn.Module, batches: list[Tensor], monitor: Monitor | None = None, reference: Reference | None = None
) -> None:
    """Train on one batch a step, and evaluate on the first one after every third."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    for step, x in enumerate(batches):
        optimizer.zero_grad()
        out = model(x)
        loss = torch.nn.functional.cross_entropy(out, torch.arange(len(x)) % out.shape[1])
        torch.autograd.backward(loss)
        optimizer.step()
        if monitor is not None:
            monitor.step()
        if reference is not None:
            reference.end_step()
        elif step % 3 == 2:
            _evaluate(model, batches[0], monitor)


def _evaluate(model: nn.Module, x: Tensor, monitor: Monitor | None) -> None:
    modes = [(module, module.training) for module in model.modules()]
    if monitor is not None:
        monitor.begin_evaluation()
    model.eval()
    with torch.no_grad():
        model(x)
    if monitor is not None:
        monitor.end_evaluation()
    for module, mode in modes:
        module.training = mode


def recorded(case: LayerCase, *, evaluating: bool = False) -> tuple[Monitor, Reference]:
    """Train the case, in evaluation mode if asked; return the monitor and the truth."""
    model = case.build()
    if evaluating:
        model.eval()
    reference = Reference(model, case.layers if case.recovery in KNOWN else ())
    monitor = Monitor(model, sinks=[], on_alert="log", check_every_n_steps=3)
    with monitor:
        train(model, case.batches(STEPS), monitor, reference)
    return monitor, reference


def errors(case: LayerCase) -> tuple[float, float]:
    """Return the largest error of the means in standard deviations, and of the variances relative to the true one."""
    monitor, reference = recorded(case)
    worst_mean = worst_var = 0.0
    for name in case.layers:
        got_mean, got_var = (monitor.history(name, f"batch_{which}").double() for which in ("mean", "var"))
        # A lazy layer is real after its first forward, and recorded from then on.
        assert len(got_mean) >= STEPS - 1
        mean, var = (torch.stack(column) for column in zip(*reference.rows[name][-len(got_mean) :], strict=True))
        # What would be mostly the rounding of half precision is withheld; elsewhere every value is known.
        least = 0.2 if case.rounded else 1.0
        assert got_mean.isfinite().double().mean() >= least
        assert got_var.isfinite().double().mean() >= least
        worst_mean = max(worst_mean, float(((got_mean - mean).abs() / var.sqrt()).nan_to_num().max()))
        worst_var = max(worst_var, float(((got_var - var).abs() / var).nan_to_num().max()))
    assert {row.recovery for row in monitor.summary()} == {""}
    return worst_mean, worst_var


def outcome(case: LayerCase, *, watch: bool) -> tuple[dict[str, Tensor], list[set[str]]]:
    """Train the case with or without the monitor; return state and random state, and the attributes of all modules."""
    model = case.build()
    monitor = Monitor(model, sinks=[], on_alert="log", sample_every_n_steps=2) if watch else None
    if monitor is not None:
        monitor.start()
    train(model, case.batches(STEPS), monitor)
    if monitor is not None:
        monitor.close()
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    return {**model.state_dict(), "random": torch.get_rng_state()}, [set(vars(m)) for m in model.modules()]
