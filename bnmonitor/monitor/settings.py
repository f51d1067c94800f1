"""The arguments that Monitor and BatchNormMonitor share, validated once and handed on as one object."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from os import PathLike
from pathlib import Path
from typing import Any, Literal, get_args

from torch import Tensor, nn
from torch.optim import Optimizer

from bnmonitor._text import nearest
from bnmonitor.limits import FLIGHT_BYTES
from bnmonitor.results import Alert, Severity
from bnmonitor.rules import ForLayers, Rule, Thresholds, by_layer, choose
from bnmonitor.sinks import Sink, checked

Word = Literal["log", "warn", "stop", "raise", "checkpoint", "rollback", "save-batch", "wandb"]
OneAction = Word | Callable[[Alert], object]
Action = OneAction | Sequence[OneAction]
"""What to do when an alert opens or gets worse: one action, or several."""

_ACTIONS = get_args(Word)


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How to watch a training; :class:`bnmonitor.Monitor` documents each field.

    The fields are the keyword arguments that both constructors share. Nothing reads an argument except through this
    object, so a value is validated in one place.

    Raises:
        ValueError: An argument has a value it does not accept.
        TypeError: An argument has a type it does not accept.
    """

    check_every_n_steps: int = 10
    log_every_n_steps: int | None = None
    sample_every_n_steps: int = 100
    window: int = 64
    probe: bool = False
    gather_affine: bool = False
    flight_bytes: int = FLIGHT_BYTES
    max_overhead: float | None = 0.01
    include: Sequence[str] = ("*",)
    exclude: Sequence[str] = ()
    select: Sequence[str] = ("default",)
    ignore: Sequence[str] = ()
    rules: Sequence[Rule] | Mapping[str, Thresholds] | None = None
    on_alert: Action | Mapping[str, Action] | None = None
    sinks: Sequence[Sink] | None = None

    def __post_init__(self) -> None:
        for name, least, otherwise in (
            ("check_every_n_steps", 1, ""),
            ("sample_every_n_steps", 0, " (0: never)"),
            ("window", 2, ""),
            ("flight_bytes", 0, " (0: no flight record)"),
            ("log_every_n_steps", 0, " (0: never), or None for the Trainer's cadence"),
        ):
            value = getattr(self, name)
            if value is None and name == "log_every_n_steps":
                continue
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                raise ValueError(f"{name} must be an int of at least {least}{otherwise}, got {value!r}")
        share = self.max_overhead
        if share is not None and (isinstance(share, bool) or not isinstance(share, int | float) or not 0 < share <= 1):
            raise ValueError(
                "max_overhead must be a part of the training's time, such as 0.01 for 1 %, or None for no limit, "
                f"got {share!r}"
            )
        for name in ("probe", "gather_affine"):
            if not isinstance(getattr(self, name), bool):
                raise TypeError(f"{name} must be True or False, got {getattr(self, name)!r}")
        for name in ("include", "exclude", "select", "ignore"):
            value = getattr(self, name)
            if isinstance(value, str):
                raise TypeError(f"{name} must be a sequence of strings, got the string {value!r}: pass ({value!r},)")
            if not isinstance(value, Sequence) or not all(isinstance(word, str) for word in value):
                raise TypeError(f"{name} must be a sequence of strings, got {value!r}")
        if self.sinks is not None:
            checked(self.sinks)
        self.chosen_rules()
        self.actions()

    @classmethod
    def of(cls, arguments: Mapping[str, Any]) -> Settings:
        """Return the settings among the arguments of a constructor: ``Settings.of(locals())``."""
        return cls(**{field.name: arguments[field.name] for field in fields(cls)})

    def chosen_rules(self) -> tuple[Rule, ...]:
        """The rules to run."""
        return choose(self.select, self.ignore, self.rules)

    def special_rules(self) -> dict[str, tuple[ForLayers, ...]]:
        """The rules that have other thresholds in some layers, by code."""
        return by_layer(self.rules)

    def actions(self) -> dict[Severity, tuple[OneAction, ...]]:
        """What to do by severity.

        Without a mapping, words do not apply to infos, which are only logged. What ``on_alert`` leaves open is
        ``"warn"``, or nothing if the user asked for silence with ``sinks=[]``.
        """
        silent = self.sinks is not None and not self.sinks
        default: tuple[OneAction, ...] = () if silent else ("warn",)
        if isinstance(self.on_alert, Mapping):
            given = {_severity(key): _actions(action) for key, action in self.on_alert.items()}
            return {Severity.INFO: ("log",), Severity.WARNING: default, Severity.ERROR: default, **given}
        actions = default if self.on_alert is None else _actions(self.on_alert)
        calls = tuple(action for action in actions if callable(action))
        return {Severity.INFO: calls or ("log",), Severity.WARNING: actions, Severity.ERROR: actions}

    def words(self) -> set[str]:
        """The words that name actions, such as ``"stop"``."""
        return {str(action) for actions in self.actions().values() for action in actions if not callable(action)}


