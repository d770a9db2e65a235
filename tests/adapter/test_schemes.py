"""The naming schemes of the families, against what the tools that own them do.

The tables and formulas are those of the tools' own converters: llama.cpp (gguf-py and conversion/),
mlx-lm (`sanitize` of each model), torchtune (models/*/_convert_weights.py), LitGPT
(scripts/convert_hf_checkpoint.py; before 0.5.5: at fabf765b^), NeMo (collections/llm/gpt/model/,
lightning/io/state.py; Falcon: scripts/checkpoint_converters/), TensorRT-LLM (hf_lora_convert.py).
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from adaptertools.adapter.families import Family, families
from adaptertools.adapter.family import Module, Spot
from adaptertools.patterns.rows import compile_rows

FAMILIES = {family.id: family for family in families()}
HEADS, KV, DIM, INTER = 8, 2, 16, 24
SIZES = {"heads": HEADS, "kv_heads": KV, "head_dim": DIM, "half": DIM // 2, "inter": INTER}
SIZES |= {"q_per_kv": HEADS // KV, "hidden": HEADS * DIM}
Array = Any


def modules(family: Family) -> Iterator[Module]:
    """Yield the modules that are on disk."""
    yield from (module for module in family.modules if not module.virtual)


def cases(scheme: str) -> list[Any]:
    """Return the (family, module) pairs of a scheme, as test parameters."""
    return [
        pytest.param(family, module, id=f"{family.id}-{module.name}")
        for family in families()
        for module in modules(family)
        if scheme in module.spots
    ]


def tail(name: str) -> str:
    """Return what comes after the index of the layer."""
    return name.partition("{i}.")[2] or name


# --- which families a scheme knows, and by which names -------------------------------------------

KNOWN = {
    "gguf": FAMILIES.keys() - {"vit"},
    "mlx": FAMILIES.keys() - {"vit", "bert", "roberta", "t5", "falcon", "bloom"},
    "meta": {"llama"},
    "torchtune": {"llama", "gemma", "gemma2", "qwen2", "qwen3", "phi3"},
    "litgpt": {"llama", "mixtral", "gemma", "gemma2", "gemma3", "gemma3_text", "qwen2", "qwen3"}
    | {"qwen3_moe", "phi", "phi3", "gpt_neox", "falcon"},
    "litgpt_old": {"llama", "mixtral", "gemma", "gemma2", "qwen2", "phi", "phi3"}
    | {"gpt_neox", "falcon"},
    "nemo": {"llama", "mixtral", "gemma", "gemma2", "gemma3_text", "qwen2", "qwen3", "qwen3_moe"}
    | {"phi3", "starcoder2", "falcon", "gpt_oss"},
    "trtllm": {"llama", "mixtral", "gemma", "gemma2", "gemma3_text", "qwen2", "qwen3", "qwen2_moe"}
    | {"qwen3_moe", "phi", "phi3", "starcoder2", "gpt_oss"},
}


@pytest.mark.parametrize("scheme", KNOWN)
def test_a_scheme_names_modules_of_just_the_families_it_knows(scheme: str) -> None:
    named = {
        family.id
        for family in families()
        if family.schemes.get(scheme, {}).get("from") == "hf"
        or any(scheme in module.spots for module in modules(family))
    }
    assert named == KNOWN[scheme]


def in_layer(prefix: str, table: dict[str, str], fused: dict[str, tuple[str, str]]) -> Any:
    """Return the spots that a table of names says, by the tail of the name on disk."""
    spots = {name: Spot(prefix + text) for name, text in table.items()}
    return spots | {name: Spot(prefix + text, part) for name, (text, part) in fused.items()}


META = in_layer(
    "layers.{i}.",
    {
        "self_attn.q_proj": "attention.wq",
        "self_attn.k_proj": "attention.wk",
        "self_attn.v_proj": "attention.wv",
        "self_attn.o_proj": "attention.wo",
        "mlp.gate_proj": "feed_forward.w1",
        "mlp.up_proj": "feed_forward.w3",
        "mlp.down_proj": "feed_forward.w2",
        "input_layernorm": "attention_norm",
        "post_attention_layernorm": "ffn_norm",
    },
    {},
)
META |= {"model.embed_tokens": Spot("tok_embeddings"), "model.norm": Spot("norm")}
META |= {"lm_head": Spot("output")}
TORCHTUNE = in_layer(
    "layers.{i}.",
    {
        "self_attn.q_proj": "attn.q_proj",
        "self_attn.k_proj": "attn.k_proj",
        "self_attn.v_proj": "attn.v_proj",
        "self_attn.o_proj": "attn.output_proj",
        "mlp.gate_proj": "mlp.w1",
        "mlp.up_proj": "mlp.w3",
        "mlp.down_proj": "mlp.w2",
    },
    {},
) | {"lm_head": Spot("output")}
LITGPT = in_layer(
    "transformer.h.{i}.",
    {
        "self_attn.qkv_proj": "attn.qkv",
        "attention.query_key_value": "attn.qkv",
        "self_attention.query_key_value": "attn.qkv",
        "self_attn.o_proj": "attn.proj",
        "self_attn.dense": "attn.proj",
        "attention.dense": "attn.proj",
        "self_attention.dense": "attn.proj",
        "mlp.gate_proj": "mlp.fc_1",
        "mlp.up_proj": "mlp.fc_2",
        "mlp.down_proj": "mlp.proj",
        "mlp.fc1": "mlp.fc",
        "mlp.fc2": "mlp.proj",
        "mlp.dense_h_to_4h": "mlp.fc",
        "mlp.dense_4h_to_h": "mlp.proj",
        "mlp.gate": "mlp.gate",
        "mlp.experts.{e}.gate_proj": "mlp.experts.{e}.fc_1",
        "mlp.experts.{e}.up_proj": "mlp.experts.{e}.fc_2",
        "mlp.experts.{e}.down_proj": "mlp.experts.{e}.proj",
        "block_sparse_moe.gate": "mlp.gate",
        "block_sparse_moe.experts.{e}.w1": "mlp.experts.{e}.fc_1",
        "block_sparse_moe.experts.{e}.w3": "mlp.experts.{e}.fc_2",
        "block_sparse_moe.experts.{e}.w2": "mlp.experts.{e}.proj",
    },
    {f"self_attn.{part}_proj": ("attn.qkv", part) for part in "qkv"},
)
LITGPT |= dict.fromkeys(("lm_head", "language_model.lm_head", "embed_out"), Spot("lm_head"))
LITGPT_OLD = {
    name: Spot(spot.name.replace("attn.qkv", "attn.attn"), spot.part)
    for name, spot in LITGPT.items()
}
NEMO = in_layer(
    "decoder.layers.{i}.",
    {
        "self_attn.qkv_proj": "self_attention.linear_qkv",
        "self_attention.query_key_value": "self_attention.linear_qkv",
        "self_attn.o_proj": "self_attention.linear_proj",
        "self_attention.dense": "self_attention.linear_proj",
        "mlp.gate_up_proj": "mlp.linear_fc1",
        "mlp.c_fc": "mlp.linear_fc1",
        "mlp.dense_h_to_4h": "mlp.linear_fc1",
        "mlp.down_proj": "mlp.linear_fc2",
        "mlp.c_proj": "mlp.linear_fc2",
        "mlp.dense_4h_to_h": "mlp.linear_fc2",
    },
    {
        **{f"self_attn.{part}_proj": ("self_attention.linear_qkv", part) for part in "qkv"},
        **{f"mlp.{part}_proj": ("mlp.linear_fc1", part) for part in ("gate", "up")},
    },
)
TRTLLM = {
    "q_proj": "attn_q",
    "k_proj": "attn_k",
    "v_proj": "attn_v",
    "qkv_proj": "attn_qkv",
    "o_proj": "attn_dense",
    "dense": "attn_dense",
    "gate_proj": "mlp_h_to_4h",
    "up_proj": "mlp_gate",
    "down_proj": "mlp_4h_to_h",
    "gate_up_proj": "mlp_h_to_4h",
    "c_fc": "mlp_h_to_4h",
    "c_proj": "mlp_4h_to_h",
    "w1": "moe_h_to_4h",
    "w2": "moe_4h_to_h",
    "w3": "moe_gate",
    "gate": "moe_router",
}
TABLES = {"meta": META, "torchtune": TORCHTUNE, "litgpt": LITGPT, "litgpt_old": LITGPT_OLD}
TABLES["nemo"] = NEMO
# Heads that are the embedding, of which the tool has no parameter; modules that it keeps in two
# tensors; mixtures of experts, whose dense layers LitGPT and NeMo do not have.
UNNAMED = {
    ("torchtune", "gemma", "lm_head"),
    ("torchtune", "gemma2", "lm_head"),
    *(("litgpt", "qwen3_moe", f"mlp.{part}_proj") for part in ("gate", "up", "down")),
    *(("nemo", "qwen3_moe", f"mlp.{part}_proj") for part in ("gate", "up", "down")),
}


@pytest.mark.parametrize("scheme", TABLES)
def test_names_are_those_of_the_converters(scheme: str) -> None:
    for family in map(FAMILIES.__getitem__, sorted(KNOWN[scheme])):
        for module in modules(family):
            wanted = TABLES[scheme].get(tail(module.name))
            if (scheme, family.id, tail(module.name)) in UNNAMED:
                wanted = None
            assert module.spots.get(scheme) == wanted, (family.id, module.name)


def test_names_of_tensorrt_are_those_of_its_converter() -> None:
    layer = re.compile(r".*\.layers\.\{i\}\.(?:self_attn|mlp)\.([a-z_]+)")
    experts = re.compile(
        r".*\.layers\.\{i\}\.block_sparse_moe\.(?:experts\.\{e\}\.|)([a-zA-Z0-9_]+)"
    )
    for family in map(FAMILIES.__getitem__, sorted(KNOWN["trtllm"])):
        for module in modules(family):
            match = layer.fullmatch(module.name) or experts.fullmatch(module.name)
            name = TRTLLM.get(match[1]) if match else None
            stack = "e" if "{e}" in module.name else None
            wanted = Spot(f"layers.{{i}}.{name}", stack=stack) if name else None
            assert module.spots.get("trtllm") == wanted, (family.id, module.name)


def mlx_name(family: str, name: str) -> Spot | None:
    """Rename as `sanitize` of the family's model does; None where the name is kept."""
    if family == "gpt2":  # the checkpoints that it reads lack the prefix
        return (
            None if name in ("lm_head", "score") else Spot(f"model.{name[len('transformer.') :]}")
        )
    if family == "gpt_neox":
        name = f"model.{name}".replace(".gpt_neox.layers.", ".h.").replace(".gpt_neox.", ".")
        return None if name.endswith("score") else Spot(name)
    parts = {"w1": "gate_proj", "w2": "down_proj", "w3": "up_proj"}
    block, experts, part = name.partition(".experts.{e}.")
    return Spot(f"{block}.switch_mlp.{parts.get(part, part)}", stack="e") if experts else None


