"""GGUF bases: what changes is what a merge into the HF base gives, the rest keeps its bytes."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from builders import (
    IA3_CONFIG,
    LINEARS,
    LORA_CONFIG,
    Tensors,
    base_tensors,
    decode,
    encode,
    ia3_tensors,
    llama_config,
    lora_tensors,
    module_path,
    read_checkpoint,
    write_adapter,
    write_base,
)
from gguf import GGMLQuantizationType
from gguf.constants import GGML_QUANT_SIZES
from test_architecture import command, loaded

import adaptertools
from adaptertools.errors import AdapterError

from .gguffiles import gguf_name, pairs_of, permute, permuted, read_raw, read_values, write_gguf

LAYERS, RANK, SCALE = 2, 4, 2.0
PREFIX = "base_model.model."
PLAIN = ["F32", "F16", "BF16"]
GGML_SIZES = {kind.name: sizes for kind, sizes in GGML_QUANT_SIZES.items()}


class World:
    """One Llama in the HF layout, and as the GGUF file that llama.cpp's converter makes of it."""

    def __init__(
        self,
        root: Path,
        dtype: str = "BF16",
        types: Mapping[str, str] | str | None = None,
        *,
        tied: bool = False,
        **options: Any,
    ) -> None:
        self.root = root
        self.config = llama_config(LAYERS, 128, 8, 2, 96, 192, dtype, tied)
        self.tensors = base_tensors(self.config, dtype)
        self.hf = write_base(root / "hf", self.config, self.tensors)
        self.gguf = write_gguf(
            root / "base.gguf", self.tensors, self.config, types or dtype, **options
        )
        self.out = root / "out.gguf"

    def lora(self, tensors: Tensors | None = None, **config: Any) -> Path:
        """Write a LoRA of rank 4 and scale 2, of q and k if nothing is said."""
        usual = LORA_CONFIG | {"r": RANK, "lora_alpha": 8, "target_modules": list(LINEARS)}
        tensors = tensors or lora_tensors(self.config, targets=("q_proj", "k_proj"))
        return write_adapter(self.root / "adapter", usual | config, tensors)

    def merge(self, adapter: Any, **options: Any) -> Any:
        return adaptertools.merge(self.gguf, adapter, self.out, **options)

    def in_hf(self, adapter: Any) -> dict[str, Any]:
        """Merge into the HF base; return what the GGUF file should hold, by its names."""
        adaptertools.merge(self.hf, adapter, self.root / "out-hf")
        found = {}
        for name, (dtype, shape, data) in read_checkpoint(self.root / "out-hf").items():
            stored = gguf_name(name)
            words = np.frombuffer(data, np.uint32 if dtype == "F32" else np.uint16)
            whole = permuted(stored, words.reshape(shape), self.config)
            found[stored] = (dtype, shape, whole.tobytes())
        return found

    def assert_same(self, adapter: Any, changed: int) -> None:
        """Assert that every matrix is that of the HF merge, that the rest is the base's."""
        wanted = self.in_hf(adapter)
        self.merge(adapter)
        before, after = read_raw(self.gguf), read_raw(self.out)
        assert list(before) == list(after)
        for name, tensor in after.items():
            same = before[name] if len(tensor[1]) == 1 else wanted[name]
            assert tensor == same, name
        assert sum(before[name] != after[name] for name in before) == changed
        assert pairs_of(self.gguf) == pairs_of(self.out)
        assert self.out.stat().st_size == self.gguf.stat().st_size


def full_lora(world: World) -> Tensors:
    """Return a LoRA of every linear, the head and the embedding."""
    tensors = lora_tensors(world.config, targets=LINEARS)
    rng = np.random.default_rng(3)
    vocab, hidden = world.config["vocab_size"], world.config["hidden_size"]
    for key, shape in {
        f"{PREFIX}lm_head.lora_A.weight": (RANK, hidden),
        f"{PREFIX}lm_head.lora_B.weight": (vocab, RANK),
        f"{PREFIX}model.embed_tokens.lora_embedding_A": (RANK, vocab),
        f"{PREFIX}model.embed_tokens.lora_embedding_B": (hidden, RANK),
    }.items():
        tensors[key] = encode(rng.standard_normal(shape) * 0.05, "F32")
    return tensors


