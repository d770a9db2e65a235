"""Tied embeddings: what is written and what config.json says, for every way to touch one side."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from builders import decode, encode, read_checkpoint

import adaptertools

from .edits import (
    EMBED,
    HEAD,
    HIDDEN,
    PREFIX,
    VOCAB,
    adapter,
    assert_values,
    config_of,
    files_of,
    lora_keys,
    make_base,
    read,
    values,
)

E_NAME, H_NAME = f"{EMBED}.weight", f"{HEAD}.weight"
RNG = np.random.default_rng(12)
EMBED_UP, EMBED_DOWN = values(RNG, HIDDEN, 4), values(RNG, 4, VOCAB)
HEAD_UP, HEAD_DOWN = values(RNG, VOCAB, 4), values(RNG, 4, HIDDEN)
ROWS = values(RNG, 2, HIDDEN)
FULL = values(RNG, VOCAB, HIDDEN)
ON_EMBED = lora_keys(EMBED, EMBED_UP, EMBED_DOWN)
ON_HEAD = lora_keys(HEAD, HEAD_UP, HEAD_DOWN)
TWIN = lora_keys(HEAD, EMBED_DOWN.T.copy(), EMBED_UP.T.copy())
EMBED_CHANGE, HEAD_CHANGE = (EMBED_UP @ EMBED_DOWN).T, HEAD_UP @ HEAD_DOWN
SAVED_EMBED = {f"{PREFIX}{E_NAME}": encode(FULL.astype(np.float32), "F32")}
SAVED_HEAD = {f"{PREFIX}{H_NAME}": encode(FULL.astype(np.float32), "F32")}
TOKENS = {
    f"{PREFIX}{EMBED}.token_adapter.trainable_tokens_delta": encode(ROWS.astype(np.float32), "F32")
}


def with_rows(before: np.ndarray) -> np.ndarray:
    """Return the embedding with rows 7 and 3 replaced."""
    after = before.copy()
    after[[7, 3]] = ROWS
    return after


def merge(tmp_path: Path, tensors: dict, **config: object) -> tuple[dict, Path, list[str]]:
    """Merge into a tied base; returns the base's tensors, the output, and the ids of the notes."""
    base = make_base(tmp_path / "base", tied=True)
    place = adapter(tmp_path / "adapter", tensors, **config)
    result = adaptertools.merge(base, place, tmp_path / "out")
    assert adaptertools.verify(tmp_path / "out").ok
    return read(base), tmp_path / "out", [note.id for note in result.plan.notes]


UNTIED = {
    "embed only": (ON_EMBED, {}, EMBED_CHANGE, 0),
    "head only": (ON_HEAD, {}, 0, HEAD_CHANGE),
    "both, different": (ON_EMBED | ON_HEAD, {}, EMBED_CHANGE, HEAD_CHANGE),
}


@pytest.mark.parametrize("case", UNTIED)
def test_one_sided_loras_untie(tmp_path: Path, case: str) -> None:
    """Each side gets its own change, both are written, and config.json says untied."""
    tensors, config, on_embed, on_head = UNTIED[case]
    before, out, notes = merge(tmp_path, tensors, **config)
    shared = before[E_NAME]
    assert_values(out, {**before, E_NAME: shared + on_embed, H_NAME: shared + on_head})
    assert config_of(out) == config_of(tmp_path / "base") | {"tie_word_embeddings": False}
    assert "AT320" in notes


def test_identical_transposes_stay_tied(tmp_path: Path) -> None:
    """ensure_weight_tying writes one change twice; it is applied once and nothing is untied."""
    before, out, notes = merge(tmp_path, ON_EMBED | TWIN, ensure_weight_tying=True)
    assert_values(out, {**before, E_NAME: before[E_NAME] + EMBED_CHANGE})
    assert (out / "config.json").read_bytes() == (tmp_path / "base" / "config.json").read_bytes()
    assert "AT321" in notes
    assert "AT320" not in notes


def test_nearly_identical_transposes_untie(tmp_path: Path) -> None:
    """One differing bit makes two changes."""
    down = EMBED_UP.T.copy()
    down[0, 0] *= 2
    before, out, _ = merge(tmp_path, ON_EMBED | lora_keys(HEAD, EMBED_DOWN.T.copy(), down))
    head = before[E_NAME] + EMBED_DOWN.T @ down
    assert_values(out, {**before, E_NAME: before[E_NAME] + EMBED_CHANGE, H_NAME: head})
    assert config_of(out)["tie_word_embeddings"] is False


@pytest.mark.parametrize("side", ["embed", "head"])
def test_modules_to_save_on_one_side_unties(tmp_path: Path, side: str) -> None:
    """A module trained in full is that module alone."""
    tensors, named = (SAVED_EMBED, "embed_tokens") if side == "embed" else (SAVED_HEAD, "lm_head")
    before, out, _ = merge(tmp_path, tensors, modules_to_save=[named])
    embed, head = (FULL, before[E_NAME]) if side == "embed" else (before[E_NAME], FULL)
    assert_values(out, {**before, E_NAME: embed, H_NAME: head})
    assert config_of(out)["tie_word_embeddings"] is False


def test_a_saved_embedding_stays_tied(tmp_path: Path) -> None:
    """save_embedding_layers saves the shared tensor itself, not one use of it."""
    before, out, _ = merge(tmp_path, SAVED_EMBED)
    assert_values(out, {**before, E_NAME: FULL})
    assert config_of(out)["tie_word_embeddings"] is True


