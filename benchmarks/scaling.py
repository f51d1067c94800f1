"""Cost of a step by number of layers and channels, on layers that the benchmark updates without a network.

For each size: the bare multi-tensor copy of the same tensors, a step without a check, one with a check at which the
rules do not judge and one at which they do, the mean check, the average step, and the memory of the record. All on one
thread, and in processor time, which other work on the machine disturbs less. Prints Markdown. Run
``python benchmarks/scaling.py``.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor, nn

from bnmonitor import Monitor

SIZES = (
    (10, 100),
    (20, 240),
    (53, 501),
    (100, 1000),
    (1000, 1),
    (1000, 10),
    (1000, 256),
    (10000, 100),
)
"""Layers, and channels of each; 20 x 240 and 53 x 501 are ResNet-18 and ResNet-50."""
WARM_UP = 110
STEPS = 100
"""As rules judge every 50 steps, a multiple of these."""


class Layers(nn.Module):
    """Nothing but normalization layers, with gradients."""

    def __init__(self, channels: Sequence[int]) -> None:
        super().__init__()
        self.norms = nn.ModuleList(nn.BatchNorm1d(c) for c in channels)
        for norm in self.norms:
            norm.weight.grad, norm.bias.grad = torch.randn_like(norm.weight), torch.randn_like(norm.bias)
        # As PyTorch's forward writes: autograd counts no write through ``data``, and a counted one is another code's.
        self._means = [norm.running_mean.data for norm in self.norms]
        self._variances = [norm.running_var.data for norm in self.norms]
        self._affine = [t.detach() for norm in self.norms for t in (norm.weight, norm.bias)]
        self._counts = [norm.num_batches_tracked for norm in self.norms]

    @torch.no_grad()
    def update(self) -> None:
        """Update the running statistics, gamma and beta as a training step does."""
        torch._foreach_add_(self._affine, [torch.rand_like(t).sub_(0.5) for t in self._affine], alpha=0.01)
        # As noisy as batches of about 50 samples: fewer are a fault, and a check that finds one takes longer.
        for statistic, low in ((self._means, -0.25), (self._variances, 0.75)):
            torch._foreach_mul_(statistic, 0.9)
            torch._foreach_add_(statistic, [torch.rand_like(t).mul_(0.5).add_(low) for t in statistic], alpha=0.1)
        torch._foreach_add_(self._counts, 1)


def clock(call: Callable[[], object]) -> float:
    """Return the seconds of processor time that a call takes."""
    begin = time.process_time()
    call()
    return time.process_time() - begin


def bare_copy(model: Layers) -> Callable[[], object]:
    """Return a copy of the recorded values of all layers into one flat tensor: the minimum for any recorder."""
    norms = model.norms
    tensors = [[n.running_mean, n.running_var, n.weight, n.bias, n.weight.grad, n.bias.grad] for n in norms]
    source = [t.detach() for group in tensors for t in group]
    flat = torch.empty(sum(t.numel() for t in source))
    target = list(flat.split([t.numel() for t in source]))
    return lambda: torch._foreach_copy_(target, source)


def tensors(holder: object) -> Iterator[Tensor]:
    """Every tensor that an object holds directly, in a list or in a dict."""
    for value in vars(holder).values():
        found = value.values() if isinstance(value, dict) else value if isinstance(value, list) else [value]
        yield from (t for t in found if isinstance(t, Tensor))


def memory(monitor: Monitor) -> int:
    """Bytes of the tape and of the window."""
    recorder = monitor._recorder
    parts = (recorder._tape, recorder._ring, *recorder._ring._stores)
    kept = {t.untyped_storage().data_ptr(): t for part in parts for t in tensors(part)}
    return sum(t.untyped_storage().nbytes() for t in kept.values())


def main() -> None:
    torch.set_num_threads(1)
    columns = (
        "layers | channels | bare copy | no check | of the copy | calm check | judged | mean check | average | memory"
    )
    print(f"| {columns} |")
    print("|---|---|---|---|---|---|---|---|---|---|")
    for layers, channels in SIZES:
        model = Layers([channels] * layers)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        copies, copy = [], bare_copy(model)
        for _ in range(STEPS):
            model.update()
            copies.append(clock(copy))
        with Monitor(
            model, optimizer=optimizer, sample_every_n_steps=0, log_every_n_steps=0, sinks=[], max_overhead=None
        ) as monitor:
            plain, calm, judged = [], [], []
            for step in range(WARM_UP + STEPS):
                model.update()
                seconds = clock(monitor.step)
                if step >= WARM_UP:
                    checked = judged if monitor._session._judged == step + 1 else calm
                    (plain if (step + 1) % 10 else checked).append(seconds)
            size = memory(monitor)
            assert not monitor.alerts, monitor.alerts[0]
        bare, quiet = (1e6 * statistics.median(t) for t in (copies, plain))
        check = 1e6 * statistics.mean([*calm, *judged])
        row = [layers, layers * channels, f"{bare:.0f} us", f"{quiet:.0f} us", f"{quiet / bare:.1f}"]
        row += [f"{1e3 * statistics.mean(each):.1f} ms" for each in (calm, judged)]
        row += [f"{check / 1e3:.1f} ms", f"{(9 * quiet + check) / 10:.0f} us"]
        print("|", " | ".join(map(str, row)), f"| {size / 1e6:.0f} MB |", flush=True)


if __name__ == "__main__":
    main()
