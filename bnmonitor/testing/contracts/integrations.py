"""What an integration with a training library promises."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from bnmonitor.monitor import Monitor

Batch = tuple[Tensor, Tensor]
CHANNELS, CLASSES, STEPS = 8, 3, 6


@dataclass(frozen=True)
class Outcome:
    """What a training leaves behind.

    Attributes:
        state: Parameters and buffers.
        gradients: The last gradients.
        generators: States of the random number generators of torch and Python.
    """

    state: dict[str, Tensor]
    gradients: list[Tensor]
    generators: tuple[Tensor, object]

    def same_as(self, other: Outcome) -> bool:
        """Whether both are equal to the last bit."""
        return (
            list(self.state) == list(other.state)
            and all(torch.equal(a, b) for a, b in zip(self.state.values(), other.state.values(), strict=True))
            and all(torch.equal(a, b) for a, b in zip(self.gradients, other.gradients, strict=True))
            and torch.equal(self.generators[0], other.generators[0])
            and self.generators[1] == other.generators[1]
        )


class Network(nn.Module):
    """A small network with BatchNorm and dropout; it can be told to fail at a call."""

    def __init__(self, *, fail_at: int | None = None) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Linear(CHANNELS, CHANNELS, bias=False),
            nn.BatchNorm1d(CHANNELS),
            nn.ReLU(),
            nn.Dropout(0.2),
            nn.Linear(CHANNELS, CLASSES),
        )
        self._left = fail_at

    def forward(self, x: Tensor) -> Tensor:
        """Return the scores of the classes."""
        if self._left is not None:
            self._left -= 1
            if self._left < 0:
                raise FloatingPointError("on purpose")
        out: Tensor = self.body(x)
        return out


class IntegrationContract:
    """Attached to the library's own training loop, the monitor changes nothing, leaves nothing, and counts only steps.

    Derive a class whose name begins with ``Test`` and override :meth:`fit`.
    """

    def fit(
        self, model: nn.Module, batches: Sequence[Batch], *, watch: bool, held_out: Sequence[Batch] = ()
    ) -> Monitor | None:
        """Train for one epoch on the batches in their order, as a user of the library would.

        Args:
            model: Returns the scores of classes for the first tensor of a batch; the second holds the classes.
            batches: One training step each.
            watch: Whether the integration is attached, with ``sample_every_n_steps=1``, ``sinks=[]`` and
                ``on_alert="log"``.
            held_out: Batches on which the library evaluates the model after the epoch; empty: it does not.

        Returns:
            The monitor that watched, closed; None without one.
        """
        raise NotImplementedError

    def test_training_is_bit_identical(self) -> None:
        """Parameters, buffers, gradients and random states are the same with the monitor and without it."""
        alone, watched = (self._outcome(watch=watch) for watch in (False, True))
        assert alone.same_as(watched)

    def test_every_step_is_recorded_once(self) -> None:
        """Each batch is one step of the history, in order, and its statistics are those of the batch."""
        torch.manual_seed(0)
        seen: list[Tensor] = []
        model = Network()
        model.body[1].register_forward_pre_hook(lambda _, args: seen.append(args[0].detach().double().mean(0)))
        monitor = self._watched(model)
        assert len(monitor.steps) == STEPS
        assert list(monitor.steps) == sorted(monitor.steps)
        [name] = monitor.layers.names
        truth = torch.stack(seen)[-STEPS:]
        torch.testing.assert_close(monitor.history(name, "batch_mean").double(), truth, rtol=0, atol=1e-5)

    def test_no_hook_is_left_after_the_training(self) -> None:
        """The model has no hooks once the training is over."""
        model = Network()
        self._watched(model)
        assert hooks(model) == 0

    def test_no_hook_is_left_after_an_exception(self) -> None:
        """The model has no hooks after the training failed in a step, whether the library raises or not."""
        model = Network(fail_at=3)
        try:
            self.fit(model, data(STEPS), watch=True)
        except FloatingPointError as error:
            failed = str(error)
        else:
            failed = "on purpose"
        assert failed == "on purpose"
        assert hooks(model) == 0

    def test_an_evaluation_is_not_counted_as_training(self) -> None:
        """Held-out batches add no step and leave no trace in the batch statistics."""
        histories = []
        for held_out in ((), [(x * 100, y) for x, y in data(2)]):
            torch.manual_seed(0)
            monitor = self.fit(Network(), data(STEPS), watch=True, held_out=held_out)
            assert monitor is not None
            assert len(monitor.steps) == STEPS
            histories.append(monitor.history(monitor.layers.names[0], "batch_mean"))
        assert torch.equal(*histories)

    def _watched(self, model: nn.Module) -> Monitor:
        monitor = self.fit(model, data(STEPS), watch=True)
        assert monitor is not None
        return monitor

    def _outcome(self, *, watch: bool) -> Outcome:
        random.seed(0)
        torch.manual_seed(0)
        model = Network()
        self.fit(model, data(STEPS), watch=watch, held_out=data(2))
        gradients = [p.grad for p in model.parameters() if p.grad is not None]
        return Outcome(dict(model.state_dict()), gradients, (torch.get_rng_state(), random.getstate()))


def data(count: int) -> list[Batch]:
    """Return batches of 32 samples that drift, always the same ones."""
    generator = torch.Generator().manual_seed(1)
    classes = torch.arange(32) % CLASSES
    return [(torch.randn(32, CHANNELS, generator=generator) + 0.3 * i, classes) for i in range(count)]


def hooks(model: nn.Module) -> int:
    """Return how many hooks are on the modules of a model."""
    return sum(
        len(value) for m in model.modules() for key, value in vars(m).items() if key.endswith("_hooks") and value
    )