def test_token_rows_stay_tied(tmp_path: Path) -> None:
    """Trained rows of the embedding are rows of the head as well."""
    index = {"embed_tokens": [7, 3]}
    before, out, _ = merge(tmp_path, TOKENS, trainable_token_indices=index)
    assert_values(out, {**before, E_NAME: with_rows(before[E_NAME])})
    assert config_of(out)["tie_word_embeddings"] is True


def test_token_rows_reach_an_untied_head(tmp_path: Path) -> None:
    """Rows of the shared tensor are in both copies once a LoRA unties them."""
    index = {"embed_tokens": [7, 3]}
    before, out, _ = merge(tmp_path, TOKENS | ON_HEAD, trainable_token_indices=index)
    rows = with_rows(before[E_NAME])
    assert_values(out, {**before, E_NAME: rows, H_NAME: rows + HEAD_CHANGE})


def test_an_untied_base_is_left_so(tmp_path: Path) -> None:
    """With two tensors each change goes to its own, and config.json keeps its bytes."""
    base = make_base(tmp_path / "base")
    place = adapter(tmp_path / "adapter", ON_EMBED)
    adaptertools.merge(base, place, tmp_path / "out")
    before = read(base)
    assert_values(tmp_path / "out", {**before, E_NAME: before[E_NAME] + EMBED_CHANGE})
    assert (tmp_path / "out/config.json").read_bytes() == (base / "config.json").read_bytes()


@pytest.mark.parametrize("equal", [True, False])
def test_a_stored_head_of_a_tied_base(tmp_path: Path, equal: bool) -> None:
    """An equal copy follows the embedding's rows; one that differs is a head of its own."""
    shared = read(make_base(tmp_path / "one", tied=True))[E_NAME]
    base = make_base(tmp_path / "base", tied=True, head=shared if equal else FULL)
    place = adapter(tmp_path / "a", TOKENS, trainable_token_indices={"embed_tokens": [7, 3]})
    adaptertools.merge(base, place, tmp_path / "out")
    rows = with_rows(shared)
    head = rows if equal else FULL
    assert_values(tmp_path / "out", {**read(base), E_NAME: rows, H_NAME: head})


@pytest.mark.parametrize("new", [True, False], ids=["zip", "legacy"])
@pytest.mark.parametrize("equal", [True, False])
def test_a_stored_head_in_a_torch_file(tmp_path: Path, equal: bool, new: bool) -> None:
    """The comparison of head and embedding is of their values, wherever the bytes are held."""
    base = make_base(tmp_path / "base", tied=True)
    table = {n: torch.from_numpy(decode(t).copy()) for n, t in read_checkpoint(base).items()}
    shared = table[E_NAME].double().numpy()
    table[H_NAME] = (table[E_NAME] if equal else torch.from_numpy(FULL).float()).T.contiguous().T
    (base / "model.safetensors").unlink()
    torch.save(table, base / "pytorch_model.bin", _use_new_zipfile_serialization=new)
    place = adapter(tmp_path / "a", TOKENS, trainable_token_indices={"embed_tokens": [7, 3]})
    adaptertools.merge(base, place, tmp_path / "out")
    got, rows = read(tmp_path / "out"), with_rows(shared)
    assert np.array_equal(got[E_NAME], rows)
    assert np.array_equal(got[H_NAME], rows if equal else FULL)


@pytest.mark.parametrize("new", [True, False], ids=["zip", "legacy"])
def test_identical_transposes_in_a_torch_file(tmp_path: Path, new: bool) -> None:
    """The same change on both sides is seen in adapter_model.bin too."""
    base = make_base(tmp_path / "base", tied=True)
    place = adapter(tmp_path / "adapter", ON_EMBED)
    table = {n: torch.from_numpy(decode(t).copy()) for n, t in (ON_EMBED | TWIN).items()}
    for name in list(table)[2:]:
        table[name] = table[name].T.contiguous().T
    (place / "adapter_model.safetensors").unlink()
    torch.save(table, place / "adapter_model.bin", _use_new_zipfile_serialization=new)
    adaptertools.merge(base, place, tmp_path / "out")
    before = read(base)
    assert_values(tmp_path / "out", {**before, E_NAME: before[E_NAME] + EMBED_CHANGE})


def grown(count: int) -> dict:
    """Return saved embedding and head of another vocabulary."""
    full = np.concatenate([FULL, FULL])[:count].astype(np.float32)
    return {f"{PREFIX}{name}": encode(full, "F32") for name in (E_NAME, H_NAME)}


@pytest.mark.parametrize("count", [VOCAB + 4, VOCAB - 6])
@pytest.mark.parametrize("tied", [True, False])
def test_the_vocabulary_takes_the_adapter_s_size(tmp_path: Path, tied: bool, count: int) -> None:
    """Saved embeddings of another length win, and vocab_size follows."""
    base = make_base(tmp_path / "base", tied=tied)
    tensors = grown(count)
    if tied:
        del tensors[f"{PREFIX}{H_NAME}"]
    result = adaptertools.merge(base, adapter(tmp_path / "a", tensors), tmp_path / "out")
    full = np.concatenate([FULL, FULL])[:count]
    wanted = {**read(base), E_NAME: full} | ({} if tied else {H_NAME: full})
    assert_values(tmp_path / "out", wanted)
    assert config_of(tmp_path / "out") == config_of(base) | {"vocab_size": count}
    assert "AT322" in {note.id for note in result.plan.notes}
    assert files_of(tmp_path / "out") == files_of(base) | {"adaptertools.json"}
    assert adaptertools.verify(tmp_path / "out").ok
