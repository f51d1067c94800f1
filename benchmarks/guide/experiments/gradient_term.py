"""The gradient through the batch statistics."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .. import data, networks
from ..experiment import Claim, Context, Experiment, Measured, Metric, Panel
from ..training import training

EPS = 1e-5


def normalized(x: Tensor, *, constant: bool = False) -> Tensor:
    """BatchNorm without gamma and beta; with its statistics taken for constants if that is asked for."""
    mean, var = x.mean(0), x.var(0, unbiased=False)
    if constant:
        mean, var = mean.detach(), var.detach()
    return (x - mean) / (var + EPS).sqrt()


def by_hand(x: Tensor, g: Tensor) -> Tensor:
    """Gradient by the input: that of constant statistics, less its mean and its part along the output."""
    out, deviation = normalized(x), (x.var(0, unbiased=False) + EPS).sqrt()
    return (g - g.mean(0) - out * (g * out).mean(0)) / deviation


class Constant(nn.Module):
    """BatchNorm whose gradient takes the batch statistics for constants, with a meter before it.

    Args:
        channels: Channels of the input.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.meter, self.norm = networks.Meter(channels), nn.BatchNorm1d(channels)

    def forward(self, x: Tensor) -> Tensor:
        """Normalize."""
        x = self.meter(x)
        if not self.training:
            out: Tensor = self.norm(x)
            return out
        self.norm(x.detach())  # keeps the running statistics
        return normalized(x, constant=True) * self.norm.weight + self.norm.bias


NORMS: dict[str, networks.Norm] = {"full gradient": networks.batch, "statistics as constants": Constant}
RATES = (0.1, 0.5)


def checks(seed: int) -> dict[str, float]:
    """The identities, on the sums of a first layer of 64 digits, in double precision."""
    torch.manual_seed(seed)
    x = data.digits(seed).x[:64].flatten(1).double()
    weight = torch.randn(8, 64, dtype=torch.float64, requires_grad=True)
    target = torch.randn(64, 8, dtype=torch.float64)

    def loss(w: Tensor) -> Tensor:
        return (normalized(x @ w.T) - target).abs().pow(3).mean()

    sums = (x @ weight.T).detach().requires_grad_()
    out = normalized(sums)
    (g,) = torch.autograd.grad((out - target).abs().pow(3).mean(), out, retain_graph=True)
    mine = by_hand(sums.detach(), g)
    step, differences = 1e-5, torch.zeros_like(mine)
    for row in range(8):
        for column in range(8):
            ends = []
            for sign in (1, -1):
                other = sums.detach().clone()
                other[row, column] += sign * step
                ends.append((normalized(other) - target).abs().pow(3).mean())
            differences[row, column] = (ends[0] - ends[1]) / (2 * step)
    part = (slice(8), slice(8))
    constant = g / (sums.detach().var(0, unbiased=False) + EPS).sqrt()
    (whole,) = torch.autograd.grad(loss(weight), weight)
    (double,) = torch.autograd.grad(loss(2 * weight), weight)
    (of_double,) = torch.autograd.grad(loss(w := (2 * weight).detach().requires_grad_()), w)
    del double
    return {
        "difference": float((differences[part] - mine[part]).norm() / mine[part].norm()),
        "missing": 100 * float((constant - mine).norm() / mine.norm()),
        "along": float(((whole * weight).sum(1).abs() / (whole.norm(dim=1) * weight.norm(dim=1))).max()),
        "of_double": float(of_double.norm() / whole.norm()),
    }


def measure(context: Context, norm: str, rate: float) -> Measured:
    """Check the identities, and train with the gradient."""
    of = data.digits(context.seed)
    with training(lambda: networks.mlp(NORMS[norm]), of, seed=context.seed, steps=context.steps(100), lr=rate) as done:
        layers = [m for m in done.model.modules() if isinstance(m, nn.Linear)][:-1]
        bias = torch.stack([layer.bias.detach().norm() for layer in layers]).mean()
        steps, variance = done.run.history(done.run.layers[-1], "batch_var")
        return Measured(
            {**checks(context.seed), "accuracy": done.accuracy, "bias": float(bias)},
            {"variance": ([float(s) for s in steps], [float(v) for v in variance.mean(1)])},
        ).keep(done)


EXPERIMENT = Experiment(
    name="gradient-term",
    axis="rate",
    settings={(norm, rate): {"norm": norm, "rate": rate} for norm in NORMS for rate in RATES},
    measure=measure,
    metrics=(
        Metric("difference", "error against differences", log=True),
        Metric("missing", "error without the extra term, %"),
        Metric("along", "cosine to the weights", log=True),
        Metric("of_double", "of doubled weights"),
        Metric("bias", "size of the biases after training", log=True),
        Metric("accuracy", "held-out accuracy, %"),
    ),
    claims=(
        Claim(
            "Without the extra term the biases grow, rate 0.1",
            "bias",
            ("full gradient", 0.1),
            ("statistics as constants", 0.1),
            less=True,
        ),
        Claim(
            "Without the extra term the biases grow, rate 0.5",
            "bias",
            ("full gradient", 0.5),
            ("statistics as constants", 0.5),
            less=True,
        ),
        Claim(
            "The full gradient trains better, rate 0.1",
            "accuracy",
            ("full gradient", 0.1),
            ("statistics as constants", 0.1),
        ),
        Claim(
            "The full gradient trains better, rate 0.5",
            "accuracy",
            ("full gradient", 0.5),
            ("statistics as constants", 0.5),
        ),
    ),
    panels=(
        Panel("variance", "step", "batch variance, last norm", course=True, log_y=True),
        Panel("bias", "learning rate", log_x=True, log_y=True),
    ),
    maps=(("statistics as constants", 0.5),),
)
