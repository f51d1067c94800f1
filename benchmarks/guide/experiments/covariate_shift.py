"""Does BatchNorm reduce internal covariate shift, and is that why it helps?"""

from __future__ import annotations

import copy
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn

from .. import data, networks
from ..experiment import Claim, Context, Experiment, Measured, Metric, Panel
from ..training import loss_of, steps_to, training

NORMS: dict[str, networks.Norm] = {
    "BatchNorm": networks.batch,
    "noisy BatchNorm": networks.Noisy,
    "no norm": networks.none,
}
RATE = 0.1
LATE = (30, 60, 90)


def gradients(model: nn.Module, of: data.Data) -> list[Tensor]:
    """Gradient of each dense layer's weight on a fixed batch, in training mode, with the noise fixed."""
    torch.manual_seed(0)
    model.train()
    weights = [m.weight for m in model.modules() if isinstance(m, nn.Linear)]
    return list(torch.autograd.grad(loss_of(of)(model(of.x[:256]), of.y[:256]), weights))


def moved(model: nn.Module, of: data.Data, rate: float) -> float:
    """How far the third layer's gradient turns when a step is made in the layers before it, as 1 - cosine.

    This is the internal covariate shift of Santurkar et al. (2018, definition 2.1).
    """
    random = torch.random.get_rng_state()
    other = copy.deepcopy(model)
    layers = [m for m in other.modules() if isinstance(m, nn.Linear)]
    before = gradients(other, of)
    with torch.no_grad():
        for layer, gradient in zip(layers[:2], before, strict=False):
            layer.weight -= rate * gradient
    after = gradients(other, of)
    torch.random.set_rng_state(random)
    return 1 - nn.functional.cosine_similarity(before[2].flatten(), after[2].flatten(), dim=0).item()


def measure(context: Context, norm: str) -> Measured:
    """Train, and measure both kinds of shift on the way."""
    of, turns = data.digits(context.seed), []

    def at_step(model: nn.Module, step: int) -> None:
        if step in LATE or (context.tiny and step == 5):
            turns.append(moved(model, of, RATE))
            model.train()

    make: Callable[[], nn.Module] = lambda: networks.mlp(NORMS[norm])  # noqa: E731
    with training(make, of, seed=context.seed, steps=context.steps(100), lr=RATE, at_step=at_step) as done:
        shift = done.run.table("covariate_shift")
        late = shift[len(shift) // 4 :]
        return Measured(
            {
                "shift": float(np.nanmean(np.log(np.maximum(late, 1e-9)))) if late.size else 0.0,
                "turn": float(np.mean(turns)),
                "steps": steps_to(done.loss, 0.3),
                "accuracy": done.accuracy,
            },
            {"shift_course": ([float(s) for s in done.run.steps], [float(v) for v in np.nanmean(shift, axis=1)])},
        ).keep(done, "covariate_shift")


EXPERIMENT = Experiment(
    name="covariate-shift",
    axis="norm",
    settings={("MLP", norm): {"norm": norm} for norm in NORMS},
    measure=measure,
    metrics=(
        Metric("shift", "covariate shift, log nats"),
        Metric("turn", "turn of the gradient, 1 − cosine", log=True),
        Metric("steps", "steps to a loss of 0.3", digits=2),
        Metric("accuracy", "held-out accuracy, %"),
    ),
    claims=(
        Claim(
            "Distributions move less with BatchNorm than without",
            "shift",
            ("MLP", "BatchNorm"),
            ("MLP", "no norm"),
            less=True,
        ),
        Claim(
            "Gradients turn less with BatchNorm than without",
            "turn",
            ("MLP", "BatchNorm"),
            ("MLP", "no norm"),
            less=True,
        ),
        Claim(
            "Noisy BatchNorm trains faster than no norm",
            "steps",
            ("MLP", "noisy BatchNorm"),
            ("MLP", "no norm"),
            less=True,
        ),
        Claim(
            "BatchNorm trains faster than noisy BatchNorm",
            "steps",
            ("MLP", "BatchNorm"),
            ("MLP", "noisy BatchNorm"),
            less=True,
        ),
        Claim(
            "Noisy BatchNorm has more shift than BatchNorm",
            "shift",
            ("MLP", "BatchNorm"),
            ("MLP", "noisy BatchNorm"),
            less=True,
        ),
    ),
    panels=(
        Panel(
            "shift_course",
            "step",
            "covariate shift, nats",
            course=True,
            log_y=True,
            title="rate 0.1",
            only=("MLP",),
        ),
        Panel("steps", ""),
    ),
    maps=(("MLP", "BatchNorm"),),
)
