"""A spec by itself: its schema, its templates and dims both ways, its facts."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from adaptertools import schemas
from adaptertools.conversion import facts
from adaptertools.formats.spec import FormatSpec, check_spec
from adaptertools.patterns.dims import Dims

AXES = {  # of each role: the axes that its dims must name, and those that they may
    "down": ({"rank", "in"}, {"experts", "parts"}),
    "up": ({"out", "rank"}, {"experts"}),
    "magnitude": ({"out"}, set()),
    "bias": ({"out"}, set()),
    "gate": ({"rank"}, set()),
    "values": ({"tokens", "dim"}, set()),
}
SIZES = {"experts": 4, "parts": 3, "rank": 5, "in": 7, "out": 6, "tokens": 2, "dim": 9}
FIELDS = {"module": "model.layers.1.mlp.up_proj", "adapter": "mine", "param": "bias"}


def test_it_fits_the_schema(path: Path) -> None:
    """The file is valid by `schemas/format.schema.json`."""
    check_spec(path)


def test_templates_are_inverted(spec: FormatSpec) -> None:
    """A key that a template makes gives back its fields, and only by its own update."""
    for _, update, role in spec.roles():
        for template in role.templates:
            given = {name: FIELDS[name] for name in template.fields}
            assert template.match(template.format(given)) == given, (update.kind, role.name)


def test_dims_name_what_their_role_has(spec: FormatSpec) -> None:
    """down has rank and in, up has out and rank, and so on: none is missing, none is foreign."""
    for _, update, role in spec.roles():
        for dims in role.dims:
            if update.kind == "scaling":
                assert dims.names in ({"out"}, {"in"}), dims.text
                continue
            must, may = AXES[role.name]
            assert must <= dims.names <= must | may, f"{role.name}: {dims.text}"


def every_dims(spec: FormatSpec) -> Iterator[Dims]:
    for _, update, role in spec.roles():
        yield from role.dims
        if update.stacked is not None:
            yield from (update.stacked.down, update.stacked.up)


def test_dims_are_inverted(spec: FormatSpec) -> None:
    """Canonical to stored and back is the same array, and the shape alone tells the sizes."""
    for dims in every_dims(spec):
        axes = tuple(sorted(dims.names))
        kernel = (3, 2) if dims.tail == "k" else ()
        shape = (*(SIZES[name] for name in axes), *kernel)
        array = np.arange(np.prod(shape)).reshape(shape)
        stored = dims.to_stored(array, axes, SIZES)
        known = {name: SIZES[name] for name in ("experts", "parts") if name in dims.names}
        sizes = dims.solve(stored.shape, known)
        assert {name: sizes[name] for name in axes} == {name: SIZES[name] for name in axes}
        assert np.array_equal(dims.to_canonical(stored, axes, sizes), array), dims.text


def told_facts(template: Any) -> Iterator[str]:
    """Yield every `@name` in a config template, as a value or as the key of a rule."""
    if isinstance(template, str) and template.startswith("@"):
        yield template[1:]
    elif isinstance(template, dict):
        for key, value in template.items():
            yield from told_facts(key if key.startswith("@") else value)
            if key == "@f32":
                yield from told_facts(value)


def test_every_fact_is_known(path: Path) -> None:
    """A fact that nobody knows would be refused only when an adapter is written."""
    known = {*facts._FACTS, *facts._RULES, "kept"}
    write = schemas.read_toml(path).get("write", {})
    told = set(told_facts({"files": write.get("files", {}), "values": write.get("values", {})}))
    assert told <= known


def test_what_is_written_is_found_again(spec: FormatSpec) -> None:
    """A reader looks for the names under which a writer leaves its files."""
    if not spec.write:
        pytest.skip("it is not written")
    assert any(Path(spec.write["file"]).match(pattern) for pattern in spec.weights)
    assert set(spec.write.get("files", {})) <= set(spec.configs)
