"""What reading an adapter finds: every code provoked, with its key, and all faults at once."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from builders import LORA_CONFIG, tiny_base, write_adapter

import adaptertools

from .adapters import PREFIX, Shapes, ia3, lora, lora_shapes, tensors, weights

Q = "layers.0.q_proj"
GOOD = dict(lora_shapes(Q))
EMPTY = {f"{Q}.lora_A.weight": (0,), f"{Q}.lora_B.weight": (0,)}
EXPERTS = "layers.0.experts"
NESTED = lora_shapes(EXPERTS, 8) | lora_shapes(f"{EXPERTS}.base_layer", 8)
DORA = {f"{Q}.lora_magnitude_vector": (6,)}


def found(place: Path, code: str) -> list[adaptertools.Finding]:
    """Return the findings of one code."""
    return [f for f in adaptertools.validate(place).findings if f.id == code]


# code, severity, tensors, config, the key (relative to the model unless it starts with '=')
CASES: list[tuple[str, str, Shapes, dict[str, Any], str | None]] = [
    ("AT210", "error", GOOD | {f"{Q}.lora_C.weight": (1,)}, {}, f"{Q}.lora_C.weight"),
    ("AT210", "error", GOOD | {"=odd": (1,)}, {}, "=odd"),
    ("AT211", "error", {f"{Q}.lora_A.weight": (4, 5)}, {}, f"{Q}.lora_B.weight"),
    ("AT211", "error", {f"{Q}.lora_B.weight": (4, 5)}, {}, f"{Q}.lora_A.weight"),
    ("AT212", "error", GOOD, {"rank_pattern": {"(": 3}}, None),
    (
        "AT213",
        "error",
        GOOD | {f"{Q}.lora_A.default.weight": (4, 5)},
        {},
        f"{Q}.lora_A.default.weight",
    ),
    (
        "AT213",
        "error",
        {f"{Q}.lora_A.one.weight": (4, 5), f"{Q}.lora_B.two.weight": (6, 4)},
        {},
        None,
    ),
    ("AT214", "error", {f"{Q}.lora_A.weight": (4, 0), f"{Q}.lora_B.weight": (6, 4)}, {},
     f"{Q}.lora_A.weight"),
    ("AT214", "error", {}, {}, None),
    ("AT215", "error", NESTED, {"target_parameters": ["experts.a"]}, "=target_parameters"),
    ("AT220", "error", EMPTY, {}, f"{Q}.lora_A.weight"),
    ("AT220", "error", GOOD | {f"{Q}.lora_B.weight": (6, 4, 2)}, {}, f"{Q}.lora_B.weight"),
    ("AT220", "error", GOOD | {f"{Q}.lora_magnitude_vector": (7,)}, {"use_dora": True},
     f"{Q}.lora_magnitude_vector"),
    ("AT220", "error", GOOD | {f"{Q}.lora_B.bias": (7,)}, {"lora_bias": True}, f"{Q}.lora_B.bias"),
    ("AT221", "error", GOOD | {f"{Q}.lora_B.weight": (6, 3)}, {}, f"{Q}.lora_B.weight"),
    ("AT221", "error", lora_shapes(EXPERTS, 9), {"target_parameters": ["experts.a"]},
     f"{EXPERTS}.lora_A.weight"),
    ("AT222", "warning", GOOD, {"r": 8}, f"{Q}.lora_A.weight"),
    ("AT223", "warning", GOOD | DORA, {"use_dora": False}, f"{Q}.lora_magnitude_vector"),
    ("AT223", "warning", GOOD | {f"{Q}.lora_B.bias": (6,)}, {}, f"{Q}.lora_B.bias"),
    ("AT224", "error", GOOD, {"use_dora": True}, None),
    ("AT230", "error", GOOD, {"layer_replication": [[0, 2]]}, "=layer_replication"),
    ("AT230", "error", GOOD, {"init_lora_weights": "pissa_niter_4"}, "=init_lora_weights"),
    ("AT230", "error", GOOD, {"init_lora_weights": "OLoRA"}, "=init_lora_weights"),
    ("AT230", "error", GOOD, {"alora_invocation_tokens": [1]}, "=alora_invocation_tokens"),
    ("AT231", "error", GOOD, {"use_brandnew": True}, "=use_brandnew"),
    ("AT231", "error", GOOD, {"brandnew_config": {"a": 1}}, "=brandnew_config"),
    ("AT301", "error", GOOD, {"lora_alpha": "8"}, None),
    ("AT301", "error", GOOD, {"rank_pattern": [1]}, None),
    ("AT301", "error", {"e.token_adapter.trainable_tokens_delta": (2, 3)}, {},
     "=trainable_token_indices"),
    ("AT301", "error", {"e.token_adapter.trainable_tokens_delta": (2, 3)},
     {"trainable_token_indices": [4, 4]}, "=trainable_token_indices"),
    ("AT302", "warning", GOOD, {"brandnew": True}, "=brandnew"),
    ("AT302", "warning", GOOD, {"use_brandnew": False}, "=use_brandnew"),
    ("AT305", "warning", GOOD, {"rank_pattern": {"k_proj": 3}}, None),
    ("AT306", "warning", GOOD, {"alpha_pattern": {"q_proj": 3, "0.q_proj": 5}}, None),
    ("AT311", "info", lora_shapes(f"_orig_mod.{Q}"), {}, None),
    ("AT312", "warning", lora_shapes("attn.base_layer.out_proj"), {},
     "attn.base_layer.out_proj.lora_A.weight"),
]  # fmt: skip


@pytest.mark.parametrize(("code", "severity", "shapes", "config", "key"), CASES)
def test_each_fault_is_found(
    tmp_path: Path,
    code: str,
    severity: str,
    shapes: Shapes,
    config: dict[str, Any],
    key: str | None,
) -> None:
    """The finding has the code, the severity and the key, and names a file that exists."""
    place = lora(tmp_path / "adapter", shapes, **config)
    findings = found(place, code)
    assert findings, [f.id for f in adaptertools.validate(place).findings]
    assert {f.severity for f in findings} == {severity}
    if key is not None:
        full = key[1:] if key.startswith("=") else PREFIX + key
        assert full in {f.where.key for f in findings}
    assert all(f.where.file and Path(f.where.file).is_file() for f in findings)


@pytest.mark.parametrize(("code", "severity", "shapes", "config", "key"), CASES)
def test_no_code_is_found_without_its_fault(
    tmp_path: Path, code: str, severity: str, shapes: Shapes, config: dict, key: str | None
) -> None:
    """The good adapter has none of them, so that each case above is its own."""
    assert found(lora(tmp_path / "adapter", GOOD), code) == []


def test_a_good_adapter_has_no_findings(tmp_path: Path) -> None:
    """Nothing is said where nothing is wrong."""
    assert adaptertools.validate(lora(tmp_path / "adapter", GOOD)).findings == ()


def test_every_fault_is_told_at_once(tmp_path: Path) -> None:
    """Ten different faults in one adapter are ten codes in one report, errors first."""
    shapes: dict[str, tuple[int, ...]] = {
        f"{Q}.lora_A.weight": (4, 5),
        **lora_shapes("layers.1.q_proj", 3),
        **lora_shapes("_orig_mod.layers.2.q_proj"),
        "layers.3.q_proj.lora_A.weight": (4, 5),
        "layers.3.q_proj.lora_B.weight": (6, 2),
        "layers.4.q_proj.lora_A.weight": (4,),
        "layers.4.q_proj.lora_B.weight": (6, 4),
        **lora_shapes("layers.5.q_proj"),
        "layers.5.q_proj.lora_B.bias": (6,),
        "=odd": (2,),
    }
    config = {"layer_replication": [[0, 1]], "use_new": True, "brandnew": 1}
    place = lora(tmp_path / "adapter", shapes, **config, alpha_pattern={"zz": 1})
    findings = adaptertools.validate(place).findings
    expected = {"AT210", "AT211", "AT220", "AT221", "AT222", "AT223", "AT230", "AT231", "AT302"}
    assert {f.id for f in findings} >= expected | {"AT305", "AT311"}
    ranks = {"error": 0, "warning": 1, "info": 2}
    order = [ranks[f.severity] for f in findings]
    assert order == sorted(order)
    base = tiny_base(tmp_path / "base")
    with pytest.raises(adaptertools.FindingsError) as caught:
        adaptertools.merge(base, place, tmp_path / "out", dry_run=True)
    raised = {f.id for f in caught.value.findings if f.severity == "error"}
    assert raised >= {f.id for f in findings if f.severity == "error"}
    count = sum(f.severity == "error" for f in caught.value.findings)
    assert f"and {count - 1} more" in str(caught.value)


def test_no_config_means_no_scale(tmp_path: Path) -> None:
    """AT225: PEFT's keys without adapter_config.json have no alpha, and none is guessed."""
    shapes = {"e.lora_embedding_A": (4, 9), "e.lora_embedding_B": (5, 4)}
    weights(tmp_path / "adapter", shapes)
    assert [f.severity for f in found(tmp_path / "adapter", "AT225")] == ["error"]


