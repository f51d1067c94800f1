"""Checkpoints as people have them, sound ones and ones with planted damage, in every format that is read."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn.utils import prune

from tests.audit import onnx_bytes

State = dict[str, Tensor]
Write = Callable[[State, Path], Path]
SEEDS = (0, 1, 2)


class Block(nn.Module):
    """A residual block whose last gamma may start at zero."""

    def __init__(self, width: int, *, zero: bool = False) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(width, width, 3, padding=1, bias=False), nn.BatchNorm2d(width)
        self.conv2, self.bn2 = nn.Conv2d(width, width, 3, padding=1, bias=False), nn.BatchNorm2d(width)
        if zero:
            nn.init.zeros_(self.bn2.weight)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(x + self.bn2(self.conv2(torch.relu(self.bn1(self.conv1(x))))))


class Net(nn.Module):
    """Four layers: ``stem.1``, ``block.bn1``, ``block.bn2``, ``head.0``."""

    def __init__(self, width: int = 16, *, zero: bool = False, dropout: float = 0.0) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, width, 3, bias=False), nn.BatchNorm2d(width), nn.ReLU())
        self.block = Block(width, zero=zero)
        self.drop = nn.Dropout(dropout)
        self.head = nn.Sequential(nn.BatchNorm1d(width), nn.Linear(width, 4))

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.head(self.drop(self.block(self.stem(x)).mean((2, 3))))
        return y


def unnormalized() -> nn.Module:
    """A model whose only layer has no running statistics."""
    return nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4, track_running_stats=False, affine=False))


def batch(seed: int, size: int = 16) -> tuple[Tensor, Tensor]:
    draw = torch.Generator().manual_seed(seed)
    target = torch.randint(4, (size,), generator=draw)
    x = torch.randn(size, 3, 8, 8, generator=draw)
    x[:, 0] += 0.5 * target[:, None, None]
    return x, target


def train(model: nn.Module, seed: int, *, steps: int = 40, rate: float = 0.05, scale: float = 1.0) -> nn.Module:
    model.train()
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], rate, 0.9, weight_decay=1e-4)
    for step in range(steps):
        x, target = batch(1000 * seed + step)
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(scale * x), target).backward()
        optimizer.step()
    return model


@cache
def trained(seed: int, *, zero: bool = False, dropout: float = 0.0, steps: int = 40, scale: float = 1.0) -> State:
    """The state of a small network after a training; not to be written to."""
    torch.manual_seed(seed)
    return train(Net(zero=zero, dropout=dropout), seed, steps=steps, scale=scale).state_dict()


def network(state: State) -> Net:
    model = Net()
    model.load_state_dict(state)
    return model


def state_of(seed: int) -> State:
    return {name: t.clone() for name, t in trained(seed).items()}


# -- formats -----------------------------------------------------------------------------------------------------------


def plain(state: State, path: Path) -> Path:
    torch.save(state, path / "model.pt")
    return path / "model.pt"


def legacy(state: State, path: Path) -> Path:
    torch.save(state, path / "model.pth", _use_new_zipfile_serialization=False)
    return path / "model.pth"


def lightning(state: State, path: Path) -> Path:
    held = {"epoch": 3, "state_dict": {f"model.{name}": t for name, t in state.items()}, "optimizer_states": [{}]}
    torch.save(held, path / "last.ckpt")
    return path / "last.ckpt"


def safetensors(state: State, path: Path) -> Path:
    save_file(state, path / "model.safetensors")
    return path / "model.safetensors"


def _sharded(state: State, path: Path, ending: str, save: Callable[[State, Path], Any]) -> Path:
    names = list(state)
    places = {name: f"model-0000{1 + (i > len(names) // 2)}-of-00002.{ending}" for i, name in enumerate(names)}
    for shard in set(places.values()):
        save({name: state[name] for name in names if places[name] == shard}, path / shard)
    index = path / f"model.{ending}.index.json"
    index.write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": places}))
    return index


def sharded_safetensors(state: State, path: Path) -> Path:
    return _sharded(state, path, "safetensors", save_file)


def sharded_bin(state: State, path: Path) -> Path:
    return _sharded(state, path, "bin", torch.save)


KERAS = {"weight": "gamma", "bias": "beta", "running_mean": "moving_mean", "running_var": "moving_variance"}


def keras(state: State, path: Path) -> Path:
    owners = [name.removesuffix("running_mean") for name in state if name.endswith("running_mean")]
    kept = {name: t for name, t in state.items() if not name.endswith("num_batches_tracked")}
    for owner in owners:
        for part, name in KERAS.items():
            kept[f"{owner.rstrip('.').replace('.', '/')}/{name}:0"] = kept.pop(owner + part)
    return safetensors(kept, path)


def onnx(state: State, path: Path) -> Path:
    owners = [name.removesuffix(".running_mean") for name in state if name.endswith(".running_mean")]
    layers = {owner: onnx_bytes.layer_in(state, owner) for owner in owners}
    (path / "model.onnx").write_bytes(onnx_bytes.model(layers))
    return path / "model.onnx"


def scripted(state: State, path: Path) -> Path:
    torch.jit.save(torch.jit.script(network(state).eval()), path / "scripted.pt")
    return path / "scripted.pt"


def exported(state: State, path: Path) -> Path:
    torch.export.save(torch.export.export(network(state).eval(), (batch(0)[0],)), path / "model.pt2")
    return path / "model.pt2"


# -- sound -------------------------------------------------------------------------------------------------------------


def zero_branch(seed: int) -> State:
    return trained(seed, zero=True)


def just_made(seed: int) -> State:
    torch.manual_seed(seed)
    return Net(zero=True).state_dict()


def sparse(seed: int) -> State:
    return trained(seed, dropout=0.5)


def raw_pixels(seed: int) -> State:
    return trained(seed, scale=255.0)


def large_magnitudes(seed: int) -> State:
    """As converted from Caffe: no counts, pixels up to 255, and weights that keep the scale."""
    state = {name: t for name, t in state_of(seed).items() if not name.endswith("num_batches_tracked")}
    for name in state:
        scale = 200.0 if name.startswith("stem") else 30.0
        state[name] *= scale if name.endswith("running_mean") else scale**2 if name.endswith("running_var") else 1
    return state


def pruned(seed: int) -> State:
    """Half of the filters of a convolution are removed, and the training goes on."""
    model = network(trained(seed))
    prune.ln_structured(model.block.conv1, "weight", amount=0.5, n=2, dim=0)
    train(model, seed, steps=20)
    prune.remove(model.block.conv1, "weight")  # type: ignore[no-untyped-call]
    return model.state_dict()


def pruned_with_masks(seed: int) -> State:
    model = network(trained(seed))
    for layer in (model.stem[1], model.block.bn1, model.block.conv2):
        prune.l1_unstructured(layer, "weight", amount=0.4)  # type: ignore[no-untyped-call]
    return train(model, seed, steps=10).state_dict()


def slimmed(seed: int) -> State:
    """Network slimming: small gammas are set to zero, with their betas."""
    state = state_of(seed)
    for owner in ("stem.1", "block.bn1"):
        gamma = state[f"{owner}.weight"]
        small = gamma.abs() < gamma.abs().quantile(0.6)
        gamma[small] = 0
        state[f"{owner}.bias"][small] = 0
    return state


def ready_for_quantization(seed: int) -> State:
    state = state_of(seed)
    for name in ("stem.0", "block.conv1"):
        state[f"{name}.weight_fake_quant.scale"] = torch.rand(16)
        state[f"{name}.activation_post_process.min_val"] = torch.tensor(-3.0)
        state[f"{name}.activation_post_process.fake_quant_enabled"] = torch.tensor([1], dtype=torch.uint8)
    return state


def federated(seed: int) -> State:
    """The average of two clients; the counts are averaged, too, and are no whole numbers."""
    a, b = trained(seed), trained((seed + 1) % len(SEEDS))
    return {name: (t + b[name]) / 2 for name, t in a.items()}


def frozen(seed: int) -> State:
    """Fine-tuned with frozen layers, from a file without counts."""
    model = network({n: torch.zeros_like(t) if n.endswith("tracked") else t for n, t in trained(seed).items()})
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.track_running_stats = True
            module.weight.requires_grad_(False)
            module.bias.requires_grad_(False)
            module.momentum = 0.0
    train(model, seed, steps=10)
    return {n: torch.zeros_like(t) if n.endswith("tracked") else t for n, t in model.state_dict().items()}


def new_head(seed: int) -> State:
    """A pretrained backbone with a head that was trained for a short time."""
    state = state_of(seed)
    for name in state:
        if name.endswith("tracked") and not name.startswith("head"):
            state[name] += 100_000
    return state


def halved(seed: int) -> State:
    return {name: t.half() if t.is_floating_point() else t for name, t in trained(seed).items()}


def brain_halved(seed: int) -> State:
    return {name: t.bfloat16() if t.is_floating_point() else t for name, t in trained(seed).items()}


def averaged(seed: int) -> State:
    from torch.optim.swa_utils import AveragedModel

    return AveragedModel(network(trained(seed)), use_buffers=True).state_dict()


def without_affine(seed: int) -> State:
    return {n: t for n, t in trained(seed).items() if not n.startswith(("stem.1.weight", "stem.1.bias"))}


SOUND: dict[str, tuple[Callable[[int], State], Write]] = {
    "trained": (trained, plain),
    "trained, in the old format": (trained, legacy),
    "trained by Lightning": (trained, lightning),
    "trained, as safetensors": (trained, safetensors),
    "last gamma began at zero": (zero_branch, plain),
    "only just made": (just_made, safetensors),
    "behind dropout": (sparse, lightning),
    "on raw pixels": (raw_pixels, plain),
    "of large magnitude": (large_magnitudes, safetensors),
    "filters pruned": (pruned, plain),
    "pruned, with masks": (pruned_with_masks, lightning),
    "slimmed": (slimmed, safetensors),
    "ready for quantization": (ready_for_quantization, plain),
    "federated": (federated, plain),
    "frozen": (frozen, sharded_safetensors),
    "a new head": (new_head, plain),
    "in float16": (halved, sharded_bin),
    "in bfloat16": (brain_halved, sharded_safetensors),
    "averaged": (averaged, plain),
    "without gamma and beta": (without_affine, plain),
    "converted to Keras": (trained, keras),
    "an ONNX file": (trained, onnx),
    "a TorchScript archive": (trained, scripted),
    "an exported program": (trained, exported),
}


# -- damaged -----------------------------------------------------------------------------------------------------------


def put(name: str, value: float, channels: slice | int = slice(None)) -> Callable[[int], State]:
    def spoiled(seed: int) -> State:
        state = state_of(seed)
        state[name][channels] = value
        return state

    return spoiled


def count_of(layer: str, value: int) -> Callable[[int], State]:
    def spoiled(seed: int) -> State:
        return {**state_of(seed), f"{layer}.num_batches_tracked": torch.tensor(value)}

    return spoiled


def reset(*layers: str, affine: bool = False, updates: int | None = None) -> Callable[[int], State]:
    def spoiled(seed: int) -> State:
        state = state_of(seed)
        for layer in layers:
            state[f"{layer}.running_mean"].zero_()
            state[f"{layer}.running_var"].fill_(1)
            state[f"{layer}.num_batches_tracked"].fill_(0 if updates is None else updates)
            if affine:
                state[f"{layer}.weight"].fill_(1)
                state[f"{layer}.bias"].zero_()
        return state

    return spoiled


def in_half(make: Callable[[int], State]) -> Callable[[int], State]:
    return lambda seed: {n: t.half() if t.is_floating_point() else t for n, t in make(seed).items()}


def after_three_steps(seed: int) -> State:
    return trained(seed, steps=3)


def far_mean(seed: int) -> State:
    state = state_of(seed)
    state["block.bn2.running_mean"] += 3e3
    return state


def exported_with_momentum(state: State, path: Path) -> Path:
    model = network(state)
    model.block.bn1.momentum = 0.99
    torch.jit.save(torch.jit.script(model), path / "scripted.pt")
    return path / "scripted.pt"


EVERY = ("stem.1", "block.bn1", "block.bn2", "head.0")

DAMAGED: dict[str, tuple[Callable[[int], State], Write, str, str]] = {
    "a NaN": (put("block.bn1.running_mean", torch.nan, 2), plain, "BN101", "block.bn1"),
    "a NaN in the old format": (put("head.0.running_var", torch.nan, 0), legacy, "BN101", "head.0"),
    "a negative variance": (put("block.bn2.running_var", -0.1, 3), safetensors, "BN101", "block.bn2"),
    "gamma is NaN": (put("block.bn1.weight", torch.nan, 1), lightning, "BN101", "block.bn1"),
    "a variance beyond float16": (in_half(put("stem.1.running_var", 1e6, 1)), sharded_bin, "BN101", "stem.1"),
    "a mean at the end of float16": (in_half(put("head.0.running_mean", 65504.0, 1)), safetensors, "BN104", "head.0"),
    "a ruined variance": (put("block.bn1.running_var", 1e22), lightning, "BN109", "block.bn1"),
    "a ruined mean": (put("head.0.running_mean", 1e8, 0), sharded_safetensors, "BN109", "head.0"),
    "an impossible count": (count_of("block.bn1", -5), plain, "BN109", "block.bn1"),
    "statistics of one layer reset": (reset("block.bn2"), plain, "BN404", "block.bn2"),
    "loaded by halves": (reset("block.bn2", "head.0", affine=True), safetensors, "BN404", "block.bn2"),
    "all statistics reset": (reset(*EVERY), lightning, "BN404", "stem.1"),
    "initial after 5000 updates": (reset("stem.1", updates=5000), sharded_safetensors, "BN404", "stem.1"),
    "initial in an ONNX file": (reset("block.bn1"), onnx, "BN404", "block.bn1"),
    "cold": (after_three_steps, plain, "BN303", "stem.1"),
    "half a layer flat": (put("block.bn1.running_var", 1e-9, slice(8)), plain, "BN105", "block.bn1"),
    "a layer flat, with the eps of Keras": (put("head.0.running_var", 1e-7), keras, "BN105", "head.0"),
    "gamma vanished": (put("block.bn1.weight", 1e-6, slice(13)), safetensors, "BN701", "block.bn1"),
    "far apart scales": (put("block.bn2.weight", 1e3, 3), plain, "BN707", "block.bn2"),
    "a mean far from zero": (far_mean, plain, "BN107", "block.bn2"),
    "a negative variance in TorchScript": (put("stem.1.running_var", -1.0, 0), scripted, "BN101", "stem.1"),
    "an infinity in an exported program": (put("block.bn1.running_mean", torch.inf, 0), exported, "BN101", "block.bn1"),
    "an infinity in an ONNX file": (put("head.0.running_var", torch.inf, 0), onnx, "BN101", "head.0"),
    "inverted momentum": (state_of, exported_with_momentum, "BN301", "block.bn1"),
}
