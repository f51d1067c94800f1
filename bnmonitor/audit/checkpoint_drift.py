"""Comparison of two checkpoints: how far each layer has moved, and which findings came or went."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from bnmonitor._text import count, listing, number, printable, shorten
from bnmonitor.audit.judge import Audit, audit
from bnmonitor.audit.reference import Moved, aligned, moved_layers
from bnmonitor.display import QUIET, STRONG, finding_block, finding_brief
from bnmonitor.results import Alert, Severity

if TYPE_CHECKING:
    from rich.console import RenderableType


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
    moved, unlike = moved_layers(before, after)
    old, new = audit(before, settings=False), audit(after, settings=False)
    known = [{(a.code, name) for a in each.alerts for name in a.layers} for each in (old, new)]
    there = aligned(before, after)
    return Drift(
        before=old,
        after=new,
        moved=moved,
        came=tuple(a for a in new.alerts if any((a.code, name) not in known[0] for name in a.layers)),
        went=tuple(a for a in old.alerts if any((a.code, name) not in known[1] for name in a.layers)),
        only_before=tuple(name for name in there[0] if name in unlike),
        only_after=tuple(name for name in there[1] if name in unlike),
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
