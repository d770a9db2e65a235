"""The family specs and their look-ups, by themselves (test_family_models.py has the models)."""

from __future__ import annotations

import time
from collections.abc import Mapping
from itertools import product
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from adaptertools import schemas
from adaptertools.adapter.families import (
    Expected,
    Family,
    Piece,
    check_family,
    detect_family,
    families,
    load_family,
)
from adaptertools.errors import SpecError

FILES = sorted((schemas.root() / "families").glob("*.toml"))
LLAMA_70B = {
    "model_type": "llama",
    "vocab_size": 128256,
    "hidden_size": 8192,
    "intermediate_size": 28672,
    "num_hidden_layers": 80,
    "num_attention_heads": 64,
    "num_key_value_heads": 8,
}
MIXTRAL = {**LLAMA_70B, "model_type": "mixtral", "num_local_experts": 8, "num_hidden_layers": 32}


def family_of(config: Mapping[str, Any]) -> Family:
    family = detect_family(config)
    assert family is not None
    return family


def test_the_schema_is_a_schema() -> None:
    jsonschema.Draft202012Validator.check_schema(schemas.json_schema("family"))


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_every_family_keeps_to_the_schema_and_is_called_like_its_file(path: Path) -> None:
    assert check_family(path).id == path.stem


def test_no_two_families_claim_a_model_type() -> None:
    claimed = [model_type for family in families() for model_type in family.model_types]
    assert len(claimed) == len(set(claimed))
    assert [family.id for family in families()] == [path.stem for path in FILES]


def test_detection_goes_by_the_model_type_then_by_the_text_model() -> None:
    for family in families():
        for model_type in family.model_types:
            assert detect_family({"model_type": model_type}) is family
    nested = {"model_type": "llava", "text_config": {"model_type": "llama"}}
    assert family_of(nested).id == "llama"
    both = {"model_type": "gemma3", "text_config": {"model_type": "gemma3_text"}}
    assert family_of(both).id == "gemma3"
    for unknown in ({}, {"model_type": "num_heads"}, {"model_type": 3}, {"text_config": [1]}):
        assert detect_family(unknown) is None


def test_sizes_follow_the_fallbacks_and_skip_what_is_missing() -> None:
    sizes = family_of(LLAMA_70B).sizes(LLAMA_70B)
    assert (sizes["head_dim"], sizes["kv_heads"], sizes["i"]) == (128, 8, 80)
    old = {"hidden_size": 64, "num_attention_heads": 8, "num_key_value_heads": None}
    sizes = family_of(LLAMA_70B).sizes(old)
    assert (sizes.pop("half"), sizes.pop("q_per_kv")) == (4, 1)
    assert sizes == {"hidden": 64, "heads": 8, "kv_heads": 8, "head_dim": 8}
    hostile = {"hidden_size": "64", "num_attention_heads": True, "intermediate_size": -1}
    assert family_of(LLAMA_70B).sizes(hostile) == {}


def test_sizes_of_a_sparse_nested_config_are_the_class_defaults() -> None:
    """The config.json of google/gemma-3-4b-it leaves out whatever is the class's default."""
    text = {"model_type": "gemma3_text", "hidden_size": 2560, "intermediate_size": 10240}
    vision = {"hidden_size": 1152, "image_size": 896, "patch_size": 14, "num_hidden_layers": 27}
    config = {"model_type": "gemma3", "text_config": text, "vision_config": vision}
    family = family_of(config)
    sizes = family.sizes({**config, "hidden_size": 1})
    assert (sizes["hidden"], sizes["head_dim"], sizes["kv_heads"]) == (2560, 256, 4)
    name = "language_model.model.layers.33.self_attn.k_proj"
    assert family.expected(name, sizes) == Expected("linear", "out in", 1024, 2560)
    assert sizes["patches"] == 4096 and sizes["v"] == 27


