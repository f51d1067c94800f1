"""How a random window is joined with another one, or its channels shuffled, and how findings are compared."""

from __future__ import annotations

from dataclasses import fields, replace
from typing import Any

import torch
from torch import Tensor

from bnmonitor.layers import LayerTable
from bnmonitor.rules import Finding
from bnmonitor.testing.contracts.windows import OF_HELD_OUT, OF_RANKS
from bnmonitor.window import (
    CHANNEL_STATISTICS,
    LAYER_STATISTICS,
    Baseline,
    EvaluationGap,
    HeldOut,
    Ledger,
    Moments,
    Place,
    Sample,
    Structure,
    Window,
)


def joined_windows(a: Window, b: Window) -> Window:
    """Join two windows of one run into the window of a model that holds both networks, the second after the first."""
    table = {
        f.name: getattr(a.layers, f.name) + getattr(b.layers, f.name)
        for f in fields(LayerTable)
        if f.name not in ("names",)
    }
    names = tuple(f"layer{i}" for i in range(len(a.layers) + len(b.layers)))

    def joined(name: str, one: object, other: object) -> Tensor:
        return torch.cat([getattr(one, name), getattr(other, name)], -1)

    sample = None
    if a.sample is not None and b.sample is not None:
        sides: dict[str, Any] = {
            side: Moments(
                **{f.name: joined(f.name, getattr(a.sample, side), getattr(b.sample, side)) for f in fields(Moments)}
            )
            for side in ("input", "output")
        }
        per_layer: dict[str, Any] = {
            name: joined(name, a.sample, b.sample)
            for name in (
                *("calls", "eval_calls", "size", "values", "between", "distance", "padding", "looked"),
                *("side_calls", "side_size", "side_distance"),
                *("unevenness", "uneven_beyond", "paired", "stirred", "data"),
            )
        }
        dtypes = a.sample.input_dtypes + b.sample.input_dtypes
        sample = Sample(step=a.sample.step, input_dtypes=dtypes, **per_layer, **sides)
    assert a.facts.structure is not None
    assert b.facts.structure is not None
    assert a.facts.ranks is not None
    of_ranks: dict[str, Any] = {name: joined(name, a.facts.ranks, b.facts.ranks) for name in ("size", *OF_RANKS)}
    rows: dict[str, Any] = {name: joined(name, a, b) for name in CHANNEL_STATISTICS + LAYER_STATISTICS}
    return replace(
        a,
        layers=LayerTable(names=names, **table),
        baseline=Baseline(**{f.name: joined(f.name, a.baseline, b.baseline) for f in fields(Baseline)}),
        facts=replace(
            a.facts,
            affine_trains=joined("affine_trains", a.facts, b.facts),
            decay=joined("decay", a.facts, b.facts),
            decoupled=joined("decoupled", a.facts, b.facts),
            ranks=replace(a.facts.ranks, **of_ranks),
            buffer_dtypes=a.facts.buffer_dtypes + b.facts.buffer_dtypes,
            auxiliary=a.facts.auxiliary + b.facts.auxiliary,
            own_forward=a.facts.own_forward + b.facts.own_forward,
            gaps=EvaluationGap(step=0, **{name: joined(name, a.facts.gaps, b.facts.gaps) for name in ("gap", "size")}),
            structure=Structure(
                producer_trains=a.facts.structure.producer_trains + b.facts.structure.producer_trains,
                consumers=a.facts.structure.consumers + b.facts.structure.consumers,
                places=a.facts.structure.places + _moved(b.facts.structure.places, len(a.layers)),
                bare=a.facts.structure.bare
                + tuple(replace(c, near=c.near + len(a.layers)) for c in b.facts.structure.bare),
                normalized=a.facts.structure.normalized + b.facts.structure.normalized,
            ),
            held_out=tuple(
                HeldOut(step=one.step, **{name: joined(name, one, other) for name in ("size", *OF_HELD_OUT)})
                for one, other in zip(a.facts.held_out, b.facts.held_out, strict=True)
            ),
        ),
        sample=sample,
        ledger=Ledger(
            steps=a.ledger.steps,
            **{f.name: joined(f.name, a.ledger, b.ledger) for f in fields(Ledger) if f.name != "steps"},
        ),
        **rows,
    )


def shuffled(window: Window, seed: int) -> tuple[Window, list[list[int]]]:
    """Permute the channels within each layer; also return, by layer, the new place of each channel."""
    rng = torch.Generator().manual_seed(seed)
    orders = [torch.randperm(c, generator=rng) for c in window.layers.channels]
    flat = torch.cat([order + start for order, start in zip(orders, window.layers.offsets, strict=False)])
    baseline = replace(
        window.baseline,
        **{
            name: getattr(window.baseline, name)[flat]
            for name in ("log_var", "spread", "alive", "gamma", "mean", "var")
        },
    )
    sample = window.sample
    if sample is not None:
        sides: dict[str, Any] = {
            side: Moments(**{f.name: getattr(getattr(sample, side), f.name)[flat] for f in fields(Moments)})
            for side in ("input", "output")
        }
        uneven = None if sample.unevenness is None else sample.unevenness[flat]
        stirred = None if sample.stirred is None else sample.stirred[:, flat]
        sample = replace(sample, between=sample.between[flat], unevenness=uneven, stirred=stirred, **sides)
    ranks = window.facts.ranks
    assert ranks is not None
    held_out = tuple(
        replace(seen, **{name: getattr(seen, name)[flat] for name in OF_HELD_OUT}) for seen in window.facts.held_out
    )
    of_ranks = {name: getattr(ranks, name)[flat] for name in OF_RANKS}
    facts = replace(window.facts, ranks=replace(ranks, **of_ranks), held_out=held_out)
    rows: dict[str, Any] = {name: getattr(window, name)[:, flat] for name in CHANNEL_STATISTICS}
    return replace(window, baseline=baseline, facts=facts, sample=sample, **rows), [
        o.argsort().tolist() for o in orders
    ]


def essence(finding: Finding) -> tuple[object, ...]:
    """Return what a finding says, with numbers rounded, because the order of a sum changes their last digits."""
    return (
        finding.severity,
        finding.layer,
        finding.layers,
        finding.channels,
        finding.first_step,
        f"{finding.value:.4g}",
        f"{finding.threshold:.4g}",
        finding.certain,
    )


def _moved(places: tuple[Place, ...], by: int) -> tuple[Place, ...]:
    """The places of layers that other layers now come before."""
    return tuple(
        replace(
            p, predecessors=tuple(i + by for i in p.predecessors), follows=None if p.follows is None else p.follows + by
        )
        for p in places
    )
