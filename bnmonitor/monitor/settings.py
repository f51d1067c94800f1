"""The arguments of Monitor and BatchNormMonitor, checked once."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any, Literal, cast, get_args

from torch import nn
from torch.optim import Optimizer

from bnmonitor._text import nearest
from bnmonitor.results import Alert, Severity
from bnmonitor.rules import ForLayers, Rule, Thresholds, by_layer, choose

Word = Literal["log", "warn", "stop", "raise", "checkpoint", "wandb"]
OneAction = Word | Callable[[Alert], object]
Action = OneAction | Sequence[OneAction]
"""What to do when an alert opens or gets worse: one thing, or several."""


class _Unsaid(str):
    """The default of an argument, told apart from the same word when a user writes it."""

    __slots__ = ()


WARN = cast(Action, _Unsaid("warn"))
"""Warn, unless there is no sink at all: whoever says ``sinks=[]`` and nothing of alerts wants to hear nothing."""


def unsaid(action: object) -> bool:
    """Whether an action is the default, not one that the user wrote."""
    return isinstance(action, _Unsaid)


_ACTIONS = get_args(Word)


@dataclass(frozen=True, kw_only=True)
class Settings:
    """See :class:`bnmonitor.Monitor` for what each means.

    Raises:
        ValueError: An argument has a value it does not accept.
        TypeError: An argument has a type it does not accept.
    """

    check_every_n_steps: int = 10
    log_every_n_steps: int | None = None
    sample_every_n_steps: int = 100
    window: int = 64
    probe: bool = False
    include: Sequence[str] = ("*",)
    exclude: Sequence[str] = ()
    select: Sequence[str] = ("default",)
    ignore: Sequence[str] = ()
    rules: Sequence[Rule] | Mapping[str, Thresholds] | None = None
    on_alert: Action | Mapping[str, Action] = WARN

    def __post_init__(self) -> None:
        for name, least, meaning in (
            ("check_every_n_steps", 1, "1 or more"),
            ("sample_every_n_steps", 0, "1 or more, or 0 for never"),
            ("window", 2, "2 or more"),
            ("log_every_n_steps", 0, "1 or more, 0 for never, or None for the Trainer's"),
        ):
            value = getattr(self, name)
            if value is None and name == "log_every_n_steps":
                continue
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                raise ValueError(f"{name}={value!r} is no number of steps it accepts: pass an int, {meaning}")
        if not isinstance(self.probe, bool):
            raise TypeError(f"probe={self.probe!r} must be True or False")
        for name in ("include", "exclude", "select", "ignore"):
            value = getattr(self, name)
            if isinstance(value, str):
                raise TypeError(f"{name}={value!r} must be a sequence of strings: pass ({value!r},)")
            if not isinstance(value, Sequence):
                raise TypeError(f"{name}={value!r} must be a sequence of strings, such as a tuple")
            if not all(isinstance(word, str) for word in value):
                raise TypeError(f"{name}={value!r} must hold strings only")
        self.chosen_rules()
        self.actions()

    def chosen_rules(self) -> tuple[Rule, ...]:
        """The rules to run."""
        return choose(self.select, self.ignore, self.rules)

    def special_rules(self) -> dict[str, tuple[ForLayers, ...]]:
        """The rules that have other thresholds in some layers, by code."""
        return by_layer(self.rules)

    def actions(self) -> dict[Severity, tuple[OneAction, ...]]:
        """What to do by severity. Without a mapping, words do not apply to infos, which are only logged."""
        if isinstance(self.on_alert, Mapping):
            given = {_severity(key): _actions(action) for key, action in self.on_alert.items()}
            return {Severity.INFO: ("log",), Severity.WARNING: ("warn",), Severity.ERROR: ("warn",), **given}
        actions = _actions(self.on_alert)
        calls = tuple(action for action in actions if callable(action))
        return {Severity.INFO: calls or ("log",), Severity.WARNING: actions, Severity.ERROR: actions}

    def words(self) -> set[str]:
        """The words among the actions."""
        return {str(action) for actions in self.actions().values() for action in actions if not callable(action)}


def _severity(key: object) -> Severity:
    if isinstance(key, Severity):
        return key
    names = [str(s) for s in Severity]
    if isinstance(key, str) and key.lower() in names:
        return Severity[key.upper()]
    raise ValueError(f"on_alert has no severity {key!r}{nearest(str(key), names)}; there are {', '.join(names)}")


def _actions(given: Any) -> tuple[OneAction, ...]:
    several = isinstance(given, Sequence) and not isinstance(given, str) and len(given) > 0
    for action in given if several else (given,):
        if not (callable(action) or (isinstance(action, str) and action in _ACTIONS)):
            hint = nearest(action, _ACTIONS) if isinstance(action, str) else ""
            raise ValueError(
                f"on_alert={action!r} is not an action{hint}; it takes {', '.join(map(repr, _ACTIONS))}, "
                "a callable, a list of these, or a mapping of these by severity"
            )
    return tuple(given) if several else (given,)


def as_models(model: object) -> dict[str, nn.Module]:
    """Return the models by the prefix of their layers' names.

    Raises:
        TypeError: It is neither a module nor a mapping of names to modules.
    """
    if isinstance(model, nn.Module):
        return {"": model}
    if isinstance(model, Mapping) and model and all(isinstance(m, nn.Module) for m in model.values()):
        return {str(name): module for name, module in model.items()}
    raise TypeError(f"model must be a torch.nn.Module or a mapping of names to modules, got {type(model).__name__}")


def as_folder(log_dir: object) -> Path | None:
    """Return where files go, or None for nowhere.

    Raises:
        TypeError: It is no path.
    """
    if log_dir is not None and not isinstance(log_dir, str | PathLike):
        raise TypeError(f"log_dir={log_dir!r} must be a path, or None to write nothing")
    return None if log_dir is None else Path(log_dir)


def as_optimizers(optimizer: object) -> list[Optimizer]:
    """Return one optimizer, several, or none as a list.

    Raises:
        TypeError: It is something else.
    """
    # By what it has: DeepSpeed's is of no class of PyTorch's.
    given = [] if optimizer is None else [optimizer] if hasattr(optimizer, "param_groups") else optimizer
    if not isinstance(given, Sequence) or not all(hasattr(o, "param_groups") for o in given):
        raise TypeError(f"optimizer must be an optimizer or a sequence of them, got {type(optimizer).__name__}")
    return list(given)
