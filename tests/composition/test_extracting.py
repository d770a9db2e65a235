"""Extract: the adapter comes back out of a merge, and every tensor is accounted for."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from algebra.world import folder
from builders import (
    LORA_CONFIG,
    Tensors,
    base_tensors,
    decode,
    encode,
    llama_config,
    read_checkpoint,
    read_safetensors,
    tiny_base,
    tiny_lora,
    write_adapter,
    write_base,
    write_json,
    write_safetensors,
)
from hypothesis import given, settings
from hypothesis import strategies as st

import adaptertools
from adaptertools.composition.extract import ExtractionResult
from adaptertools.composition.extracting import extract
from adaptertools.errors import AdapterError, FindingsError

from .deltas import FILE, PREFIX, config_of, deltas, relative

Q0 = "model.layers.0.self_attn.q_proj"
EMBED, HEAD, NORM = "model.embed_tokens.weight", "lm_head.weight", "model.norm.weight"
FIXTURES = Path(__file__).parents[2] / "fixtures"
Change = Callable[[Tensors], object]
RNG = np.random.default_rng(7)


def moved(tensor: tuple, size: float = 0.1, rank: int | None = None) -> tuple:
    """Return a tensor that is moved by `size` of its norm, by a change of a rank or any."""
    dtype, shape, _ = tensor
    values = decode(tensor).astype(np.float64)
    change = RNG.standard_normal(shape)
    if rank is not None:
        rows = shape[0]
        change = RNG.standard_normal((rows, rank)) @ RNG.standard_normal(
            (rank, values.size // rows)
        )
        change = change.reshape(shape)
    return encode(values + change * size * np.linalg.norm(values) / np.linalg.norm(change), dtype)


def tuned(base: Path, place: Path, change: Change, **config: object) -> Path:
    """Write a copy of a base with some tensors changed."""
    tensors = read_checkpoint(base)
    change(tensors)
    told = json.loads((base / "config.json").read_text()) | config
    write_json(place / "config.json", told)
    write_safetensors(place / "model.safetensors", tensors, {"format": "pt"})
    return place


def merged_back(base: Path, adapter: Path, out: Path) -> dict[str, np.ndarray]:
    """Merge an extracted adapter; returns the tensors as fp64."""
    adaptertools.merge(base, adapter, out)
    return wide(out)


def wide(place: Path) -> dict[str, np.ndarray]:
    """Return every tensor of a checkpoint as fp64."""
    return {name: decode(t).astype(np.float64) for name, t in read_checkpoint(place).items()}


def by_name(made: ExtractionResult) -> dict:
    """Return what became of each tensor."""
    return {tensor.name: tensor for tensor in made.tensors}


@pytest.mark.parametrize(("dtype", "bound"), [("F32", 1e-5), ("F16", 0.01), ("BF16", 0.05)])
def test_an_adapter_comes_back_out_of_its_merge(tmp_path: Path, dtype: str, bound: float) -> None:
    """ΔW within the rounding of the dtype; the residual told is the real one."""
    base = tiny_base(tmp_path / "base", dtype=dtype)
    lora = tiny_lora(tmp_path / "lora", base, rank=4)
    adaptertools.merge(base, lora, tmp_path / "merged")
    made = extract(base, tmp_path / "merged", tmp_path / "out", rank=4)
    before, after = deltas(lora), deltas(tmp_path / "out")
    assert before.keys() == after.keys()
    ours, theirs = wide(base), wide(tmp_path / "merged")
    for module, delta in before.items():
        assert relative(after[module], delta) < bound
        told = by_name(made)[f"{module}.weight"]
        whole = theirs[f"{module}.weight"] - ours[f"{module}.weight"]
        left = np.linalg.norm(whole - after[module]) ** 2 / np.linalg.norm(whole) ** 2
        assert told.rank == 4
        assert told.residual == pytest.approx(left, rel=0.02, abs=1e-12)
        ratio = np.linalg.norm(whole) / np.linalg.norm(ours[f"{module}.weight"])
        assert told.ratio == pytest.approx(ratio, rel=1e-5)
        if dtype == "BF16":
            assert told.residual > 1e-6
            assert 0.3 < told.noise / told.residual < 3  # what is left is rounding, as foretold
    assert len(made.plan.equal) == len(ours) - len(before)


@settings(max_examples=15, deadline=None)
@given(
    st.sampled_from([(300, 200), (40, 24), (24, 40), (16, 16)]),
    st.integers(1, 12),
    st.booleans(),
    st.sampled_from(["balanced", "up", "down"]),
    st.integers(0, 2**16),
)
def test_the_residual_is_that_of_the_best_approximation(
    shape: tuple[int, int], rank: int, full: bool, split: str, seed: int
) -> None:
    """Against a dense fp64 SVD: as good as can be, and the residual is computed, not guessed."""
    rng = np.random.default_rng(seed)
    old = rng.standard_normal(shape).astype(np.float32)
    decay = rng.standard_normal(shape) * (1.0 / np.arange(1, shape[1] + 1)) ** 1.0
    new = (old + 0.01 * decay).astype(np.float32)
    with folder() as place:
        for name, values in (("base", old), ("tuned", new)):
            tensors = {"a.q.weight": encode(values, "F32")}
            write_safetensors(place / f"{name}.safetensors", tensors)
        files = (place / f"{name}.safetensors" for name in ("base", "tuned"))
        made = extract(*files, place / "out", rank=rank, full_svd=full, split=split, seed=seed)
        delta = new.astype(np.float64) - old
        sigma = np.linalg.svd(delta, compute_uv=False)
        kept = min(rank, len(sigma))
        best = float((sigma[kept:] ** 2).sum() / (sigma**2).sum())
        (told,) = made.tensors
        found = deltas(place / "out")["a.q"]
        left = float(np.linalg.norm(delta - found) ** 2 / (sigma**2).sum())
        assert told.rank == kept
        assert told.residual == pytest.approx(left, rel=1e-4, abs=1e-11)
        assert told.residual <= best * (1 + 1e-9 if full else 1.01) + 1e-11


RULES = {"energy": 0.9, "fro": 0.95, "max_error": 0.2, "sv_fro": 0.95}


@pytest.mark.parametrize("rule", RULES)
def test_rules_of_resize_hold_here_too(tmp_path: Path, rule: str) -> None:
    """The least rank that qualifies, for each tensor on its own."""
    base = tiny_base(tmp_path / "base", layers=1, dtype="F32")
    names = [f"{Q0}.weight", "model.layers.0.mlp.up_proj.weight"]

    def change(tensors: Tensors) -> None:
        for name, rank in zip(names, (3, 40), strict=True):
            tensors[name] = moved(tensors[name], rank=rank)

    place = tuned(base, tmp_path / "tuned", change)
    made = extract(base, place, tmp_path / "out", **{rule: RULES[rule]})
    value = RULES[rule]
    keep = {"energy": value, "max_error": 1 - value**2}.get(rule, value**2)
    for name in names:
        delta = wide(place)[name] - wide(base)[name]
        shares = np.cumsum(np.linalg.svd(delta, compute_uv=False) ** 2)
        wanted = int((shares < keep * shares[-1]).sum()) + 1
        assert by_name(made)[name].rank == wanted
    capped = extract(base, place, tmp_path / "capped", **{rule: RULES[rule]}, rank=2)
    assert {t.rank for t in capped.tensors} == {2}


def test_every_kind_of_tensor(tmp_path: Path) -> None:
    """Weights by rank, norms, biases, embedding and head in full, equal ones not at all."""
    base = tiny_base(tmp_path / "base", layers=1, dtype="F32")
    tensors = read_checkpoint(base)
    tensors[f"{Q0}.bias"] = encode(np.zeros(64), "F32")
    write_safetensors(base / "model.safetensors", tensors, {"format": "pt"})
    low, full = [f"{Q0}.weight"], [EMBED, HEAD, NORM, f"{Q0}.bias"]

    def change(tensors: Tensors) -> None:
        tensors[low[0]] = moved(tensors[low[0]], rank=3)
        for name in full[:3]:
            tensors[name] = moved(tensors[name])
        tensors[full[3]] = encode(RNG.standard_normal(64), "F32")

    place = tuned(base, tmp_path / "tuned", change)
    made = extract(base, place, tmp_path / "out", rank=3)
    assert {t.name: t.how for t in made.tensors} == {
        **dict.fromkeys(low, "low rank"),
        **dict.fromkeys(full, "full"),
    }
    back = merged_back(base, tmp_path / "out", tmp_path / "again")
    for name, value in wide(place).items():
        if name in full:
            assert np.array_equal(back[name], value), name
        else:
            assert np.allclose(back[name], value, rtol=0, atol=1e-7), name
    told = config_of(tmp_path / "out")
    assert (told["r"], told["lora_alpha"], told["bias"]) == (3, 3, "lora_only")
    assert told["target_modules"] == ["q_proj"]
    assert set(told["modules_to_save"]) == {"embed_tokens", "lm_head", "norm"}


def test_the_smallest_change_counts(tmp_path: Path) -> None:
    """One bit of one element is a difference; a threshold would have dropped it."""
    base = tiny_base(tmp_path / "base", dtype="F32")

    def change(tensors: Tensors) -> None:
        dtype, shape, data = tensors[f"{Q0}.weight"]
        tensors[f"{Q0}.weight"] = (dtype, shape, bytes([data[0] ^ 1]) + data[1:])

    made = extract(base, tuned(base, tmp_path / "tuned", change), tmp_path / "out")
    (told,) = made.tensors
    assert (told.name, told.rank) == (f"{Q0}.weight", 1)
    assert told.residual == pytest.approx(0.0, abs=1e-12)
    assert np.count_nonzero(np.abs(deltas(tmp_path / "out")[Q0]) > 1e-12) == 1


def test_conv1d_weights_are_stored_the_other_way(tmp_path: Path) -> None:
    """GPT-2: ΔW is turned for the adapter and turned back by the merge, square ones too."""
    base = FIXTURES / "tiny-gpt2"
    adaptertools.merge(base, FIXTURES / "tiny-gpt2-lora", tmp_path / "merged", dtype="f32")
    shutil.copytree(base, tmp_path / "base")
    tensors = {n: encode(decode(t), "F32") for n, t in read_checkpoint(base).items()}
    write_safetensors(tmp_path / "base" / "model.safetensors", tensors, {"format": "pt"})
    extract(tmp_path / "base", tmp_path / "merged", tmp_path / "out", rank=4)
    assert config_of(tmp_path / "out")["fan_in_fan_out"] is True
    source, found = deltas(FIXTURES / "tiny-gpt2-lora"), deltas(tmp_path / "out")
    assert source.keys() == found.keys()
    for module, delta in source.items():
        assert relative(found[module], delta) < 1e-5
    back = merged_back(tmp_path / "base", tmp_path / "out", tmp_path / "again")
    for name, value in wide(tmp_path / "merged").items():
        assert np.allclose(back[name], value, rtol=0, atol=1e-7), name


def test_an_original_gpt2_without_its_root(tmp_path: Path) -> None:
    """The hub's files lack `transformer.`; the adapter names modules as the class does."""
    base = FIXTURES / "tiny-gpt2"
    adaptertools.merge(base, FIXTURES / "tiny-gpt2-lora", tmp_path / "merged")
    for source, name in ((base, "a"), (tmp_path / "merged", "b")):
        tensors = {n.removeprefix("transformer."): t for n, t in read_checkpoint(source).items()}
        config = json.loads((base / "config.json").read_text())
        write_json(tmp_path / name / "config.json", config)
        write_safetensors(tmp_path / name / "model.safetensors", tensors, {"format": "pt"})
    extract(tmp_path / "a", tmp_path / "b", tmp_path / "out", rank=4)
    assert deltas(tmp_path / "out").keys() == deltas(FIXTURES / "tiny-gpt2-lora").keys()


