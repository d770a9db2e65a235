"""The files beside the weights: what travels, what wins, what stays behind."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import adaptertools

from .edits import PREFIX, adapter, files_of, lora_keys, make_base, values

TRAVEL = (
    "tokenizer.json", "vocab.json", "generation_config.json", "LICENSE", "NOTICE.txt", "logo.png",
    "preprocessor_config.json", "figures/loss.png", "sub/deep/extra.json", "USE_POLICY.md",
    "chat_template.jinja",
)  # fmt: skip
STAY = (
    "README.md", ".gitattributes", ".cache/x/y.json", "sub/.hidden", "model.gguf", "tf_model.h5",
    "pytorch_model.bin", "flax_model.msgpack", "onnx/model.onnx", "onnx/config.json",
    "original/params.json", "optimizer.pt", "training_args.bin", "trainer_state.json",
    "checkpoint-10/config.json", "runs/events", "__pycache__/a.pyc", "x.lock", "adaptertools.json",
    "extra.safetensors",
)  # fmt: skip
CODE = ("modeling_x.py", "sub/configuration_x.py")
WINS = (
    "tokenizer.json", "tokenizer_config.json", "tokenizer.model", "special_tokens_map.json",
    "added_tokens.json", "vocab.json", "merges.txt", "chat_template.jinja",
    "chat_templates/tool.jinja",
)  # fmt: skip
IGNORED = ("README.md", "training_args.bin", "generation_config.json", "config.json", "LICENSE")


def fill(root: Path, names: tuple[str, ...], owner: str) -> None:
    """Write files that say whose they are."""
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{owner}: {name}")


@pytest.fixture
def inputs(tmp_path: Path) -> tuple[Path, Path]:
    """A base and an adapter, each with files beside its weights."""
    rng = np.random.default_rng(0)
    base = make_base(tmp_path / "base")
    fill(base, (*TRAVEL, *STAY, *CODE), "base")
    tensors = lora_keys("model.layers.0.self_attn.q_proj", values(rng, 64, 4), values(rng, 4, 64))
    place = adapter(tmp_path / "adapter", tensors)
    fill(place, (*WINS, *IGNORED), "adapter")
    assert PREFIX in next(iter(tensors))
    return base, place


@pytest.mark.parametrize("code", [False, True])
def test_what_travels(inputs: tuple[Path, Path], tmp_path: Path, code: bool) -> None:
    """The base's files travel but for weights, leftovers and code; the adapter's tokenizer wins."""
    base, place = inputs
    plan = adaptertools.merge(base, place, tmp_path / "out", dry_run=True, with_code=code)
    adaptertools.merge(base, place, tmp_path / "out", with_code=code)
    made = {"config.json", "tokenizer_config.json", "model.safetensors", "adaptertools.json"}
    wanted = made | set(TRAVEL) | set(WINS) | (set(CODE) if code else set())
    assert files_of(tmp_path / "out") == wanted
    for name in wanted - made:
        owner = "adapter" if name in WINS else "base"
        assert (tmp_path / "out" / name).read_text() == f"{owner}: {name}"
    assert (tmp_path / "out/config.json").read_bytes() == (base / "config.json").read_bytes()
    planned = {file["name"] for file in plan.to_json()["files"]}
    assert planned == wanted - {"adaptertools.json"}
    assert set(CODE) & set(plan.left_out) == (set() if code else set(CODE))
    assert "README.md" in plan.left_out


def test_the_last_adapter_s_tokenizer_wins(inputs: tuple[Path, Path], tmp_path: Path) -> None:
    """With several adapters, the later one's files win."""
    base, first = inputs
    rng = np.random.default_rng(1)
    tensors = lora_keys("model.layers.0.self_attn.v_proj", values(rng, 16, 4), values(rng, 4, 64))
    second = adapter(tmp_path / "second", tensors)
    fill(second, ("tokenizer.json",), "second")
    adaptertools.merge(base, [first, second], tmp_path / "out")
    assert (tmp_path / "out/tokenizer.json").read_text() == "second: tokenizer.json"
    assert (tmp_path / "out/vocab.json").read_text() == "adapter: vocab.json"


def test_links_become_files(inputs: tuple[Path, Path], tmp_path: Path) -> None:
    """A hub cache is links to blobs; the output holds plain files."""
    base, place = inputs
    blob = tmp_path / "blob"
    blob.write_text("linked")
    (base / "tokenizer.txt").symlink_to(blob)
    (base / "dangling.txt").symlink_to(tmp_path / "nowhere")
    adaptertools.merge(base, place, tmp_path / "out")
    made = tmp_path / "out" / "tokenizer.txt"
    assert made.read_text() == "linked"
    assert not made.is_symlink()
    assert "dangling.txt" not in files_of(tmp_path / "out")


def test_a_single_file_brings_nothing(inputs: tuple[Path, Path], tmp_path: Path) -> None:
    """A file in, a file out, and its receipt beside it."""
    base, place = inputs
    out = tmp_path / "made" / "merged.safetensors"
    out.parent.mkdir()
    adaptertools.merge(base / "model.safetensors", place, out)
    assert files_of(out.parent) == {"merged.safetensors", "merged.adaptertools.json"}
    assert adaptertools.verify(out).ok