@pytest.mark.parametrize("alignment", [None, 64])
@pytest.mark.parametrize("dtype", PLAIN)
def test_lora_in_place(tmp_path: Path, dtype: str, alignment: int | None) -> None:
    """Every matrix, with permuted q and k: the bits of the HF merge, in the same type."""
    world = World(tmp_path, dtype, alignment=alignment)
    world.assert_same(world.lora(full_lora(world)), LAYERS * 7 + 2)


@pytest.mark.parametrize("dtype", PLAIN)
def test_ia3_in_place(tmp_path: Path, dtype: str) -> None:
    """Vectors of permuted rows, and of columns."""
    world = World(tmp_path, dtype)
    adapter = write_adapter(tmp_path / "adapter", IA3_CONFIG, ia3_tensors(world.config))
    world.assert_same(adapter, LAYERS * 3)


def test_dora_and_full_values(tmp_path: Path) -> None:
    """Magnitudes and full values follow the order of the rows."""
    world = World(tmp_path)
    rng = np.random.default_rng(4)
    tensors = lora_tensors(world.config, targets=("k_proj",))
    for layer in range(LAYERS):
        key = f"{PREFIX}{module_path(layer, 'k_proj')}.lora_magnitude_vector"
        tensors[key] = encode(1 + rng.random(32), "F32")
    name = module_path(0, "q_proj")
    tensors[f"{PREFIX}{name}.weight"] = encode(rng.standard_normal((128, 128)), "F32")
    tensors[f"{PREFIX}model.embed_tokens.weight"] = encode(rng.standard_normal((96, 128)), "F32")
    adapter = world.lora(tensors, use_dora=True, modules_to_save=["embed_tokens", "q_proj"])
    world.assert_same(adapter, LAYERS + 2)


def exact(world: World, name: str, layer: int, heads: int | None) -> np.ndarray:
    """Return W + s·B@A in fp64, of the values that the base file holds, rows in its order."""
    factors = {
        k: decode(t).astype(np.float64)
        for k, t in lora_tensors(world.config, targets=[name]).items()
    }
    path = f"{PREFIX}{module_path(layer, name)}"
    up, down = factors[f"{path}.lora_B.weight"], factors[f"{path}.lora_A.weight"]
    delta = SCALE * up @ down
    stored = gguf_name(f"{module_path(layer, name)}.weight")
    delta = delta if heads is None else permute(delta, heads)
    return read_values(world.gguf)[stored].astype(np.float64) + delta


QUANTISED = ["Q8_0", "Q4_0", "Q5_1"]


@pytest.mark.parametrize("asked", ["f32", "f16", "bf16", "q8_0"])
@pytest.mark.parametrize("types", QUANTISED)
def test_quantised(tmp_path: Path, types: str, asked: str) -> None:
    """What changes is dequantised and rounded once to the type asked for; the rest is as it was."""
    world = World(tmp_path, "F32", types, alignment=64)
    target = "k_proj"
    adapter = world.lora(lora_tensors(world.config, targets=(target,)))
    world.merge(adapter, dtype=asked)
    before, after = read_raw(world.gguf), read_raw(world.out)
    assert list(before) == list(after)
    touched = [gguf_name(f"{module_path(n, target)}.weight") for n in range(LAYERS)]
    kind = GGMLQuantizationType[asked.upper()]
    for name in before:
        if name not in touched:
            assert after[name] == before[name]
    for layer, name in enumerate(touched):
        wanted = exact(world, target, layer, 2)
        got = read_values(world.out)[name]
        assert after[name][0] == asked.upper()
        if asked == "bf16":
            assert np.abs(got - wanted).max() <= np.abs(wanted).max() * 2.0**-8
            near = gguf.quants.dequantize(
                gguf.quants.quantize(wanted.astype(np.float32), kind), kind
            )
            assert (got == near).mean() > 0.999
        elif asked == "f16":
            assert (got == wanted.astype(np.float16)).all()
        else:
            raw = gguf.quants.quantize(wanted.astype(np.float32), kind)
            assert after[name][2] == raw.tobytes()
    assert pairs_of(world.gguf) == pairs_of(world.out)
    assert all(t.data_offset % 64 == 0 for t in gguf.GGUFReader(world.out).tensors)
    found = adaptertools.verify(world.out)
    assert found.ok, found.to_json()
    assert adaptertools.verify(world.out, base=world.gguf, adapters=adapter).ok
    assert not adaptertools.verify(world.out, base=world.gguf, adapters=(adapter, 0.5)).ok


