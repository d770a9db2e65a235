"""Tensors that contradict their config, each other or the base, or change nothing."""

from __future__ import annotations

import numpy as np
import pytest
from builders import (
    Tensors,
    decode,
    encode,
    read_checkpoint,
    tiny_base,
    tiny_ia3,
    write_safetensors,
)

from adaptertools import AdapterError

from .arena import A0, B0, PREFIX, Q0, Arena, Edit, put


def spot(key: str, value: float, at: int = -1) -> Edit:
    """Return an edit that puts one bad number into a tensor of f32."""

    def edit(tensors: Tensors) -> None:
        dtype, shape, data = tensors[key]
        values = np.frombuffer(data, np.float32).copy()
        values[at] = value
        tensors[key] = (dtype, shape, values.tobytes())

    return edit


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf], ids=str)
@pytest.mark.parametrize("key", [A0, B0], ids=["A", "B"])
def test_bad_numbers_in_lora(arena: Arena, key: str, value: float) -> None:
    """One NaN or infinity in a factor is found and its place named."""
    arena.edit_weights(spot(key, value))
    arena.refuses(key=Q0)


@pytest.mark.parametrize("value", [np.nan, np.inf], ids=str)
@pytest.mark.parametrize("module", ["self_attn.k_proj", "mlp.down_proj"])
def test_bad_numbers_in_ia3(arena: Arena, module: str, value: float) -> None:
    """One NaN or infinity in an (IA)3 vector is found and its place named."""
    arena.adapter = tiny_ia3(arena.root / "ia3", arena.base)
    key = f"{PREFIX}model.layers.1.{module}.ia3_l"
    arena.edit_weights(spot(key, value))
    arena.refuses(key=f"model.layers.1.{module}")


def test_overflow_of_the_result(arena: Arena) -> None:
    """Finite factors whose product overflows the stored dtype are an error, not infinities."""
    arena.edit_weights(put(A0, np.full((4, 64), 10)))
    arena.edit_weights(put(B0, np.full((64, 4), 3e38)))
    arena.refuses(key=Q0)


@pytest.mark.parametrize("dtype", ["auto", "f16"])
def test_overflow_of_half_precision(arena: Arena, dtype: str) -> None:
    """A result beyond 65504 does not fit f16, stored so already or asked for."""
    if dtype == "auto":
        arena.base = tiny_base(arena.root / "half", dtype="F16")
    arena.edit_weights(put(A0, np.full((4, 64), 10)))
    arena.edit_weights(put(B0, np.full((64, 4), 1e4)))
    arena.refuses(key=Q0, dtype=dtype)


def test_dtype_that_is_no_float(arena: Arena) -> None:
    """Integer factors are no LoRA."""

    def edit(tensors: Tensors) -> None:
        tensors[A0] = encode(np.ones((4, 64)), "I32")

    arena.edit_weights(edit)
    arena.refuses(key=Q0)


def test_base_that_is_no_float(arena: Arena) -> None:
    """A targeted base tensor of integers is not weights."""
    arena.edit_model(lambda t: t.update({f"{Q0}.weight": encode(np.ones((64, 64)), "I16")}))
    arena.refuses(key=Q0)


@pytest.mark.parametrize(
    "name",
    [
        "base_model.model.model.layers.7.self_attn.q_proj",
        "base_model.model.model.layers.0.self_attn.qq_proj",
        "base_model.model.encoder.block.0.q_proj",
        "q_proj",
    ],
)
def test_unmatched_module(arena: Arena, name: str) -> None:
    """Factors for a module that the base does not have are an error that names them."""
    arena.edit_weights(put(f"{name}.lora_A.weight", np.ones((4, 64))))
    arena.edit_weights(put(f"{name}.lora_B.weight", np.ones((64, 4))))
    arena.refuses(key=name.removeprefix(PREFIX))
    arena.refuses_cli(key=name.removeprefix(PREFIX))


@pytest.mark.parametrize("key", ["what.is.this", f"{PREFIX}{Q0}.lora_C.weight"])
def test_unexpected_key(arena: Arena, key: str) -> None:
    """A key that belongs to nothing is an error that names it."""
    arena.edit_weights(put(key, np.ones(64)))
    arena.refuses(key=key)


def test_magnitude_that_the_config_denies(arena: Arena) -> None:
    """A DoRA magnitude with `use_dora: false` is applied or refused, never ignored."""
    arena.edit_weights(put(f"{PREFIX}{Q0}.lora_magnitude_vector", np.full(64, 3)))
    try:
        arena.merge()
    except AdapterError as error:
        assert Q0 in str(error)
    else:
        rows = decode(read_checkpoint(arena.out)[f"{Q0}.weight"])
        np.testing.assert_allclose(np.linalg.norm(rows, axis=1), 3, rtol=1e-2)


