"""What the command line asks of a file or a model, from finding it to its audits."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from bnmonitor.audit.filled import Filled, filled, preparation
from bnmonitor.audit.find import Found, locate
from bnmonitor.audit.images import Estimates, estimate, read_images
from bnmonitor.audit.judge import Audit, audit
from bnmonitor.audit.norms import Norms
from bnmonitor.audit.unreadable import UnreadableError


@dataclass(frozen=True, kw_only=True)
class Question:
    """What is asked besides what a file or a model shows by itself.

    Attributes:
        shape: What the forward takes; None: guessed.
        model: The model that checkpoints are loaded into: ``package.module:factory``, or a name of timm.
        reference: A checkpoint or a model to compare with.
        images: A directory of images to estimate the statistics on.
        pixels: How they are prepared, a key of :data:`bnmonitor.audit.images.PIXELS`; None: as the model says, or as
            for ImageNet.
    """

    shape: tuple[int, ...] | None = None
    model: str | None = None
    reference: str | None = None
    images: Path | None = None
    pixels: str | None = None


def examine(what: str, asked: Question) -> list[tuple[str, Audit]]:
    """Return the audits of a file or a model, each with its name; none if it holds no normalization layer.

    Args:
        what: A checkpoint, or ``package.module:factory``.
        asked: What is asked besides.

    Raises:
        UnreadableError: Something cannot be read or does not fit; the message is one sentence.
    """
    references = locate(asked.reference) if asked.reference is not None else []
    if asked.reference is not None and not references:
        raise UnreadableError(f"{asked.reference} holds no normalization layer with running statistics")
    found = locate(what)
    if asked.model is not None:
        found = _fitting(found, asked.model)
    return [(each.name, _audit(each, asked, _like(each, references))) for each in found]


def _fitting(found: list[Found], spec: str) -> list[Found]:
    """Those of a checkpoint's models that fit; a checkpoint with an optimizer's state may hold others."""
    kept, why = [], None
    for each in found:
        try:
            filled(spec, each.model, each.name) if isinstance(each.model, Norms) else None
            kept.append(each)
        except UnreadableError as error:
            why = why or error
    if not kept and why is not None:
        raise why
    return kept


def _like(found: Found, references: list[Found]) -> nn.Module | None:
    """The reference that is kept under the same key, or the first."""
    same = [each for each in references if each.key == found.key] or references
    return same[0].model if same else None


def _audit(found: Found, asked: Question, reference: nn.Module | None) -> Audit:
    whole = Filled(model=found.model)
    if isinstance(found.model, Norms) and asked.model is not None:
        whole = filled(asked.model, found.model, found.name)
    real = found.real or asked.model is not None
    inputs = None if asked.shape is None else torch.randn(*asked.shape)
    estimates = _estimates(whole, asked) if asked.images is not None and real else None
    if asked.images is not None and not real:
        raise UnreadableError(
            f"to run images through {found.name} takes the model: give it with --model package.module:factory"
        )
    return audit(whole.model, settings=real, inputs=inputs, reference=reference, estimates=estimates)


def _estimates(whole: Filled, asked: Question) -> Estimates:
    assert asked.images is not None
    words, mean, deviation = preparation(whole, asked.pixels)
    first = next((m for m in whole.model.modules() if isinstance(m, nn.modules.conv._ConvNd)), None)
    channels = 1 if first is not None and first.in_channels == 1 else 3
    size = whole.size or (224, 224)
    if asked.shape is not None and len(asked.shape) >= 2:
        size = (asked.shape[-2], asked.shape[-1])
    images = read_images(asked.images, size=size, channels=channels, mean=mean, deviation=deviation)
    dtype = next((p.dtype for p in whole.model.parameters() if p.is_floating_point()), torch.float32)
    certain = asked.pixels is not None or whole.pixels is not None
    return estimate(whole.model, images.to(dtype), pixels=words, certain=certain)