def refused(world: World, adapter: Any, code: str, told: str = "", **options: Any) -> Any:
    """Assert that a merge fails with a code and leaves nothing."""
    before = world.gguf.read_bytes() if world.gguf.is_file() else b""
    with pytest.raises(AdapterError) as caught:
        world.merge(adapter, **options)
    error: Any = caught.value
    findings = getattr(error, "findings", ())
    assert code in {f.id for f in findings} | {error.code}, error
    text = f"{error} {error.hint} " + " ".join(f"{f.title} {f.hint}" for f in findings)
    assert told in text, text
    assert not [p.name for p in world.root.iterdir() if "out" in p.name]
    assert before == (world.gguf.read_bytes() if world.gguf.is_file() else b"")
    return error


SCALES = {"Q4_K": (0, 2), "Q6_K": (208,), "Q5_K": (0, 2), "Q3_K": (108,)}


@pytest.mark.parametrize("kind", SCALES)
def test_k_quants(tmp_path: Path, kind: str) -> None:
    """Types that Python cannot write are read: random blocks, their scales small."""
    config = llama_config(1, 256, 8, 2, 96, 256)
    tensors = base_tensors(config)
    path = write_gguf(tmp_path / "plain.gguf", tensors, config, "BF16")
    blocks = np.random.default_rng(1).integers(0, 256, (64, GGML_SIZES[kind][1]), np.uint8)
    for at in SCALES[kind]:
        blocks[:, at : at + 2] = np.frombuffer(np.float16(0.01).tobytes(), np.uint8)
    writer = gguf.GGUFWriter(tmp_path / "base.gguf", "llama")
    writer.add_block_count(1)
    writer.add_embedding_length(256)
    writer.add_head_count(8)
    writer.add_head_count_kv(2)
    for name, (_, _, data) in read_raw(path).items():
        if name == "blk.0.attn_k.weight":
            writer.add_tensor(name, blocks, raw_dtype=GGMLQuantizationType[kind])
        elif "attn" in name and "norm" not in name:
            raw = np.frombuffer(data, np.uint8).reshape(-1, 512)
            writer.add_tensor(name, raw, raw_dtype=GGMLQuantizationType.BF16)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    factors = lora_tensors(config, targets=("k_proj",))
    told = LORA_CONFIG | {"r": RANK, "lora_alpha": 8, "target_modules": ["k_proj"]}
    adapter = write_adapter(tmp_path / "adapter", told, factors)
    out = tmp_path / "out.gguf"
    adaptertools.merge(tmp_path / "base.gguf", adapter, out, dtype="f16")
    up, down = (decode(t).astype(np.float64) for t in reversed(list(factors.values())))
    before = read_values(tmp_path / "base.gguf")["blk.0.attn_k.weight"].astype(np.float64)
    wanted = before + SCALE * permute(up, 2) @ down
    assert (read_values(out)["blk.0.attn_k.weight"] == wanted.astype(np.float16)).all()
    assert adaptertools.verify(out).ok


def test_quantised_is_refused_without_a_word(tmp_path: Path) -> None:
    """Quantising again would erase the adapter, so it is not done silently."""
    world = World(tmp_path, "F32", {"*": "F16", "blk.1.attn_k.weight": "Q4_0"})
    error = refused(world, world.lora(), "AT405", "--dtype bf16")
    assert [f.where.key for f in error.findings] == ["blk.1.attn_k.weight"]
    world.merge(world.lora(), dtype="bf16")
    types = {name: tensor[0] for name, tensor in read_raw(world.out).items()}
    assert types["blk.1.attn_k.weight"] == "BF16"
    assert types["blk.0.attn_k.weight"] == types["blk.1.attn_q.weight"] == "F16"