def test_names_of_mlx_are_those_of_its_models() -> None:
    for family in map(FAMILIES.__getitem__, sorted(KNOWN["mlx"])):
        from_hf = family.schemes.get("mlx", {}).get("from") == "hf"
        assert from_hf == (family.id not in ("gpt2", "gpt_neox"))
        for module in modules(family):
            assert module.spots.get("mlx") == mlx_name(family.id, module.name), module.name


# Two modules by one name: no model has both.
EITHER = {
    ("t5", "gguf", "enc.blk.{i}.ffn_up"),  # wi, or wi_1 where the model is gated
    ("t5", "gguf", "dec.blk.{j}.ffn_up"),
    ("falcon", "gguf", "blk.{i}.attn_norm"),  # input_layernorm, or ln_mlp with two norms
}


def test_a_name_is_one_module_unless_parts_of_it_are() -> None:
    for family in families():
        spots = [(s, spot) for module in modules(family) for s, spot in module.spots.items()]
        doubled = {(family.id, s, spot.name) for (s, spot), n in Counter(spots).items() if n > 1}
        assert doubled == {case for case in EITHER if case[0] == family.id}
        for scheme, spot in spots:
            parts = {other.part for s, other in spots if (s, other.name) == (scheme, spot.name)}
            if spot.part:
                assert parts == set(compile_rows(family.fused[scheme, spot.name].out).parts)


