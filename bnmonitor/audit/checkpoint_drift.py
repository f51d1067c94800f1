"""Comparison of two checkpoints: how far each layer has moved, and which findings came or went."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from bnmonitor._text import count, listing, number, printable, shorten
from bnmonitor.audit.judge import Audit, audit
from bnmonitor.display import QUIET, STRONG, finding_block, finding_brief
from bnmonitor.layers import discover
from bnmonitor.results import Alert, Severity

if TYPE_CHECKING:
    from rich.console import RenderableType


@dataclass(frozen=True, kw_only=True)
class Moved:
    """How far the median channel of a layer has moved; 0 means not at all.

    Attributes:
        layer: Dotted path of the layer.
        mean: Distance of the running means, in standard deviations of the first.
        deviation: Log ratio of the running standard deviations, without sign.
        gamma: Distance of gamma, over its size in the first.
    """

    layer: str
    mean: float
    deviation: float
    gamma: float

    @property
    def far(self) -> float:
        """The largest of them; a value that is not finite counts as infinite."""
        return max(v if v - v == 0 else float("inf") for v in (self.mean, self.deviation, self.gamma))


@dataclass(frozen=True, kw_only=True)
class Drift:
    """Two checkpoints side by side.

    Attributes:
        before: The audit of the first.
        after: The audit of the second.
        moved: Every layer of both that has the same channels, the one that moved furthest first.
        came: Findings that only the second has, rule and layer taken together.
        went: Findings that only the first has.
        only_before: Layers that only the first has, or has with other channels.
        only_after: Layers that only the second has, or has with other channels.
    """

    before: Audit
    after: Audit
    moved: tuple[Moved, ...]
    came: tuple[Alert, ...]
    went: tuple[Alert, ...]
    only_before: tuple[str, ...]
    only_after: tuple[str, ...]

    def headline(self) -> str:
        """One line: did something get worse?"""
        bad = any(alert.severity > Severity.INFO for alert in self.came)
        parts = f"{count(len(self.went), 'finding')} went, {count(len(self.came), 'finding')} came"
        return f"BatchNorm {'✗' if bad else '✓'} {parts}, {count(len(self.moved), 'layer')} compared"

    def to_dict(self) -> dict[str, Any]:
        """Return plain types that JSON can hold."""
        rows = [{k: v if isinstance(v, str) or v - v == 0 else None for k, v in asdict(m).items()} for m in self.moved]
        return {
            "schema": 1,
            "moved": rows,
            "came": [alert.to_dict() for alert in self.came],
            "went": [alert.to_dict() for alert in self.went],
            "only_before": list(self.only_before),
            "only_after": list(self.only_after),
        }


@torch.no_grad()
def drift(before: nn.Module, after: nn.Module) -> Drift:
    """Compare the normalization layers of two models, as :func:`bnmonitor.audit.read_checkpoint` gives them."""
    layers = [_layers(model) for model in (before, after)]
    shared = [n for n, m in layers[1].items() if n in layers[0] and _width(layers[0][n]) == _width(m)]
    old, new = audit(before, settings=False), audit(after, settings=False)
    known = [{(a.code, name) for a in each.alerts for name in a.layers} for each in (old, new)]
    moved = [_moved(name, layers[0][name], layers[1][name]) for name in shared]
    return Drift(
        before=old,
        after=new,
        moved=tuple(sorted(moved, key=lambda m: -m.far)),
        came=tuple(a for a in new.alerts if any((a.code, name) not in known[0] for name in a.layers)),
        went=tuple(a for a in old.alerts if any((a.code, name) not in known[1] for name in a.layers)),
        only_before=tuple(name for name in layers[0] if name not in shared),
        only_after=tuple(name for name in layers[1] if name not in shared),
    )


def _layers(model: nn.Module) -> dict[str, nn.Module]:
    found = discover({"": model})
    return dict(zip(found.table.names, found.modules, strict=True))


def _width(layer: nn.Module) -> int:
    return int(layer._buffers["running_mean"].numel())  # type: ignore[union-attr]


def _moved(name: str, before: nn.Module, after: nn.Module) -> Moved:
    (mean, var, gamma), (mean_now, var_now, gamma_now) = (
        [
            (torch.ones(1) if t is None else t.detach()).double()
            for t in (m._buffers["running_mean"], m._buffers["running_var"], m._parameters.get("weight"))
        ]
        for m in (before, after)
    )
    tiny = 1e-5
    return Moved(
        layer=name,
        mean=float(((mean_now - mean).abs() / (var + tiny).sqrt()).median()),
        deviation=float((0.5 * ((var_now + tiny) / (var + tiny)).log()).abs().median()),
        gamma=float(((gamma_now - gamma).abs() / gamma.abs().clamp(min=tiny)).median()),
    )


def drift_table(found: Drift, *, rows: int = 12) -> RenderableType:
    """Return the comparison for a terminal.

    Args:
        found: The comparison.
        rows: Layers that are shown; the rest is counted.
    """
    from rich import box
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False, header_style=QUIET)
    for title in ("layer", "mean moved", "log deviation", "γ changed"):
        table.add_column(title, justify="left" if title == "layer" else "right")
    for each in found.moved[:rows]:
        cells = (f"{number(each.mean)}σ", number(each.deviation), f"{number(100 * each.gamma)} %")
        table.add_row(Text(shorten(printable(each.layer), 40)), *cells)
    parts: list[RenderableType] = [Text(found.headline(), style=STRONG, overflow="fold"), table]
    rest = len(found.moved) - rows
    parts += [Text(count(rest, "more layer"), style=QUIET)] if rest > 0 else []
    for title, alerts in (("came", found.came), ("went", found.went)):
        if alerts:
            block = finding_brief if title == "went" else finding_block
            parts += [Text(f"{title}:", style=STRONG), *(block(a) for a in alerts)]
    for title, names in (("only before", found.only_before), ("only after", found.only_after)):
        parts += [Text(printable(f"{title}: {listing(names)}"), style=QUIET, overflow="fold")] if names else []
    return Group(*parts)
