"""A base, two adapters, and the mix of them that scores best: numpy only."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from builders import decode, read_checkpoint, read_safetensors, tiny_base, tiny_lora

import adaptertools.searching.search as searching
from adaptertools.searching.result import SearchResult

SCALE = 2.0
WANTED = (0.9, 0.3)
PREFIX = "base_model.model."


def deltas(adapter: Path) -> dict[str, np.ndarray]:
    """Return what a LoRA adds to each weight, in fp64."""
    tensors = {
        k: decode(t) for k, t in read_safetensors(adapter / "adapter_model.safetensors").items()
    }
    config = json.loads((adapter / "adapter_config.json").read_text())
    patterns = config.get("alpha_pattern") or {}
    assert not patterns
    found = {}
    for key, up in tensors.items():
        if key.endswith("lora_B.weight"):
            down = tensors[key.replace("lora_B", "lora_A")]
            name = key.removeprefix(PREFIX).replace("lora_B.", "")
            scale = config["lora_alpha"] / config["r"]
            found[name] = scale * up.astype(np.float64) @ down.astype(np.float64)
    return found


def distance(one: dict[str, np.ndarray], other: dict[str, np.ndarray]) -> float:
    """Return ‖one − other‖² over all weights; one that a side lacks is zero there."""
    names = one.keys() | other.keys()
    return float(sum(np.square(one.get(n, 0.0) - other.get(n, 0.0)).sum() for n in names))


def mixed(adapters: Sequence[Path], weights: Sequence[float]) -> dict[str, np.ndarray]:
    total: dict[str, np.ndarray] = {}
    for adapter, weight in zip(adapters, weights, strict=True):
        for name, delta in deltas(adapter).items():
            total[name] = total.get(name, 0.0) + weight * delta
    return total


@dataclass(frozen=True)
class Known:
    """The inputs, and a score that is 0 at the mix wanted and else −‖W − W*‖² / ‖W*‖²."""

    base: Path
    adapters: tuple[Path, Path]

    def score(self, path: Path) -> float:
        """Score a merged model, or an adapter."""
        wanted = mixed(self.adapters, WANTED)
        size = distance(wanted, {})
        if (path / "adapter_config.json").exists():
            return -distance(deltas(path), wanted) / size
        before = {k: decode(t).astype(np.float64) for k, t in read_checkpoint(self.base).items()}
        after = {k: decode(t).astype(np.float64) for k, t in read_checkpoint(path).items()}
        moved = {k: after[k] - before[k] for k in before if not np.array_equal(after[k], before[k])}
        return -distance(moved, wanted) / size

    def search(self, out: Path, samples: int = 5, **options: Any) -> SearchResult:
        options.setdefault("score", self.score)
        adapters = options.pop("adapters", list(self.adapters))
        return searching.search(self.base, adapters, out, samples=samples, **options)

    def command(self) -> str:
        """A scorer for the command line."""
        here = Path(__file__).parents[1]
        code = (
            f"import sys; sys.path.insert(0, {str(here)!r}); from pathlib import Path; "
            "from search.known import Known; "
            f"known = Known(Path({str(self.base)!r}), "
            f"(Path({str(self.adapters[0])!r}), Path({str(self.adapters[1])!r}))); "
            "print('of 2 adapters:', known.score(Path(sys.argv[1])))"
        )
        return f'{sys.executable} -c "{code}"'


def make_known(place: Path) -> Known:
    base = tiny_base(place / "base", layers=1, hidden=32, heads=4, vocab=16, inter=32, dtype="F32")
    style = tiny_lora(place / "style", base, rank=3, alpha=3 * SCALE, seed=1)
    task = tiny_lora(place / "task", base, rank=2, alpha=2 * SCALE, seed=2)
    return Known(base, (style, task))


def log_lines(out: Path) -> list[dict[str, Any]]:
    """Return the lines of a search's log without the times."""
    lines = out.with_name(f"{out.name}.search.jsonl").read_text().splitlines()
    found = [json.loads(line) for line in lines]
    for line in found[1:]:
        assert line.pop("seconds") >= 0
    return found


def files_of(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}