def test_expected_names_layout_and_sizes() -> None:
    family = family_of(LLAMA_70B)
    sizes = family.sizes(LLAMA_70B)
    key = "model.layers.79.self_attn.k_proj"
    assert family.expected(key, sizes) == Expected("linear", "out in", 1024, 8192)
    assert family.expected("lm_head", sizes) == Expected("linear", "out in", 128256, 8192)
    assert family.expected("lm_head.weight", sizes) == family.expected("lm_head", sizes)
    embed = Expected("embedding", "in out", 8192, 128256)
    assert family.expected("model.embed_tokens", sizes) == embed
    assert family.expected("model.norm", {}) == Expected("norm", "out", None, None)
    for absent in (
        "model.layers.80.self_attn.k_proj",
        "model.layers.x.self_attn.k_proj",
        "model.layers.0.self_attn.qkv_proj",
        "model.layers.0.self_attn",
        "lm_head.bias",
        "",
    ):
        assert family.expected(absent, sizes) is None


def test_a_bare_model_and_a_nested_one_are_the_same_modules() -> None:
    family = family_of(LLAMA_70B)
    sizes = family.sizes(LLAMA_70B)
    wanted = family.expected("model.layers.3.mlp.up_proj", sizes)
    for root in ("", "language_model.model.", "model.language_model."):
        assert family.expected(f"{root}layers.3.mlp.up_proj", sizes) == wanted
    gpt2 = family_of({"model_type": "gpt2"})
    sizes = gpt2.sizes({"n_embd": 768, "n_layer": 12, "n_head": 12, "n_inner": None})
    wanted = Expected("conv1d", "in out", 3072, 768)
    assert gpt2.expected("h.11.mlp.c_fc", sizes) == wanted
    assert gpt2.expected("transformer.h.11.mlp.c_fc", sizes) == wanted


def test_pieces_of_a_fused_expert_parameter_and_back() -> None:
    family = family_of(MIXTRAL)
    sizes = family.sizes(MIXTRAL)
    on_disk = "model.layers.3.block_sparse_moe.experts"
    fused = "model.layers.3.mlp.experts"
    pieces = family.pieces(f"{fused}.gate_up_proj", sizes)
    assert len(pieces) == 16
    assert pieces[:2] == (
        Piece(f"{on_disk}.0.w1.weight", 0, (0, 28672)),
        Piece(f"{on_disk}.0.w3.weight", 0, (28672, 57344)),
    )
    down = family.pieces(f"{fused}.down_proj", sizes)
    assert down[7] == Piece(f"{on_disk}.7.w2.weight", 7, (0, 8192))
    for name, found in (("gate_up_proj", pieces), ("down_proj", down)):
        for piece in found:
            back = Piece(f"{fused}.{name}", piece.index, piece.rows)
            assert family.placed_in(piece.tensor, sizes) == back
    bare = family.pieces("layers.3.mlp.experts.down_proj", sizes)
    assert bare[0].tensor == "layers.3.block_sparse_moe.experts.0.w2.weight"


def test_pieces_of_a_renamed_module_and_of_one_that_is_not() -> None:
    family = family_of(MIXTRAL)
    sizes = family.sizes(MIXTRAL)
    old, new = "model.layers.0.block_sparse_moe.gate", "model.layers.0.mlp.gate"
    for tail in (".weight", ".bias", ""):
        assert family.pieces(new + tail, sizes) == (Piece(old + tail),)
        assert family.placed_in(old + tail, sizes) == Piece(new + tail)
        assert family.pieces(old + tail, sizes) == ()
        assert family.placed_in(new + tail, sizes) is None
    same = "model.layers.0.self_attn.q_proj.weight"
    assert family.pieces(same, sizes) == () and family.placed_in(same, sizes) is None
    expert_bias = "model.layers.0.block_sparse_moe.experts.0.w1.bias"
    assert family.placed_in(expert_bias, sizes) is None