def test_quantised_tensors_that_stay(tmp_path: Path) -> None:
    """A quantised tensor that no update touches is no matter, of whatever type."""
    world = World(tmp_path, "F32", {"*": "Q4_0", "blk.0.attn_q.weight": "F16"})
    tensors = lora_tensors(world.config, targets=("q_proj",))
    kept = {k: t for k, t in tensors.items() if "layers.0" in k}
    world.merge(world.lora(kept))
    before, after = read_raw(world.gguf), read_raw(world.out)
    assert [name for name in before if before[name] != after[name]] == ["blk.0.attn_q.weight"]
    assert adaptertools.verify(world.out).ok
    refused_out = world.out.with_name("other.gguf")
    with pytest.raises(AdapterError) as caught:
        adaptertools.merge(world.gguf, tmp_path / "adapter", refused_out, dtype="bf16")
    assert caught.value.code == "AT413"


@pytest.mark.parametrize("given", ["file", "folder"])
@pytest.mark.parametrize(("types", "options"), [("F16", {}), ("Q8_0", {"dtype": "bf16"})])
def test_split_files(tmp_path: Path, given: str, types: str, options: Any) -> None:
    """A split base, by its first file or its folder: a folder with the same names."""
    folder = tmp_path / "parts"
    folder.mkdir()
    world = World(tmp_path, "F16" if types == "F16" else "F32", types)
    write_gguf(folder / "m.gguf", world.tensors, world.config, types, split=5)
    parts = sorted(folder.glob("*.gguf"))
    assert len(parts) > 2
    out = tmp_path / "merged"
    base = parts[0] if given == "file" else folder
    adapter = world.lora(full_lora(world))
    adaptertools.merge(base, adapter, out, **options)
    assert sorted(p.name for p in out.iterdir()) == ["adaptertools.json", *(p.name for p in parts)]
    world.merge(adapter, **options)
    whole = read_raw(world.out)
    found = {name: t for part in parts for name, t in read_raw(out / part.name).items()}
    assert found == whole
    assert all(pairs_of(part) == pairs_of(out / part.name) for part in parts)
    assert adaptertools.verify(out).ok
    assert adaptertools.verify(out, base=base, adapters=adapter).ok


@pytest.mark.parametrize("side", ["head", "embedding"])
def test_tied(tmp_path: Path, side: str) -> None:
    """A file without an output holds one for both; a change of one side adds the output."""
    world = World(tmp_path, tied=True)
    assert "output.weight" not in read_raw(world.gguf)
    every = full_lora(world)
    key = "lm_head" if side == "head" else "embed_tokens"
    adapter = world.lora({k: t for k, t in every.items() if key in k or "q_proj" in k})
    wanted = world.in_hf(adapter)
    result = world.merge(adapter)
    after, before = read_raw(world.out), read_raw(world.gguf)
    assert [*before, "output.weight"] == list(after)
    for name in ("token_embd.weight", "output.weight", "blk.0.attn_q.weight"):
        assert after[name] == wanted[name]
    assert pairs_of(world.gguf) == pairs_of(world.out)
    assert "AT320" in {note.id for note in result.plan.notes}
    assert adaptertools.verify(world.out).ok


def test_tied_rows_change_both(tmp_path: Path) -> None:
    """Trained token rows are of the shared tensor itself."""
    world = World(tmp_path, tied=True)
    tensors = lora_tensors(world.config)
    rows = np.random.default_rng(7).standard_normal((2, 128))
    key = f"{PREFIX}model.embed_tokens.token_adapter.trainable_tokens_delta"
    tensors[key] = encode(rows, "F32")
    adapter = world.lora(tensors, trainable_token_indices=[3, 95])
    world.assert_same(adapter, 2 * LAYERS + 1)


def test_tied_in_parts_is_refused(tmp_path: Path) -> None:
    """A head of its own would change the count that every part tells."""
    world = World(tmp_path, tied=True)
    folder = tmp_path / "parts"
    folder.mkdir()
    write_gguf(folder / "m.gguf", world.tensors, world.config, "BF16", split=5)
    every = full_lora(world)
    adapter = world.lora({k: t for k, t in every.items() if "lm_head" in k})
    world.gguf = folder
    refused(world, adapter, "AT418", "no place for a head")


# --- other architectures -------------------------------------------------------------------------