# --- gguf names ----------------------------------------------------------------------------------


def renamed_by_llama_cpp(family: str, name: str) -> str:
    """Rename as the converter's class does before it asks gguf-py."""
    name = name.removeprefix(
        {"bert": "bert.", "roberta": "roberta.", "bloom": "transformer."}.get(family, "")
    )
    if family == "gemma3":
        return name.removeprefix("language_model.")
    if family == "mixtral":
        mixtral = r"model\.layers\.(\d+)\.block_sparse_moe\.experts\.\d+\.(w\d)"
        return re.sub(mixtral, r"layers.\1.feed_forward.experts.\2", name)
    return re.sub(r"\.mlp\.experts\.\d+\.", ".mlp.experts.", name)


# gguf-py knows them, but the file does not hold them, or not as they are.
NOT_IN_GGUF = {
    ("bert", "classifier"): "`cls` or `cls.output`, by the labels in the config",
    ("roberta", "classifier"): "of token classification: not supported",
    ("roberta", "roberta.embeddings.position_embeddings"): "the first rows are cut off",
    ("gpt_oss", "model.layers.{i}.mlp.experts.down_proj"): "stored `in out` on disk, `out in` here",
}


@pytest.mark.peer
@pytest.mark.parametrize("family", FAMILIES.values(), ids=lambda family: family.id)
def test_gguf_names_are_those_of_gguf_py(family: Family) -> None:
    gguf = pytest.importorskip("gguf")
    architectures = {name: arch for arch, name in gguf.MODEL_ARCH_NAMES.items()}
    table = family.schemes.get("gguf", {}).get("architecture", {})
    assert set(table) == (set(family.model_types) if family.id in KNOWN["gguf"] else set())
    for architecture in table.values():
        names = gguf.get_tensor_name_map(architectures[architecture], 3)
        for module in modules(family):
            fields = {"i": 1, "j": 1, "e": 2, "v": 1}
            on_disk = renamed_by_llama_cpp(family.id, module.name.format(**fields))
            wanted = names.get_name(on_disk, try_suffixes=(".weight",))
            spot = module.spots.get("gguf")
            if (family.id, module.name) in NOT_IN_GGUF:
                assert spot is None and wanted is not None, module.name
            else:
                assert (spot and spot.name.format(**fields)) == wanted, module.name


