"""Population statistics for evaluation, computed over a loader."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn

from bnmonitor._text import count, listing
from bnmonitor._undisturbed import undisturbed
from bnmonitor.remedies._layers import bare, chosen
from bnmonitor.remedies.freezing import is_frozen
from bnmonitor.remedies.population import Population, SingleValueError
from bnmonitor.remedies.said import logger

Forward = Callable[[nn.Module, Any], object]
"""Runs the model on a batch of the loader: ``forward(model, batch)``."""


@dataclass(frozen=True, kw_only=True)
class Recalibration:
    """The result of :func:`recalibrate`.

    Attributes:
        batches: Batches that went in, on this process.
        skipped: Batches left out because they gave some layer one value per channel, of which there is no variance.
        moved: By layer, how far the running mean moved: the median over its channels, in standard deviations.
        untouched: Layers that no batch reached, which are as they were.
    """

    batches: int
    skipped: int
    moved: dict[str, float]
    untouched: tuple[str, ...]

    def __str__(self) -> str:
        far = sorted(self.moved, key=lambda name: -self.moved[name])[:1]
        most = f"; {name} moved most, by {self.moved[name]:.2g} standard deviations" if (name := "".join(far)) else ""
        left = f"; never reached: {listing(self.untouched, 3)}" if self.untouched else ""
        layers, batches = count(len(self.moved), "layer"), f"{self.batches} batch{'es' * (self.batches != 1)}"
        return f"recalibrated {layers} over {batches}, all statistics finite{most}{left}"


def recalibrate(
    model: nn.Module,
    loader: Iterable[Any],
    *,
    forward: Forward | None = None,
    max_batches: int | None = None,
    include: Sequence[str] = ("*",),
    exclude: Sequence[str] = (),
    device: torch.device | str | None = None,
    progress: bool = True,
) -> Recalibration:
    """Replace the running statistics of BatchNorm layers by those of the whole loader, for the weights as they are.

    Each layer normalizes with the batch, as in training, so that it hands on what the layers after it were trained with
    (Wu and Johnson, Rethinking "Batch" in BatchNorm, 2021, section 3). Everything else is in evaluation mode: dropout
    would add a variance that evaluation does not have. Batches are merged in float64 with their sizes (Chan, Golub and
    LeVeque, 1979), so the spread between batches counts too; an average of batch variances misses it. As PyTorch does,
    the variance is kept unbiased. No activation is kept: the layers' own forward computes the batch statistics, and
    momentum 1 leaves them in the buffers, as exact as PyTorch computes them: within 1e-6 standard deviations for
    contiguous images; in channels-last memory and for ``[N, C]`` inputs its float32 sums lose up to 1e-5 of the mean.

    Momentum and modes are restored in any case, and the statistics too if something raises. Where processes train
    together, each takes its share of the data and all end with the same statistics. Layers frozen by :func:`freeze`
    stay as they are. ``num_batches_tracked`` counts the batches that went in, as in
    ``torch.optim.swa_utils.update_bn``.

    Args:
        model: The model; one wrapped in DistributedDataParallel or compiled is fine.
        loader: Training data, as it is fed in training: a thousand to ten thousand samples are enough.
        forward: Runs the model on a batch. None: ``model(batch)``, with the first element of a tuple or list, and with
            the items of a mapping that the model's forward has parameters for.
        max_batches: Batches to take at most; None: all.
        include: Glob patterns over layer names; a layer is treated if one matches.
        exclude: Glob patterns; a layer is not treated if one matches.
        device: Where batches go; None: to the model's first parameter.
        progress: Show a progress bar, where there is a terminal.

    Returns:
        The result.

    Raises:
        ValueError: There is no layer to treat, no batch, or no batch that reached one; or a layer's statistics came out
            as NaN or infinite.
        TypeError: An argument has the wrong type, or the model does not take a batch as it is.
    """
    if max_batches is not None and (isinstance(max_batches, bool) or not isinstance(max_batches, int)):
        raise TypeError(f"max_batches={max_batches!r} must be an int, 1 or more, or None for all")
    if max_batches is not None and max_batches < 1:
        raise ValueError(f"max_batches={max_batches} must be 1 or more, or None for all")
    if forward is not None and not callable(forward):
        raise TypeError(f"forward={forward!r} must be a callable that takes the model and a batch")
    if not isinstance(loader, Iterable):
        raise TypeError(f"loader must be an iterable of batches, got {type(loader).__name__}")
    inner = bare(model)
    layers = {name: m for name, m in chosen(inner, include, exclude).items() if m.running_mean is not None}
    layers = {name: m for name, m in layers.items() if not is_frozen(m)}
    if not layers:
        raise ValueError("every BatchNorm layer is frozen or keeps no running statistics: nothing to recalibrate")
    first = next((t for t in (*inner.parameters(), *inner.buffers())), None)
    target = torch.device(device) if device is not None else first.device if first is not None else None
    run = forward or _default_forward
    batches = skipped = 0
    with _modes(inner, layers.values()), _eager(), torch.no_grad(), Population(layers) as population:
        for batch in _shown(islice(loader, max_batches), loader, max_batches, progress):
            try:
                run(inner, _moved(batch, target))
            except SingleValueError:
                population.drop()
                skipped += 1
            except (TypeError, AttributeError) as error:
                if forward is not None or batches:
                    raise
                raise TypeError(
                    f"the model does not take a batch as it is ({type(error).__name__} in its forward): "
                    "pass forward=lambda model, batch: model(...)"
                ) from error
            else:
                population.collect()
                batches += 1
        if not batches + skipped:
            raise ValueError("the loader gave no batch: statistics are left as they were")
        moved, untouched = population.finish(batches)
    result = Recalibration(batches=batches, skipped=skipped, moved=moved, untouched=untouched)
    logger.info("%s", result)
    return result


@contextmanager
def _modes(model: nn.Module, layers: Iterable[nn.Module]) -> Iterator[None]:
    """Put the layers in training mode and all else in evaluation mode, without calling the user's ``train``."""
    before = [(module, module.training) for module in model.modules()]
    try:
        for module, _ in before:
            module.training = False
        for layer in layers:
            layer.training = True
        yield
    finally:
        for module, training in before:
            module.training = training


