"""What the golden-file makers share: places, deterministic numbers, and how results are stored."""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import zlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file, save_file

HERE = Path(__file__).resolve().parent
LLAMA = HERE / "base-llama"
EVEN = HERE / "base-llama-even"
PROBE = [5, 17, 3, 90, 44, 8, 61, 29, 77, 12, 50, 33]  # one prompt, for every language model


def numbers(name: str, shape: Iterable[int], std: float, *, mean: float = 0.0) -> np.ndarray:
    """Return fp32 normal numbers that depend on the name only, not on the order of the calls."""
    seed = zlib.crc32(name.encode())
    drawn = np.random.default_rng(seed).standard_normal(tuple(shape))
    return (drawn * std + mean).astype(np.float32)


def fresh(*parts: str) -> Path:
    """Return an empty folder for a case, e.g. `fresh("mlx", "lora")`."""
    folder = HERE.joinpath(*parts)
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    return folder


def config(base: Path) -> dict[str, Any]:
    """Return a base's config.json."""
    return json.loads((base / "config.json").read_text())


def weights(base: Path) -> dict[str, np.ndarray]:
    """Return a base's weights, under their Hugging Face names."""
    return load_file(base / "model.safetensors")


def keep_expected(
    folder: Path, base: Path, merged: Mapping[str, Any], made_by: str, *, tolerance: float = 1e-6
) -> list[str]:
    """Store the merged weights that differ from the base's, and return their names.

    Beside them, case.json names the base and who made the case.
    """
    facts = {"base": base.name, "made_by": made_by}
    (folder / "case.json").write_text(json.dumps(facts) + "\n")
    old = weights(base)
    unknown = sorted(set(merged) - set(old))
    if unknown:
        raise ValueError(f"names the base does not have: {unknown}")
    out = {}
    for name, value in sorted(merged.items()):
        array = np.ascontiguousarray(value, dtype=np.float32)
        if array.shape != old[name].shape:
            raise ValueError(f"{name}: {array.shape}, but the base has {old[name].shape}")
        if np.abs(array - old[name]).max() > tolerance:
            out[name] = array
    save_file(out, folder / "expected.safetensors", metadata={"format": "pt"})
    return list(out)


def keep_logits(folder: Path, logits: Any) -> None:
    """Store the peer's own logits of the probe: fp32, [tokens, vocabulary]."""
    array = np.asarray(logits, dtype=np.float32)
    np.save(folder / "logits.npy", array.reshape(len(PROBE), -1))


def merged_base(base: Path, expected: Path) -> dict[str, np.ndarray]:
    """Return the base's weights with the expected ones put in their place."""
    return weights(base) | load_file(expected)


def difference(got: Any, wanted: Any) -> float:
    """Return the largest absolute difference; shapes must agree."""
    got, wanted = np.asarray(got, dtype=np.float64), np.asarray(wanted, dtype=np.float64)
    if got.shape != wanted.shape:
        raise ValueError(f"shapes {got.shape} and {wanted.shape}")
    return float(np.abs(got - wanted).max()) if got.size else 0.0


def write_merged(base: Path, expected: Path, folder: Path) -> Path:
    """Write a base folder that has the expected weights in the place of its own."""
    folder.mkdir(parents=True, exist_ok=True)
    save_file(merged_base(base, expected), folder / "model.safetensors", metadata={"format": "pt"})
    shutil.copy(base / "config.json", folder)
    return folder


def asked(about: str | None, *more: str, base: str = "base-llama") -> argparse.Namespace:
    """Read a judge's command line: ADAPTER EXPECTED, then what only this judge asks for."""
    parser = argparse.ArgumentParser(description=about)
    parser.add_argument("adapter", type=Path, help="the folder or file to judge")
    parser.add_argument("expected", type=Path, help="expected.safetensors of the same adapter")
    for name in more:
        parser.add_argument(name, type=Path)
    parser.add_argument("--base", default=base, help="which base beside this script")
    given = parser.parse_args()
    given.base = HERE / given.base
    return given


def judge_weights(base: Path, expected: Path, merged: Mapping[str, Any]) -> dict[str, float]:
    """Compare a peer's merged weights, all of the base's, with the expected ones."""
    wanted, old = merged_base(base, expected), weights(base)
    return {
        "weights": max(difference(merged[name], value) for name, value in wanted.items()),
        "weights_moved": max(difference(wanted[name], value) for name, value in old.items()),
    }


def say(**facts: Any) -> None:
    """Print one JSON line."""
    sys.stdout.write(json.dumps(facts, sort_keys=True) + "\n")
