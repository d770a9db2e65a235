"""Each predicate provoked, and silent on the adapter that differs in nothing else."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
from builders import LORA_CONFIG, Tensors, encode, llama_config, tiny_ia3, write_adapter, write_json

from adaptertools.adapter.model import Adapter
from adaptertools.check.profile import load_profile
from adaptertools.check.serving import PREDICATES, serving_findings, violations
from adaptertools.errors import Finding
from adaptertools.formats.opening import open_adapter

from . import adapters as a
from .adapters import opened

Make = Callable[[Path], Adapter]


def make(*edits: a.Edit, **options: Any) -> Make:
    return lambda place: opened(place, *edits, **options)


def as_format(name: str, made: Make) -> Make:
    """The same updates, as if read from a file of another format."""
    return lambda place: replace(made(place), format=name)


@dataclass(frozen=True)
class Case:
    """A predicate, the server it is asked for, and an adapter that it holds for."""

    when: str
    server: str
    bad: Make
    good: Make = field(default_factory=make)
    does: str = "error"
    found: str = ""
    base: dict[str, Any] | None = None
    good_base: dict[str, Any] | None = None
    also: tuple[str, ...] = ()


def file_called(name: str) -> Make:
    def made(place: Path) -> Adapter:
        folder = a.lora(place)
        return open_adapter((folder / "adapter_model.safetensors").rename(folder / name))

    return made


def beside(name: str, value: object) -> Make:
    def made(place: Path) -> Adapter:
        write_json(a.lora(place) / name, value)
        return open_adapter(place)

    return made


def adalora(place: Path) -> Adapter:
    tensors: Tensors = {}
    for name, shape in {"A": (8, 64), "B": (64, 8), "E": (8, 1)}.items():
        key = f"{a.MODEL}.layers.0.self_attn.q_proj.lora_{name}"
        tensors[key] = encode([[0.5] * shape[1]] * shape[0], "F32")
    config = {"peft_type": "ADALORA", "r": 12, "init_r": 8, "target_r": 8}
    return open_adapter(write_adapter(place, LORA_CONFIG | config, tensors))


def lacking(name: str) -> Make:
    return lambda place: open_adapter(a.without_field(a.lora(place), name))


UNTIED, TIED = a.BASE, a.BASE | {"tie_word_embeddings": True}
PATTERN, HALF = {"rank_pattern": {"q_proj": 4}}, {"q_proj": 8}
PARAMETER = {"target_parameters": ["experts.down_proj"]}
REGEX = r".*\.(q|k)_proj"

CASES = [
    Case("format", "mlx", make(), as_format("mlx-lora", make()), found="peft-lora"),
    Case("file_name", "vllm", file_called("weights.safetensors"), found="weights.safetensors"),
    Case("dtype", "mlx", as_format("mlx-lora", make(dtype="F64")), as_format("mlx-lora", make()),
         found="F64 ×28", also=("file_name",)),
    Case("key_form", "vllm", make(a.renamed("lora_A.weight", "lora_A.default.weight")),
         found="lora_A.default.weight ×2"),
    Case("key_form", "tgi", make(a.renamed("base_model.model.", "")), found="model.layers.*"),
    Case("wrapped_keys", "vllm", make(a.renamed(a.MODEL, f"{a.MODEL}._orig_mod")),
         found="_orig_mod ×14"),
    Case("config_lacks", "vllm", lacking("target_modules"), found="no such field"),
    Case("target_modules", "tgi", make(a.HEAD), found="lm_head"),
    Case("target_modules", "trt-llm", make(a.HEAD), found="lm_head"),
    Case("target_modules", "sglang", make(a.renamed("o_proj", "dense")), does="warning",
         found="dense ×2"),
    Case("target_regex", "sglang", make(target_modules=REGEX), make(target_modules="all-linear"),
         found=repr(REGEX)),
    Case("target_regex", "sglang", make(target_modules=None), found="null"),
    Case("init", "vllm", make(init_lora_weights="pissa_niter_4"), make(init_lora_weights="EVA"),
         found="pissa_niter_4"),
    Case("variant", "vllm", make(alora_invocation_tokens=[1, 2]), found="alora_invocation_tokens"),
    Case("variant", "vllm", make(layer_replication=[[0, 2]]), found="layer_replication"),
    Case("variant", "mlx", as_format("mlx-lora", make(alora_invocation_tokens=[1])),
         as_format("mlx-lora", make()), also=("file_name",)),
    Case("rank_over", "vllm", make(rank=17), make(rank=16), "warning", "rank 17 ×14"),
    Case("rank_over", "vllm", make(rank=513, targets=["q_proj"]), make(rank=8, targets=["q_proj"]),
         found="rank 513 ×2"),
    Case("rank_over", "trt-llm", make(rank=65), make(rank=64), "warning", "rank 65 ×14"),
    Case("rank_not_allowed", "tgi", make(rank=4), found="rank 4 ×14"),
    Case("rank_not_allowed", "tgi", make(rank=24), make(rank=32), found="rank 24 ×14"),
    Case("rank_not_allowed", "tgi", make(rank=48), make(rank=64), found="rank 48 ×14"),
    Case("rank_pattern", "sglang", make(a.other_rank("q_proj", 4), **PATTERN), found="rank 4 ×2"),
    Case("rank_pattern", "vllm", make(a.other_rank("q_proj", 4), **PATTERN), does="warning"),
    Case("rank_pattern", "vllm", make(r=12), adalora, does="warning", found="rank 8 ×14"),
    Case("mixed_rank", "mlx", make(a.other_rank("q_proj", 4), **PATTERN, alpha_pattern=HALF),
         found="rank 4 ×2"),
    Case("mixed_rank", "tgi", make(a.other_rank("0.self_attn.q_proj", 16),
         rank_pattern={"0.self_attn.q_proj": 16}), make(a.other_rank("q_proj", 16)),
         found="rank 8"),
    Case("mixed_scale", "mlx", make(alpha_pattern=HALF), found="scale 1 ×2"),
    Case("rslora", "sglang", make(use_rslora=True), found="scale 2 ×14"),
    Case("rslora", "llama.cpp", make(use_rslora=True), found="scale 2 ×14"),
    Case("alpha_pattern", "sglang", make(alpha_pattern=HALF), found="alpha 16 ×2"),
    Case("alpha_pattern", "trt-llm", make(alpha_pattern={"v_proj": 8}), found="alpha 16 ×2"),
    Case("alpha_zero", "llama.cpp", make(lora_alpha=0), make(rank=16), found="scale 1 ×14"),
    Case("dora", "vllm", make(a.MAGNITUDE, use_dora=True), found="q_proj"),
    Case("dora", "tgi", make(a.MAGNITUDE, use_dora=True), found="q_proj"),
    Case("dora", "trt-llm", make(a.MAGNITUDE, use_dora=True), does="warning", found="q_proj"),
    Case("dora", "mlx", make(a.experts(0), a.EXPERT_MAGNITUDE, use_dora=True),
         make(a.experts(0), a.MAGNITUDE, use_dora=True), found="w1"),
    Case("lora_bias", "vllm", make(a.plus(**{f"{a.Q}__lora_B__bias": (64,)}), lora_bias=True)),
    Case("bias", "vllm", make(a.BIAS, bias="all"), found="q_proj"),
    Case("bias", "vllm", make(bias="all"), found="bias 'all'"),
    Case("bias", "sglang", make(a.BIAS), make(a.COPIED_BIAS), found="q_proj"),
    Case("bias", "sglang", make(a.BIAS), make(a.SCORE), found="q_proj"),
    Case("bias", "trt-llm", make(a.BIAS, bias="lora_only"), make(bias="lora_only")),
    Case("full_tensor", "vllm", make(a.SAVED), found="embed_tokens"),
    Case("full_tensor", "vllm", make(modules_to_save=["lm_head"]), found="lm_head"),
    Case("full_tensor", "vllm", make(a.SCORE, modules_to_save=["score"]),
         does="warning", found="score"),
    Case("full_tensor", "tgi", make(a.SAVED), make(modules_to_save=["lm_head"])),
    Case("full_tensor", "llama.cpp", make(a.NORM), found="norm"),
    Case("full_tensor", "trt-llm", make(a.SAVED), does="warning"),
    Case("full_tensor", "trt-llm", make(a.NORM)),
    Case("base_layer", "vllm", make(a.COPY), found="q_proj"),
    Case("base_layer", "vllm", make(a.HEAD, a.COPIED_HEAD), make(a.HEAD), "warning", "lm_head"),
    Case("base_layer", "sglang", make(a.COPY), make(a.HEAD), found="q_proj"),
    Case("embedding_lora", "vllm", make(a.EMBEDDING), does="warning", found="embed_tokens",
         base=UNTIED),
    Case("embedding_lora", "vllm", make(a.POSITIONS), does="warning", found="wpe", base=UNTIED,
         also=("embedding_size",)),
    Case("embedding_size", "vllm", make(a.EMBEDDING), does="error", found="96 rows",
         base=a.BASE | {"vocab_size": 90}, also=("embedding_lora",)),
    Case("embedding_size", "vllm", make(a.EMBEDDING), does="info", also=("embedding_lora",)),
    Case("added_tokens", "sglang", beside("added_tokens.json", {"<a>": 96, "<b>": 3}),
         beside("added_tokens.json", {"<a>": 95}), found="token 96", base=UNTIED),
    Case("added_tokens", "sglang", beside("added_tokens.json", {"<a>": 96}), does="info"),
    Case("tied", "mlx", make(a.EMBEDDING), make(a.HEAD), base=TIED, found="embed_tokens"),
    Case("tied", "mlx", make(a.EMBEDDING), make(a.EMBEDDING), base=TIED, good_base=UNTIED),
    Case("tied", "mlx", make(a.EMBEDDING), does="info"),
    Case("tied", "llama.cpp", make(a.HEAD), base=TIED, found="lm_head"),
    Case("token_rows", "vllm", make(a.ROWS, trainable_token_indices={"embed_tokens": [1, 2]}),
         found="2 rows of embed_tokens"),
    Case("ia3", "vllm", lambda p: open_adapter(tiny_ia3(p, a.BASE)), found="k_proj ×2"),
    Case("adalora", "vllm", adalora, found="q_proj"),
    Case("conv", "vllm", make(a.CONV), make(a.STACKED, **PARAMETER), found="conv"),
    Case("conv", "mlx", make(a.CONV_1D), found="conv"),
    Case("experts", "tgi", make(a.experts(0, 1, names=("gate_proj",))), found="gate_proj ×2",
         also=("layers_missing",)),
    Case("experts_3d", "sglang", make(a.STACKED, **PARAMETER),
         found="experts.down_proj"),
    Case("experts_missing", "vllm", make(a.experts(0, 2)), make(a.experts(0, 1, 2)),
         found="2 of 3 in"),
    Case("experts_missing", "llama.cpp", make(a.experts(0, 1)), found="2 of 4 in",
         base=UNTIED | {"num_local_experts": 4}),
    Case("partner_missing", "sglang", make(a.without("v_proj")), found="q_proj alone ×2"),
    Case("partner_missing", "sglang", make(a.without("1.mlp.gate_proj")),
         make(a.without("mlp.up_proj")), found="up_proj alone"),
    Case("layers_missing", "tgi", make(a.without("0.self_attn.q_proj")), found="in 1 layers"),
    Case("layers_missing", "tgi", make(a.without("1.mlp.down_proj")), found="down_proj in 1"),
    Case("layers_missing", "tgi", make(), found="in 2 layers", base=llama_config(layers=3),
         good_base=UNTIED),
    Case("zero_update", "vllm", make(a.zeros("0.self_attn.q_proj.lora_B")),
         make(a.zeros("0.self_attn.q_proj.lora_B"), a.MAGNITUDE, use_dora=True), does="warning"),
]  # fmt: skip
IDS = [f"{case.server}-{case.when}-{n}" for n, case in enumerate(CASES)]


def asked(case: Case, adapter: Adapter) -> list[Finding]:
    return serving_findings(adapter, load_profile(case.server), case.base)


def test_every_predicate_has_a_case() -> None:
    """The table below is complete."""
    assert {case.when for case in CASES} == set(PREDICATES)


@pytest.mark.parametrize("case", CASES, ids=IDS)
def test_a_predicate_holds(tmp_path: Path, case: Case) -> None:
    """One finding of its id with its severity, what was found, and the rule's repair as a step."""
    adapter = case.bad(tmp_path / "bad")
    (finding,) = [f for f in asked(case, adapter) if f.id == PREDICATES[case.when][0]]
    assert finding.severity == case.does
    assert case.found in finding.found
    assert load_profile(case.server).title in finding.title
    assert finding.hint
    assert Path(finding.where.file or "").is_file()
    (broken,) = [
        v for v in violations(adapter, load_profile(case.server), case.base)
        if v.rule.when == case.when
    ]  # fmt: skip
    assert broken.unknown == (case.does == "info")


@pytest.mark.parametrize("case", CASES, ids=IDS)
def test_a_predicate_is_silent(tmp_path: Path, case: Case) -> None:
    """The good adapter lacks the finding, and all that the bad one has more are named."""
    known = replace(case, base=case.good_base or case.base or UNTIED)
    good = {f.id for f in asked(known, case.good(tmp_path / "good"))}
    assert PREDICATES[case.when][0] not in good
    bad = {f.id for f in asked(case, case.bad(tmp_path / "bad"))}
    expected = {PREDICATES[name][0] for name in (case.when, *case.also)}
    usual = {f.id for f in asked(known, opened(tmp_path / "usual"))}
    assert bad - good - usual <= expected
