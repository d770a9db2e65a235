"""The family specs against tiny models that transformers itself writes."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from itertools import product
from pathlib import Path
from typing import Any

import pytest

from adaptertools import schemas
from adaptertools.adapter.families import Expected, Family, Piece, detect_family, families
from adaptertools.patterns.template import compile_template

pytestmark = pytest.mark.peer

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
TOWER = {"hidden_size": 32, "intermediate_size": 40, "num_hidden_layers": 1}
PATCHES = {"num_attention_heads": 4, "image_size": 28, "patch_size": 7, "vision_use_head": False}
VISION = {"vision_config": {**TOWER, **PATCHES}, "mm_tokens_per_image": 4}
GEMMA3 = {**VISION, "text_config": DECODER}
FALCON = {**PLAIN, "ffn_hidden_size": 96}
GROUPED = {**FALCON, "new_decoder_architecture": True, "num_kv_heads": 2}
ALIBI = {**FALCON, "multi_query": False, "parallel_attn": False, "alibi": True, "bias": True}
BLOOM = {**TOKENS, "vocab_size": 50, "hidden_size": 64, "n_head": 8, "n_layer": 2}
PHI = {**PLAIN, "num_key_value_heads": 2, "qk_layernorm": True}
VIT = {**TOWER, "num_attention_heads": 4, "image_size": 28, "patch_size": 7}
T5_SIZES = {"d_model": 64, "d_kv": 16, "d_ff": 96, "num_heads": 8, "num_layers": 2}
T5 = {**T5_SIZES, "vocab_size": 50, "num_decoder_layers": 3, "relative_attention_num_buckets": 20}
MODELS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "llama": ("LlamaConfig", "LlamaForCausalLM", DECODER),
    "llama-bias-bare": (
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
    "qwen3_moe-cls": ("Qwen3MoeConfig", "Qwen3MoeForSequenceClassification", MOE),
    "gemma": ("GemmaConfig", "GemmaForCausalLM", DECODER),
    "gemma-untied": ("GemmaConfig", "GemmaForCausalLM", {**DECODER, **UNTIED}),
    "gemma-cls": ("GemmaConfig", "GemmaForSequenceClassification", DECODER),
    "gemma2": ("Gemma2Config", "Gemma2ForCausalLM", DECODER),
    "gemma2-untied": ("Gemma2Config", "Gemma2ForCausalLM", {**DECODER, **UNTIED}),
    "gemma2-cls": ("Gemma2Config", "Gemma2ForSequenceClassification", DECODER),
    "gemma3_text": ("Gemma3TextConfig", "Gemma3ForCausalLM", DECODER),
    "gemma3_text-untied": ("Gemma3TextConfig", "Gemma3ForCausalLM", {**DECODER, **UNTIED}),
    "gemma3_text-cls": ("Gemma3TextConfig", "Gemma3TextForSequenceClassification", DECODER),
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
    "gpt_neox": ("GPTNeoXConfig", "GPTNeoXForCausalLM", PLAIN),
    "gpt_neox-bare": ("GPTNeoXConfig", "GPTNeoXModel", {**PLAIN, "attention_bias": False}),
    "gpt_neox-tied": ("GPTNeoXConfig", "GPTNeoXForCausalLM", {**PLAIN, **TIED}),
    "gpt_neox-cls": ("GPTNeoXConfig", "GPTNeoXForSequenceClassification", PLAIN),
    "falcon": ("FalconConfig", "FalconForCausalLM", FALCON),
    "falcon-grouped": ("FalconConfig", "FalconForCausalLM", {**GROUPED, **UNTIED}),
    "falcon-alibi": ("FalconConfig", "FalconForCausalLM", ALIBI),
    "falcon-cls": ("FalconConfig", "FalconForSequenceClassification", GROUPED),
    "bloom": ("BloomConfig", "BloomForCausalLM", BLOOM),
    "bloom-bare": ("BloomConfig", "BloomModel", BLOOM),
    "bloom-untied": ("BloomConfig", "BloomForCausalLM", {**BLOOM, **UNTIED}),
    "bloom-cls": ("BloomConfig", "BloomForSequenceClassification", BLOOM),
    "starcoder2": ("Starcoder2Config", "Starcoder2ForCausalLM", DECODER),
    "starcoder2-untied": (
        "Starcoder2Config",
        "Starcoder2ForCausalLM",
        {**DECODER, **UNTIED, "use_bias": False},
    ),
    "starcoder2-cls": ("Starcoder2Config", "Starcoder2ForSequenceClassification", DECODER),
    "phi": ("PhiConfig", "PhiForCausalLM", PHI),
    "phi-cls": ("PhiConfig", "PhiForSequenceClassification", PHI),
    "vit": ("ViTConfig", "ViTForImageClassification", VIT),
    "vit-bare": ("ViTConfig", "ViTModel", {**VIT, "qkv_bias": False, "pooler_output_size": 12}),
    "gpt_oss": ("GptOssConfig", "GptOssForCausalLM", EXPERTS),
    "gpt_oss-cls": ("GptOssConfig", "GptOssForSequenceClassification", EXPERTS),
}
LABELS = (
    "score",
    "classifier",
    "classifier.out_proj",
    "qa_outputs",
)  # config.json lacks num_labels
# In files on the Hub, but never written by transformers 5.23, which ties them.
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
            elif tensor.ndim in (2, 3) and tensor.shape[0] != 1:  # else a token, broadcast
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
        tie = bool(getattr(config(), "tie_word_embeddings", False))
        family = detect_family(written)
        assert family is not None
        return Tiny(family, written, disk, dict(model.named_parameters()), tie)

    return build


def stored_shape(expected: Expected) -> tuple[int | None, ...]:
    sizes = {"out": expected.out, "in": expected.in_, "experts": expected.experts}
    return tuple(sizes[axis] for axis in expected.layout.split())


def entries_for(family: Family, name: str) -> list[str]:
    """Return the on-disk entries that match `name` under any root, not using the look-up."""
    spellings = {name} | {
        group[0] + name[len(root) :]
        for group in family.roots
        for root in group
        if name.startswith(root)
    }
    return [
        module.name
        for module in family.modules
        if not module.virtual
        and any(compile_template(module.name).match(text) is not None for text in spellings)
    ]


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
        assert None not in wanted or module in (
            "score",
            "classifier",
            "classifier.out_proj",
            "qa_outputs",
        )


@pytest.mark.parametrize("name", [n for n in MODELS if "-" not in n or n == "xlm-roberta"])
def test_nothing_is_expected_that_is_not_stored(name: str, tiny: Any) -> None:
    """Every module that is not optional is stored, for each value of its indexes."""
    model = tiny(name)
    stored = {k.replace("vision_tower.", "vision_tower.vision_model.") for k in model.disk}
    for module in model.family.modules:
        if module.optional or module.virtual:
            continue
        template = compile_template(module.name)
        for values in product(*(range(model.sizes[field]) for field in template.fields)):
            key = template.format(dict(zip(template.fields, values, strict=True)))
            assert stored & {key, f"{key}.weight"}, key
    assert all(
        set(compile_template(m.name).fields) <= model.sizes.keys() for m in model.family.modules
    )


@pytest.mark.parametrize("family", families(), ids=lambda family: family.id)
def test_every_entry_of_a_family_is_met_in_some_model(family: Family, tiny: Any) -> None:
    met = {
        entry
        for model in map(tiny, MODELS)
        if model.family.id == family.id
        for module, _ in model.weights()
        for entry in entries_for(family, module)
    }
    entries = {module.name for module in family.modules if not module.virtual}
    assert entries - met == NEVER_WRITTEN.get(family.id, set())


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
        if not parameter.endswith(".bias"):
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


@pytest.mark.parametrize("name", [n for n in MODELS if "bare" not in n and n != "vit"])
def test_ties_are_what_transformers_does(name: str, tiny: Any) -> None:
    model = tiny(name)
    family = model.family
    assert family.tied_default == model.default_tie
    assert family.tied_to in model.disk
    if family.is_tied(model.config):
        assert family.tied_head not in model.disk
    elif "cls" not in name and name not in ("bert-qa", "roberta-qa", "roberta-token"):
        assert family.tied_head in model.disk


@pytest.mark.parametrize("name", ["gemma3", "gemma3-untied"])
def test_the_tree_of_gemma3_has_the_same_modules_under_other_roots(name: str, tiny: Any) -> None:
    model = tiny(name)
    for parameter, value in model.tree.items():
        assert model.family.pieces(parameter, model.sizes) == ()
        module, _, tail = parameter.rpartition(".")
        expected = model.family.expected(module if tail == "weight" else parameter, model.sizes)
        if tail != "bias" and value.ndim < 4:
            assert expected is not None and stored_shape(expected) == tuple(value.shape), parameter
