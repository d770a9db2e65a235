"""`diff`: what is the same under any factors and format, and everything that is not."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from builders import (
    LORA_CONFIG,
    Tensors,
    decode,
    encode,
    read_safetensors,
    tiny_base,
    tiny_ia3,
    tiny_lora,
    write_adapter,
    write_safetensors,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from adaptertools.base.merge import merge
from adaptertools.base.relayout import Relayout
from adaptertools.check.converting import convert
from adaptertools.check.difference import Difference, DiffReport
from adaptertools.check.differing import diff
from adaptertools.errors import AdapterError, FindingsError

FIXTURES = Path(__file__).resolve().parents[2] / "fixtures"
LORA, BASE = FIXTURES / "tiny-llama-lora", FIXTURES / "tiny-llama"
WEIGHTS = "adapter_model.safetensors"
FORMATS = [
    "gguf-lora",
    "litgpt",
    "loralib",
    "mlx-lora",
    "nemo-canonical-lora",
    "nemo-lora",
    "torchtune",
]
Q0 = "model.layers.0.self_attn.q_proj.weight"
KEY = "base_model.model.model.layers.0.self_attn.q_proj.lora_{}.weight"


def changed(source: Path, place: Path, edit: Callable[[Tensors], object], **config: Any) -> Path:
    """Write an adapter again after `edit` of its tensors."""
    tensors = read_safetensors(source / WEIGHTS)
    edit(tensors)
    told = json.loads((source / "adapter_config.json").read_text())
    return write_adapter(place, told | config, tensors)


def put(name: str, change: Callable[[np.ndarray], np.ndarray]) -> Callable[[Tensors], object]:
    """Return an edit of one tensor's values."""

    def edit(tensors: Tensors) -> None:
        tensors[name] = encode(change(decode(tensors[name])), tensors[name][0])

    return edit


def by_name(report: DiffReport) -> dict[str, Difference]:
    return {item.name: item for item in report.items}


def delta_of(folder: Path, scale: float) -> np.ndarray:
    tensors = read_safetensors(folder / WEIGHTS)
    up, down = (decode(tensors[KEY.format(x)]).astype(np.float64) for x in "BA")
    return scale * up @ down


# --- the same ------------------------------------------------------------------------------------


@pytest.mark.parametrize("fixture", ["lora", "dora", "ia3"])
def test_an_adapter_is_the_same_as_itself(fixture: str) -> None:
    """Bit for bit, with no tolerance."""
    path = FIXTURES / f"tiny-llama-{fixture}"
    found = diff(path, path, tol=0)
    assert (found.same, found.identical) == (True, True)
    assert set(found.counts) == {"identical"}
    assert all(item.relative == 0.0 and not item.differs for item in found.items)


@pytest.mark.parametrize("to", FORMATS)
def test_a_conversion_is_the_same_there_and_back(to: str, tmp_path: Path) -> None:
    """Whatever the names, row orders, fusing and padding of the other format."""
    there, back = tmp_path / "there", tmp_path / "back"
    told = {"lora_alpha": 8}
    given = told if to == "loralib" else None
    convert(LORA, to, there, base=BASE)
    convert(there, "peft-lora", back, base=BASE, given=given)
    for other in (there, back):
        found = diff(LORA, other, base=BASE, given=told)
        assert found.same
        assert len(found.items) == 14
        assert found.identical == (to != "nemo-lora")
        assert all(item.cosine == pytest.approx(1.0) for item in found.items)
        assert diff(other, LORA, base=BASE, given=told).same


@settings(deadline=None, max_examples=10)
@given(seed=st.integers(0, 2**31), more=st.integers(0, 3))
def test_factors_and_padding_do_not_matter(
    tmp_path_factory: pytest.TempPathFactory, seed: int, more: int
) -> None:
    """(BG, G⁻¹A) of another rank and alpha is the same, but not the same bits."""
    place, rng = tmp_path_factory.mktemp("diff"), np.random.default_rng(seed)
    base = tiny_base(place / "base", layers=1)
    one = tiny_lora(place / "a", base, rank=4, alpha=8, dtype="F64", seed=seed)
    tensors = read_safetensors(one / WEIGHTS)
    for key in [key for key in tensors if "lora_A" in key]:
        other = key.replace("lora_A", "lora_B")
        down, up = decode(tensors[key]), decode(tensors[other])
        g = rng.standard_normal((4, 4)) + 4 * np.eye(4)
        up = np.hstack([up @ g, np.zeros((len(up), more))])
        down = np.vstack([np.linalg.inv(g) @ down, rng.standard_normal((more, down.shape[1]))])
        tensors[key], tensors[other] = encode(down, "F64"), encode(up, "F64")
    config = LORA_CONFIG | {"r": 4 + more, "lora_alpha": 2 * (4 + more)}
    two = write_adapter(place / "b", config, tensors)
    found = diff(one, two)
    assert found.same
    assert found.counts == {"same": 2}
    assert found.total is not None
    assert found.total.cosine == pytest.approx(1.0)
    assert not diff(one, two, tol=0).same


