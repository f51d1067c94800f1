"""What W&B, MLflow, Comet and Neptune can take besides numbers, by Lightning's loggers or directly."""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from types import ModuleType
from typing import Any

INCIDENTS, PAGE = "bnmonitor/incidents", "bnmonitor/page"


class Destination:
    """Takes numbers, incidents and the page of a run; this one, only numbers, by Lightning's ``log_metrics``.

    Args:
        logger: What the user or the Trainer has.
    """

    takes_pages = False

    def __init__(self, logger: Any) -> None:
        self.logger = logger

    def numbers(self, values: Mapping[str, float], step: int) -> None:
        """Log numbers."""
        self.logger.log_metrics(dict(values), step=step)

    def incidents(self, texts: Sequence[str]) -> None:
        """Log all incidents so far, in place of those before."""

    def page(self, html: str) -> None:
        """Log the page of the run."""


class _WandB(Destination):
    takes_pages = True

    def __init__(self, logger: Any) -> None:
        super().__init__(logger)
        self._is_run = not hasattr(logger, "log_metrics")

    @property
    def _run(self) -> Any:
        return self.logger if self._is_run else self.logger.experiment

    def numbers(self, values: Mapping[str, float], step: int) -> None:
        if self._is_run:
            self._run.log(dict(values), step=step)
        else:
            super().numbers(values, step)

    def incidents(self, texts: Sequence[str]) -> None:
        self._run.summary[INCIDENTS] = "\n\n".join(texts)

    def page(self, html: str) -> None:
        wandb: Any = importlib.import_module("wandb")
        self._run.log({PAGE: wandb.Html(html, inject=False)})


class _MLflow(Destination):
    takes_pages = True

    def numbers(self, values: Mapping[str, float], step: int) -> None:
        if isinstance(self.logger, ModuleType):
            self.logger.log_metrics(dict(values), step=step)
        else:
            super().numbers(values, step)

    def _text(self, text: str, file: str) -> None:
        if isinstance(self.logger, ModuleType):
            self.logger.log_text(text, file)
        else:
            self.logger.experiment.log_text(self.logger.run_id, text, file)

    def incidents(self, texts: Sequence[str]) -> None:
        self._text("\n\n".join(texts) + "\n", f"{INCIDENTS}.txt")

    def page(self, html: str) -> None:
        self._text(html, f"{PAGE}.html")


class _Comet(Destination):
    takes_pages = True

    def __init__(self, logger: Any) -> None:
        super().__init__(logger)
        self._is_experiment = not hasattr(type(logger), "experiment")

    @property
    def _experiment(self) -> Any:
        return self.logger if self._is_experiment else self.logger.experiment

    def numbers(self, values: Mapping[str, float], step: int) -> None:
        if self._is_experiment:
            self._experiment.log_metrics(dict(values), step=step)
        else:
            super().numbers(values, step)

    def incidents(self, texts: Sequence[str]) -> None:
        self._experiment.log_asset_data("\n\n".join(texts), name=f"{INCIDENTS}.txt", overwrite=True)

    def page(self, html: str) -> None:
        self._experiment.log_asset_data(html, name=f"{PAGE}.html", overwrite=True)


class _Neptune(Destination):
    takes_pages = True

    def __init__(self, logger: Any) -> None:
        super().__init__(logger)
        self._is_run = not hasattr(logger, "log_metrics")

    @property
    def _run(self) -> Any:
        return self.logger if self._is_run else self.logger.experiment

    def numbers(self, values: Mapping[str, float], step: int) -> None:
        if not self._is_run:
            super().numbers(values, step)
            return
        for name, value in values.items():
            self._run[name].append(value, step=step)

    def incidents(self, texts: Sequence[str]) -> None:
        self._run[INCIDENTS] = "\n\n".join(texts)

    def page(self, html: str) -> None:
        types: Any = importlib.import_module("neptune.types")
        self._run[PAGE].upload(types.File.from_content(html, extension="html"))


_KINDS: tuple[tuple[str, str, type[Destination]], ...] = (
    ("WandbLogger", "wandb", _WandB),
    ("MLFlowLogger", "mlflow", _MLflow),
    ("CometLogger", "comet_ml", _Comet),
    ("NeptuneLogger", "neptune", _Neptune),
)
"""The name of Lightning's logger, the library, and what takes from both."""


def destination(logger: Any) -> Destination:
    """Return what a logger can take: Lightning's by its class, a library's own run, or the library ``mlflow``."""
    library = logger.__name__ if isinstance(logger, ModuleType) else type(logger).__module__.partition(".")[0]
    for name, theirs, kind in _KINDS:
        if library == theirs or any(each.__name__ == name for each in type(logger).__mro__):
            return kind(logger)
    return Destination(logger)