def test_convolutions_are_flattened(tmp_path: Path) -> None:
    """A kernel stays with `down`; ΔW is that of the flattened weights."""
    old = RNG.standard_normal((12, 6, 3, 3))
    change = (RNG.standard_normal((12, 2)) @ RNG.standard_normal((2, 54))).reshape(old.shape)
    for name, values in (("base", old), ("tuned", old + change)):
        write_safetensors(tmp_path / f"{name}.safetensors", {"conv.weight": encode(values, "F32")})
    base, place = tmp_path / "base.safetensors", tmp_path / "tuned.safetensors"
    extract(base, place, tmp_path / "out", rank=2)
    tensors = read_safetensors(tmp_path / "out" / FILE)
    shapes = sorted(t[1] for t in tensors.values())
    assert shapes == [(2, 6, 3, 3), (12, 2, 1, 1)]
    assert relative(deltas(tmp_path / "out")["conv"], change.reshape(12, -1)) < 1e-5
    adaptertools.merge(base, tmp_path / "out", tmp_path / "again.safetensors")
    back = decode(read_safetensors(tmp_path / "again.safetensors")["conv.weight"])
    assert np.allclose(back, old + change, rtol=0, atol=1e-5)


def change_embedding(tensors: Tensors) -> None:
    """Move the embedding by a change of rank two, and a weight beside it."""
    tensors[EMBED] = moved(tensors[EMBED], rank=2)
    tensors[f"{Q0}.weight"] = moved(tensors[f"{Q0}.weight"], rank=2)


