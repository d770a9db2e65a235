"""Unmerge in the layouts that are kept: Meta's and GGUF, and what is quantised."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from builders import tiny_base, tiny_lora

import adaptertools
from adaptertools.base.relayout import Relayout
from adaptertools.base.unmerging import unmerge
from adaptertools.errors import AdapterError

from .gguffiles import read_raw, read_values
from .test_gguf_base import World


def test_metas_layout(tmp_path: Path) -> None:
    """Two slices: the same elements come back as in Hugging Face's layout, in Meta's row order."""
    base = tiny_base(tmp_path / "base", dtype="BF16")
    job = Relayout(base, "meta", tmp_path / "meta", 2, False)
    job.run(job.plan())
    lora = tiny_lora(tmp_path / "lora", base, targets=("q_proj", "o_proj"))
    shares = []
    for source in (base, tmp_path / "meta"):
        merged = tmp_path / f"merged-{source.name}"
        adaptertools.merge(source, lora, merged)
        made = unmerge(merged, lora, tmp_path / f"back-{source.name}", base=source)
        shares.append(made.exact_share)
        assert adaptertools.verify(made.out).ok
    assert 0.8 < shares[0] == shares[1] < 1.0


@pytest.mark.parametrize("types", ["F32", "F16", "BF16"])
def test_a_gguf_file(tmp_path: Path, types: str) -> None:
    """The matrices come back as far as told; the rest are the same bytes."""
    world = World(tmp_path, types)
    lora = world.lora()
    world.merge(lora)
    made = unmerge(world.out, lora, tmp_path / "back.gguf", base=world.gguf)
    before, after = read_raw(world.gguf), read_raw(tmp_path / "back.gguf")
    touched = {loss.name for loss in made.losses}
    assert len(touched) == 4
    assert {name for name in before if before[name] != after[name]} == touched
    old, new = read_values(world.gguf), read_values(tmp_path / "back.gguf")
    for loss in made.losses:
        error = np.linalg.norm(new[loss.name] - old[loss.name]) / np.linalg.norm(old[loss.name])
        assert loss.error == pytest.approx(float(error), rel=1e-3)


@pytest.mark.parametrize("dtype", ["q8_0", "bf16"])
def test_quantised_tensors_are_refused(tmp_path: Path, dtype: str) -> None:
    """A block was quantised anew by the merge; whatever dtype is asked for."""
    world = World(tmp_path, "F32", "Q8_0")
    lora = world.lora()
    world.merge(lora, dtype="q8_0")
    with pytest.raises(AdapterError) as caught:
        unmerge(world.out, lora, tmp_path / "back.gguf", dtype=dtype, max_loss=1.0)
    assert caught.value.code == "AT420"
    assert caught.value.where.key == "blk.0.attn_q.weight"
    assert not (tmp_path / "back.gguf").exists()
