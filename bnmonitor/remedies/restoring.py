"""Restoring the last running statistics that were finite."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from torch import Tensor, nn

from bnmonitor._text import listing
from bnmonitor.monitor import Monitor
from bnmonitor.remedies._layers import chosen
from bnmonitor.sinks import read_black_box

_STATE = {"running_mean": "running_mean", "running_var": "running_var", "gamma": "weight", "beta": "bias"}
"""Names in the record, and in the layer."""

Rows = Callable[[str, str], Tensor]
"""The record of a statistic of a layer: ``[steps, channels]``."""


def restore_last_finite(model: nn.Module, source: Monitor | str | Path) -> dict[str, int]:
    """Restore layers with statistics, gamma or beta that are not finite to the last step at which they were.

    Healthy layers stay as they are. Weights of other layers and the optimizer's own state are not in the record: if
    they are not finite either, go back to a checkpoint instead.

    Args:
        model: The model.
        source: The monitor of the model: its window is searched first, then its black boxes, newest first;
            or the file of a black box.

    Returns:
        By restored layer, the step of its new state.

    Raises:
        ValueError: The record holds no finite state of a layer that needs one; nothing is changed then.
        TypeError: ``source`` is something else.
    """
    if not isinstance(source, (Monitor, str, Path)):
        raise TypeError(f"source must be a Monitor or the path of a black box, got {type(source).__name__}")
    found: dict[str, tuple[int, dict[str, Tensor]]] = {}
    lost = []
    for name, layer in chosen(model, ("*",), (), fact=None).items():
        if _finite({key: t.unsqueeze(0) for key, t in _state(layer).items()}).all():
            continue
        for steps, rows in _records(source, name):
            state = {key: rows(key, name).cpu() for key in _state(layer)}
            good = _finite(state).nonzero().flatten().tolist()
            if good:
                found[name] = steps[good[-1]], {key: value[good[-1]] for key, value in state.items()}
                break
        else:
            lost.append(name)
    if lost:
        raise ValueError(
            f"there is no finite record of {listing(lost, 3)}: go back to a checkpoint, or reset_running_stats() and "
            "bnmonitor.remedies.recalibrate(model, loader)"
        )
    with torch.no_grad():
        layers = dict(chosen(model, ("*",), (), fact=None))
        for name, (_, state) in found.items():
            for key, tensor in _state(layers[name]).items():
                tensor.copy_(state[key])
    return {name: step for name, (step, _) in found.items()}


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