MOE = {"num_local_experts": 3, "num_experts_per_tok": 2, "model_type": "mixtral",
       "architectures": ["MixtralForCausalLM"]}  # fmt: skip
EXPERT = "model.layers.{}.block_sparse_moe.experts.{}.{}"
STACKS = {"w1": "ffn_gate_exps", "w3": "ffn_up_exps", "w2": "ffn_down_exps"}


def mixtral(root: Path) -> tuple[Path, Path, dict[str, Any]]:
    """Write a Mixtral with experts by themselves (HF) and stacked (GGUF)."""
    config = llama_config(1, 128, 8, 2, 96, 192) | MOE
    tensors = {k: t for k, t in base_tensors(config).items() if ".mlp." not in k}
    stacks: Tensors = dict(tensors)
    rng = np.random.default_rng(1)
    for part, stack in STACKS.items():
        shape = (128, 192) if part == "w2" else (192, 128)
        each = [encode(rng.standard_normal(shape) * 0.02, "BF16") for _ in range(3)]
        for number, tensor in enumerate(each):
            tensors[EXPERT.format(0, number, part) + ".weight"] = tensor
        stacks[f"blk.0.{stack}.weight"] = ("BF16", (3, *shape), b"".join(t[2] for t in each))
    hf = write_base(root / "hf", config, tensors)

    def name_of(name: str) -> str:
        return name if name.startswith("blk.") else gguf_name(name)

    path = write_gguf(root / "base.gguf", stacks, config, "BF16", name_of=name_of)
    return hf, path, config


def stacked(folder: Path, part: str) -> bytes:
    """Return the experts of an HF folder one after another."""
    found = read_checkpoint(folder)
    return b"".join(found[EXPERT.format(0, n, part) + ".weight"][2] for n in range(3))


def expert_lora(root: Path) -> Path:
    """Write a LoRA of single experts."""
    rng, tensors = np.random.default_rng(2), {}
    for number, part in ((0, "w1"), (2, "w1"), (1, "w2")):
        out, into = (128, 192) if part == "w2" else (192, 128)
        name = PREFIX + EXPERT.format(0, number, part)
        tensors[f"{name}.lora_A.weight"] = encode(rng.standard_normal((4, into)) * 0.05, "F32")
        tensors[f"{name}.lora_B.weight"] = encode(rng.standard_normal((out, 4)) * 0.05, "F32")
    config = LORA_CONFIG | {"r": 4, "lora_alpha": 8, "target_modules": ["w1", "w2"]}
    return write_adapter(root / "adapter", config, tensors)


def parameter_lora(root: Path) -> Path:
    """Write a LoRA of the fused expert parameters of transformers 5."""
    rng, tensors = np.random.default_rng(2), {}
    base = f"{PREFIX}model.layers.0.mlp.experts"
    for name, out, into in ((f"{base}.base_layer", 384, 128), (base, 128, 192)):
        tensors[f"{name}.lora_A.weight"] = encode(rng.standard_normal((12, into)) * 0.05, "F32")
        tensors[f"{name}.lora_B.weight"] = encode(rng.standard_normal((out, 12)) * 0.05, "F32")
    config = LORA_CONFIG | {
        "r": 4,
        "lora_alpha": 8,
        "target_modules": [],
        "target_parameters": ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"],
    }
    return write_adapter(root / "adapter", config, tensors)


@pytest.mark.parametrize(
    ("make", "parts"), [(expert_lora, {"w1", "w2"}), (parameter_lora, set(STACKS))]
)
def test_experts(tmp_path: Path, make: Any, parts: set[str]) -> None:
    """Updates of single experts, and of fused parameters, land inside the stacks."""
    hf, path, _ = mixtral(tmp_path)
    adapter = make(tmp_path)
    adaptertools.merge(hf, adapter, tmp_path / "out-hf")
    adaptertools.merge(path, adapter, tmp_path / "out.gguf")
    before, after = read_raw(path), read_raw(tmp_path / "out.gguf")
    changed = {name for name in before if before[name] != after[name]}
    assert changed == {f"blk.0.{STACKS[part]}.weight" for part in parts}
    for part, stack in STACKS.items():
        assert after[f"blk.0.{stack}.weight"][2] == stacked(tmp_path / "out-hf", part)
    assert adaptertools.verify(tmp_path / "out.gguf").ok


