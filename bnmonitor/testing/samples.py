"""Activation samples made up for a test."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from bnmonitor.layers import LayerTable
from bnmonitor.window import Moments, Sample

Values = float | Sequence[float] | Tensor


def make_sample(
    layers: LayerTable,
    *,
    step: int = 0,
    calls: int = 1,
    eval_calls: int = 0,
    size: int = 64,
    values: int | None = None,
    between: Values = 1.0,
    input: Mapping[str, Values] | None = None,  # noqa: A002
    output: Mapping[str, Values] | None = None,
    dtype: torch.dtype = torch.float32,
    side_calls: int = 0,
    side_size: int = 0,
) -> Sample:
    """Make the sample of a healthy step, but for what is given.

    Args:
        layers: The layers.
        step: The sampled step.
        calls: Calls of each layer.
        eval_calls: How many of them were in evaluation mode.
        size: Samples in each call.
        values: Values per channel in each call; ``size`` by default.
        between: Variance of the samples' means.
        input: Fields of :class:`~bnmonitor.window.Moments`, each a number or a value per channel.
        output: The same of the output.
        dtype: Of each layer's input.
        side_calls: Calls of each layer besides, in training mode and under ``no_grad``.
        side_size: Samples in each of these.
    """

    def wide(value: Values) -> Tensor:
        return torch.as_tensor(value, dtype=torch.float32).expand(layers.total).clone()

    def each(value: int) -> Tensor:
        return torch.full((len(layers),), value)

    def side(given: Mapping[str, Values] | None) -> Moments:
        usual: dict[str, Values] = {"mean": 0.0, "var": 1.0, "skewness": 0.0, "kurtosis": 3.0, "min": -3.0, "max": 3.0}
        usual |= {"nonpositive": 0.5, "saturation": 0.0, "nonfinite": 0.0}
        return Moments(**{name: wide(value) for name, value in {**usual, **(given or {})}.items()})

    return Sample(
        step=step,
        calls=each(calls),
        eval_calls=each(eval_calls),
        size=each(size),
        values=each(size if values is None else values),
        input=side(input),
        output=side(output),
        between=wide(between),
        input_dtypes=(dtype,) * len(layers),
        looked=each(size),
        side_calls=each(side_calls),
        side_size=each(side_size),
    )