@pytest.mark.parametrize("gone", [A0, B0], ids=["A", "B"])
def test_half_a_pair(arena: Arena, gone: str) -> None:
    """A without B, or B without A, is an error that names the module."""
    arena.edit_weights(lambda tensors: tensors.pop(gone))
    arena.refuses(key=Q0)


@pytest.mark.parametrize(
    "edit",
    [
        put(B0, np.ones((64, 3))),
        put(A0, np.ones((5, 64))),
        put(A0, np.ones((4, 63))),
        put(B0, np.ones((65, 4))),
        put(B0, np.ones((64, 4, 1))),
        put(A0, np.ones(256)),
        put(A0, np.ones(0)),
        put(A0, np.ones((0, 64))),
        put(A0, np.float32(1)),
        put(A0, np.ones((64, 4))),
    ],
    ids=[
        *("B of rank 3", "A of rank 5", "A too narrow", "B too tall", "B of three dimensions"),
        *("A flat", "A empty", "A of rank 0", "A scalar", "A transposed"),
    ],
)
def test_shapes_that_do_not_fit(arena: Arena, edit: Edit) -> None:
    """Shapes that fit neither each other nor the base are an error that names the module."""
    arena.edit_weights(edit)
    arena.refuses(key=Q0)


def test_rank_zero(arena: Arena) -> None:
    """Factors of rank zero add nothing and are an error."""
    arena.edit_weights(put(A0, np.ones((0, 64))))
    arena.edit_weights(put(B0, np.ones((64, 0))))
    arena.refuses(key=Q0)


@pytest.mark.parametrize("shape", [(1, 63), (17, 1), (16,), (1, 1), (16, 1, 1)])
def test_ia3_shapes_that_do_not_fit(arena: Arena, shape: tuple[int, ...]) -> None:
    """An (IA)3 vector of a wrong shape is an error that names the module."""
    arena.adapter = tiny_ia3(arena.root / "ia3", arena.base)
    name = "model.layers.0.self_attn.k_proj"
    arena.edit_weights(put(f"{PREFIX}{name}.ia3_l", np.ones(shape)))
    arena.refuses(key=name)


@pytest.mark.parametrize("infix", ["default", "style", "lora_A"])
def test_module_twice(arena: Arena, infix: str) -> None:
    """Two keys that name the same factor, with and without adapter name, are an error."""
    arena.edit_weights(
        put(A0.replace(".lora_A.", f".lora_A.{infix}."), np.full((4, 64), 0.5, np.float32))
    )
    arena.refuses(key=Q0)


def test_embedding_and_linear_factors_on_one_module(arena: Arena) -> None:
    """One module cannot be a linear and an embedding."""
    arena.edit_weights(put(f"{PREFIX}{Q0}.lora_embedding_A", np.ones((4, 64))))
    arena.edit_weights(put(f"{PREFIX}{Q0}.lora_embedding_B", np.ones((64, 4))))
    arena.refuses(key=Q0)


def test_all_zero(arena: Arena) -> None:
    """An adapter that was never trained changes nothing, which is an error."""

    def edit(tensors: Tensors) -> None:
        for key, (dtype, shape, data) in list(tensors.items()):
            if ".lora_B." in key:
                tensors[key] = (dtype, shape, bytes(len(data)))

    arena.edit_weights(edit)
    error = arena.refuses()
    assert "zero" in f"{error.message} {error.hint}" or "nothing" in error.message.lower()
    arena.refuses_cli()


def test_zero_alpha(arena: Arena) -> None:
    """A scale of zero changes nothing either."""
    arena.configure(lora_alpha=0)
    arena.refuses()


def test_neutral_ia3(arena: Arena) -> None:
    """(IA)3 vectors of ones change nothing, which is an error."""
    arena.adapter = tiny_ia3(arena.root / "ia3", arena.base)

    def edit(tensors: Tensors) -> None:
        for key, (_, shape, _) in list(tensors.items()):
            tensors[key] = encode(np.ones(shape), "F32")

    arena.edit_weights(edit)
    arena.refuses()


def test_no_tensors(arena: Arena) -> None:
    """An adapter without tensors is no adapter."""
    write_safetensors(arena.weights, {}, {"format": "pt"})
    arena.refuses(file=str(arena.adapter))


def test_adapter_given_as_base(arena: Arena) -> None:
    """An adapter is no base, and a base no adapter."""
    good = arena.base
    arena.base = arena.adapter
    arena.refuses()
    arena.base = arena.adapter = good
    arena.refuses()