def test_gpt2_is_stored_the_other_way_round(tmp_path: Path) -> None:
    """GPT-2's Conv1D weights are `in out` in HF's files and `out in` in GGUF; square ones too."""
    size, module = 64, "transformer.h.0.attn.c_proj"
    config = {"model_type": "gpt2", "n_embd": size, "n_layer": 1, "n_head": 4, "vocab_size": 96}
    rng = np.random.default_rng(1)
    weight = rng.standard_normal((size, size)).astype(np.float32)
    hf = write_base(tmp_path / "hf", config, {f"{module}.weight": encode(weight, "F32")})
    writer = gguf.GGUFWriter(tmp_path / "base.gguf", "gpt2")
    writer.add_block_count(1)
    writer.add_embedding_length(size)
    writer.add_head_count(4)
    writer.add_tensor("blk.0.attn_output.weight", np.ascontiguousarray(weight.T))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    tensors = {
        f"{PREFIX}{module}.lora_{side}.weight": encode(rng.standard_normal(shape), "F32")
        for side, shape in (("A", (4, size)), ("B", (size, 4)))
    }
    told = LORA_CONFIG | {"r": 4, "lora_alpha": 8, "fan_in_fan_out": True}
    adapter = write_adapter(tmp_path / "adapter", told, tensors)
    adaptertools.merge(hf, adapter, tmp_path / "out-hf")
    adaptertools.merge(tmp_path / "base.gguf", adapter, tmp_path / "out.gguf")
    wanted = decode(read_checkpoint(tmp_path / "out-hf")[f"{module}.weight"])
    got = read_values(tmp_path / "out.gguf")["blk.0.attn_output.weight"]
    assert not np.array_equal(wanted, weight)
    assert np.array_equal(got, wanted.T)


def test_shifted_norms_are_refused(tmp_path: Path) -> None:
    """Gemma's norms are stored as w + 1 in GGUF, so a full value is not itself there."""
    config = llama_config(1, 128, 8, 2, 96, 192) | {"model_type": "gemma"}
    tensors = base_tensors(config | {"tie_word_embeddings": True})
    path = write_gguf(tmp_path / "base.gguf", tensors, config, "BF16", arch="gemma")
    name = "model.norm.weight"
    told = LORA_CONFIG | {"r": 4, "modules_to_save": ["norm"], "target_modules": ["v_proj"]}
    factors = lora_tensors(config, targets=("v_proj",))
    factors[PREFIX + name] = encode(np.ones(128), "F32")
    adapter = write_adapter(tmp_path / "adapter", told, factors)
    with pytest.raises(AdapterError) as caught:
        adaptertools.merge(path, adapter, tmp_path / "out.gguf")
    assert "shifted" in str([f.title for f in caught.value.findings])  # type: ignore[attr-defined]


# --- the file around the tensors -----------------------------------------------------------------


def test_the_bytes_between_stay(tmp_path: Path) -> None:
    """In place nothing but the data of what changes differs, not even padding."""
    world = World(tmp_path)
    data = bytearray(world.gguf.read_bytes())
    reader = gguf.GGUFReader(world.gguf)
    norm = next(t for t in reader.tensors if t.name == "output_norm.weight")
    end = max(t.data_offset + t.n_bytes for t in reader.tensors)
    data[end:] = b"\x07" * len(data[end:])
    world.gguf.write_bytes(data + b"trailing")
    world.merge(world.lora())
    before, after = world.gguf.read_bytes(), world.out.read_bytes()
    assert len(before) == len(after)
    inside = np.zeros(len(before), bool)
    for t in reader.tensors:
        if "attn_q" in t.name or "attn_k" in t.name:
            inside[t.data_offset : t.data_offset + t.n_bytes] = True
    differs = np.frombuffer(before, np.uint8) != np.frombuffer(after, np.uint8)
    assert differs.any()
    assert not (differs & ~inside).any()
    assert not inside[norm.data_offset]