def test_pieces_say_which_config_field_is_missing() -> None:
    family = family_of(MIXTRAL)
    with pytest.raises(SpecError, match="'e'") as caught:
        family.pieces("model.layers.0.mlp.experts.down_proj", {"hidden": 8})
    assert caught.value.code == "AT294" and "num_local_experts" in caught.value.hint
    with pytest.raises(SpecError, match="'inter'"):
        family.placed_in("model.layers.0.block_sparse_moe.experts.0.w1.weight", {})


def test_ties_go_by_the_config_then_by_the_family() -> None:
    gemma, llama = family_of({"model_type": "gemma"}), family_of(LLAMA_70B)
    assert gemma.is_tied({}) and not llama.is_tied({})
    assert llama.is_tied({"tie_word_embeddings": True})
    assert not gemma.is_tied({"text_config": {"tie_word_embeddings": False}})
    top = {"tie_word_embeddings": True, "text_config": {"tie_word_embeddings": False}}
    assert llama.is_tied(top)
    assert not llama.is_tied({"tie_word_embeddings": None})


SPEC = """
schema = 1
id = "x"
title = "X"
roots = [["model.", ""]]
[detect]
model_type = ["x"]
[sizes]
hidden = "hidden_size"
[counts]
i = "num_layers"
[[module]]
hf = "model.layers.{i}.q"
out = "hidden"
in = "hidden"
"""


@pytest.mark.parametrize(
    ("old", "new", "why"),
    [
        ('out = "hidden"', 'out = "inter"', "inter"),
        ('out = "hidden"', 'out = "hidden hidden2"', "follows the end"),
        ('out = "hidden"', 'out = "hidden)"', "follows the end"),
        ('out = "hidden"', "out = 3", "malformed"),
        ('out = "hidden"', 'out = { meta = "hidden" }', "malformed"),
        ('id = "x"', "", "malformed"),
        ("{i}", "{i}{i}", "redefinition"),
        ("{i}", "{j}", "counts"),
        ("[[module]]", '[[module]]\nkind = "matrix"', "malformed"),
        ("[[module]]", '[[module]]\nv5 = { in = "model.x", part = "a" }', "no fused"),
        ("[[module]]", '[[module]]\nhf = "model.q"\nout = "1"\n[[module]]', None),
        ('model_type = ["x"]', "model_type = [1]", "malformed"),
        ("[detect]", "[detect]\nmodel = 1", None),
    ],
)
def test_a_malformed_spec_is_refused(tmp_path: Path, old: str, new: str, why: str | None) -> None:
    path = tmp_path / "x.toml"
    path.write_text(SPEC.replace(old, new, 1))
    with pytest.raises(SpecError) as caught:
        check_family(path)
    assert caught.value.code == "AT294" and caught.value.where.file == str(path)
    if why is not None:
        with pytest.raises(SpecError, match=why) as caught:
            load_family(path).expected("model.layers.0.q", {})
        assert caught.value.code == "AT294"


def test_unreadable_and_doubled_specs_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.toml"
    path.write_text(SPEC.replace("[[module]]", "[module"))
    with pytest.raises(SpecError, match="line"):
        load_family(path)
    entry = SPEC[SPEC.index("[[module]]") :]
    path = tmp_path / "y.toml"
    path.write_text(SPEC + entry)
    with pytest.raises(SpecError, match="there twice"):
        load_family(path)


def test_look_ups_are_quick() -> None:
    """Loose bounds, some twenty times what an idle machine needs."""
    start = time.perf_counter()
    for path in FILES:
        load_family.__wrapped__(path)
    family = family_of(LLAMA_70B)
    sizes = family.sizes(LLAMA_70B)
    for i, part in product(range(80), ("self_attn.q_proj", "mlp.up_proj", "input_layernorm")):
        assert family.expected(f"model.layers.{i}.{part}", sizes)
    assert time.perf_counter() - start < 0.5
