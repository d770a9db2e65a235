"""Adapters to compose, all for one Llama, and what they mean: numpy only."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from builders import decode, read_safetensors
from convert.sources import Meaning, Source, llama_modules, llama_shape, numbers, scale_of
from convert.sources import peft_meanings as meanings

import adaptertools

Q = llama_modules(["self_attn.q_proj"])
V = llama_modules(["self_attn.v_proj"])
UP = llama_modules(["mlp.up_proj"])
SAMPLE = [Q[0], V[1], UP[2]]
F32 = 2.0**-23
Weighted = Sequence[tuple[Path, float]]


def lora(
    place: Path,
    seed: str = "a",
    modules: Iterable[str] = tuple(SAMPLE),
    rank: int = 3,
    alpha: float = 6,
    dtypes: Sequence[str] = ("F32",),
    change: Callable[[Source], None] = lambda source: None,
    **config: Any,
) -> Path:
    """Write a LoRA of some linears, with other values for each seed; return its folder."""
    modules = list(modules)
    fields = {"r": rank, "lora_alpha": alpha, "target_modules": sorted(modules)}
    source = Source(config=fields | config)
    for number, module in enumerate(modules):
        out, in_ = llama_shape(module)
        dtype = dtypes[number % len(dtypes)]
        down, up = (f"{module}.lora_{side}.weight" for side in "AB")
        source.put(down, numbers(f"{seed}{module}A", (rank, in_)), dtype)
        source.put(up, numbers(f"{seed}{module}B", (out, rank)), dtype)
    change(source)
    return source.write(place / f"of-{seed}")


def vectors(place: Path, seed: str = "a", modules: Sequence[str] = (), low: float = 0.5) -> Path:
    """Write an (IA)³ of k_proj and down_proj with values from `low` on; return its folder."""
    modules = modules or llama_modules(["self_attn.k_proj", "mlp.down_proj"])
    source = Source(kind="IA3", config={"target_modules": sorted(modules)})
    source.config["feedforward_modules"] = [m for m in modules if "down" in m]
    for module in modules:
        out, in_ = llama_shape(module)
        shape = (1, in_) if "down" in module else (out, 1)
        source.put(f"{module}.ia3_l", low + np.abs(numbers(seed + module, shape)))
    return source.write(place / f"of-{seed}")


def composed(place: Path, *adapters: Any, name: str = "out", **options: Any) -> Path:
    """Compose adapters with one thread to `place`/`name`."""
    options.setdefault("jobs", 1)
    adaptertools.compose(list(adapters), place / name, **options)
    return place / name


def total(parts: Weighted) -> dict[str, Meaning]:
    """Return the weighted sum of what adapters do, dense and in fp64; ones that lack it add 0."""
    found: dict[str, Meaning] = {}
    for folder, weight in parts:
        for name, one in meanings(folder).items():
            value, mass = one.value * weight, np.abs(weight) * np.asarray(one.mass)
            beside = {key: bias * weight for key, bias in one.beside.items()}
            scale = scale_in(folder, name)
            beside = {key: bias * scale for key, bias in beside.items()}
            if name in found:
                old = found[name]
                value, mass = old.value + value, old.mass + mass
                keys = {*old.beside, *beside}
                beside = {k: old.beside.get(k, 0) + beside.get(k, 0) for k in keys}
            found[name] = Meaning("delta", value, mass, beside)
    return found


def scale_in(folder: Path, name: str) -> float:
    """Return alpha / rank of one target of a PEFT folder."""
    module = name.removesuffix(".weight")
    return scale_of(module, rank_in(folder, module), config_of(folder))


def rank_in(folder: Path, module: str) -> int:
    return tensors_of(folder)[f"base_model.model.{module}.lora_A.weight"].shape[0]


def config_of(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "adapter_config.json").read_text())


def tensors_of(folder: Path) -> dict[str, np.ndarray]:
    stored = read_safetensors(folder / "adapter_model.safetensors")
    return {name: decode(tensor) for name, tensor in stored.items()}


def dtypes_of(folder: Path) -> set[str]:
    return {tensor[0] for tensor in read_safetensors(folder / "adapter_model.safetensors").values()}


def weights_of(folder: Path) -> bytes:
    """Return the bytes of the file of tensors."""
    return (folder / "adapter_model.safetensors").read_bytes()


def deltas(folder: Path) -> dict[str, np.ndarray]:
    """Return ΔW of every target of a folder."""
    return {name: one.value for name, one in meanings(folder).items() if one.kind == "delta"}


def apart(got: Mapping[str, np.ndarray], wanted: Mapping[str, np.ndarray]) -> float:
    """Return the largest relative Frobenius distance; 'missing' and 'new' must be zero."""
    worst = 0.0
    for name in {*got, *wanted}:
        zero = np.zeros(1)
        one, other = got.get(name, zero), wanted.get(name, zero)
        size = float(np.linalg.norm(other))
        error = float(np.linalg.norm(one - other))
        assert np.isfinite(error), name
        worst = max(worst, error / size if size else error)
    return worst


def assert_sum(folder: Path, parts: Weighted, rounding: float = F32) -> None:
    """Assert that a folder means the weighted sum, each number within `rounding` of its terms."""
    wanted, got = total(parts), meanings(folder)
    assert wanted.keys() == got.keys()
    for name, one in wanted.items():
        allowed = rounding * np.asarray(one.mass) + 1e-13
        assert one.value.shape == got[name].value.shape
        assert (np.abs(got[name].value - one.value) <= allowed).all(), name
        scale = scale_in(folder, name) if one.beside else 1.0
        assert got[name].beside.keys() == one.beside.keys(), name
        for key, bias in one.beside.items():
            np.testing.assert_allclose(got[name].beside[key] * scale, bias, rounding, 1e-13)
