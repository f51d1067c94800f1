"""The parts of ``benchmarks/gpu.py``: each yields what it looked at, what it found, and whether that is right."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import product
from typing import Any

import torch
from resnet import resnet18, resnet50
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint

from bnmonitor import Monitor

MEAN, VARIANCE = 1e-4, 1e-3
"""Largest error of a batch mean, in deviations, and of a batch variance, relative, that counts as exact."""

Result = tuple[str, str, bool | None]
"""What was looked at, what was found, and whether that is as it should be; None: a measurement."""


@dataclass(frozen=True)
class Place:
    """Where the parts run, and whether only to see that they do."""

    device: torch.device
    quick: bool

    @property
    def cuda(self) -> bool:
        """Whether that is a GPU."""
        return self.device.type == "cuda"

    def wait(self) -> None:
        """Wait until the device has done all that it was asked."""
        if self.cuda:
            torch.cuda.synchronize()


def network() -> nn.Module:
    parts = [p for i in range(3) for p in (nn.Conv2d(16 if i else 3, 16, 3, 1, 1), nn.BatchNorm2d(16), nn.ReLU())]
    return nn.Sequential(*parts, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 4))


class Training:
    """A small training with a monitor, or without."""

    def __init__(
        self, place: Place, build: Callable[[], nn.Module] = network, rate: float = 0.05, **settings: Any
    ) -> None:
        torch.manual_seed(0)
        self.place, self.model = place, build().to(place.device)
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=rate)
        usual: dict[str, Any] = {"sinks": [], "on_alert": "log", "max_overhead": None, "sample_every_n_steps": 10}
        self.monitor = Monitor(self.model, optimizer=self.optimizer, **{**usual, **settings})
        generator = torch.Generator().manual_seed(1)
        self.images = torch.randn(32, 3, 12, 12, generator=generator).to(place.device)
        self.labels = torch.randint(0, 4, (32,), generator=generator).to(place.device)

    def train(self) -> Tensor:
        """One step without the monitor; it waits for nothing."""
        self.optimizer.zero_grad(set_to_none=False)
        loss = nn.functional.cross_entropy(self.model(self.images), self.labels)
        loss.backward()
        self.optimizer.step()
        return loss.detach()


def environment(place: Place) -> Iterator[Result]:
    """Which machine this is."""
    yield "PyTorch", torch.__version__, None
    if place.cuda:
        found = torch.cuda.get_device_properties(place.device)
        yield "GPU", f"{found.name}, {found.total_memory >> 30} GiB, {found.major}.{found.minor}", None
        yield "CUDA and cuDNN", f"{torch.version.cuda}, {torch.backends.cudnn.version()}", None


def waits(place: Place) -> Iterator[Result]:
    """Whether a step, a check or a sampled step waits for the device."""
    training, samples = Training(place, check_every_n_steps=10), []
    with training.monitor as monitor:
        for step in range(35):
            if place.cuda:
                torch.cuda.set_sync_debug_mode("error")
            try:
                loss = training.train()
                monitor.step(loss=loss)
            except RuntimeError as error:
                yield f"step {step}", f"the training itself waits: {error}", False
                return
            finally:
                if place.cuda:
                    torch.cuda.set_sync_debug_mode("default")
            if monitor.failure:
                yield f"step {step}", monitor.failure, False
                return
        samples = list(monitor._session.recorder.sampling.sampler.failures.values())
        blocked = monitor._session.recorder.sampling.blocked
    how = "set_sync_debug_mode('error')" if place.cuda else "no GPU: only run"
    good = not samples and not blocked
    said = samples[0] if samples else blocked or f"no wait ({how})"
    yield "35 steps, 4 checks, 4 samples", said, good if place.cuda or not good else None
    yield "samples that arrived", str(len(monitor.samples)), len(monitor.samples) == 4


class Counted(TorchDispatchMode):
    """Counts the tensor operations within."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Count an operation and run it."""
        self.count += 1
        return func(*args, **(kwargs or {}))


def launches(place: Place) -> Iterator[Result]:
    """How many kernels and copies a step, a check and a sampled step start."""
    for name, build in (("3 layers", network), ("20 layers", resnet18)):
        training, found = Training(place, build, check_every_n_steps=10), {}
        with training.monitor as monitor:
            for step in range(22):
                loss = training.train()
                place.wait()
                if not place.cuda:
                    with Counted() as counted:
                        monitor.step(loss=loss)
                    found[step] = counted.count
                elif step in (15, 19, 20):  # CUPTI's buffers make profiling dear
                    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
                        monitor.step(loss=loss)
                        place.wait()
                    kernels = [e for e in profile.events() if e.device_type == torch.autograd.DeviceType.CUDA]
                    found[step] = len(kernels)
                else:
                    monitor.step(loss=loss)
        unit = "kernels and copies" if place.cuda else "operations on the CPU, rules included"
        yield f"{name}: a step", f"{found[15]} {unit}", found[15] <= 12 if place.cuda else None
        yield f"{name}: a check", f"{found[19]} {unit}", None
        yield f"{name}: the end of a sampled step", f"{found[20]} {unit}", None