def _severity(key: object) -> Severity:
    if isinstance(key, Severity):
        return key
    names = [str(s) for s in Severity]
    if isinstance(key, str) and key.lower() in names:
        return Severity[key.upper()]
    raise ValueError(
        f"a mapping of on_alert must have the keys {', '.join(map(repr, names))}, got {key!r}{nearest(str(key), names)}"
    )


def _actions(given: Any) -> tuple[OneAction, ...]:
    several = isinstance(given, Sequence) and not isinstance(given, str) and len(given) > 0
    for action in given if several else (given,):
        if not (callable(action) or (isinstance(action, str) and action in _ACTIONS)):
            hint = nearest(action, _ACTIONS) if isinstance(action, str) else ""
            raise ValueError(
                f"on_alert must be {', '.join(map(repr, _ACTIONS))}, a callable, a list of these, "
                f"or a mapping of these by severity, got {action!r}{hint}"
            )
    return tuple(given) if several else (given,)


def as_models(model: object) -> dict[str, nn.Module]:
    """Return the models by the prefix of their layers' names.

    Raises:
        TypeError: The model is neither a module nor a mapping of names to modules.
    """
    if isinstance(model, nn.Module):
        return {"": model}
    if isinstance(model, Mapping) and model and all(isinstance(m, nn.Module) for m in model.values()):
        return {str(name): module for name, module in model.items()}
    raise TypeError(f"model must be a torch.nn.Module or a mapping of names to modules, got {type(model).__name__}")


def as_folder(log_dir: object) -> Path | None:
    """Return the directory for files, or None if none are to be written.

    Raises:
        TypeError: ``log_dir`` is not a path.
    """
    if log_dir is not None and not isinstance(log_dir, str | PathLike):
        raise TypeError(f"log_dir must be a path, or None to write nothing, got {log_dir!r}")
    return None if log_dir is None else Path(log_dir)


def as_optimizers(optimizer: object) -> list[Optimizer]:
    """Return one optimizer, several, or none as a list.

    Raises:
        TypeError: The argument is neither.
    """
    # DeepSpeed's optimizer does not derive from PyTorch's class, so an attribute decides.
    given = [] if optimizer is None else [optimizer] if hasattr(optimizer, "param_groups") else optimizer
    if not isinstance(given, Sequence) or not all(hasattr(o, "param_groups") for o in given):
        raise TypeError(f"optimizer must be an optimizer or a sequence of them, got {type(optimizer).__name__}")
    return list(given)


def check_loss(loss: object) -> None:
    """Check the loss that a user passed.

    Raises:
        TypeError: It is neither a number, nor a tensor with one value, nor None.
    """
    if loss is None or (isinstance(loss, int | float) and not isinstance(loss, bool)):
        return
    if not isinstance(loss, Tensor):
        raise TypeError(f"loss must be a number or a tensor with one value, got {type(loss).__name__}")
    if loss.numel() != 1:
        raise TypeError(f"loss must have one value, got a tensor of shape {list(loss.shape)}: pass loss.mean()")
