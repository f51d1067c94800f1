"""The window of layers that were evaluated without a training step: a single row, their state as it is now."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from bnmonitor import baseline
from bnmonitor.facts import Facts
from bnmonitor.frame import CHANNEL_STATISTICS, Window
from bnmonitor.layers import LayerTable
from bnmonitor.ledger import Ledger
from bnmonitor.state import read, tensors
from bnmonitor.statistics import Recovery


def standing(layers: LayerTable, modules: Sequence[nn.Module], facts: Facts, ledger: Ledger) -> Window:
    """Return the window, with nothing in it that only a training step tells."""
    now = read(layers, [tensors(m) for m in modules])
    known = {"running_mean": now.mean, "running_var": now.var, "gamma": now.gamma, "beta": now.beta}
    known = {name: row.float() for name, row in known.items()}
    unknown = torch.full((layers.total,), torch.nan, device="cpu")
    rows: dict[str, Any] = {name: known.get(name, unknown)[None] for name in CHANNEL_STATISTICS}
    none = torch.zeros(1, len(layers), dtype=torch.int64, device="cpu")
    momentum = [torch.nan if m is None else m for m in layers.momentum]
    return Window(
        layers=layers,
        steps=(0,),
        updates=none,
        training=none.bool(),
        recovery=none + Recovery.NO_UPDATE,
        momentum=torch.tensor([momentum], device="cpu"),
        variance=torch.full((1, len(layers)), torch.nan, device="cpu"),
        baseline=baseline.begin(layers, known["gamma"], known["running_mean"], known["running_var"], none[0]),
        facts=facts,
        ledger=ledger,
        **rows,
    )