LAYERS = {1: nn.BatchNorm1d, 2: nn.BatchNorm2d, 3: nn.BatchNorm3d}
SHAPES = {1: (16, 24, 40), 2: (16, 24, 9, 9), 3: (8, 24, 4, 6, 6)}
LAST = {2: torch.channels_last, 3: torch.channels_last_3d}


def exactness(place: Place) -> Iterator[Result]:
    """Recorded and sampled batch statistics beside those of the same input in float64."""
    dtypes = (torch.float32, torch.float16, torch.bfloat16)
    for cudnn, last, dtype, dims in product((True, False), (False, True), dtypes, LAYERS):
        if (last and dims not in LAST) or (not cudnn and not place.cuda):
            continue
        name = f"{dims}-d, {str(dtype).removeprefix('torch.')}, {'channels_last' if last else 'NCHW'}"
        name += f", cuDNN {'on' if cudnn else 'off'}" if place.cuda else ""
        with torch.backends.cudnn.flags(enabled=cudnn):
            yield _exact(place, name, dims, dtype, last)


def _exact(place: Place, name: str, dims: int, dtype: torch.dtype, last: bool) -> Result:
    torch.manual_seed(0)
    layer = LAYERS[dims](SHAPES[dims][1]).to(place.device)
    scale = torch.linspace(0.5, 2, SHAPES[dims][1]).view(-1, *[1] * dims)
    truth, mean_off, var_off = [], 0.0, 0.0
    with Monitor(layer, sinks=[], on_alert="log", sample_every_n_steps=5, max_overhead=None) as monitor:
        for _ in range(12):
            x = torch.randn(SHAPES[dims]) * scale + 0.5
            x = x.to(place.device, dtype)
            x = x.to(memory_format=LAST[dims]) if last else x
            layer(x.requires_grad_()).float().sum().backward()
            monitor.step()
            truth.append(x.detach().double().cpu().transpose(0, 1).flatten(1))
        recorded = [monitor.history(monitor.layers.names[0], s).double() for s in ("batch_mean", "batch_var")]
    rows = [(i, *(r[i] for r in recorded)) for i in range(len(truth))]
    rows += [(s.step, s.input.mean.double(), s.input.var.double() * _unbiased(truth[0])) for s in monitor.samples]
    for i, mean, var in rows:
        exact = torch.var_mean(truth[i], 1)
        mean_off = max(mean_off, float(((mean - exact[1]) / exact[0].sqrt()).abs().nan_to_num(torch.inf).max()))
        var_off = max(var_off, float((var / exact[0] - 1).abs().nan_to_num(torch.inf).max()))
    found = monitor.failure or f"mean within {mean_off:.1e} deviations, variance within {var_off:.1e}"
    return name, found, not monitor.failure and mean_off < MEAN and var_off < VARIANCE


def _unbiased(values: Tensor) -> float:
    return values.shape[1] / (values.shape[1] - 1)


def _history_gap(a: Monitor, b: Monitor) -> float:
    """The largest difference of two runs' histories, relative to the largest value."""
    worst = 0.0
    for name, statistic in product(a.layers.names, ("batch_mean", "batch_var", "gamma", "running_var")):
        one, other = a.history(name, statistic), b.history(name, statistic)
        worst = max(worst, float((one - other).abs().nan_to_num(torch.inf).max() / other.abs().max()))
    return worst


def _plain(place: Place, steps: int, **settings: Any) -> Monitor:
    training = Training(place, **settings)
    with training.monitor as monitor:
        for _ in range(steps):
            training.train()
            monitor.step()
    return monitor


def graphs(place: Place) -> Iterator[Result]:
    """A whole step captured as a CUDA graph and replayed under watch."""
    if not place.cuda:
        yield "capture", "needs a GPU", None
        return
    training = Training(place, sample_every_n_steps=0)
    with training.monitor as monitor:
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(3):
                training.train()
                monitor.step()
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            training.train()
        for _ in range(20):
            graph.replay()
            monitor.step()
    yield "capture and replay", monitor.failure or "watched", not monitor.failure
    gap = _history_gap(monitor, _plain(place, 23, sample_every_n_steps=0))
    yield "beside the same steps without a graph", f"within {gap:.1e}", gap < VARIANCE
    training = Training(place)
    with training.monitor as monitor:
        training.train()
        monitor.step()
        torch.cuda.synchronize()
        try:
            with torch.cuda.graph(torch.cuda.CUDAGraph()):
                training.train()
                monitor.step()
            found = monitor.failure or "survived"
        except RuntimeError as error:
            found = str(error).splitlines()[0]
    yield "step() within a capture", found, found == "survived"