@pytest.mark.parametrize(("family", "module"), cases("gguf"))
def test_experts_are_stacked_in_gguf(family: Family, module: Module) -> None:
    assert module.spots["gguf"].stack == ("e" if "{e}" in module.name else None)


# --- row orders ----------------------------------------------------------------------------------


def stored_index(
    family: str, hf: str, scheme: str, sizes: dict[str, int] = SIZES
) -> tuple[Array, int]:
    """Return where the canonical rows lie in the scheme's tensor, and how many that has."""
    found = FAMILIES[family]
    module = next(module for module in modules(found) if tail(module.name) == hf)
    spot, canonical = module.spots[scheme], compile_rows(module.out)
    rows = compile_rows(module.outs.get(scheme, module.out))
    if spot.part:
        rows = compile_rows(found.fused[scheme, spot.name].out)
    total = rows.size(sizes)
    return np.arange(total)[rows.positions(spot.part or "", canonical, sizes)], total


def rows_of(count: int, start: int = 0) -> Array:
    """Return a weight of which no two rows or columns are the same."""
    return np.arange(count)[:, None] * 1000 + start + np.arange(3)


def permute(weights: Array, n_head: int, n_head_kv: int | None) -> Array:
    """LlamaModel.permute of llama.cpp, conversion/llama.py."""
    if n_head_kv is not None and n_head != n_head_kv:
        n_head = n_head_kv
    return (
        weights.reshape(n_head, 2, weights.shape[0] // n_head // 2, *weights.shape[1:])
        .swapaxes(1, 2)
        .reshape(weights.shape)
    )


def tune_permute(t: Array, n_heads: int, head_dim: int) -> Array:
    """`_permute` of torchtune's hf_to_tune and gemma2_hf_to_tune."""
    dim = t.shape[1]
    turned = t.reshape(n_heads, 2, head_dim // 2, dim).swapaxes(1, 2)
    return turned.reshape(head_dim * n_heads, dim)


def meta_rows(weights: Array, n_heads: int) -> Array:
    """Lay the two halves of each head one row after another, row by row."""
    stored = np.empty_like(weights)
    for head in range(n_heads):
        for pair in range(DIM // 2):
            for half in range(2):
                old = head * DIM + half * (DIM // 2) + pair
                stored[head * DIM + 2 * pair + half] = weights[old]
    return stored


REORDERED = [
    *(("gguf", f, "q", lambda w: permute(w, HEADS, HEADS)) for f in ("llama", "mixtral")),
    *(("gguf", f, "k", lambda w: permute(w, HEADS, KV)) for f in ("llama", "mixtral")),
    *(
        ("torchtune", f, part, lambda w, n=heads: tune_permute(w, n, DIM))
        for f in ("llama", "gemma", "gemma2")
        for part, heads in (("q", HEADS), ("k", KV))
    ),
    ("meta", "llama", "q", lambda w: meta_rows(w, HEADS)),
    ("meta", "llama", "k", lambda w: meta_rows(w, KV)),
]


@pytest.mark.parametrize(("scheme", "family", "part", "convert"), REORDERED)
def test_the_halves_of_a_head_are_woven(
    scheme: str, family: str, part: str, convert: Callable[[Array], Array]
) -> None:
    weight = rows_of({"q": HEADS, "k": KV}[part] * DIM)
    index, total = stored_index(family, f"self_attn.{part}_proj", scheme)
    stored = convert(weight)
    assert total == len(weight) and np.array_equal(stored[index], weight)
    assert not np.array_equal(stored, weight)


def test_no_other_module_is_reordered() -> None:
    reordered = {(scheme, f, f"self_attn.{part}_proj") for scheme, f, part, _ in REORDERED}
    reordered |= {
        ("gguf", "gpt_neox", "attention.query_key_value"),
        ("gguf", "bloom", "self_attention.query_key_value"),
        ("gguf", "falcon", "self_attention.query_key_value"),
        ("litgpt", "gpt_neox", "attention.query_key_value"),
        ("litgpt", "falcon", "self_attention.query_key_value"),
        ("litgpt_old", "phi3", "self_attn.qkv_proj"),
        ("nemo", "phi3", "self_attn.qkv_proj"),
        ("trtllm", "phi3", "mlp.gate_up_proj"),
    }
    told = {
        (scheme, family.id, tail(module.name))
        for family in families()
        for module in modules(family)
        for axis in (module.outs, module.ins)
        for scheme in axis.keys() - {"hf"}
    }
    assert told == reordered


def by_group(q: Array, k: Array, v: Array, kv: int) -> Array:
    """TransformFns.merge_qkv of NeMo, the layout of Megatron and of LitGPT before 0.5.5."""
    blocks = []
    for group in range(kv):
        wide = len(q) // kv
        blocks.append(q[group * wide : (group + 1) * wide])
        blocks.append(k[group * DIM : (group + 1) * DIM])
        blocks.append(v[group * DIM : (group + 1) * DIM])
    return np.concatenate(blocks)


def qkv(kv: int) -> tuple[Array, Array, Array]:
    return rows_of(HEADS * DIM), rows_of(kv * DIM, 100), rows_of(kv * DIM, 200)


FUSING: dict[str, Callable[..., Array]] = {
    "nemo": by_group,
    "litgpt_old": by_group,
    "litgpt": lambda q, k, v, kv: np.concatenate((q, k, v)),
}


@pytest.mark.parametrize("scheme", FUSING)
def test_parts_lie_in_the_fused_tensor_as_the_tool_puts_them(scheme: str) -> None:
    weights = dict(zip("qkv", qkv(KV), strict=True))
    stored = FUSING[scheme](*weights.values(), KV)
    met = 0
    for family in sorted(KNOWN[scheme]):
        if all(tail(m.name) != "self_attn.q_proj" for m in modules(FAMILIES[family])):
            continue
        for part, weight in weights.items():
            index, total = stored_index(family, f"self_attn.{part}_proj", scheme)
            assert total == len(stored) and np.array_equal(stored[index], weight)
            met += 1
    assert met >= 18


def test_gate_and_up_lie_one_after_another_in_nemo() -> None:
    gate, up = rows_of(INTER), rows_of(INTER, 100)
    stored = np.concatenate((gate, up))
    for family in ("llama", "gemma", "gemma2", "gemma3_text", "qwen2", "qwen3"):
        for part, weight in (("gate", gate), ("up", up)):
            index, total = stored_index(family, f"mlp.{part}_proj", "nemo")
            assert total == len(stored) and np.array_equal(stored[index], weight)


def test_an_old_litgpt_adapter_with_some_parts_has_them_one_after_another() -> None:
    for family in map(FAMILIES.__getitem__, sorted(KNOWN["litgpt_old"])):
        kv = HEADS if family.id == "gpt_neox" else KV
        fused = family.fused["litgpt_old", "transformer.h.{i}.attn.attn"]
        assert fused.partial is not None
        weights = dict(zip("qkv", qkv(kv), strict=True))
        stored = np.concatenate(tuple(weights.values()))
        for part, weight in weights.items():
            found = compile_rows(fused.partial).positions(part, compile_rows(fused.out), SIZES)
            assert np.array_equal(stored[found], weight), (family.id, part)


def split_by_head(weight: Array, n_head: int) -> Array:
    """GPTNeoXModel and BloomModel of llama.cpp: (heads, 3, head_dim) → [Q | K | V]."""
    spread = weight.reshape((n_head, 3, DIM, -1))
    return np.concatenate([spread[:, n].reshape((n_head * DIM, -1)) for n in range(3)])


def split_by_group(weight: Array, n_head: int, n_head_kv: int) -> Array:
    """FalconModel of llama.cpp; qkv_reassemble of LitGPT does the same."""
    spread = weight.reshape(n_head_kv, n_head // n_head_kv + 2, DIM, -1)
    q, k, v = spread[:, :-2], spread[:, [-2]], spread[:, [-1]]
    return np.concatenate([part.reshape(-1, weight.shape[1]) for part in (q, k, v)])


@pytest.mark.parametrize(
    ("family", "scheme"),
    [("gpt_neox", "gguf"), ("bloom", "gguf"), ("gpt_neox", "litgpt")],
)
def test_a_tensor_fused_by_head_is_split_into_thirds(family: str, scheme: str) -> None:
    hf = {"gpt_neox": "attention", "bloom": "self_attention"}[family] + ".query_key_value"
    weight = rows_of(3 * HEADS * DIM)
    index, total = stored_index(family, hf, scheme)
    assert total == len(weight)
    assert np.array_equal(split_by_head(weight, HEADS)[index], weight)


@pytest.mark.parametrize("kv", [1, KV, HEADS])
@pytest.mark.parametrize("scheme", ["gguf", "litgpt"])
def test_falcon_is_split_by_group(scheme: str, kv: int) -> None:
    sizes = {**SIZES, "kv_heads": kv, "q_per_kv": HEADS // kv}
    weight = rows_of((HEADS + 2 * kv) * DIM)
    index, total = stored_index("falcon", "self_attention.query_key_value", scheme, sizes)
    assert total == len(weight)
    assert np.array_equal(split_by_group(weight, HEADS, kv)[index], weight)


@pytest.mark.parametrize("scheme", ["nemo", "litgpt_old", "litgpt", "gguf", "trtllm"])
def test_phi3_is_fused_anew(scheme: str) -> None:
    q, k, v = qkv(KV)
    weight = np.concatenate((q, k, v))
    stored = FUSING.get(scheme, FUSING["litgpt"])(q, k, v, KV)
    index, _ = stored_index("phi3", "self_attn.qkv_proj", scheme)
    assert np.array_equal(stored[index], weight)


def test_tensorrt_swaps_gate_and_up_of_phi3() -> None:
    weight = rows_of(2 * INTER)
    half = weight.shape[0] // 2
    stored = np.concatenate((weight[half:, :], weight[:half, :]))
    index, _ = stored_index("phi3", "mlp.gate_up_proj", "trtllm")
    assert np.array_equal(stored[index], weight)


@pytest.mark.parametrize("scheme", ["litgpt", "litgpt_old"])
def test_the_parts_of_a_whole_lie_as_the_whole_does(scheme: str) -> None:
    """LitGPT adapts the parts of what may be one module on disk: both entries agree."""
    name = {"litgpt": "transformer.h.{i}.attn.qkv", "litgpt_old": "transformer.h.{i}.attn.attn"}
    met = set()
    for family in map(FAMILIES.__getitem__, sorted(KNOWN[scheme])):
        for module in modules(family):
            if module.spots.get(scheme) == Spot(name[scheme]):
                fused = family.fused[scheme, name[scheme]]
                assert fused.out == module.outs.get(scheme, module.out)
                met.add(family.id)
    assert met == {"gpt_neox", "falcon", "phi3"}


# --- the fused tensors of transformers -----------------------------------------------------------


def canonical_parts(family: str, hf: str, sizes: dict[str, int]) -> dict[str, Array]:
    """Return the rows of each part of a module that is fused on disk."""
    module = next(m for m in modules(FAMILIES[family]) if tail(m.name) == hf)
    rows = compile_rows(module.out)
    every = np.arange(rows.size(sizes))
    return {part: every[rows.positions(part, rows, sizes)] for part in rows.parts}


@pytest.mark.peer
@pytest.mark.parametrize(("kv", "flag"), [(1, "multi"), (KV, "new"), (HEADS, "neither")])
def test_falcon_is_fused_on_disk_as_transformers_splits_it(kv: int, flag: str) -> None:
    torch = pytest.importorskip("torch")
    falcon = pytest.importorskip("transformers.models.falcon.modeling_falcon")
    flags = {"new_decoder_architecture": flag == "new", "multi_query": flag == "multi"}
    layer = SimpleNamespace(num_heads=HEADS, num_kv_heads=kv, head_dim=DIM, **flags)
    rows = torch.arange((HEADS + 2 * kv) * DIM)[None, None]
    split = falcon.FalconAttention._split_heads(layer, rows)
    sizes = {**SIZES, "kv_heads": kv, "q_per_kv": HEADS // kv}
    parts = canonical_parts("falcon", "self_attention.query_key_value", sizes)
    for part, found in zip("qkv", split, strict=True):
        found = found[0, 0]  # with keys and values repeated for the heads of a group
        step = 1 if part == "q" else len(found) // kv
        assert np.array_equal(parts[part], found[::step].reshape(-1).numpy())


@pytest.mark.peer
def test_bloom_and_neox_are_fused_on_disk_as_transformers_splits_them() -> None:
    torch = pytest.importorskip("torch")
    bloom = pytest.importorskip("transformers.models.bloom.modeling_bloom")
    rows = torch.arange(3 * HEADS * DIM)[None, None]
    layer = SimpleNamespace(num_heads=HEADS, head_dim=DIM)
    split = bloom.BloomAttention._reshape(layer, rows)
    neox = rows.view(1, 1, -1, 3 * DIM).transpose(1, 2).chunk(3, dim=-1)  # GPTNeoXAttention.forward
    for family, hf, found in (
        ("bloom", "self_attention.query_key_value", split),
        ("gpt_neox", "attention.query_key_value", neox),
    ):
        parts = canonical_parts(family, hf, SIZES)
        for part, tensor in zip("qkv", found, strict=True):
            assert np.array_equal(parts[part], tensor.reshape(-1).numpy()), (family, part)