@pytest.mark.parametrize(("tied", "stored"), [(False, False), (True, False), (True, True)])
@pytest.mark.parametrize("how", ["full", "lora"])
def test_embeddings(tmp_path: Path, tied: bool, stored: bool, how: str) -> None:
    """In full or by rank; where the head is tied to it (stored or not), both sides move."""
    config = llama_config(layers=1, dtype="F32", tied=tied)
    tensors = base_tensors(config, "F32")
    if stored:
        tensors[HEAD] = tensors[EMBED]
    base = write_base(tmp_path / "base", config, tensors)

    def change(tensors: Tensors) -> None:
        change_embedding(tensors)
        if stored:
            tensors[HEAD] = tensors[EMBED]

    place = tuned(base, tmp_path / "tuned", change)
    made = extract(base, place, tmp_path / "out", rank=2, embeddings=how)
    assert by_name(made)[EMBED].how == ("full" if how == "full" else "low rank")
    back = merged_back(base, tmp_path / "out", tmp_path / "again")
    truth = wide(place)
    assert np.allclose(back[EMBED], truth[EMBED], rtol=0, atol=1e-7)
    assert not np.allclose(back[EMBED], wide(base)[EMBED], rtol=0, atol=1e-4)
    head = truth[EMBED] if tied else truth[HEAD]
    assert np.allclose(back.get(HEAD, back[EMBED]), head, rtol=0, atol=1e-7)


