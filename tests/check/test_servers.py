"""What is said of whole adapters, server by server, and how it is said."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from adaptertools.check.profile import load_profile
from adaptertools.check.serving import serving_findings, violations
from adaptertools.formats.opening import open_adapter

from . import adapters as a
from .adapters import opened


@pytest.mark.parametrize("server", ["vllm", "sglang", "tgi", "trt-llm"])
def test_a_plain_adapter_is_served(tmp_path: Path, server: str) -> None:
    """Rank 8 on every linear of every layer: nothing is said."""
    profile = load_profile(server)
    assert serving_findings(opened(tmp_path / "x"), profile) == []
    assert serving_findings(opened(tmp_path / "x"), profile, a.BASE) == []
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
    for rank, flag in ((17, 32), (32, 32), (65, 128), (257, 320), (512, 512)):
        adapter = opened(tmp_path / str(rank), rank=rank, targets=["q_proj"])
        (finding,) = serving_findings(adapter, load_profile("vllm"))
        assert finding.expected == f"--max-lora-rank {flag}"
        assert finding.hint == "start vLLM with that option"


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
    profile, adapter = load_profile("vllm"), opened(tmp_path / "x", a.EMBEDDING)
    for vocab, severity in ((96, set()), (97, {"error"})):
        base = {"model_type": "llava", "vocab_size": 5, "text_config": {"vocab_size": vocab}}
        told = {f.severity for f in serving_findings(adapter, profile, base) if f.id == "AT724"}
        assert told == severity


def test_a_broken_added_tokens_file_is_no_fault(tmp_path: Path) -> None:
    """SGLang warns and goes on."""
    place = a.lora(tmp_path / "x")
    (place / "added_tokens.json").write_text("{")
    assert serving_findings(open_adapter(place), load_profile("sglang"), a.BASE) == []


def test_findings_are_json(tmp_path: Path) -> None:
    """All of a finding is text."""
    adapter = opened(tmp_path / "x", a.MAGNITUDE, a.SAVED, a.COPY, use_dora=True, use_rslora=True)
    for server in ("vllm", "sglang", "tgi", "llama.cpp", "mlx", "trt-llm"):
        found = serving_findings(adapter, load_profile(server))
        assert len(found) >= 2
        assert json.loads(json.dumps([f.to_json() for f in found]))


def test_the_file_that_is_meant(tmp_path: Path) -> None:
    """A tensor stands in the weight file, a field in the config."""
    adapter = opened(tmp_path / "x", a.COPY, init_lora_weights="pissa")
    places = {f.id: f.where for f in serving_findings(adapter, load_profile("vllm"))}
    assert Path(places["AT708"].file or "").name == "adapter_config.json"
    assert places["AT708"].key == "init_lora_weights"
    assert Path(places["AT722"].file or "").name == "adapter_model.safetensors"
    assert (places["AT722"].key or "").endswith("q_proj.base_layer.weight")


def test_the_order_of_tensors_is_no_matter(tmp_path: Path) -> None:
    """The number of layers is that of the highest, wherever it stands in the file."""
    last_first = (a.without("1.self_attn"), a.without("0.self_attn.q_proj"))
    again = a.plus(**{f"{a.Q}__lora_A__weight": (8, 64), f"{a.Q}__lora_B__weight": (64, 8)})
    adapter = opened(tmp_path / "x", *last_first, again)
    assert adapter.updates[-1].target.module == "model.layers.0.self_attn.q_proj"
    (broken,) = violations(adapter, load_profile("tgi"))
    assert [hit.found[:6] for hit in broken.hits] == ["k_proj", "v_proj", "o_proj", "q_proj"]
