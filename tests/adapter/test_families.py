"""The family specs: by themselves, and against tiny models that transformers itself writes."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
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
from adaptertools.patterns.template import compile_template

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


# --- the specs by themselves --------------------------------------------------------------------


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
    embed = Expected("embedding", "in out", 8192, 128256)
    assert family.expected("model.embed_tokens", sizes) == embed
    assert family.expected("model.norm", {}) == Expected("norm", "out", None, None)
    for absent in (
        "model.layers.80.self_attn.k_proj",
        "model.layers.x.self_attn.k_proj",
        "model.layers.0.self_attn.qkv_proj",
        "model.layers.0.self_attn",
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
roots = ["model.", ""]
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
        ('out = "hidden"', 'out = "hidden hidden2"', "one axis|twice|sizes"),
        ('out = "hidden"', 'out = "hidden)"', "unexpected"),
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


# --- against transformers -----------------------------------------------------------------------

TOKENS = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
PLAIN: dict[str, Any] = {
    **TOKENS,
    "vocab_size": 50,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 8,
    "max_position_embeddings": 40,
}
DECODER = {**PLAIN, "num_key_value_heads": 2, "head_dim": 16}
MOE = {**DECODER, "num_experts": 4, "moe_intermediate_size": 48, "mlp_only_layers": [0]}
QWEN2_MOE = {**MOE, "shared_expert_intermediate_size": 80}
EXPERTS = {**DECODER, "num_local_experts": 4, "num_experts_per_tok": 2}
BERT = {**PLAIN, "type_vocab_size": 3}
UNTIED = {"tie_word_embeddings": False}
TIED = {"tie_word_embeddings": True}
GPT2 = {**TOKENS, "vocab_size": 50, "n_embd": 64, "n_head": 8, "n_layer": 2, "n_positions": 40}
VISION = {
    "hidden_size": 32,
    "intermediate_size": 40,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
    "image_size": 28,
    "patch_size": 7,
    "vision_use_head": False,
}
GEMMA3 = {"text_config": DECODER, "vision_config": VISION, "mm_tokens_per_image": 4}
T5 = {
    **TOKENS,
    "vocab_size": 50,
    "d_model": 64,
    "d_kv": 16,
    "d_ff": 96,
    "num_heads": 8,
    "num_layers": 2,
    "num_decoder_layers": 3,
    "relative_attention_num_buckets": 20,
}
MODELS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "llama": ("LlamaConfig", "LlamaForCausalLM", DECODER),
    "llama-bias": (
        "LlamaConfig",
        "LlamaModel",
        {**DECODER, "attention_bias": True, "mlp_bias": True},
    ),
    "llama-tied": ("LlamaConfig", "LlamaForCausalLM", {**DECODER, **TIED}),
    "llama-cls": ("LlamaConfig", "LlamaForSequenceClassification", DECODER),
    "mistral": ("MistralConfig", "MistralForCausalLM", DECODER),
    "mixtral": ("MixtralConfig", "MixtralForCausalLM", EXPERTS),
    "mixtral-cls": ("MixtralConfig", "MixtralForSequenceClassification", EXPERTS),
    "qwen2": ("Qwen2Config", "Qwen2ForCausalLM", {**PLAIN, "num_key_value_heads": 2}),
    "qwen2-cls": ("Qwen2Config", "Qwen2ForSequenceClassification", PLAIN),
    "qwen3": ("Qwen3Config", "Qwen3ForCausalLM", DECODER),
    "qwen3-cls": ("Qwen3Config", "Qwen3ForSequenceClassification", DECODER),
    "qwen2_moe": ("Qwen2MoeConfig", "Qwen2MoeForCausalLM", QWEN2_MOE),
    "qwen2_moe-cls": ("Qwen2MoeConfig", "Qwen2MoeForSequenceClassification", QWEN2_MOE),
    "qwen3_moe": ("Qwen3MoeConfig", "Qwen3MoeForCausalLM", MOE),
    "gemma": ("GemmaConfig", "GemmaForCausalLM", DECODER),
    "gemma-untied": ("GemmaConfig", "GemmaForCausalLM", {**DECODER, **UNTIED}),
    "gemma-cls": ("GemmaConfig", "GemmaForSequenceClassification", DECODER),
    "gemma2": ("Gemma2Config", "Gemma2ForCausalLM", DECODER),
    "gemma3_text": ("Gemma3TextConfig", "Gemma3ForCausalLM", DECODER),
    "gemma3": ("Gemma3Config", "Gemma3ForConditionalGeneration", GEMMA3),
    "gemma3-untied": (
        "Gemma3Config",
        "Gemma3ForConditionalGeneration",
        {**GEMMA3, **UNTIED, "text_config": {**DECODER, **UNTIED}},
    ),
    "phi3": ("Phi3Config", "Phi3ForCausalLM", DECODER),
    "phi3-cls": ("Phi3Config", "Phi3ForSequenceClassification", DECODER),
    "gpt2": ("GPT2Config", "GPT2LMHeadModel", {**GPT2, "n_inner": 96}),
    "gpt2-bare": ("GPT2Config", "GPT2Model", GPT2),
    "gpt2-untied": ("GPT2Config", "GPT2LMHeadModel", {**GPT2, **UNTIED}),
    "gpt2-cls": ("GPT2Config", "GPT2ForSequenceClassification", GPT2),
    "bert": ("BertConfig", "BertForMaskedLM", BERT),
    "bert-bare": ("BertConfig", "BertModel", BERT),
    "bert-untied": ("BertConfig", "BertForPreTraining", {**BERT, **UNTIED}),
    "bert-cls": ("BertConfig", "BertForSequenceClassification", {**BERT, "num_labels": 3}),
    "bert-qa": ("BertConfig", "BertForQuestionAnswering", BERT),
    "roberta": ("RobertaConfig", "RobertaForMaskedLM", BERT),
    "roberta-bare": ("RobertaConfig", "RobertaModel", BERT),
    "roberta-untied": ("RobertaConfig", "RobertaForMaskedLM", {**BERT, **UNTIED}),
    "roberta-cls": ("RobertaConfig", "RobertaForSequenceClassification", BERT),
    "roberta-token": ("RobertaConfig", "RobertaForTokenClassification", BERT),
    "roberta-qa": ("RobertaConfig", "RobertaForQuestionAnswering", BERT),
    "xlm-roberta": ("XLMRobertaConfig", "XLMRobertaForMaskedLM", BERT),
    "t5": ("T5Config", "T5ForConditionalGeneration", T5),
    "t5-gated": (
        "T5Config",
        "T5ForConditionalGeneration",
        {**T5, "feed_forward_proj": "gated-gelu"},
    ),
    "gpt_oss": ("GptOssConfig", "GptOssForCausalLM", EXPERTS),
    "gpt_oss-cls": ("GptOssConfig", "GptOssForSequenceClassification", EXPERTS),
}
# What transformers 5.23 never writes: T5 heads and copies (it always ties them), which files on the
# Hub do hold.
NEVER_WRITTEN = {"t5": {"lm_head", "encoder.embed_tokens", "decoder.embed_tokens"}}


@dataclass(frozen=True)
class Tiny:
    """One model as transformers wrote it: its family, config, stored tensors, and module tree."""

    family: Family
    config: dict[str, Any]
    disk: dict[str, Any]
    tree: dict[str, Any]
    default_tie: bool

    @property
    def sizes(self) -> dict[str, int]:
        return self.family.sizes(self.config)

    def weights(self) -> Iterator[tuple[str, tuple[int, ...]]]:
        """Yield the module (or bare parameter) and shape of whatever is a weight."""
        for key, tensor in self.disk.items():
            if key.endswith(".weight") and tensor.ndim < 4:
                yield key.removesuffix(".weight"), tuple(tensor.shape)
            elif tensor.ndim in (2, 3):
                yield key, tuple(tensor.shape)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Any:
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers", minversion="5.23")
    from safetensors.torch import load_file

    @cache
    def build(name: str) -> Tiny:
        config_class, model_class, fields = MODELS[name]
        torch.manual_seed(0)
        config = getattr(transformers, config_class)
        model = getattr(transformers, model_class)(config(**fields))
        folder = tmp_path_factory.mktemp(name)
        model.save_pretrained(folder)
        written = json.loads((folder / "config.json").read_text())
        disk = load_file(folder / "model.safetensors")
        tie = bool(config().tie_word_embeddings)
        return Tiny(family_of(written), written, disk, dict(model.named_parameters()), tie)

    return build


def stored_shape(expected: Expected) -> tuple[int | None, ...]:
    sizes = {"out": expected.out, "in": expected.in_, "experts": expected.experts}
    return tuple(sizes[axis] for axis in expected.layout.split())


def entries_for(family: Family, name: str) -> list[str]:
    """Return the on-disk entries that match `name` under any root, without the look-up code."""
    roots = family.roots or ("",)
    spellings = {roots[0] + name[len(root) :] for root in roots if name.startswith(root)} | {name}
    return [
        module.name
        for module in family.modules
        if not module.virtual
        and any(compile_template(module.name).match(text) is not None for text in spellings)
    ]


@pytest.mark.peer
@pytest.mark.parametrize("name", MODELS)
def test_every_stored_weight_is_one_known_module_of_the_right_shape(name: str, tiny: Any) -> None:
    model = tiny(name)
    for module, shape in model.weights():
        assert len(entries_for(model.family, module)) == 1, module
        expected = model.family.expected(module, model.sizes)
        assert expected is not None, module
        wanted = stored_shape(expected)
        assert len(wanted) == len(shape), (module, wanted, shape)
        assert all(w in (None, s) for w, s in zip(wanted, shape, strict=True)), (module, wanted)
        unknown = [s for s in wanted if s is None]
        assert not unknown or module in ("score", "classifier", "classifier.out_proj", "qa_outputs")


@pytest.mark.peer
@pytest.mark.parametrize("name", [n for n in MODELS if "-" not in n or n == "xlm-roberta"])
def test_nothing_is_expected_that_is_not_stored(name: str, tiny: Any) -> None:
    """Every module that is not optional is stored, for each value of its indexes."""
    model = tiny(name)
    for module in model.family.modules:
        if module.optional or module.virtual:
            continue
        template = compile_template(module.name)
        for values in product(*(range(model.sizes[field]) for field in template.fields)):
            key = template.format(dict(zip(template.fields, values, strict=True)))
            assert key in model.disk or f"{key}.weight" in model.disk, key
    for field in {f for m in model.family.modules for f in compile_template(m.name).fields}:
        assert field in model.sizes


@pytest.mark.peer
@pytest.mark.parametrize("family", families(), ids=lambda family: family.id)
def test_every_entry_of_a_family_is_met_in_some_model(family: Family, tiny: Any) -> None:
    models = [tiny(name) for name in MODELS]
    met = {
        entry
        for model in models
        if model.family.id == family.id
        for module, _ in model.weights()
        for entry in entries_for(family, module)
    }
    entries = {module.name for module in family.modules if not module.virtual}
    assert entries - met == NEVER_WRITTEN.get(family.id, set())


@pytest.mark.peer
@pytest.mark.parametrize("name", MODELS)
def test_biases_are_where_the_family_says(name: str, tiny: Any) -> None:
    model = tiny(name)
    raw = schemas.read_toml(Path(model.family.source))
    told = {
        entry.get("hf"): entry.get("bias", False) for entry in raw["module"] + raw.get("fused", [])
    }
    values = {**model.config, **model.config.get("text_config", {})}
    for module, _ in model.weights():
        entry = entries_for(model.family, module)[0]
        bias = told[entry]
        if not isinstance(bias, bool):
            fields = [bias] if isinstance(bias, str) else bias
            bias = bool(next((values[field] for field in fields if field in values), False))
        expected = model.family.expected(module, model.sizes)
        if expected.kind in ("linear", "conv1d"):
            assert bias == (f"{module}.bias" in model.disk), module


@pytest.mark.peer
@pytest.mark.parametrize("name", [n for n in MODELS if "gemma3" not in n or "text" in n])
def test_the_module_tree_is_put_together_from_the_pieces(name: str, tiny: Any) -> None:
    """Rebuild every parameter of transformers' tree from the stored tensors, bit for bit."""
    import torch

    model = tiny(name)
    held = set()
    for parameter, value in model.tree.items():
        pieces = model.family.pieces(parameter, model.sizes)
        if parameter == model.family.tied_head and model.family.is_tied(model.config):
            continue
        if parameter in model.disk:
            assert pieces == () and model.family.placed_in(parameter, model.sizes) is None
            continue
        assert pieces, parameter
        expected = model.family.expected(parameter.removesuffix(".weight"), model.sizes)
        assert stored_shape(expected) == tuple(value.shape)
        rebuilt = torch.full_like(value.detach(), torch.nan)
        for piece in pieces:
            part = rebuilt if piece.index is None else rebuilt[piece.index]
            part = part if piece.rows is None else part[slice(*piece.rows)]
            part.copy_(model.disk[piece.tensor])
            back = model.family.placed_in(piece.tensor, model.sizes)
            assert back == Piece(parameter, piece.index, piece.rows)
        held |= {piece.tensor for piece in pieces}
        assert torch.equal(rebuilt, value)
    assert held == model.disk.keys() - model.tree.keys() - {model.family.tied_to}


@pytest.mark.peer
@pytest.mark.parametrize("name", MODELS)
def test_ties_are_what_transformers_does(name: str, tiny: Any) -> None:
    model = tiny(name)
    family = model.family
    assert family.tied_default == model.default_tie
    if family.tied_to not in model.disk:
        pytest.skip("a bare model has no head")
    if family.is_tied(model.config):
        assert family.tied_head not in model.disk
    elif "cls" not in name and name not in ("bert-qa", "roberta-qa", "roberta-token"):
        assert family.tied_head in model.disk


@pytest.mark.peer
def test_the_tree_of_gemma3_has_the_same_modules_under_other_roots(tiny: Any) -> None:
    model = tiny("gemma3")
    for parameter, value in model.tree.items():
        if parameter.startswith("model.language_model."):
            expected = model.family.expected(parameter.removesuffix(".weight"), model.sizes)
            assert stored_shape(expected) == tuple(value.shape)
