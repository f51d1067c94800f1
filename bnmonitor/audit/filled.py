"""A model that is filled with the tensors of a checkpoint, for what the tensors alone do not show."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from bnmonitor.audit.find import made
from bnmonitor.audit.images import PIXELS
from bnmonitor.audit.norms import Norms
from bnmonitor.audit.unreadable import UnreadableError, first_line


@dataclass(frozen=True, kw_only=True)
class Filled:
    """A model with the weights of a checkpoint, and how it wants its images.

    Attributes:
        model: The model.
        size: Height and width of its images; None where it does not say.
        pixels: Name of the preparation, mean and deviation of the pixels by channel; None where it does not say.
    """

    model: nn.Module
    size: tuple[int, int] | None = None
    pixels: tuple[str, tuple[float, ...], tuple[float, ...]] | None = None


def filled(spec: str, norms: Norms, what: str) -> Filled:
    """Make a model and load a checkpoint into it.

    Args:
        spec: ``package.module:factory``, or the name of a model of timm.
        norms: The checkpoint.
        what: Its name, for messages.

    Raises:
        UnreadableError: The model cannot be made, or the checkpoint does not fit it; the message is one sentence.
    """
    state = norms.state()
    if ":" in spec:
        model = made(spec)
        _load(model, state, spec, what)
        return Filled(model=model)
    return _of_timm(spec, state, what)


def _of_timm(name: str, state: Mapping[str, Tensor], what: str) -> Filled:
    try:
        import timm  # type: ignore[import-not-found,unused-ignore]
    except ModuleNotFoundError:
        raise UnreadableError(
            f"{name!r} is not package.module:factory, and for a model of timm its package is missing: pip install timm"
        ) from None
    try:
        model = timm.create_model(name, pretrained=False)
        config = dict(model.pretrained_cfg)
        head = config.get("classifier")
        classes = state.get(f"{head}.weight") if isinstance(head, str) else None
        if classes is not None and len(classes) != model.num_classes:
            model = timm.create_model(name, pretrained=False, num_classes=len(classes))
    except Exception as error:
        raise UnreadableError(f"timm cannot make {name!r}: {first_line(error)}") from None
    _load(model, state, name, what)
    size = config.get("input_size") or (3, 224, 224)
    mean, deviation = config.get("mean"), config.get("std")
    pixels = ("as timm prepares them", tuple(mean), tuple(deviation)) if mean and deviation else None
    return Filled(model=model, size=(int(size[1]), int(size[2])), pixels=pixels)


def _load(model: nn.Module, state: Mapping[str, Tensor], spec: str, what: str) -> None:
    wanted = {name: t for name, t in model.state_dict().items() if not name.endswith("num_batches_tracked")}
    prefix = _prefix(wanted, state)
    unfit = [name for name, t in wanted.items() if (held := state.get(prefix + name)) is None or held.shape != t.shape]
    if unfit:
        held = state.get(prefix + unfit[0])
        why = "is missing" if held is None else f"has shape {list(held.shape)}, not {list(wanted[unfit[0]].shape)}"
        raise UnreadableError(
            f"{what} does not fit {spec}: of its {len(wanted)} tensors {len(unfit)} are missing or of another shape, "
            f"such as {unfit[0]}, which {why}"
        )
    with torch.no_grad():
        model.load_state_dict({name: state[prefix + name] for name in wanted}, strict=False)
        for name, buffer in model.named_buffers():
            if name.endswith("num_batches_tracked") and prefix + name in state:
                buffer.copy_(state[prefix + name].reshape(buffer.shape))


def _prefix(wanted: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> str:
    """Return what the checkpoint has before the model's names, such as ``model.``."""
    first = next(iter(wanted), "")
    candidates = {name.removesuffix(first) for name in state if name == first or name.endswith(f".{first}")}
    return max(sorted(candidates), key=lambda prefix: sum(prefix + name in state for name in wanted), default="")


def preparation(given: Filled, chosen: str | None) -> tuple[str, tuple[float, ...], tuple[float, ...]]:
    """Return in words how pixels are prepared, with mean and deviation by channel."""
    if chosen is None and given.pixels is not None:
        return given.pixels
    name = chosen or "imagenet"
    words = {
        "imagenet": "normalized as for ImageNet",
        "half": "scaled to -1 to 1",
        "unit": "scaled to 0 to 1",
        "raw": "as they are, 0 to 255",
    }
    return (words[name], *PIXELS[name])