def test_the_receipt_lies_beside(tmp_path: Path) -> None:
    """A single file has its receipt beside it, and nothing else is left."""
    world = World(tmp_path)
    world.merge(world.lora())
    told = json.loads((tmp_path / "out.adaptertools.json").read_text())
    assert told["summary"] == {"updates": 4, "touched": 4, "untouched": LAYERS * 9 + 3 - 4}
    names = {p.name for p in tmp_path.iterdir()}
    assert names == {"hf", "base.gguf", "adapter", "out.gguf", "out.adaptertools.json"}


@pytest.mark.parametrize("options", [{}, {"dtype": "q8_0"}])
def test_the_output_does_not_depend_on_threads(tmp_path: Path, options: Any) -> None:
    """The same bytes with one thread and with four."""
    world = World(tmp_path, "F32", "Q4_0" if options else "F32")
    adapter = world.lora(full_lora(world))
    for jobs in (1, 4):
        out = tmp_path / f"out{jobs}.gguf"
        adaptertools.merge(world.gguf, adapter, out, jobs=jobs, **options)
    assert (tmp_path / "out1.gguf").read_bytes() == (tmp_path / "out4.gguf").read_bytes()


@pytest.mark.parametrize("options", [{}, {"dtype": "bf16"}])
def test_an_interrupted_merge_goes_on(tmp_path: Path, options: Any) -> None:
    """After Ctrl-C nothing is at OUT; the same command ends with the same bytes."""
    from adaptertools.base.merge import Merge
    from adaptertools.base.options import make_options
    from adaptertools.errors import InterruptedMergeError

    world = World(tmp_path, "F32", "Q4_0" if options else "F32")
    adapter = world.lora(full_lora(world))
    calls = 0

    def stop(done: int, total: int) -> None:
        nonlocal calls
        calls += 1
        if calls == 4:
            raise KeyboardInterrupt

    made = make_options(jobs=1, **options)
    job = Merge(world.gguf, [(adapter, 1.0)], world.out, made, stop)
    with pytest.raises(InterruptedMergeError):
        job.run(job.plan())
    assert not world.out.exists()
    assert adaptertools.merge(world.gguf, adapter, world.out, jobs=1, **options).resumed
    adaptertools.merge(world.gguf, adapter, tmp_path / "afresh.gguf", **options)
    assert world.out.read_bytes() == (tmp_path / "afresh.gguf").read_bytes()
    assert not [p for p in tmp_path.iterdir() if p.name.startswith(".")]


def test_a_failing_merge_leaves_nothing(tmp_path: Path) -> None:
    """Values that overflow are found while computing."""
    world = World(tmp_path, "F16")
    tensors = lora_tensors(world.config)
    key = next(key for key in tensors if "lora_B" in key)
    tensors[key] = encode(np.full(tensors[key][1], 3e38), "F32")
    refused(world, world.lora(tensors), "AT407")


def test_verify_tells_what_is_wrong(tmp_path: Path) -> None:
    """A tensor that was not merged, and one that should not have changed."""
    world = World(tmp_path, "F32", {"*": "Q4_0", "blk.0.attn_q.weight": "F16"})
    tensors = lora_tensors(world.config, targets=("q_proj",))
    adapter = world.lora({k: t for k, t in tensors.items() if "layers.0" in k})
    world.merge(adapter)
    data = bytearray(world.out.read_bytes())
    reader = gguf.GGUFReader(world.gguf)
    place = {t.name: (t.data_offset, t.n_bytes) for t in reader.tensors}
    at, size = place["blk.0.attn_q.weight"]
    data[at : at + size] = world.gguf.read_bytes()[at : at + size]
    data[place["blk.1.ffn_up.weight"][0] + 5] ^= 0xFF
    world.out.write_bytes(data)
    found = adaptertools.verify(world.out)
    assert not found.ok
    assert [v.verdict for v in found.targets] == ["not-applied"]
    changed = [v.name for v in found.others if v.verdict == "changed"]
    assert changed == ["blk.1.ffn_up.weight"]


def test_verify_a_merge_that_quantised_again(tmp_path: Path) -> None:
    """What another tool stored as Q4_0 cannot be told from any other change, and is not passed."""
    world = World(tmp_path, "F32", "Q4_0")
    adapter = world.lora()
    world.merge(adapter, dtype="f32")
    other = tmp_path / "requantised.gguf"
    write_gguf(other, world.tensors, world.config, "Q4_0")
    found = adaptertools.verify(other, base=world.gguf, adapters=adapter)
    assert not found.ok
    assert {v.verdict for v in found.targets} == {"changed"}
    assert adaptertools.verify(world.out, base=world.gguf, adapters=adapter).ok


