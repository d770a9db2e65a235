"""Each predicate provoked, and silent on the adapter that differs in nothing else."""

from __future__ import annotations

import json
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
Q = "model__layers__0__self_attn__q_proj"
EXPERT = "model__layers__0__mlp__experts"


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
    config = {"peft_type": "ADALORA", "r": 8, "init_r": 8, "target_r": 8}
    return open_adapter(write_adapter(place, LORA_CONFIG | config, tensors))


def lacking(name: str) -> Make:
    return lambda place: open_adapter(a.without_field(a.lora(place), name))


EMBEDDING = a.plus(
    model__embed_tokens__lora_embedding_A=(8, 96), model__embed_tokens__lora_embedding_B=(64, 8)
)
HEAD = a.plus(lm_head__lora_A__weight=(8, 64), lm_head__lora_B__weight=(96, 8))
MAGNITUDE = a.plus(**{f"{Q}__lora_magnitude_vector": (64,)})
EXPERT_MAGNITUDE = a.plus(
    model__layers__0__block_sparse_moe__experts__0__w1__lora_magnitude_vector=(64,)
)
COPY = a.plus(**{f"{Q}__base_layer__weight": (64, 64)})
COPIED_HEAD = a.plus(lm_head__base_layer__weight=(96, 64))
STACKED = a.plus(**{f"{EXPERT}__lora_A__weight": (16, 64), f"{EXPERT}__lora_B__weight": (64, 16)})
CONV = a.plus(conv__lora_A__weight=(8, 3, 2, 2), conv__lora_B__weight=(5, 8, 1, 1))
ROWS = a.plus(model__embed_tokens__token_adapter__trainable_tokens_delta=(2, 64))
NORM = a.plus(model__norm__weight=(64,))
SAVED = a.plus(model__embed_tokens__weight=(96, 64))
BIAS = a.plus(**{f"{Q}__bias": (64,)})
UNTIED, TIED = a.BASE, a.BASE | {"tie_word_embeddings": True}
PATTERN, HALF = {"rank_pattern": {"q_proj": 4}}, {"q_proj": 8}
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
    Case("target_modules", "tgi", make(HEAD), found="lm_head"),
    Case("target_modules", "trt-llm", make(HEAD), found="lm_head"),
    Case("target_modules", "sglang", make(a.renamed("o_proj", "dense")), does="warning",
         found="dense ×2"),
    Case("target_regex", "sglang", make(target_modules=REGEX), make(target_modules="all-linear"),
         found=repr(REGEX)),
    Case("target_regex", "sglang", make(target_modules=None), found="null"),
    Case("init", "vllm", make(init_lora_weights="pissa_niter_4"), make(init_lora_weights="eva"),
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
    Case("mixed_rank", "mlx", make(a.other_rank("q_proj", 4), **PATTERN, alpha_pattern=HALF),
         found="rank 4 ×2"),
    Case("mixed_rank", "tgi", make(a.other_rank("0.self_attn.q_proj", 16),
         rank_pattern={"0.self_attn.q_proj": 16}), found="rank 8", also=("rank_pattern",)),
    Case("mixed_scale", "mlx", make(alpha_pattern=HALF), found="scale 1 ×2"),
    Case("rslora", "sglang", make(use_rslora=True), found="scale 2 ×14"),
    Case("rslora", "llama.cpp", make(use_rslora=True), found="scale 2 ×14"),
    Case("alpha_pattern", "sglang", make(alpha_pattern=HALF), found="alpha 16 ×2"),
    Case("alpha_pattern", "trt-llm", make(alpha_pattern={"v_proj": 8}), found="alpha 16 ×2"),
    Case("alpha_zero", "llama.cpp", make(lora_alpha=0), found="scale 1 ×14"),
    Case("dora", "vllm", make(MAGNITUDE, use_dora=True), found="q_proj"),
    Case("dora", "tgi", make(MAGNITUDE, use_dora=True), found="q_proj"),
    Case("dora", "trt-llm", make(MAGNITUDE, use_dora=True), does="warning", found="q_proj"),
    Case("dora", "mlx", make(a.experts(0), EXPERT_MAGNITUDE, use_dora=True),
         make(a.experts(0), MAGNITUDE, use_dora=True), found="w1"),
    Case("lora_bias", "vllm", make(a.plus(**{f"{Q}__lora_B__bias": (64,)}), lora_bias=True)),
    Case("bias", "vllm", make(BIAS, bias="all"), found="q_proj"),
    Case("bias", "vllm", make(bias="all"), found="bias 'all'"),
    Case("bias", "trt-llm", make(BIAS, bias="lora_only"), make(bias="lora_only")),
    Case("full_tensor", "vllm", make(SAVED), found="embed_tokens"),
    Case("full_tensor", "vllm", make(modules_to_save=["lm_head"]), found="lm_head"),
    Case("full_tensor", "vllm", make(a.plus(score__weight=(2, 64)), modules_to_save=["score"]),
         does="warning", found="score"),
    Case("full_tensor", "tgi", make(SAVED), make(modules_to_save=["lm_head"])),
    Case("full_tensor", "llama.cpp", make(NORM), found="norm"),
    Case("full_tensor", "trt-llm", make(SAVED), does="warning"),
    Case("full_tensor", "trt-llm", make(NORM)),
    Case("base_layer", "vllm", make(COPY), found="q_proj"),
    Case("base_layer", "vllm", make(HEAD, COPIED_HEAD), make(HEAD), "warning", "lm_head"),
    Case("embedding_lora", "vllm", make(EMBEDDING), does="warning", found="embed_tokens",
         base=UNTIED),
    Case("embedding_size", "vllm", make(EMBEDDING), does="error", found="96 rows",
         base=a.BASE | {"vocab_size": 90}, also=("embedding_lora",)),
    Case("embedding_size", "vllm", make(EMBEDDING), does="info", also=("embedding_lora",)),
    Case("added_tokens", "sglang", beside("added_tokens.json", {"<a>": 96, "<b>": 3}),
         beside("added_tokens.json", {"<a>": 95}), found="token 96", base=UNTIED),
    Case("added_tokens", "sglang", beside("added_tokens.json", {"<a>": 96}), does="info"),
    Case("tied", "mlx", make(EMBEDDING), make(HEAD), base=TIED, found="embed_tokens"),
    Case("tied", "mlx", make(EMBEDDING), does="info"),
    Case("tied", "llama.cpp", make(HEAD), base=TIED, found="lm_head"),
    Case("token_rows", "vllm", make(ROWS, trainable_token_indices={"embed_tokens": [1, 2]}),
         found="2 rows of embed_tokens"),
    Case("ia3", "vllm", lambda p: open_adapter(tiny_ia3(p, a.BASE)), found="k_proj ×2"),
    Case("adalora", "vllm", adalora, found="q_proj"),
    Case("conv", "vllm", make(CONV), found="conv"),
    Case("experts", "tgi", make(a.experts(0, 1, names=("gate_proj",))), found="gate_proj ×2",
         also=("layers_missing",)),
    Case("experts_3d", "sglang", make(STACKED, target_parameters=["experts.down_proj"]),
         found="experts.down_proj"),
    Case("experts_missing", "vllm", make(a.experts(0, 2)), make(a.experts(0, 1, 2)),
         found="2 of 3 in"),
    Case("experts_missing", "llama.cpp", make(a.experts(0, 1)), found="2 of 4 in",
         base=UNTIED | {"num_local_experts": 4}),
    Case("partner_missing", "sglang", make(a.without("v_proj")), found="q_proj alone ×2"),
    Case("partner_missing", "sglang", make(a.without("1.mlp.gate_proj")),
         make(a.without("mlp.up_proj")), found="up_proj alone"),
    Case("layers_missing", "tgi", make(a.without("0.self_attn.q_proj")), found="in 1 layers"),
    Case("layers_missing", "tgi", make(), found="in 2 layers", base=llama_config(layers=3)),
    Case("zero_update", "vllm", make(a.zeros("0.self_attn.q_proj.lora_B")), does="warning"),
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
    if (case.when, case.base) == ("layers_missing", llama_config(layers=3)):
        case = replace(case, base=None)
    known = replace(case, base=case.base or UNTIED)
    good = {f.id for f in asked(known, case.good(tmp_path / "good"))}
    assert PREDICATES[case.when][0] not in good
    bad = {f.id for f in asked(case, case.bad(tmp_path / "bad"))}
    expected = {PREDICATES[name][0] for name in (case.when, *case.also)}
    usual = {f.id for f in asked(known, opened(tmp_path / "usual"))}
    assert bad - good - usual <= expected


@pytest.mark.parametrize("server", ["vllm", "sglang", "tgi", "trt-llm"])
def test_a_plain_adapter_is_served(tmp_path: Path, server: str) -> None:
    """Rank 8 on every linear of every layer: nothing is said."""
    profile = load_profile(server)
    assert serving_findings(opened(tmp_path / "x"), profile) == []
    assert serving_findings(opened(tmp_path / "x"), profile, UNTIED) == []
    one = opened(tmp_path / "one", rank=4, targets=["v_proj", "q_proj"], layers_pattern=None)
    told = {f.id for f in serving_findings(one, profile)}
    assert told == ({"AT711"} if server == "tgi" else set())


def test_one_kind_of_module_is_never_scaled_by_the_padded_rank(tmp_path: Path) -> None:
    """TGI's first kind of module is right at every rank; from 33 to 48 it has no kernel."""
    profile = load_profile("tgi")
    for rank, ids in ((4, set()), (24, set()), (33, {"AT711"}), (48, {"AT711"}), (49, set())):
        adapter = opened(tmp_path / str(rank), rank=rank, targets=["o_proj"])
        assert {f.id for f in serving_findings(adapter, profile)} == ids, rank


def test_many_alike_are_one_finding(tmp_path: Path) -> None:
    """A rule speaks once: the first place, and what was found with its number."""
    adapter = opened(tmp_path / "x", use_rslora=True)
    (finding,) = serving_findings(adapter, load_profile("sglang"))
    assert finding.where.key == next(u.down.key for u in adapter.updates)  # type: ignore[union-attr]
    assert (finding.found, finding.expected) == ("scale 2 ×14", "scale 5.65685")
    assert "'adaptertools convert --for sglang' folds" in finding.hint
    (broken,) = violations(adapter, load_profile("sglang"))
    assert (len(broken.hits), broken.rule.repair) == (14, "fold_scale")


def test_the_option_that_would_do(tmp_path: Path) -> None:
    """vLLM's --max-lora-rank takes some sizes only; the next one up is told."""
    for rank, flag in ((17, 32), (65, 128), (257, 320), (512, 512)):
        adapter = opened(tmp_path / str(rank), rank=rank, targets=["q_proj"])
        (finding,) = serving_findings(adapter, load_profile("vllm"))
        assert finding.expected == f"--max-lora-rank {flag}"


def test_rank_one_is_the_same_either_way(tmp_path: Path) -> None:
    """√1 is 1, so rsLoRA changes nothing."""
    adapter = opened(tmp_path / "x", rank=1, use_rslora=True)
    assert serving_findings(adapter, load_profile("sglang")) == []


def test_patterns_that_say_nothing_new(tmp_path: Path) -> None:
    """A pattern that gives what the config gives anyway, or matches nothing, is no finding."""
    config = {"alpha_pattern": {"q_proj": 16, "zz": 3}, "rank_pattern": {"v_proj": 8}}
    adapter = opened(tmp_path / "x", **config)
    assert serving_findings(adapter, load_profile("sglang")) == []


def test_a_nested_text_config_counts(tmp_path: Path) -> None:
    """A vision-language base tells its sizes inside text_config."""
    profile, adapter = load_profile("vllm"), opened(tmp_path / "x", EMBEDDING)
    for vocab, severity in ((96, set()), (97, {"error"})):
        base = {"model_type": "llava", "vocab_size": 5, "text_config": {"vocab_size": vocab}}
        told = {f.severity for f in serving_findings(adapter, profile, base) if f.id == "AT724"}
        assert told == severity


def test_a_broken_added_tokens_file_is_no_fault(tmp_path: Path) -> None:
    """SGLang warns and goes on."""
    place = a.lora(tmp_path / "x")
    (place / "added_tokens.json").write_text("{")
    assert serving_findings(open_adapter(place), load_profile("sglang"), UNTIED) == []


def test_findings_are_json(tmp_path: Path) -> None:
    """All of a finding is text."""
    adapter = opened(tmp_path / "x", MAGNITUDE, SAVED, COPY, use_dora=True, use_rslora=True)
    for server in ("vllm", "sglang", "tgi", "llama.cpp", "mlx", "trt-llm"):
        found = serving_findings(adapter, load_profile(server))
        assert len(found) >= 2
        assert json.loads(json.dumps([f.to_json() for f in found]))
