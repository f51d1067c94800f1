"""Restoring the last running statistics that were finite."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from bnmonitor._text import count, listing
from bnmonitor.monitor import Monitor
from bnmonitor.remedies._layers import bare, chosen
from bnmonitor.remedies.checkpoints import newest_finite
from bnmonitor.remedies.said import ByLayer
from bnmonitor.sinks import read_black_box

_STATE = {"running_mean": "running_mean", "running_var": "running_var", "gamma": "weight", "beta": "bias"}
"""Names in the record, and in the layer."""

Rows = Callable[[str, str], Tensor]
"""The record of a statistic of a layer: ``[steps, channels]``."""


def restore_last_finite(model: nn.Module, source: Monitor | str | Path, *, checkpoints: Any = None) -> ByLayer[int]:
    """Restore layers with statistics, gamma or beta that are not finite to the last step at which they were.

    Healthy layers stay as they are. Weights of other layers are not in the record. If they are not finite either,
    nothing is changed, and the error names the newest checkpoint in which the whole model is finite.

    Args:
        model: The model.
        source: The monitor of the model: its window is searched first, then its black boxes, newest first;
            or the file of a black box.
        checkpoints: Where to search for checkpoints: a directory, a file, a sequence of these, or Lightning's
            ``ModelCheckpoint``. None: the directory of the run.

    Returns:
        By restored layer, the step of its new state; printed, it is a sentence.

    Raises:
        ValueError: Weights are not finite, or the record holds no finite state of a layer that needs one; nothing is
            changed then.
        TypeError: ``source`` or ``checkpoints`` is something else.
    """
    if not isinstance(source, (Monitor, str, Path)):
        raise TypeError(f"source must be a Monitor or the path of a black box, got {type(source).__name__}")
    places = _places(checkpoints, source)
    layers = chosen(model, ("*",), (), fact=None)
    ill = {n: m for n, m in layers.items() if not _finite({k: t.unsqueeze(0) for k, t in _state(m).items()}).all()}
    if weights := _not_finite(model, without=ill.values()):
        search = newest_finite(_names(model), places)
        raise ValueError(
            f"{count(len(weights), 'tensor')} outside the normalization layers ({listing(weights, 3)}) "
            f"hold{'s' * (len(weights) == 1)} NaN or infinity too, so running statistics alone do not repair the "
            f"model: {search.sentence()}"
        )
    found: dict[str, tuple[int, dict[str, Tensor]]] = {}
    lost = []
    for name, layer in ill.items():
        for steps, rows in _records(source, name):
            state = {key: rows(key, name).cpu() for key in _state(layer)}
            good = _finite(state).nonzero().flatten().tolist()
            if good:
                found[name] = steps[good[-1]], {key: value[good[-1]] for key, value in state.items()}
                break
        else:
            lost.append(name)
    if lost:
        search = newest_finite(_names(model), places)
        way = search.sentence() if search.newest else "go back to a checkpoint"
        raise ValueError(
            f"there is no finite record of {listing(lost, 3)}: {way}, or reset_running_stats() and "
            "bnmonitor.remedies.recalibrate(model, loader)"
        )
    with torch.no_grad():
        for name, (_, state) in found.items():
            for key, tensor in _state(layers[name]).items():
                tensor.copy_(state[key])
    if left := [name for name in found if not _finite({k: t[None] for k, t in _state(layers[name]).items()}).all()]:
        raise RuntimeError(f"{listing(left, 3)}: still not finite after restoring")
    return ByLayer({name: step for name, (step, _) in found.items()}, _sentence(found))


def _sentence(found: Mapping[str, tuple[int, object]]) -> str:
    if not found:
        return "every layer and every weight is finite: nothing to restore"
    steps = sorted({step for step, _ in found.values()})
    when = f"step {steps[0]}" if len(steps) == 1 else f"steps {steps[0]} to {steps[-1]}"
    return f"{count(len(found), 'layer')} restored to {when}; every weight of the model is finite"


def _not_finite(model: nn.Module, without: Iterable[nn.Module]) -> list[str]:
    """Names of the model's parameters that hold NaN or infinity, those of some layers left out."""
    skipped = {id(p) for layer in without for p in layer.parameters(recurse=False)}
    own = bare(model).named_parameters()
    return [name for name, p in own if id(p) not in skipped and not bool(p.isfinite().all())]


def _names(model: nn.Module) -> list[str]:
    """Names of what must be finite; other buffers, such as a mask, may hold an infinity by design."""
    own = bare(model)
    statistics = (name for name, _ in own.named_buffers() if name.endswith(("running_mean", "running_var")))
    return [*(name for name, _ in own.named_parameters()), *statistics]


def _places(checkpoints: Any, source: Monitor | str | Path) -> list[Path]:
    """Directories and files to search."""
    if checkpoints is None:
        run = source.log_dir if isinstance(source, Monitor) else Path(source).parent.parent
        return [] if run is None else [run]
    if isinstance(checkpoints, str | Path):
        return [Path(checkpoints)]
    if hasattr(checkpoints, "dirpath"):  # Lightning's ModelCheckpoint; it has no directory before the first fit
        return [Path(checkpoints.dirpath)] if checkpoints.dirpath else []
    if not isinstance(checkpoints, Sequence):
        raise TypeError(f"checkpoints must be a path or a ModelCheckpoint, got {type(checkpoints).__name__}")
    return [Path(each) for each in checkpoints]


def _state(layer: nn.Module) -> dict[str, Tensor]:
    tensors = {key: getattr(layer, name, None) for key, name in _STATE.items()}
    return {key: t.detach() for key, t in tensors.items() if isinstance(t, Tensor)}


def _finite(state: dict[str, Tensor]) -> Tensor:
    """Return which rows of ``[T, c]`` tensors are finite in all of them, with no negative variance: ``[T]`` bool."""
    finite = torch.stack([value.isfinite().all(1) for value in state.values()]).all(0)
    return finite & (state["running_var"] >= 0).all(1) if "running_var" in state else finite


def _records(source: Monitor | str | Path, layer: str) -> Iterator[tuple[list[int], Rows]]:
    """Yield the records that a layer is in, newest first."""
    if isinstance(source, Monitor):
        if layer in source.layers.names:
            yield list(source.steps), lambda statistic, name: source.history(name, statistic)
        files = list(reversed(source.black_boxes))
    else:
        files = [Path(source)]
    for path in files:
        box = read_black_box(path)
        if layer not in box["layers"]:
            continue
        at = box["layers"].index(layer)
        start, width = sum(box["channels"][:at]), box["channels"][at]
        yield box["steps"], lambda statistic, _, box=box, s=start, w=width: box[statistic][:, s : s + w]  # type: ignore[misc]