def test_skipped_embeddings_are_told(tmp_path: Path) -> None:
    """Left out, but named; and where nothing else differs, that is an error."""
    base = tiny_base(tmp_path / "base", dtype="F32")
    place = tuned(base, tmp_path / "tuned", change_embedding)
    made = extract(base, place, tmp_path / "out", embeddings="skip")
    assert {t.name: t.how for t in made.tensors} == {
        EMBED: "skipped",
        f"{Q0}.weight": "low rank",
    }
    assert [k for k in read_safetensors(tmp_path / "out" / FILE) if "embed" in k] == []
    only = tuned(base, tmp_path / "only", lambda t: t.update({EMBED: moved(t[EMBED])}))
    refused(tmp_path, base, only, "AT659", embeddings="skip")
    refused(tmp_path, base, only, "AT659")
    extract(base, only, tmp_path / "lora", embeddings="lora")


def test_a_head_that_was_untied(tmp_path: Path) -> None:
    """The tuned model has a head of its own: it comes along in full, and is told."""
    base = tiny_base(tmp_path / "base", dtype="F32", tied=True)

    def change(tensors: Tensors) -> None:
        tensors[HEAD] = moved(tensors[EMBED])
        tensors[f"{Q0}.weight"] = moved(tensors[f"{Q0}.weight"], rank=2)

    place = tuned(base, tmp_path / "tuned", change, tie_word_embeddings=False)
    made = extract(base, place, tmp_path / "out")
    assert {t.name: t.how for t in made.tensors} == {HEAD: "full", f"{Q0}.weight": "low rank"}
    assert [n.id for n in made.plan.notes] == ["AT657"]
    back, truth = merged_back(base, tmp_path / "out", tmp_path / "again"), wide(place)
    assert np.array_equal(back[HEAD], truth[HEAD])
    assert np.array_equal(back[EMBED], truth[EMBED])


