"""The arguments of Monitor and BatchNormMonitor, checked once."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, cast

from torch import nn
from torch.optim import Optimizer

from bnmonitor._text import nearest
from bnmonitor.alerts import Alert
from bnmonitor.rules import Rule, Severity, Thresholds, by_layer, choose
from bnmonitor.rules.thresholds import ForLayers

Action = Literal["log", "warn", "stop", "raise"] | Callable[[Alert], object]
"""What to do when an alert opens or gets worse."""


class _Unsaid(str):
    """The default of an argument, told apart from the same word when a user writes it."""

    __slots__ = ()


WARN = cast(Action, _Unsaid("warn"))
"""Warn, unless there is no sink at all: whoever says ``sinks=[]`` and nothing of alerts wants to hear nothing."""


def unsaid(action: object) -> bool:
    """Whether an action is the default, not one that the user wrote."""
    return isinstance(action, _Unsaid)


_ACTIONS = ("log", "warn", "stop", "raise")


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
    on_alert: Mapping[str, Action] | Action = WARN

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

    def actions(self) -> dict[Severity, Action]:
        """What to do by severity. A single word does not apply to infos, which are only logged."""
        if isinstance(self.on_alert, Mapping):
            actions: dict[Severity, Action] = {Severity.INFO: "log", Severity.WARNING: "warn", Severity.ERROR: "warn"}
            for key, action in self.on_alert.items():
                actions[_severity(key)] = _action(action)
            return actions
        action = _action(self.on_alert)
        return {
            Severity.INFO: action if callable(action) else "log",
            Severity.WARNING: action,
            Severity.ERROR: action,
        }


def _severity(key: object) -> Severity:
    if isinstance(key, Severity):
        return key
    names = [str(s) for s in Severity]
    if isinstance(key, str) and key.lower() in names:
        return Severity[key.upper()]
    raise ValueError(f"on_alert has no severity {key!r}{nearest(str(key), names)}; there are {', '.join(names)}")


def _action(action: object) -> Action:
    if callable(action) or action in _ACTIONS:
        return action  # type: ignore[return-value]
    hint = nearest(action, _ACTIONS) if isinstance(action, str) else ""
    raise ValueError(
        f"on_alert={action!r} is not an action{hint}; it takes {', '.join(map(repr, _ACTIONS))}, "
        "a callable, or a mapping of these by severity"
    )


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


def as_optimizers(optimizer: object) -> list[Optimizer]:
    """Return one optimizer, several, or none as a list.

    Raises:
        TypeError: It is something else.
    """
    given = [] if optimizer is None else [optimizer] if isinstance(optimizer, Optimizer) else optimizer
    if not isinstance(given, Sequence) or not all(hasattr(o, "param_groups") for o in given):
        raise TypeError(f"optimizer must be an optimizer or a sequence of them, got {type(optimizer).__name__}")
    return list(given)