@settings(deadline=None, max_examples=10)
@given(seeds=st.tuples(st.integers(0, 99), st.integers(100, 199)), rank=st.integers(1, 6))
def test_a_diff_is_symmetric(
    tmp_path_factory: pytest.TempPathFactory, seeds: tuple[int, int], rank: int
) -> None:
    """Every number of it, the norms and the missing sides exchanged."""
    place = tmp_path_factory.mktemp("diff")
    base = tiny_base(place / "base", layers=1)
    one = tiny_lora(place / "a", base, rank=4, seed=seeds[0])
    two = tiny_lora(place / "b", base, rank, targets=("q_proj", "up_proj"), seed=seeds[1])
    there, back = by_name(diff(one, two)), by_name(diff(two, one))
    assert there.keys() == back.keys()
    sides = {"only-a": "only-b", "only-b": "only-a"}
    for name, item in there.items():
        other = back[name]
        assert other.status == sides.get(item.status, item.status)
        assert item.relative == pytest.approx(other.relative)
        assert item.norms == pytest.approx(other.norms[::-1])
        assert item.cosine == pytest.approx(other.cosine)
        assert item.conflict == other.conflict
    assert {item.status for item in there.values()} == {"differs", "only-a", "only-b"}


def test_config_fields_are_given_only_to_who_needs_them(tmp_path: Path) -> None:
    """--set for a file without alpha does not change the alpha that the other one tells."""
    convert(LORA, "loralib", tmp_path / "lora.pt", base=BASE)
    assert diff(LORA, tmp_path / "lora.pt", given={"lora_alpha": 8}).identical
    other = diff(LORA, tmp_path / "lora.pt", given={"lora_alpha": 16})
    assert [item.relative for item in other.items] == pytest.approx([0.5] * 14)
    with pytest.raises(AdapterError, match="scale is unknown"):
        diff(LORA, tmp_path / "lora.pt")


# --- not the same --------------------------------------------------------------------------------


def test_numbers_of_one_changed_target(tmp_path: Path) -> None:
    """Distance, norms and cosine of the dense matrices; the rest stays identical."""
    rng = np.random.default_rng(0)
    edit = put(KEY.format("B"), lambda up: up + 0.1 * rng.standard_normal(up.shape))
    other = changed(LORA, tmp_path / "b", edit)
    found = diff(LORA, other)
    assert found.counts == {"identical": 13, "differs": 1}
    item = by_name(found)[Q0]
    x, y = delta_of(LORA, 2.0), delta_of(other, 2.0)
    norms = np.linalg.norm(x), np.linalg.norm(y)
    assert item.norms == pytest.approx(norms)
    assert item.relative == pytest.approx(np.linalg.norm(x - y) / max(norms))
    assert item.cosine == pytest.approx((x * y).sum() / (norms[0] * norms[1]))
    assert item.conflict is not None
    assert item.conflict.share == pytest.approx((x * y < 0).mean())
    assert found.total is not None
    assert found.total.distance == pytest.approx(np.linalg.norm(x - y))
    squares = [item.norms[0] ** 2 for item in found.items if item.norms[0] is not None]
    assert found.total.norms[0] == pytest.approx(sum(squares) ** 0.5)
    assert found.worst == item
    assert not found.same


