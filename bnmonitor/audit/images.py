"""The statistics of a model's layers, estimated again on a handful of images, beside the stored ones."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from bnmonitor._text import count, number
from bnmonitor.audit.unreadable import UnreadableError, first_line
from bnmonitor.audit.words import RECALIBRATE, file_alert
from bnmonitor.layers import discover
from bnmonitor.limits import SEVERE_LAG_LOG_DEVIATION
from bnmonitor.results import Alert, Severity
from bnmonitor.rules import find

MOST = 64
"""Images that go through the model together."""

PIXELS: dict[str, tuple[tuple[float, ...], tuple[float, ...]]] = {
    "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "half": ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
    "unit": ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0)),
    "raw": ((0.0, 0.0, 0.0), (1 / 255, 1 / 255, 1 / 255)),
}
"""Mean and deviation by which pixels between 0 and 1 are normalized; ``raw`` leaves them between 0 and 255."""

FAR_MEAN = 0.5
"""Standard deviations between stored and estimated mean from which few images are evidence."""

CHANCE = 4.0
"""Standard errors that a difference has to exceed, of many images; the error itself is uncertain with few."""

LEAST = 8
"""Images from which on a layer is judged."""

MANY = 0.6
"""Share of the layers from which on the images are suspected, rather than the layers."""

_ENDINGS = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".ppm", ".pgm")


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """One layer on the images; all numbers are of its median channel.

    Attributes:
        layer: Dotted path of the layer.
        mean: Distance of the estimated mean from the stored one, in stored standard deviations.
        mean_error: Standard error of that, by the differences between the images.
        deviation: Log ratio of the deviations, without sign.
        deviation_error: Standard error of that.
        images: How many images there were.
    """

    layer: str
    mean: float
    mean_error: float
    deviation: float
    deviation_error: float
    images: int

    @property
    def off(self) -> bool:
        """Whether the difference is large, and larger than chance makes it."""
        if self.images < LEAST:
            return False
        chance = CHANCE * (1 + 4 / self.images)
        return self.mean > max(FAR_MEAN, chance * self.mean_error) or self.deviation > max(
            SEVERE_LAG_LOG_DEVIATION, chance * self.deviation_error
        )


@dataclass(frozen=True, kw_only=True)
class Estimates:
    """What the layers of a model see on images.

    Attributes:
        images: How many images there were.
        pixels: How they were prepared, in words.
        layers: An estimate for each layer that ran, in the order of the model.
        not_run: Names of layers that did not run, or have no statistics.
        certain: Whether that is how the model wants them; else a first layer that is off is no evidence.
    """

    images: int
    pixels: str
    layers: tuple[Estimate, ...]
    not_run: tuple[str, ...]
    certain: bool = True

    def sentence(self) -> str:
        """Say how far the stored statistics are off, and what so few images can tell."""
        if not self.layers:
            return f"{count(self.images, 'image')}: no layer ran on them"
        worst = max(self.layers, key=lambda each: each.mean)
        middle = sorted(each.mean for each in self.layers)[len(self.layers) // 2]
        error = sorted(each.mean_error for each in self.layers)[len(self.layers) // 2]
        least = max(FAR_MEAN, CHANCE * (1 + 4 / self.images) * error)
        limit = (
            f"differences below {number(least)}σ are not judged with so few"
            if self.images >= LEAST
            else f"{LEAST} or more are needed to judge that"
        )
        return (
            f"{count(self.images, 'image')}, {self.pixels}: stored means are {number(middle)}σ off in the median "
            f"layer, {number(worst.mean)}σ at most ({worst.layer}); {limit}"
        )

    def to_dict(self) -> dict[str, Any]:
        """Return plain types that JSON can hold."""
        plain = asdict(self)
        rows = [
            {k: v if isinstance(v, str) or math.isfinite(v) else None for k, v in r.items()} for r in plain["layers"]
        ]
        return {**plain, "layers": rows, "not_run": list(self.not_run)}


@torch.no_grad()
def estimate(model: nn.Module, images: Tensor, *, pixels: str = "as given", certain: bool = True) -> Estimates:
    """Estimate the statistics of every layer on a batch of inputs, and compare them with the stored ones.

    Each layer normalizes with the batch, so that wrong statistics of one do not make those behind it look wrong. A copy
    of the model runs; the model is left as it is.

    Args:
        model: The model.
        images: The batch, ``[N, ...]``, 2 or more; all go through the model at once.
        pixels: How they were prepared, in words.
        certain: Whether that is how the model wants them.

    Raises:
        UnreadableError: There are fewer than two, or the model does not take them.
    """
    if len(images) < 2:
        raise UnreadableError(f"statistics need 2 images or more, and there {'is 1' if len(images) else 'are none'}")
    twin = copy.deepcopy(model).eval()
    found = discover({"": twin})
    names = dict(zip(map(id, found.modules), found.table.names, strict=True))
    seen: dict[str, Estimate] = {}
    for module in found.modules:
        if module._buffers.get("running_mean") is None:
            continue
        module.register_forward_pre_hook(partial(_compare, seen, names[id(module)], _state(module)))
        module.train()
    try:
        twin(images)
    except Exception as error:
        raise UnreadableError(
            f"the model does not take images of shape {list(images.shape)} ({type(error).__name__}: "
            f"{first_line(error)}): give the shape with --input 1,3,224,224"
        ) from None
    table = found.table.names
    return Estimates(
        images=len(images),
        pixels=pixels,
        layers=tuple(seen[name] for name in table if name in seen),
        not_run=tuple(name for name in table if name not in seen),
        certain=certain,
    )


def _state(module: nn.Module) -> tuple[Tensor, Tensor]:
    mean, var = (module._buffers[name] for name in ("running_mean", "running_var"))
    assert mean is not None
    assert var is not None
    return mean.double().clone(), var.double() + float(getattr(module, "eps", 1e-5))


def _compare(
    seen: dict[str, Estimate], name: str, stored: tuple[Tensor, Tensor], _: nn.Module, given: tuple[Any, ...]
) -> None:
    """Compare what a layer is given with what it has stored; of several calls the first counts."""
    x = given[0]
    if name in seen or not isinstance(x, Tensor) or x.dim() < 2 or x.shape[1] != len(stored[0]) or len(x) < 2:
        return
    by_image = x.double().flatten(2) if x.dim() > 2 else x.double()[..., None]
    first, second = by_image.mean(2), by_image.square().mean(2)
    mean = first.mean(0)
    square = second - 2 * mean * first + mean.square()
    var = square.mean(0)
    scale, root = stored[1].sqrt(), math.sqrt(len(x))
    seen[name] = Estimate(
        layer=name,
        mean=_middle((mean - stored[0]).abs() / scale),
        mean_error=_middle(first.std(0) / root / scale),
        deviation=_middle((0.5 * ((var + 1e-5) / stored[1]).log()).abs()),
        deviation_error=_middle(0.5 * square.std(0) / root / (var + 1e-5)),
        images=len(x),
    )


def _middle(values: Tensor) -> float:
    return float(values.nan_to_num(nan=torch.inf).median())


def estimate_alerts(found: Estimates) -> list[Alert]:
    """Return what the images show to be wrong: single layers, or the images themselves."""
    off = [each for each in found.layers if each.off]
    if not off:
        return []
    worst = max(off, key=lambda each: max(each.mean / FAR_MEAN, each.deviation / SEVERE_LAG_LOG_DEVIATION))
    by_mean = worst.mean / FAR_MEAN >= worst.deviation / SEVERE_LAG_LOG_DEVIATION
    far = (
        f"the stored mean of {worst.layer} is {number(worst.mean)}σ off (chance alone: {number(worst.mean_error)}σ)"
        if by_mean
        else f"the stored deviation of {worst.layer} is off by a factor of {number(math.exp(min(worst.deviation, 99)))}"
    )
    on = f"on {count(found.images, 'image')}, {far}"
    others = f"of {count(len(found.layers), 'layer')}"
    prepared = f"prepared in another way than for the training ({found.pixels})"
    only_first = off == [found.layers[0]]
    if only_first:
        # The layers behind it see what it has normalized, however the pixels were scaled.
        message = f"{on}, and the layers behind it fit: its statistics are wrong, or the images are {prepared}"
    elif len(off) > MANY * len(found.layers) and len(off) > 2:
        message = (
            f"{on}, and {len(off)} {others} are off: all are stale, or the images are unlike those of the training"
        )
    else:
        message = f"{on}, and {len(found.layers) - len(off)} {others} fit"
    return [
        file_alert(
            find("BN304"),
            Severity.INFO if only_first and not found.certain else Severity.WARNING,
            [each.layer for each in off],
            value=worst.mean if by_mean else worst.deviation,
            threshold=FAR_MEAN if by_mean else SEVERE_LAG_LOG_DEVIATION,
            message=message,
            advice=f"check --pixels and --input first; then {RECALIBRATE}" if not found.certain else RECALIBRATE,
        )
    ]


# -- images in a directory ---------------------------------------------------------------------------------------------


def read_images(
    directory: Path, *, size: tuple[int, int], channels: int, mean: Sequence[float], deviation: Sequence[float]
) -> Tensor:
    """Return the images of a directory as a batch, at most :data:`MOST`, which are spread over the names.

    Args:
        directory: Where they are, at any depth.
        size: Height and width; each image is scaled to cover it, and cropped to its middle.
        channels: 1 or 3.
        mean: By channel what is subtracted from pixels between 0 and 1.
        deviation: By channel what they are divided by.

    Returns:
        ``[N, channels, height, width]``, float32.

    Raises:
        UnreadableError: Pillow is missing, there is no image, or one is damaged.
    """
    try:
        from PIL import Image, ImageOps
    except ModuleNotFoundError:
        raise UnreadableError("reading images needs Pillow: pip install 'bnmonitor[audit]'") from None
    if not directory.is_dir():
        raise UnreadableError(f"cannot read {directory}: it is not a directory of images")
    paths = sorted(p for p in directory.rglob("*") if p.suffix.lower() in _ENDINGS and p.is_file())
    if not paths:
        raise UnreadableError(f"no image in {directory}: files that end with {', '.join(_ENDINGS)}")
    chosen = [paths[i * len(paths) // MOST] for i in range(MOST)] if len(paths) > MOST else paths
    batch = []
    for path in chosen:
        try:
            with Image.open(path) as image:
                fitted = ImageOps.fit(image.convert("L" if channels == 1 else "RGB"), (size[1], size[0]))
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
            raise UnreadableError(f"{path} is not an image that can be read: {first_line(error)}") from None
        flat = torch.frombuffer(bytearray(fitted.tobytes()), dtype=torch.uint8)
        batch.append(flat.reshape(*size, channels).permute(2, 0, 1).float() / 255)
    shift, scale = (torch.tensor(list(values)[:channels]).reshape(-1, 1, 1) for values in (mean, deviation))
    return (torch.stack(batch) - shift) / scale
