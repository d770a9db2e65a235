"""Spoiled files and lying configs: an error of the library's own, soon, and nothing left behind."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import adaptertools

from .catalogue import CASES, llama
from .compare import EXACT, differences
from .running import converted
from .sources import Source, llama_modules, numbers, peft_meanings

ROOT = Path(__file__).parents[2]
CONTAINERS = {
    "gguf-lora": "adapter.gguf",
    "loralib": "lora.pt",
    "mlx-lora": "adapters.safetensors",
    "nemo-lora": "adapter.nemo",
}
Place = Path


@pytest.fixture(params=CONTAINERS)
def good(request: pytest.FixtureRequest, tmp_path: Place) -> tuple[Path, Any]:
    """A small adapter in another format: its weight file, and what a reader must be told."""
    source = llama(llama_modules(["self_attn.q_proj", "self_attn.v_proj"], [0]), 2, 4)
    result = converted(tmp_path, source, request.param)
    return tmp_path / "out" / CONTAINERS[request.param], result.plan.told


def back(file: Path, told: Any) -> Path:
    """Convert a file to PEFT; an error leaves nothing, also no hidden folder."""
    place = file.parents[1]
    before = set(place.iterdir())
    out = place / "back"
    try:
        adaptertools.convert(file, "peft-lora", out, base=place / "base", given=told, jobs=1)
    except adaptertools.AdapterError as error:
        assert error.code != "AT258", error
        assert set(place.iterdir()) == before
        raise
    return out


def test_truncated_files(good: tuple[Path, Any]) -> None:
    """A file that was cut anywhere, or that is longer than it says, is refused."""
    file, told = good
    data = file.read_bytes()
    padding = 10240 if file.suffix == ".nemo" else 0  # a tar ends in zeros
    cuts = {0, 1, 7, 8, 9, *np.linspace(10, len(data) - padding - 1, 24).astype(int).tolist()}
    for cut in sorted(cuts):
        file.write_bytes(data[:cut])
        with pytest.raises(adaptertools.AdapterError):
            back(file, told)


def test_spoiled_bytes(good: tuple[Path, Any]) -> None:
    """Any other byte in a header: an error of ours, or an adapter that PEFT can read."""
    file, told = good
    data = file.read_bytes()
    rng = np.random.default_rng(1)
    for at in np.unique(np.geomspace(1, min(len(data), 3000), 40).astype(int)) - 1:
        spoiled = bytearray(data)
        spoiled[at] ^= int(rng.integers(1, 256))
        file.write_bytes(bytes(spoiled))
        try:
            out = back(file, told)
        except adaptertools.AdapterError:
            continue
        assert peft_meanings(out)
        for path in out.iterdir():
            path.unlink()
        out.rmdir()


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("to", ["gguf-lora", "mlx-lora", "nemo-lora", "torchtune"])
def test_numbers_that_are_none(bad: float, to: str, tmp_path: Place) -> None:
    """They are refused, or stay where they were: in that row of ΔW, and nowhere else."""
    source, module = (
        llama(llama_modules(["self_attn.q_proj"], [0])),
        "model.layers.0.self_attn.q_proj",
    )
    values = numbers("up", (128, 3))
    values[5, 1] = bad
    source.put(f"{module}.lora_B.weight", values)
    try:
        converted(tmp_path, source, to)
        place, base = tmp_path / "out", tmp_path / "base"
        adaptertools.convert(place, "peft-lora", tmp_path / "back", base=base, jobs=1)
    except adaptertools.AdapterError:
        return
    with np.errstate(invalid="ignore"):
        found = peft_meanings(tmp_path / "back")[f"{module}.weight"].value
        wanted = peft_meanings(tmp_path / "source")[f"{module}.weight"].value
    assert np.array_equal(np.isfinite(found), np.isfinite(wanted))
    assert not np.isfinite(found[5]).any()
    assert np.isfinite(np.delete(found, 5, axis=0)).all()


def wrong_size() -> Source:
    source = llama(llama_modules(["self_attn.q_proj"], [0]))
    source.put("model.layers.0.self_attn.q_proj.lora_B.weight", numbers("short", (120, 3)))
    return source


@pytest.mark.parametrize("to", ["gguf-lora", "litgpt", "nemo-lora", "torchtune", "mlx-lora"])
def test_factors_that_do_not_fit_the_base(to: str, tmp_path: Place) -> None:
    """120 rows for 128: refused by the name of the module."""
    with pytest.raises(adaptertools.AdapterError, match="q_proj") as caught:
        converted(tmp_path, wrong_size(), to)
    assert caught.value.code not in ("AT258", "AT999")


@pytest.mark.parametrize("to", ["gguf-lora", "litgpt", "nemo-lora", "torchtune", "mlx-lora"])
def test_a_layer_that_the_model_does_not_have(to: str, tmp_path: Place) -> None:
    """Layer 5 of 3: refused by its name."""
    source = llama(llama_modules(["self_attn.q_proj"], [0, 5]))
    with pytest.raises(adaptertools.AdapterError, match=r"layers\.5"):
        converted(tmp_path, source, to)


def heads() -> Source:
    source = llama(llama_modules(["self_attn.q_proj"], [0]))
    source.base["num_attention_heads"] = 10**12
    return source


@pytest.mark.parametrize("to", ["gguf-lora", "litgpt", "nemo-lora", "torchtune"])
def test_an_absurd_number_of_heads(to: str, tmp_path: Place) -> None:
    """A config that lies about its heads is told so."""
    with pytest.raises(adaptertools.AdapterError):
        converted(tmp_path, heads(), to)


def layers() -> Source:
    source = llama(llama_modules(["self_attn.q_proj"], [0]))
    source.base["num_hidden_layers"] = 10**9
    return source


def far() -> Source:
    return llama(["model.layers.99999999.self_attn.q_proj"])


def experts() -> Source:
    source = CASES["experts"]()
    source.base["num_local_experts"] = 10**9
    return source


@pytest.mark.parametrize(
    ("make", "to"), [(layers, "litgpt"), (far, "adapterhub-lora"), (experts, "mlx-lora")]
)
def test_absurd_counts_end_soon(make: Callable[[], Source], to: str, tmp_path: Place) -> None:
    """A thousand million layers: refused within seconds, in little memory."""
    folder = make().write(tmp_path)
    limited = "import resource; resource.setrlimit(resource.RLIMIT_AS, (4 << 30, 4 << 30)); "
    code = (
        limited + "import adaptertools, sys; adaptertools.convert(*sys.argv[1:4], base=sys.argv[4])"
    )
    command = [sys.executable, "-c", code, folder, to, tmp_path / "out", tmp_path / "base"]
    try:
        done = subprocess.run(command, cwd=ROOT, capture_output=True, timeout=4, check=False)
    except subprocess.TimeoutExpired:
        pytest.fail("it takes too long")
    assert done.returncode == 1
    assert b"MemoryError" not in done.stderr
    assert b"adaptertools.errors" in done.stderr


def test_a_good_file_passes_all_this(good: tuple[Path, Any]) -> None:
    """What the tests above spoil is sound."""
    file, told = good
    wanted = peft_meanings(file.parents[1] / "source")
    assert differences(wanted, peft_meanings(back(file, told)), EXACT) == []