def grown(tensors: Tensors, rows: int = 104) -> None:
    """Add rows to the embedding and the head; move a weight."""
    for name in (EMBED, HEAD):
        old = decode(tensors[name])
        more = RNG.standard_normal((max(0, rows - len(old)), old.shape[1]))
        values = np.concatenate([old, more])[:rows]
        tensors[name] = encode(values, tensors[name][0])
    tensors[f"{Q0}.weight"] = moved(tensors[f"{Q0}.weight"], rank=2)


def test_a_grown_vocabulary(tmp_path: Path) -> None:
    """Refused by name unless told: extend takes it whole, truncate the rows that both have."""
    base = tiny_base(tmp_path / "base", dtype="F32")
    place = tuned(base, tmp_path / "tuned", grown, vocab_size=104)
    error = refused(tmp_path, base, place, "AT654")
    assert {f.where.key for f in error.findings} == {EMBED, HEAD}
    made = extract(base, place, tmp_path / "long", vocab="extend", rank=2)
    assert {t.name for t in made.tensors if t.how == "full"} == {EMBED, HEAD}
    back = merged_back(base, tmp_path / "long", tmp_path / "again")
    assert np.array_equal(back[EMBED], wide(place)[EMBED])
    assert np.array_equal(back[HEAD], wide(place)[HEAD])
    short = extract(base, place, tmp_path / "short", vocab="truncate", rank=2)
    assert {t.name for t in short.tensors} == {f"{Q0}.weight"}  # the common rows are equal


def test_truncated_rows_that_differ(tmp_path: Path) -> None:
    """The rows that both have are stored, or factored, as those of an equal vocabulary."""
    base = tiny_base(tmp_path / "base", dtype="F32")

    def change(tensors: Tensors) -> None:
        tensors[EMBED] = moved(tensors[EMBED], rank=2)
        grown(tensors)

    place = tuned(base, tmp_path / "tuned", change)
    truth = wide(place)[EMBED][:96]
    for how in ("full", "lora"):
        out = tmp_path / how
        extract(base, place, out, vocab="truncate", embeddings=how, rank=2)
        back = merged_back(base, out, tmp_path / f"again-{how}")
        assert np.allclose(back[EMBED], truth, rtol=0, atol=1e-7)


def test_a_shrunken_vocabulary_has_nothing_to_truncate(tmp_path: Path) -> None:
    """Fewer rows than the base can only be stored whole."""
    base = tiny_base(tmp_path / "base", dtype="F32")
    place = tuned(base, tmp_path / "tuned", lambda t: grown(t, 90))
    refused(tmp_path, base, place, "AT654", vocab="truncate")
    extract(base, place, tmp_path / "out", vocab="extend")


