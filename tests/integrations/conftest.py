"""Lets libraries import where torchvision and torchaudio were built for another PyTorch than the one installed."""

from __future__ import annotations

import sys

import torch
from torch import Tensor


def _nms(boxes: Tensor, scores: Tensor, iou_threshold: float) -> Tensor:
    """Torchvision's one operator that its import needs, and that Ultralytics calls."""
    order, kept = scores.argsort(descending=True).tolist(), []
    areas = (boxes[:, 2:] - boxes[:, :2]).clamp(min=0).prod(1)
    while order:
        best, *rest = order
        kept.append(best)
        low = torch.maximum(boxes[best, :2], boxes[rest, :2])
        high = torch.minimum(boxes[best, 2:], boxes[rest, 2:])
        common = (high - low).clamp(min=0).prod(1)
        over = common / (areas[best] + areas[rest] - common)
        order = [box for box, share in zip(rest, over.tolist(), strict=True) if share <= iou_threshold]
    return torch.tensor(kept, dtype=torch.int64)


try:
    import torchvision  # noqa: F401
except ImportError:
    pass
except RuntimeError:  # a build for CUDA beside a PyTorch for CPUs: its operators are not there
    for name in [name for name in sys.modules if name.partition(".")[0] == "torchvision"]:
        del sys.modules[name]
    _library = torch.library.Library("torchvision", "FRAGMENT")
    for name in ("nms", "qnms"):
        _library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    _library.impl("nms", _nms, "CPU")

try:
    import torchaudio  # noqa: F401
except ImportError:
    pass
except OSError:  # likewise; whoever looks for it finds none
    for name in [name for name in sys.modules if name.partition(".")[0] == "torchaudio"]:
        del sys.modules[name]
    sys.modules["torchaudio"] = None  # type: ignore[assignment]
