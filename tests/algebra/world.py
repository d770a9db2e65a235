"""A world: one base of invented modules and some adapters, merged for real and read back."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
from builders import (
    IA3_CONFIG,
    LORA_CONFIG,
    Tensors,
    read_checkpoint,
    write_adapter,
    write_json,
    write_safetensors,
)

import adaptertools
from adaptertools.algebra import blocks

from .exact import load, store

PREFIX = "base_model.model."
NO_CHANGE = "AT406"


@contextmanager
def folder() -> Iterator[Path]:
    """Yield a fresh folder; hypothesis runs many examples in one test, so tmp_path is too wide."""
    place = Path(tempfile.mkdtemp(prefix="adaptertools-"))
    try:
        yield place
    finally:
        shutil.rmtree(place)


@dataclass
class World:
    """A base being described: its exact values by tensor name, and its adapters in order."""

    dtype: str = "F32"
    config: Mapping[str, Any] = field(default_factory=lambda: {"model_type": "invented"})
    values: dict[str, np.ndarray] = field(default_factory=dict)
    stored: Tensors = field(default_factory=dict)
    adapters: list[tuple[dict[str, Any], Tensors, float]] = field(default_factory=list)

    def base(self, name: str, values: np.ndarray) -> np.ndarray:
        """Add a base tensor; returns its values as stored."""
        self.values[name], self.stored[name] = store(values, self.dtype)
        return self.values[name]

    def adapter(
        self, config: Mapping[str, Any], tensors: Tensors, weight: float = 1.0, kind: str = "LORA"
    ) -> None:
        """Add an adapter; keys are relative to the model."""
        usual = LORA_CONFIG if kind == "LORA" else IA3_CONFIG
        full = {**usual, "target_modules": None, "peft_type": kind, **config}
        named = {PREFIX + key: tensor for key, tensor in tensors.items()}
        self.adapters.append((full, named, weight))

    def write(self, place: Path) -> tuple[Path, list[tuple[Path, float]]]:
        """Write everything below `place`; returns the base and the (adapter, weight) pairs."""
        base = place / "base"
        write_json(base / "config.json", dict(self.config))
        write_safetensors(base / "model.safetensors", self.stored, {"format": "pt"})
        pairs = [
            (write_adapter(place / f"adapter{number}", config, tensors), weight)
            for number, (config, tensors, weight) in enumerate(self.adapters)
        ]
        return base, pairs

    def merge(self, block: int | None = None, **options: Any) -> dict[str, np.ndarray]:
        """Merge for real, in row blocks of `block` elements; returns every output tensor as fp64.

        Where the library says that nothing changes, that is the base, and judged as such.
        """
        size = blocks.BLOCK_ELEMENTS if block is None else block
        with folder() as place, patch.object(blocks, "BLOCK_ELEMENTS", size):
            base, pairs = self.write(place)
            out = place / "out"
            try:
                adaptertools.merge(base, pairs, out, **{"jobs": 1, **options})
            except adaptertools.AdapterError as error:
                if error.code != NO_CHANGE:
                    raise
                return dict(self.values)
            return {name: load(tensor) for name, tensor in read_checkpoint(out).items()}


def draw_values(rng: np.random.Generator, shape: Sequence[int], scale: float) -> np.ndarray:
    """Return normal values of a standard deviation."""
    return rng.standard_normal(tuple(shape)) * scale