def test_ia3_shape_against_feedforward_modules(tmp_path: Path) -> None:
    """AT303: the shape wins over feedforward_modules, and the axis follows the shape."""
    place = ia3(tmp_path / "adapter", {f"{Q}.ia3_l": (6, 1)}, feedforward_modules=["q_proj"])
    (finding,) = found(place, "AT303")
    assert finding.where.key == f"{PREFIX}{Q}.ia3_l"
    assert (finding.expected, finding.found) == ("along in", "along out")
    assert [u.axis for u in adaptertools.open(place).updates] == ["out"]


def test_a_stale_bin_is_told(tmp_path: Path) -> None:
    """AT313: a torch file beside the safetensors file is ignored, and said so."""
    place = lora(tmp_path / "adapter", GOOD)
    (place / "adapter_model.bin").write_bytes(b"old")
    (finding,) = found(place, "AT313")
    assert "adapter_model.bin" in finding.title


@pytest.mark.parametrize(("value", "code"), [(np.nan, "AT216"), (np.inf, "AT216"), (0.0, "AT217")])
def test_values_are_looked_at(tmp_path: Path, value: float, code: str) -> None:
    """NaN and Inf are errors; an update that is all zeros is a warning on its B."""
    config = LORA_CONFIG | {"r": 4, "target_modules": None}
    for dtype in ("F32", "F16", "BF16", "F64"):
        made = tensors(GOOD, 0.5, dtype) | tensors({f"{Q}.lora_B.weight": (6, 4)}, value, dtype)
        place = write_adapter(tmp_path / dtype, config, made)
        (finding,) = found(place, code)
        assert finding.where.key == f"{PREFIX}{Q}.lora_B.weight"