def test_inspect(tmp_path: Path) -> None:
    """The layout, the family, and how many tensors are of which type."""
    world = World(tmp_path, "F32", {"*": "Q4_0", "blk.0.attn_q.weight": "F16"})
    told = adaptertools.inspect(world.gguf).to_json()
    assert (told["kind"], told["format"], told["layout"]) == ("base", "gguf", "gguf")
    assert told["family"] == "llama"
    assert told["dtypes"] == {"F16": 1, "F32": LAYERS * 2 + 1, "Q4_0": LAYERS * 7 + 1}
    assert told["bytes"] == sum(len(data) for _, _, data in read_raw(world.gguf).values())


def test_no_torch_before_computing(tmp_path: Path) -> None:
    """Inspecting and planning read headers only."""
    world = World(tmp_path, "F32", "Q4_0")
    plan = ("merge", world.gguf, world.lora(), "-o", world.out, "--dtype", "q8_0", "--dry-run")
    for arguments in (("inspect", world.gguf), plan):
        assert "torch" not in loaded(command(*arguments))
    assert not world.out.exists()


# --- refusals ------------------------------------------------------------------------------------


def test_refusals_of_places_and_options(tmp_path: Path) -> None:
    """The output is a .gguf file; types that GGUF lacks and other shards are refused."""
    world = World(tmp_path, "F32", "Q4_0")
    adapter = world.lora()
    refused(world, adapter, "AT413", "use f32", dtype="f64")
    refused(world, adapter, "AT413", "keeps its files", dtype="bf16", shard_size="1GB")
    with pytest.raises(AdapterError) as caught:
        adaptertools.merge(world.gguf, adapter, tmp_path / "merged.safetensors", dtype="bf16")
    assert (caught.value.code, caught.value.hint) == ("AT508", "end it in .gguf")
    with pytest.raises(AdapterError) as caught:
        adaptertools.merge(world.hf, adapter, tmp_path / "merged", dtype="q8_0")
    assert caught.value.code == "AT413"
    assert "GGUF" in str(caught.value)


def test_an_unknown_architecture_is_refused(tmp_path: Path) -> None:
    """Without the family no name and no order of rows is known."""
    world = World(tmp_path, arch="mamba9")
    refused(world, world.lora(), "AT414", "known family")


def test_an_adapter_is_no_base(tmp_path: Path) -> None:
    """A GGUF adapter in the place of the base is told by its own word."""
    world = World(tmp_path)
    writer = gguf.GGUFWriter(tmp_path / "lora.gguf", "llama")
    writer.add_type("adapter")
    writer.add_string("adapter.type", "lora")
    writer.add_float32("adapter.lora.alpha", 8.0)
    writer.add_tensor("blk.0.attn_q.weight.lora_a", np.ones((4, 128), np.float32))
    writer.add_tensor("blk.0.attn_q.weight.lora_b", np.ones((128, 4), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    world.gguf, base = tmp_path / "lora.gguf", world.gguf
    refused(world, world.lora(), "AT130", "a GGUF adapter")
    assert adaptertools.inspect(tmp_path / "lora.gguf").to_json()["kind"] == "adapter"
    world.gguf = base
    world.assert_same(tmp_path / "lora.gguf", 1)


def test_a_folder_of_several_models_is_refused(tmp_path: Path) -> None:
    """Which of them is meant must be said."""
    world = World(tmp_path)
    folder = tmp_path / "models"
    folder.mkdir()
    for name in ("a.gguf", "b.gguf"):
        (folder / name).write_bytes(world.gguf.read_bytes())
    world.gguf = folder
    refused(world, world.lora(), "AT130", "a.gguf, b.gguf")


def test_heads_that_do_not_fit(tmp_path: Path) -> None:
    """An adapter of another model is told tensor by tensor."""
    world = World(tmp_path)
    other = llama_config(LAYERS, 192, 12, 2, 96, 192)
    error = refused(world, world.lora(lora_tensors(other)), "AT403", "trained on")
    assert len(error.findings) == 2 * LAYERS
