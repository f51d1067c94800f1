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
        logger: What the user or the Trainer has: a logger of Lightning, or the library's own run.
    """

    takes_pages = False

    def __init__(self, logger: Any) -> None:
        self.logger = logger
        self._lightning = hasattr(type(logger), "experiment")

    @property
    def run(self) -> Any:
        """The library's own run, which Lightning's logger makes when it is first asked for."""
        return self.logger.experiment if self._lightning else self.logger

    def numbers(self, values: Mapping[str, float], step: int) -> None:
        """Log numbers."""
        self.logger.log_metrics(dict(values), step=step)

    def incidents(self, texts: Sequence[str]) -> None:
        """Log all incidents so far, in place of those before."""

    def page(self, html: str) -> None:
        """Log the page of the run."""


class _WandB(Destination):
    takes_pages = True

    def numbers(self, values: Mapping[str, float], step: int) -> None:
        if self._lightning:  # it gives the step an axis of its own
            super().numbers(values, step)
        else:
            self.run.log(dict(values), step=step)

    def incidents(self, texts: Sequence[str]) -> None:
        self.run.summary[INCIDENTS] = "\n\n".join(texts)

    def page(self, html: str) -> None:
        wandb: Any = importlib.import_module("wandb")
        self.run.log({PAGE: wandb.Html(html, inject=False)})


class _MLflow(Destination):
    takes_pages = True

    def _text(self, text: str, file: str) -> None:
        of = (self.logger.run_id,) if self._lightning else ()  # the library logs to its active run
        self.run.log_text(*of, text, file)

    def incidents(self, texts: Sequence[str]) -> None:
        self._text("\n\n".join(texts) + "\n", f"{INCIDENTS}.txt")

    def page(self, html: str) -> None:
        self._text(html, f"{PAGE}.html")


class _Comet(Destination):
    takes_pages = True

    def incidents(self, texts: Sequence[str]) -> None:
        self.run.log_asset_data("\n\n".join(texts), name=f"{INCIDENTS}.txt", overwrite=True)

    def page(self, html: str) -> None:
        self.run.log_asset_data(html, name=f"{PAGE}.html", overwrite=True)


class _Neptune(Destination):
    takes_pages = True

    def numbers(self, values: Mapping[str, float], step: int) -> None:
        if self._lightning:
            super().numbers(values, step)
            return
        for name, value in values.items():
            self.run[name].append(value, step=step)

    def incidents(self, texts: Sequence[str]) -> None:
        self.run[INCIDENTS] = "\n\n".join(texts)

    def page(self, html: str) -> None:
        types: Any = importlib.import_module("neptune.types")
        self.run[PAGE].upload(types.File.from_content(html, extension="html"))


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