def _eager() -> Any:
    """Run compiled parts eagerly: compiled code ignores hooks that are added after the compilation."""
    stance = getattr(torch.compiler, "set_stance", None)
    return stance("force_eager") if stance is not None else nullcontext()


def _default_forward(model: nn.Module, batch: Any) -> object:
    if isinstance(batch, (tuple, list)) and batch:
        batch = batch[0]
    if not isinstance(batch, Mapping):
        return model(batch)
    parameters = inspect.signature(model.forward).parameters
    if any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
        return model(**batch)
    known = {key: value for key, value in batch.items() if key in parameters}
    return model(**known) if known else model(batch)


def _moved(batch: Any, device: torch.device | None) -> Any:
    if device is None or isinstance(batch, str):
        return batch
    if isinstance(batch, Mapping):
        return {key: _moved(value, device) for key, value in batch.items()}
    if isinstance(batch, tuple) and hasattr(batch, "_fields"):
        return type(batch)(*(_moved(value, device) for value in batch))
    if isinstance(batch, (tuple, list)):
        return type(batch)(_moved(value, device) for value in batch)
    if isinstance(batch, Tensor) or callable(getattr(batch, "to", None)):
        return batch.to(device)
    return batch


def _shown(batches: Iterable[Any], loader: Iterable[Any], most: int | None, progress: bool) -> Iterable[Any]:
    """Show a progress bar."""
    if not progress or (torch.distributed.is_initialized() and torch.distributed.get_rank()):
        return batches
    with undisturbed():
        import rich
        from rich.progress import track

    try:
        total: float | None = min(len(loader), most or math.inf)  # type: ignore[arg-type]
    except (TypeError, NotImplementedError):
        total = most
    console = rich.get_console()
    return track(batches, "recalibrating", total, console=console, transient=True, disable=not console.is_terminal)
