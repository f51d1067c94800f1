"""The adapter to the algorithms of Stable-Baselines3, and of what derives from them, such as SB3-Contrib."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import nn
from torch.optim import Optimizer

from bnmonitor.integrations.watch import Watch, Watching, harmless

if TYPE_CHECKING:

    class BaseCallback:
        """The class of the library, which is not installed where types are checked."""

        model: Any

        def __init__(self, verbose: int = 0) -> None: ...
else:
    from stable_baselines3.common.callbacks import BaseCallback


class BatchNormCallback(Watching, BaseCallback):
    """Watches every BatchNorm layer of a policy, with its target networks, while an algorithm learns.

    ::

        model.learn(10_000, callback=BatchNormCallback())

    A step is a step of the optimizer: that of the critic where there is one. The environment is played in evaluation
    mode: that counts as an evaluation, and is looked at once between two checks.

    Args:
        log_dir: The directory for the history; None: that of the run's TensorBoard, if ``tensorboard_log``
            was given.
        settings: The arguments that :class:`bnmonitor.Monitor` shares with the Lightning callback.

    Raises:
        TypeError: An argument has a name or a type that is not accepted.
        ValueError: An argument has a value that is not accepted.
    """

    def __init__(self, *, log_dir: str | Path | None = None, **settings: Any) -> None:
        super().__init__()
        self.watch = Watch(log_dir, settings)
        self._hook: Any = None
        self._since = 0

    @harmless
    def _on_training_start(self) -> None:
        policy: nn.Module = self.model.policy
        optimizers = _optimizers(policy)
        if self._hook is not None:
            self._hook.remove()
            self._hook = None
        folder = self.model.logger.dir if self.model.tensorboard_log else None  # else it is a temporary one
        self.watch.begin(policy, optimizers, log_dir=Path(folder) if folder else None)
        self._since = self.watch.settings.check_every_n_steps
        if optimizers:
            self._hook = optimizers[0].register_step_post_hook(self._optimized)

    @harmless
    def _on_rollout_start(self) -> None:
        if self._since >= self.watch.settings.check_every_n_steps:
            self._since = 0
            self.watch.evaluates("predict")

    @harmless
    def _on_rollout_end(self) -> None:
        self.watch.trains()

    def _on_step(self) -> bool:
        return not (self.watch.should_stop and self.watch.running)

    @harmless
    def _on_training_end(self) -> None:
        if self._hook is not None:
            self._hook.remove()
            self._hook = None
        self.watch.close()

    @harmless
    def _optimized(self, *_: Any) -> None:
        self._since += 1
        self.watch.step()


def _optimizers(policy: nn.Module) -> list[Optimizer]:
    """The optimizers of a policy, the one whose step ends a batch first: that of the critic, which steps most often."""
    parts = [getattr(policy, name, None) for name in ("critic", "actor")]
    found = [getattr(part, "optimizer", None) for part in (*parts, policy)]
    return [each for each in found if isinstance(each, Optimizer)]
