"""Finds which parameters of the model the optimizers train, and with which weight decay."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer

_OWN = ("bit16_groups", "bf16_groups", "fp16_groups")
"""Attributes in which DeepSpeed's optimizers keep the model's parameters; their groups have parts of copies."""


@dataclass(frozen=True)
class Group:
    """Parameters that an optimizer trains with the same settings.

    Attributes:
        params: The parameters.
        decay: Their weight decay.
        decoupled: Whether the decay acts on the parameters directly, as in AdamW, and not through the gradient.
        rate: Their learning rate now; NaN if it is unknown, or on a device, where reading it would wait.
    """

    params: Sequence[Tensor]
    decay: float
    decoupled: bool
    rate: float

    @property
    def key(self) -> tuple[object, ...]:
        """A value that differs for different groups, and is quick to compare."""
        return id(self.params), len(self.params), self.decay, self.decoupled


def groups_of(optimizers: Iterable[Optimizer]) -> list[Group]:
    """Return the groups of all optimizers, with the model's own parameters where these are known."""
    found = []
    for optimizer in optimizers:
        groups = optimizer.param_groups
        decouples = _decouples(getattr(optimizer, "optimizer", optimizer))  # DeepSpeed's wraps another
        for of, params in _params(optimizer, groups):
            decay = float(groups[of].get("weight_decay") or 0.0)
            decoupled = bool(groups[of].get("decoupled_weight_decay")) or decouples
            found.append(Group(params, decay, decoupled, rate_of(groups[of])))
    return found


def rate_of(group: Mapping[str, Any]) -> float:
    """Return the learning rate of a group; NaN if it is unknown, or on a device, where reading it would wait."""
    rate: Any = group.get("lr")
    hidden = rate is None or (isinstance(rate, Tensor) and rate.device.type != "cpu")
    return float("nan") if hidden else float(rate)


def _params(optimizer: Any, groups: Sequence[Any]) -> Iterable[tuple[int, Sequence[Tensor]]]:
    """The parameters of an optimizer, each time with the index of their group."""
    kept = next((own for name in _OWN if (own := getattr(optimizer, name, None))), None)
    if kept is not None:
        source = getattr(optimizer, "sub_group_to_group_id", None) or {i: i for i in range(len(kept))}
        of = [source.get(i, len(groups)) for i in range(len(kept))]
        if max(of) < len(groups):
            return zip(of, kept, strict=True)
    return ((i, group["params"]) for i, group in enumerate(groups))


def trains_copies(models: Iterable[nn.Module], optimizers: Sequence[Optimizer], groups: Iterable[Group]) -> bool:
    """Whether the optimizers train copies of the parameters that cannot be assigned to their layers.

    Mixed precision keeps copies in an optimizer of its own class; ZeRO puts flat parts of them into the groups of the
    user's optimizer. If an optimizer of PyTorch trains none of the parameters, it may belong to another network.
    """
    own = {id(p): p for model in models for p in model.parameters()}
    if not optimizers or any(id(p) in own for group in groups for p in group.params):
        return False
    managed = any(hasattr(p, "_hp_mapping") or hasattr(p, "ds_id") for p in own.values())
    return managed or not all(isinstance(o, Optimizer) for o in optimizers)


def _decouples(optimizer: object) -> bool:
    """Whether the name of an optimizer's class is one that subtracts weight decay from the parameters directly."""
    names = [kind.__name__ for kind in type(optimizer).__mro__]
    return any(word in name for name in names for word in ("AdamW", "SGDW", "Lion", "Lamb"))
