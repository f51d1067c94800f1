"""The monitors that the benchmark compares: bnmonitor and the usual alternatives."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from bnmonitor import Monitor
from bnmonitor.sinks import TensorBoard


class Watcher:
    """No monitoring; a subclass is called before and after each step of the optimizer."""

    records: ClassVar[str] = "nothing"
    """What it keeps, for the table."""

    def __init__(self, model: nn.Module, optimizer: torch.optim.Optimizer, folder: Path) -> None:
        pass

    def before(self, loss: Tensor) -> None:
        """Called once the gradients exist."""

    def after(self) -> None:
        """Called once the step has ended."""

    def close(self) -> None:
        """Called once the training has ended."""


class BnMonitor(Watcher):
    """bnmonitor with its defaults, writing to TensorBoard."""

    records: ClassVar[str] = "batch and running statistics, gamma, beta and gradients of each channel, every step"
    settings: ClassVar[Mapping[str, Any]] = {}

    def __init__(self, model: nn.Module, optimizer: torch.optim.Optimizer, folder: Path) -> None:
        self.monitor = Monitor(model, optimizer=optimizer, sinks=[TensorBoard(folder)], **self.settings).start()
        self.after = self.monitor.step  # type: ignore[method-assign]

    def close(self) -> None:
        """End the run."""
        self.monitor.close()


class BnMonitorSampling(BnMonitor):
    """The same with activation statistics every 10 steps instead of every 100."""

    records: ClassVar[str] = "the same"
    settings: ClassVar[Mapping[str, Any]] = {"sample_every_n_steps": 10}


class BnMonitorBuffers(BnMonitor):
    """The same without activation statistics: the difference to a step with them is the cost of a sample."""

    records: ClassVar[str] = "the same"
    settings: ClassVar[Mapping[str, Any]] = {"sample_every_n_steps": 0}


class Hooks(Watcher):
    """The usual handwritten alternative: mean and variance of each layer's input, in a forward hook."""

    records: ClassVar[str] = "batch mean and variance of each channel, every step"

    def __init__(self, model: nn.Module, optimizer: torch.optim.Optimizer, folder: Path) -> None:
        self.rows: dict[str, list[tuple[Tensor, Tensor]]] = {}
        for name, module in model.named_modules():
            if isinstance(module, nn.BatchNorm2d):
                self.rows[name] = []
                module.register_forward_hook(self._hook(name))

    def _hook(self, name: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
            with torch.no_grad():
                x = args[0]
                self.rows[name] = [*self.rows[name][-63:], (x.mean((0, 2, 3)), x.var((0, 2, 3)))]

        return hook


class Histograms(Watcher):
    """TensorBoard histograms of each layer's running statistics, gamma and beta, every 10 steps."""

    records: ClassVar[str] = "histograms of running statistics, gamma and beta"

    def __init__(self, model: nn.Module, optimizer: torch.optim.Optimizer, folder: Path) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self.writer, self.step = SummaryWriter(str(folder)), 0
        self.layers = {name: m for name, m in model.named_modules() if isinstance(m, nn.BatchNorm2d)}

    def after(self) -> None:
        """Write the histograms of this step, if it is its turn."""
        if self.step % 10 == 0:
            for name, layer in self.layers.items():
                for key in ("running_mean", "running_var", "weight", "bias"):
                    self.writer.add_histogram(f"{name}/{key}", getattr(layer, key).detach(), self.step)
        self.step += 1

    def close(self) -> None:
        """End the run."""
        self.writer.close()


class WandbWatch(Watcher):
    """``wandb.watch(model, log="all", log_freq=100)``, offline."""

    records: ClassVar[str] = "histograms of parameters and gradients, no running statistics"

    def __init__(self, model: nn.Module, optimizer: torch.optim.Optimizer, folder: Path) -> None:
        import wandb

        folder.mkdir(parents=True)
        settings = wandb.Settings(silent=True, console="off", x_disable_stats=True)
        self.run = wandb.init(mode="offline", dir=str(folder), project="benchmark", settings=settings)
        self.run.watch(model, log="all", log_freq=100)
        self.loss = torch.zeros(())

    def before(self, loss: Tensor) -> None:
        """Keep the loss to be logged."""
        self.loss = loss.detach()

    def after(self) -> None:
        """Log the loss; the histograms go with it."""
        self.run.log({"loss": float(self.loss)})

    def close(self) -> None:
        """End the run."""
        self.run.finish()


class Ormas(Watcher):
    """``ormas_monitor.Monitor`` with its defaults."""

    records: ClassVar[str] = "gradient norms of layers and activity of channels, at its checks"

    def __init__(self, model: nn.Module, optimizer: torch.optim.Optimizer, folder: Path) -> None:
        import ormas_monitor

        self.monitor = ormas_monitor.Monitor(model, optimizer, out=str(folder))

    def before(self, loss: Tensor) -> None:
        """Its step comes before that of the optimizer."""
        self.monitor.step(loss)

    def close(self) -> None:
        """End the run."""
        self.monitor.close()


class TorchAudit(Watcher):
    """``torch_audit.autopatch`` that audits every 100 steps, as often as bnmonitor samples; its default is 1,000."""

    records: ClassVar[str] = "findings about parameters, gradients and activations"

    def __init__(self, model: nn.Module, optimizer: torch.optim.Optimizer, folder: Path) -> None:
        from torch_audit import autopatch

        self.auditor = autopatch(model, optimizer=optimizer, every_n_steps=100, reporters=[], fail_level="FATAL")

    def close(self) -> None:
        """Put the model's methods back."""
        self.auditor.unpatch()


WATCHERS: dict[str, type[Watcher]] = {
    "nothing": Watcher,
    "bnmonitor": BnMonitor,
    "bnmonitor, activations every 10 steps": BnMonitorSampling,
    "bnmonitor, no activations": BnMonitorBuffers,
    "forward hooks, mean and variance per channel": Hooks,
    "TensorBoard histograms every 10 steps": Histograms,
    '`wandb.watch(log="all", log_freq=100)`, offline': WandbWatch,
    "`ormas-monitor`": Ormas,
    "`torch-audit`, every 100 steps": TorchAudit,
}