def refused(tmp_path: Path, base: Path, place: Path, code: str, **options: object) -> FindingsError:
    """Extract, see it refused by `code`, and find nothing left behind."""
    before = sorted(p.name for p in tmp_path.iterdir())
    with pytest.raises(AdapterError) as caught:
        extract(base, place, tmp_path / "refused", **options)
    assert caught.value.code == code, caught.value
    assert sorted(p.name for p in tmp_path.iterdir()) == before
    return caught.value


EXTRA = "model.layers.0.self_attn.extra.weight"


def only_tuned(tensors: Tensors) -> None:
    tensors[EXTRA] = tensors[f"{Q0}.weight"]


def only_base(tensors: Tensors) -> None:
    del tensors[f"{Q0}.weight"]


def reshaped(tensors: Tensors) -> None:
    tensors[f"{Q0}.weight"] = encode(np.ones((60, 64)), "F32")


def damaged(tensors: Tensors) -> None:
    values = decode(tensors[f"{Q0}.weight"]).copy()
    values[3, 4] = np.nan
    tensors[f"{Q0}.weight"] = encode(values, "F32")


REFUSED = {
    "only the tuned one has it": (only_tuned, "AT651", EXTRA),
    "only the base has it": (only_base, "AT651", f"{Q0}.weight"),
    "another shape": (reshaped, "AT653", f"{Q0}.weight"),
    "not finite": (damaged, "AT658", f"{Q0}.weight"),
    "nothing": (lambda tensors: None, "AT659", None),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_refused_is_named(tmp_path: Path, case: str) -> None:
    """By name; and what is named can be left out."""
    change, code, name = REFUSED[case]
    base = tiny_base(tmp_path / "base", dtype="F32")

    def both(tensors: Tensors) -> None:
        if name:
            other = "model.layers.1.mlp.up_proj.weight"
            tensors[other] = moved(tensors[other], rank=2)
        change(tensors)

    place = tuned(base, tmp_path / "tuned", both)
    assert refused(tmp_path, base, place, code).where.key == name
    if name:
        made = extract(base, place, tmp_path / "out", exclude=[name])
        assert made.plan.left_out == (name,)
        assert [t.name for t in made.tensors] == ["model.layers.1.mlp.up_proj.weight"]


def test_integers_that_differ(tmp_path: Path) -> None:
    """Nothing can hold them; equal ones are no matter."""
    base = tiny_base(tmp_path / "base", dtype="F32")
    tensors = read_checkpoint(base) | {"model.ids": encode(np.arange(5), "I64")}
    write_safetensors(base / "model.safetensors", tensors, {"format": "pt"})
    fine = tuned(base, tmp_path / "fine", change_embedding)
    extract(base, fine, tmp_path / "out")
    ones = {"model.ids": encode(np.ones(5), "I64")}
    place = tuned(base, tmp_path / "tuned", lambda tensors: tensors.update(ones))
    refused(tmp_path, base, place, "AT653")


def test_experts_in_one_tensor(tmp_path: Path) -> None:
    """Refused by name, unless they are equal."""
    name = "model.layers.0.mlp.experts.gate_up_proj"
    old = RNG.standard_normal((4, 8, 16))
    same = {"a.q.weight": encode(RNG.standard_normal((8, 8)), "F32")}
    for file, values in (("base", old), ("tuned", old * 1.1)):
        tensors = {name: encode(values, "F32"), **same}
        write_safetensors(tmp_path / f"{file}.safetensors", tensors)
    files = [tmp_path / f"{file}.safetensors" for file in ("base", "tuned")]
    error = refused(tmp_path, *files, "AT652")
    assert error.where.key == name


def test_another_layout(tmp_path: Path) -> None:
    """Only Hugging Face's layout is read."""
    base = tiny_base(tmp_path / "base")
    adaptertools.convert  # noqa: B018  (the verb that the hint names exists)
    from adaptertools.base.relayout import Relayout

    job = Relayout(base, "meta", tmp_path / "meta", 1, False)
    job.run(job.plan())
    refused(tmp_path, base, tmp_path / "meta", "AT650")


def test_include_and_exclude(tmp_path: Path) -> None:
    """Globs of tensors or modules; one that matches nothing is a slip."""
    base = tiny_base(tmp_path / "base", dtype="F32")

    def change(tensors: Tensors) -> None:
        for name in tensors:
            tensors[name] = moved(tensors[name], rank=None if "norm" in name else 2)

    place = tuned(base, tmp_path / "tuned", change)
    made = extract(
        base, place, tmp_path / "out", include=["*.self_attn.*"], exclude=["*.layers.1.*"], rank=2
    )
    assert {t.name for t in made.tensors} == {
        f"model.layers.0.self_attn.{n}_proj.weight" for n in "qkvo"
    }
    assert len(made.plan.left_out) == len(read_checkpoint(base)) - 4
    refused(tmp_path, base, place, "AT500", exclude=["*.nowhere"])


def test_warnings(tmp_path: Path) -> None:
    """Two strangers; and a change so small that bf16's rounding is most of it."""
    base = tiny_base(tmp_path / "base", dtype="BF16")
    lora = tiny_lora(tmp_path / "lora", base)
    for weight, ids in ((1.0, []), (0.01, ["AT656"]), (10.0, ["AT655"])):
        merged = tmp_path / f"merged{weight}"
        adaptertools.merge(base, (lora, weight), merged)
        made = extract(base, merged, tmp_path / f"out{weight}", rank=4)
        assert [n.id for n in made.notes] == ids, weight
    stranger = tiny_base(tmp_path / "stranger", dtype="BF16", seed=9)
    made = extract(base, stranger, tmp_path / "out")
    assert "AT655" in [n.id for n in made.notes]


def test_two_dtypes(tmp_path: Path) -> None:
    """A tensor that was only cast is equal; one that was changed is not."""
    base = tiny_base(tmp_path / "base", dtype="F32")

    def change(tensors: Tensors) -> None:
        tensors[f"{Q0}.weight"] = moved(tensors[f"{Q0}.weight"], rank=2)
        for name, tensor in tensors.items():
            tensors[name] = encode(decode(tensor), "BF16")

    place = tuned(base, tmp_path / "tuned", change)
    made = extract(base, place, tmp_path / "out", rank=2)
    assert [t.name for t in made.tensors] == [f"{Q0}.weight"]


def test_the_same_bytes_again(tmp_path: Path) -> None:
    """Threads and repetition change nothing; another seed changes bits and not the change."""
    rng = np.random.default_rng(1)
    decay = 1.0 / np.arange(1, 161) ** 2
    for name, times in (("base", 0.0), ("tuned", 1.0)):
        change = {f"a{n}.q.weight": rng.standard_normal((200, 160)) * decay for n in (1, 2)}
        tensors = {key: encode(times * values, "F32") for key, values in change.items()}
        write_safetensors(tmp_path / f"{name}.safetensors", tensors)
    files = [tmp_path / f"{name}.safetensors" for name in ("base", "tuned")]
    for name, jobs, seed in (("a", 1, 0), ("b", 3, 0), ("c", 1, 1)):
        extract(*files, tmp_path / name, rank=8, jobs=jobs, seed=seed)
    one, two, three = ((tmp_path / name / FILE).read_bytes() for name in "abc")
    assert one == two != three
    first, other = deltas(tmp_path / "a"), deltas(tmp_path / "c")
    for module, delta in first.items():
        assert relative(other[module], delta) < 0.01


def test_shards_and_single_files(tmp_path: Path) -> None:
    """How a checkpoint is cut does not matter."""
    base = tiny_base(tmp_path / "base", dtype="F32")
    sharded = tiny_base(tmp_path / "sharded", dtype="F32", shards=3)
    place = tuned(base, tmp_path / "tuned", change_embedding)
    extract(base, place, tmp_path / "a")
    extract(sharded, place, tmp_path / "b")
    one, two = ((tmp_path / name / FILE).read_bytes() for name in "ab")
    assert one == two


def test_other_formats(tmp_path: Path) -> None:
    """Any format that is written; what one cannot hold is refused, or with lossy left out."""
    base = tiny_base(tmp_path / "base", dtype="F32")
    lora = tiny_lora(tmp_path / "lora", base)
    adaptertools.merge(base, lora, tmp_path / "merged")
    for to, out in (("mlx-lora", "mlx"), ("gguf-lora", "a.gguf")):
        made = extract(base, tmp_path / "merged", tmp_path / out, to=to, rank=4)
        assert made.writing.spec.id == to
        back = tmp_path / f"back-{to}"
        adaptertools.convert(tmp_path / out, "peft-lora", back, base=base)
        for module, delta in deltas(lora).items():
            assert relative(deltas(back)[module], delta) < 1e-5

    def change(tensors: Tensors) -> None:
        change_embedding(tensors)
        tensors[NORM] = moved(tensors[NORM])

    place = tuned(base, tmp_path / "tuned", change)
    refused(tmp_path, base, place, "AT251", to="gguf-lora", include=[NORM, f"{Q0}.weight"])
    refused(tmp_path, base, place, "AT253", to="peft-ia3")
    extract(base, place, tmp_path / "b.gguf", to="gguf-lora", include=[NORM, Q0], lossy=True)


def test_the_dtype_of_the_factors(tmp_path: Path) -> None:
    """F32 unless told; a bf16 adapter is within bf16's rounding."""
    base = tiny_base(tmp_path / "base", dtype="F32")
    lora = tiny_lora(tmp_path / "lora", base)
    adaptertools.merge(base, lora, tmp_path / "merged")
    extract(base, tmp_path / "merged", tmp_path / "out", rank=4, dtype="bf16")
    assert {t[0] for t in read_safetensors(tmp_path / "out" / FILE).values()} == {"BF16"}
    for module, delta in deltas(lora).items():
        assert relative(deltas(tmp_path / "out")[module], delta) < 8e-3


@pytest.mark.parametrize(
    "options",
    [
        {"embeddings": "rows"},
        {"vocab": "grow"},
        {"split": "middle"},
        {"energy": 3.0},
        {"energy": 0.5, "fro": 0.5},
    ],
)
def test_options_that_are_none(tmp_path: Path, options: dict) -> None:
    """Words and rules that are not known."""
    base = tiny_base(tmp_path / "base")
    refused(tmp_path, base, base, "AT500", **options)


def test_written_config_names_the_base(tmp_path: Path) -> None:
    """The base's own name where its config tells it, else its place."""
    base = tiny_base(tmp_path / "base", dtype="F32")
    place = tuned(base, tmp_path / "tuned", change_embedding)
    extract(base, place, tmp_path / "a")
    told = config_of(tmp_path / "a")
    assert told["base_model_name_or_path"] == str(base)
    assert told["task_type"] == LORA_CONFIG["task_type"] == "CAUSAL_LM"
    config = json.loads((base / "config.json").read_text()) | {"_name_or_path": "me/base"}
    write_json(base / "config.json", config)
    extract(base, place, tmp_path / "b")
    assert config_of(tmp_path / "b")["base_model_name_or_path"] == "me/base"


def test_an_adapter_is_no_base(tmp_path: Path) -> None:
    """A folder that holds an adapter is told to be one."""
    base = tiny_base(tmp_path / "base")
    lora = write_adapter(tmp_path / "lora", LORA_CONFIG, {f"{PREFIX}x": encode(np.ones(2), "F32")})
    refused(tmp_path, base, lora, "AT130")