def test_a_wrong_row_order_is_seen(tmp_path: Path) -> None:
    """q's rows as llama.cpp has them, under PEFT's names: far away, with the same norms."""

    def reorder(up: np.ndarray) -> np.ndarray:
        heads, width = 8, len(up) // 8
        return up.reshape(heads, 2, width // 2, -1).swapaxes(1, 2).reshape(up.shape)

    other = changed(LORA, tmp_path / "b", put(KEY.format("B"), reorder))
    item = by_name(diff(LORA, other))[Q0]
    assert item.status == "differs"
    assert item.norms[0] == pytest.approx(item.norms[1])
    assert item.relative is not None
    assert item.relative > 0.5
    assert item.input is not None
    assert item.input.share == pytest.approx(1.0)


def test_another_scale_is_another_change(tmp_path: Path) -> None:
    """Equal factors with twice the alpha: half as far as the larger, cosine one."""
    other = changed(LORA, tmp_path / "b", lambda tensors: None, lora_alpha=16)
    found = diff(LORA, other)
    assert found.counts == {"differs": 14}
    for item in found.items:
        assert (item.relative, item.cosine) == (pytest.approx(0.5), pytest.approx(1.0))
    assert diff(LORA, other, tol=0.6).same


def test_the_tolerance_is_the_rounding_of_the_wider_dtype(tmp_path: Path) -> None:
    """bf16 factors are the same as themselves rounded, but not as the fp32 ones they came from."""

    def narrow(tensors: Tensors) -> None:
        for name, tensor in list(tensors.items()):
            tensors[name] = encode(decode(tensor), "BF16")

    def widen(tensors: Tensors) -> None:
        for name, tensor in list(tensors.items()):
            tensors[name] = encode(decode(tensor), "F32")

    narrowed = changed(LORA, tmp_path / "narrow", narrow)
    widened = changed(narrowed, tmp_path / "wide", widen)
    assert diff(narrowed, widened).same
    assert not diff(narrowed, widened, tol=0).same
    found = diff(LORA, narrowed)
    assert {item.tol for item in found.items} == {2e-7}
    assert not found.same
    assert diff(LORA, narrowed, tol=0.008).same
    assert {item.tol for item in diff(narrowed, narrowed).items} == {8e-3}


def test_magnitudes_are_part_of_a_target(tmp_path: Path) -> None:
    """A magnitude that differs, or that only one side has."""
    dora = FIXTURES / "tiny-llama-dora"
    name = "base_model.model.model.layers.1.mlp.up_proj.lora_magnitude_vector"
    other = changed(dora, tmp_path / "b", put(name, lambda m: m * 1.25))
    found = diff(dora, other)
    assert found.counts == {"identical": 13, "differs": 1}
    item = by_name(found)["model.layers.1.mlp.up_proj.weight"]
    assert item.kind == "dora"
    assert item.parts == {"delta": 0.0, "magnitude": pytest.approx(0.2)}

    def without(tensors: Tensors) -> None:
        for key in [key for key in tensors if "magnitude" in key]:
            del tensors[key]

    plain = changed(dora, tmp_path / "plain", without, use_dora=False)
    for item in diff(plain, dora).items:
        assert (item.status, item.parts["magnitude"]) == ("differs", 1.0)
        assert item.detail == "only B has DoRA magnitudes"


def test_vectors_are_compared_element_by_element(tmp_path: Path) -> None:
    """(IA)³: how many are equal, the largest difference, and another axis is another target."""
    base = tiny_base(tmp_path / "base", layers=1)
    one = tiny_ia3(tmp_path / "a", base)
    name = "base_model.model.model.layers.0.self_attn.k_proj.ia3_l"

    def edit(values: np.ndarray) -> np.ndarray:
        values = values.copy()
        values[3] += 0.5
        return values

    item = by_name(diff(one, changed(one, tmp_path / "b", put(name, edit))))[
        "model.layers.0.self_attn.k_proj.weight"
    ]
    assert (item.kind, item.status) == ("scaling:out", "differs")
    assert (item.equal, item.elements) == (15, 16)
    assert item.largest == pytest.approx(0.5)


def test_rows_are_compared_by_their_index(tmp_path: Path) -> None:
    """Trained token rows: another order of the same rows is the same, other rows are not."""
    values = np.arange(12.0).reshape(3, 4)
    key = "base_model.model.model.embed_tokens.token_adapter.trainable_tokens_delta"

    def tokens(place: str, index: list[int], rows: np.ndarray) -> Path:
        config = {"peft_type": "TRAINABLE_TOKENS", "token_indices": index}
        config["target_modules"] = ["embed_tokens"]
        key_ = key.replace("token_adapter.", "")
        return write_adapter(tmp_path / place, config, {key_: encode(rows, "F32")})

    one = tokens("a", [1, 5, 9], values)
    assert diff(one, tokens("b", [9, 1, 5], values[[2, 0, 1]])).identical
    (item,) = diff(one, tokens("c", [9, 1, 5], values)).items
    assert item.status == "differs"
    (item,) = diff(one, tokens("d", [1, 5, 7], values)).items
    assert item.status == "reshaped"
    assert item.detail == "1 rows only in A: 9; 1 rows only in B: 7"


def test_what_only_one_has(tmp_path: Path) -> None:
    """It differs, unless it changes nothing; with no tolerance it does."""
    base = tiny_base(tmp_path / "base", layers=1)
    one = tiny_lora(tmp_path / "a", base, targets=("q_proj", "v_proj"))
    less = tiny_lora(tmp_path / "b", base, targets=("q_proj",))
    name = "base_model.model.model.layers.0.self_attn.v_proj.lora_B.weight"
    idle = changed(one, tmp_path / "c", put(name, lambda up: up * 0))
    assert diff(one, less).counts == {"identical": 1, "only-a": 1}
    assert diff(less, one).counts == {"identical": 1, "only-b": 1}
    assert not diff(one, less).same
    assert diff(idle, less).counts == {"identical": 1, "void": 1}
    assert diff(idle, less).same
    assert not diff(idle, less, tol=0).same


def test_no_tolerance_asks_for_the_same_bits(tmp_path: Path) -> None:
    """Two ways to write a change of nothing: no distance, yet not the same."""
    idle = changed(LORA, tmp_path / "a", put(KEY.format("B"), lambda up: up * 0))
    other = changed(idle, tmp_path / "b", put(KEY.format("A"), lambda down: down + 1))
    assert by_name(diff(idle, other))[Q0].relative == 0.0
    assert diff(idle, other).same
    assert diff(idle, other, tol=0).counts == {"identical": 13, "differs": 1}


def test_nan_is_never_the_same_as_a_number(tmp_path: Path) -> None:
    """Infinitely far, whatever the tolerance, and still JSON; equal bits are equal."""

    def spoil(values: np.ndarray) -> np.ndarray:
        values = values.copy()
        values[0, 0] = np.nan
        return values

    other = changed(LORA, tmp_path / "b", put(KEY.format("B"), spoil))
    found = diff(LORA, other, tol=1e9)
    assert found.counts == {"identical": 13, "differs": 1}
    told = json.loads(json.dumps(found.to_json(), allow_nan=False))
    assert [t["relative"] for t in told["targets"] if t["status"] == "differs"] == [None]
    assert diff(other, other).identical


def test_shapes_that_differ(tmp_path: Path) -> None:
    """They are told; nothing is computed."""
    one = tiny_lora(tmp_path / "a", tiny_base(tmp_path / "base", hidden=64), targets=("q_proj",))
    two = tiny_lora(tmp_path / "b", tiny_base(tmp_path / "wide", hidden=96), targets=("q_proj",))
    found = diff(one, two)
    assert found.counts == {"reshaped": 2}
    assert found.items[0].detail == "64×64 and 96×96"
    assert not found.same


def test_what_cannot_be_compared(tmp_path: Path) -> None:
    """Names of two schemes, an adapter and a checkpoint, a broken adapter, a wrong tolerance."""
    convert(LORA, "gguf-lora", tmp_path / "a.gguf", base=BASE)
    with pytest.raises(AdapterError) as caught:
        diff(LORA, tmp_path / "a.gguf")
    assert (caught.value.code, "--base" in caught.value.hint) == ("AT631", True)
    assert diff(tmp_path / "a.gguf", tmp_path / "a.gguf").identical
    for pair in ((LORA, BASE), (BASE, LORA)):
        with pytest.raises(AdapterError) as caught:
            diff(*pair)
        assert caught.value.code == "AT630"
        assert caught.value.where.file == str(BASE)
    odd = changed(LORA, tmp_path / "odd", lambda t: t.update(odd=encode([1.0], "F32")))
    with pytest.raises(FindingsError):
        diff(LORA, odd)
    for tol in (-1.0, float("nan"), float("inf")):
        with pytest.raises(AdapterError, match="tolerance"):
            diff(LORA, LORA, tol=tol)


# --- checkpoints ---------------------------------------------------------------------------------


def rewritten(source: Path, place: Path, edit: Callable[[Tensors], object]) -> Path:
    """Write a checkpoint's one file again after `edit` of its tensors."""
    tensors = read_safetensors(source / "model.safetensors")
    edit(tensors)
    place.mkdir()
    (place / "config.json").write_bytes((source / "config.json").read_bytes())
    write_safetensors(place / "model.safetensors", tensors, {"format": "pt"})
    return place


def test_a_checkpoint_and_its_merge(tmp_path: Path) -> None:
    """Only the merged tensors differ, by ‖ΔW‖/‖W‖; a weak merge is seen, too."""
    merge(BASE, (LORA, 0.001), tmp_path / "out")
    found = diff(BASE, tmp_path / "out")
    assert found.kind == "checkpoints"
    assert not found.same
    touched = {item.name for item in diff(LORA, LORA).items}
    assert {item.name for item in found.items if item.differs} <= touched
    assert found.counts["identical"] >= 7
    old, new = (
        {k: decode(t).astype(float) for k, t in read_safetensors(p / "model.safetensors").items()}
        for p in (BASE, tmp_path / "out")
    )
    for item in found.items:
        x, y = old[item.name], new[item.name]
        far = np.linalg.norm(x - y) / max(np.linalg.norm(x), np.linalg.norm(y))
        assert item.relative == pytest.approx(far)
        assert (item.equal, item.elements) == ((x == y).sum(), x.size)
        assert item.largest == np.abs(x - y).max()


def test_dtypes_and_shards_do_not_matter(tmp_path: Path) -> None:
    """bf16 in three files against fp32 in one: equal values, not equal bits."""
    one = tiny_base(tmp_path / "a", shards=3)

    def widen(tensors: Tensors) -> None:
        for name, tensor in list(tensors.items()):
            tensors[name] = encode(decode(tensor), "F32")

    two = rewritten(tiny_base(tmp_path / "c"), tmp_path / "b", widen)
    found = diff(one, two)
    assert found.same
    assert found.counts == {"same": 21}
    assert all(item.relative == 0.0 and item.equal == item.elements for item in found.items)
    assert not diff(one, two, tol=0).same
    assert diff(one, tmp_path / "c", tol=0).identical


def test_a_cast_is_told_from_a_change(tmp_path: Path) -> None:
    """fp32 against itself rounded to bf16 differs, only by rounding."""
    one = tiny_base(tmp_path / "a", dtype="F32")

    def narrow(tensors: Tensors) -> None:
        for name, tensor in list(tensors.items()):
            tensors[name] = encode(decode(tensor), "BF16")
        spoiled = decode(tensors["lm_head.weight"]).copy()
        spoiled[0, 0] += 1
        tensors["lm_head.weight"] = encode(spoiled, "BF16")

    found = by_name(diff(one, rewritten(one, tmp_path / "b", narrow)))
    assert found["lm_head.weight"].detail == ""
    assert found.pop("lm_head.weight").differs
    assert {(item.status, item.detail) for item in found.values()} == {
        ("differs", "only by rounding")
    }


def test_added_removed_reshaped_and_integers(tmp_path: Path) -> None:
    """Each is told by its name."""
    one = tiny_base(tmp_path / "a", layers=1)

    def edit(tensors: Tensors) -> None:
        del tensors["model.norm.weight"]
        tensors["new.weight"] = encode(np.ones(3), "F32")
        tensors["lm_head.weight"] = encode(np.ones((97, 64)), "BF16")

    def count(value: int) -> Callable[[Tensors], object]:
        return lambda tensors: tensors.update(steps=encode(np.array([7, value]), "I64"))

    found = by_name(diff(one, rewritten(one, tmp_path / "b", edit)))
    told = {name: item.status for name, item in found.items() if item.differs}
    assert told == {
        "model.norm.weight": "only-a",
        "new.weight": "only-b",
        "lm_head.weight": "reshaped",
    }
    assert found["lm_head.weight"].shapes == ((96, 64), (97, 64))
    (whole, other) = (rewritten(one, tmp_path / str(n), count(n)) for n in (1, 2))
    item = by_name(diff(whole, other, tol=100.0))["steps"]
    assert (item.status, item.equal, item.elements) == ("differs", 1, 2)


def test_names_under_another_root_are_matched(tmp_path: Path) -> None:
    """A checkpoint saved from the inner model has the same tensors."""
    one = tiny_base(tmp_path / "a", layers=1)

    def strip(tensors: Tensors) -> None:
        for name in list(tensors):
            tensors[name.removeprefix("model.")] = tensors.pop(name)

    found = diff(one, rewritten(one, tmp_path / "b", strip))
    assert found.identical
    assert len(found.items) == 12


def test_a_tensor_of_several_blocks(tmp_path: Path) -> None:
    """A change in the last block is found, and counted once."""
    values = np.random.default_rng(0).standard_normal(1_300_001).astype(np.float32)
    other = values.copy()
    other[-1] += 1
    paths = []
    for name, data in (("a", values), ("b", other)):
        path = tmp_path / f"{name}.safetensors"
        paths.append(write_safetensors(path, {"w": encode(data, "F32")}))
    (item,) = diff(*paths).items
    assert (item.equal, item.elements, item.status) == (1_300_000, 1_300_001, "differs")
    assert item.relative == pytest.approx(
        abs(float(other[-1]) - float(values[-1]))
        / max(np.linalg.norm(values.astype(float)), np.linalg.norm(other.astype(float)))
    )


def test_quantised_blocks_are_compared_by_value(tmp_path: Path) -> None:
    """A GGUF model in Q8_0 against the same in F32, over several blocks of work."""
    gguf = pytest.importorskip("gguf")
    from gguf import quants

    values = np.random.default_rng(0).standard_normal((1100, 1024)).astype(np.float32)
    packed = quants.quantize(values, gguf.GGMLQuantizationType.Q8_0)
    for name, data, kind in (
        ("a", values, gguf.GGMLQuantizationType.F32),
        ("b", packed, gguf.GGMLQuantizationType.Q8_0),
    ):
        writer = gguf.GGUFWriter(tmp_path / f"{name}.gguf", "llama")
        writer.add_tensor("output.weight", data, raw_dtype=kind)
        for step in ("header", "kv_data", "tensors"):
            getattr(writer, f"write_{step}_to_file")()
        writer.close()
    (item,) = diff(tmp_path / "a.gguf", tmp_path / "b.gguf").items
    wide = quants.dequantize(packed, gguf.GGMLQuantizationType.Q8_0).astype(np.float64)
    x = values.astype(np.float64)
    norms = np.linalg.norm(x), np.linalg.norm(wide)
    assert item.norms == pytest.approx(norms)
    assert item.relative == pytest.approx(np.linalg.norm(x - wide) / max(norms))
    assert (item.status, item.dtypes) == ("differs", ("F32", "Q8_0"))


def test_torch_files_and_strides(tmp_path: Path) -> None:
    """A pickled checkpoint with a transposed tensor against a safetensors file."""
    values = np.random.default_rng(0).standard_normal((700, 900)).astype(np.float32)
    write_safetensors(tmp_path / "a.safetensors", {"w": encode(values, "F32")})
    turned = torch.from_numpy(np.ascontiguousarray(values.T)).T
    torch.save({"w": turned}, tmp_path / "b.bin")
    assert diff(tmp_path / "a.safetensors", tmp_path / "b.bin").identical
    turned[699, 899] += 1
    torch.save({"w": turned}, tmp_path / "b.bin")
    (item,) = diff(tmp_path / "a.safetensors", tmp_path / "b.bin").items
    assert (item.equal, item.elements) == (629_999, 630_000)


def test_another_layout_is_refused(tmp_path: Path) -> None:
    """Meta's against Hugging Face's: told what to do; Meta's against itself is compared."""
    made = Relayout(BASE, "meta", tmp_path / "meta")
    made.run(made.plan())
    with pytest.raises(AdapterError) as caught:
        diff(BASE, tmp_path / "meta")
    assert (caught.value.code, "convert --to hf" in caught.value.hint) == ("AT632", True)
    assert diff(tmp_path / "meta", tmp_path / "meta").identical


def test_progress_ends_at_the_end(tmp_path: Path) -> None:
    """Bytes of both sides, all of them."""
    for pair in ((LORA, LORA), (BASE, BASE)):
        seen: list[tuple[int, int]] = []
        diff(*pair, progress=lambda done, total, seen=seen: seen.append((done, total)))
        assert seen[-1][0] == seen[-1][1] > 0
        assert [done for done, _ in seen] == sorted(done for done, _ in seen)