@pytest.mark.parametrize(
    ("modules", "count"),
    [
        (["q_proj"], 0),
        (["k_proj"], 2),
        (["q_proj", "k_proj"], 1),
        (r".*\.q_proj", 0),
        ("q_proj", 1),
    ],
)
def test_target_modules_against_tensors(tmp_path: Path, modules: Any, count: int) -> None:
    """AT307: names without tensors and tensors without a name are warned about."""
    findings = found(lora(tmp_path / "adapter", GOOD, target_modules=modules), "AT307")
    assert [f.severity for f in findings] == ["warning"] * count


def test_a_nameless_base_is_told(tmp_path: Path) -> None:
    """AT308 is an info."""
    place = lora(tmp_path / "adapter", GOOD, base_model_name_or_path=None)
    assert [f.severity for f in found(place, "AT308")] == ["info"]


def test_the_residual_base_lifts_its_refusal(tmp_path: Path) -> None:
    """AT230 of a PiSSA-like init goes when the caller vouches for the base; others stay."""
    check: Callable[..., Any] = adaptertools.validate
    place = lora(tmp_path / "one", GOOD, init_lora_weights="pissa")
    assert not check(place).ok
    assert check(place, residual_base=True).ok
    place = lora(tmp_path / "two", GOOD, init_lora_weights="pissa", layer_replication=[[0, 1]])
    assert not check(place, residual_base=True).ok