def streams(place: Place) -> Iterator[Result]:
    """A training on a side stream, beside the same on the usual one."""
    if not place.cuda:
        yield "side stream", "needs a GPU", None
        return
    training = Training(place)
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side), training.monitor as monitor:
        for _ in range(30):
            training.train()
            monitor.step()
    side.synchronize()
    gap = _history_gap(monitor, _plain(place, 30))
    yield "side stream", monitor.failure or f"within {gap:.1e}", not monitor.failure and gap < VARIANCE


def latency(place: Place) -> Iterator[Result]:
    """Steps from the one in which a training diverges to ``should_stop``."""
    training, diverges = Training(place, on_alert={"error": "stop"}, check_every_n_steps=10), 24
    with training.monitor as monitor:
        for step in range(60):
            training.optimizer.param_groups[0]["lr"] = 1e6 if step >= diverges else 0.05
            monitor.step(loss=training.train())
            if monitor.should_stop:
                break
    late = step - diverges
    yield "from the fault to stop", f"{late} steps, checks every 10" if monitor.should_stop else "no stop", late <= 20


def recomputation(place: Place) -> Iterator[Result]:
    """Activations that are computed again in the backward."""

    class Again(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = network()

        def forward(self, x: Tensor) -> Tensor:
            found: Tensor = checkpoint(self.inner, x, use_reentrant=False)
            return found

    monitor = _plain(place, 30, build=Again)
    codes = sorted({alert.code for alert in monitor.alerts})
    sample = monitor.samples[-1]
    yield "recomputed calls", str(sample.recomputed.tolist()), bool((sample.recomputed == sample.calls).all())
    yield "what is said of it", ", ".join(codes) or "nothing", None


def identity(place: Place) -> Iterator[Result]:
    """The same bits with and without the monitor, under deterministic algorithms."""
    torch.use_deterministic_algorithms(True)
    ends = []
    for watched in (False, True):
        training = Training(place, resnet18)
        if watched:
            training.monitor.start()
        for _ in range(5 if place.quick else 40):
            loss = training.train()
            if watched:
                training.monitor.step(loss=loss)
        if watched:
            training.monitor.close()
        ends.append({name: t.cpu() for name, t in training.model.state_dict().items()})
    apart = [name for name, t in ends[0].items() if not torch.equal(t, ends[1][name])]
    yield "parameters and buffers of ResNet-18", f"{len(apart)} of {len(ends[0])} differ", not apart


def _overhead(place: Place, name: str, model: nn.Module, shape: tuple[int, ...], classes: int) -> Iterator[Result]:
    torch.manual_seed(0)
    model = model.to(place.device, memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    images = torch.randn(shape).to(place.device, memory_format=torch.channels_last)
    labels = torch.randint(0, classes, shape[:1]).to(place.device)
    steps, rounds = (2, 1) if place.quick else (100, 3)

    def block(monitor: Monitor | None) -> float:
        place.wait()
        begin = time.perf_counter()
        for _ in range(steps):
            optimizer.zero_grad()
            with torch.autocast(place.device.type, torch.bfloat16):
                loss = nn.functional.cross_entropy(model(images), labels)
            loss.backward()
            optimizer.step()
            if monitor is not None:
                monitor.step(loss=loss)
        place.wait()
        return 1000 * (time.perf_counter() - begin) / steps

    block(None)
    with Monitor(model, optimizer=optimizer, sinks=[], on_alert="log") as monitor:
        block(monitor)
    pairs = []
    for _ in range(rounds):
        bare = block(None)
        with monitor:
            pairs.append((bare, block(monitor)))
    bare, added = statistics.median(p[0] for p in pairs), statistics.median(p[1] - p[0] for p in pairs)
    yield f"{name}, batch {shape[0]}", monitor.failure or f"{bare:.2f} ms, {added:+.2f} ms, {added / bare:+.2%}", None


def overhead_small(place: Place) -> Iterator[Result]:
    """What watching a small network costs."""
    yield from _overhead(place, "small network", network(), (8 if place.quick else 1024, 3, 32, 32), 4)


def overhead_large(place: Place) -> Iterator[Result]:
    """What watching ResNet-50 costs."""
    shape = (2, 3, 32, 32) if place.quick else (256, 3, 224, 224)
    yield from _overhead(place, "ResNet-50 with autocast", resnet50(), shape, 1000)
