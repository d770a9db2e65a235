"""Naming schemes: where each one keeps a canonical module, and how it orders its rows.

Canonical names and row orders are those of the model on disk in the Hugging Face layout (`hf`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from adaptertools.adapter.family import Family, Fused, Hit, Module, Spot
from adaptertools.errors import FormatError, SpecError
from adaptertools.patterns.rows import Index, compile_rows
from adaptertools.patterns.template import Template, compile_template

NAMES_OF_HF = ("mlx",)
MOST_ROWS, MOST_MEMBERS = 1 << 28, 1 << 16


@dataclass(frozen=True, slots=True)
class Home:
    """Where a scheme keeps a module: as tensor `name`, a `part` of it, or `index` of a stack.

    `rows` and `columns` are the positions there of the canonical rows (along `out`) and columns
    (along `in`); None where they are all, in the same order.
    """

    name: str
    part: str | None = None
    index: int | None = None
    rows: Index | None = None
    columns: Index | None = None


@dataclass(frozen=True, slots=True)
class Member:
    """A canonical module that a stored tensor holds, and where in it."""

    module: str
    home: Home


class Naming:
    """One naming scheme of one model: `sizes` are those that its config tells.

    Without a family only schemes that keep the canonical names are possible.
    """

    def __init__(
        self, scheme: str, family: Family | None = None, sizes: Mapping[str, int] | None = None
    ) -> None:
        self.scheme, self.family, self.sizes = scheme, family, sizes or {}

    @property
    def plain(self) -> bool:
        """Whether the names are the canonical ones."""
        return self.scheme == "hf" or (self.family is None and self.scheme in NAMES_OF_HF)

    def home(self, module: str) -> Home | None:
        """Return where the scheme keeps a canonical module, None where it has no place for it.

        Raises `FormatError`: AT240 without a family, AT241 where a size is needed and not known.
        """
        if self.plain:
            return Home(module)
        hit = self._known_family().find(module)
        if hit is None or hit.module.virtual:
            return None
        spot = self._spot(hit.module)
        return None if spot is None else self._home(hit, spot)

    def members(self, name: str) -> tuple[Member, ...]:
        """Return the canonical modules that the scheme keeps in tensor `name`; empty if unknown.

        Parts come in the order of their layout, a stack in the order of its index. Raises like
        `home`.
        """
        if self.plain:
            return (Member(name, Home(name)),)
        found = []
        for template, module, spot in self._spots.get(name.rpartition(".")[2], ()):
            if (fields := template.match(name)) is not None:
                found.append((module, spot, fields))
        if not found and self._from_hf and (hit := self._known_family().find(name)):
            return (Member(name, self._home(hit, Spot(hit.module.name))),)
        return tuple(member for hit in self._in_order(found) for member in self._expand(*hit))

    def fused(self, name: str) -> Fused | None:
        """Return how the scheme lays out the parts of tensor `name`, None where it has none."""
        for (scheme, text), fused in self._known_family().fused.items() if self.family else ():
            if scheme == self.scheme and compile_template(text).match(name) is not None:
                return fused
        return None

    def part_rows(self, module: str) -> dict[str, Index]:
        """Return which canonical rows of a fused module on disk belong to each of its parts."""
        hit = self._known_family().find(module)
        rows = None if hit is None else compile_rows(hit.module.outs["hf"])
        if rows is None or not rows.parts:
            return {}
        sizes = self._sizes(rows.text)
        return {part: rows.positions(part, rows, sizes) for part in rows.parts}

    def architecture(self, model_type: object) -> str | None:
        """Return what the scheme calls the architecture of a model type."""
        table = self.family.schemes.get(self.scheme, {}) if self.family else {}
        found: str | None = table.get("architecture", {}).get(str(model_type))
        return found

    @property
    def _from_hf(self) -> bool:
        schemes = self.family.schemes if self.family else {}
        return bool(schemes.get(self.scheme, {}).get("from") == "hf")

    def _known_family(self) -> Family:
        if self.family is None:
            raise FormatError(
                "AT240",
                f"names and row orders of the scheme {self.scheme!r} depend on the model's family, "
                "which is not known",
                hint="give --base, or a folder with the base's config.json",
            )
        return self.family

    @cached_property
    def _spots(self) -> dict[str, list[tuple[Template, Module, Spot]]]:
        """The places of this scheme, by the last segment of their names."""
        spots: dict[str, list[tuple[Template, Module, Spot]]] = {}
        for module in self._known_family().modules:
            spot = None if module.virtual else module.spots.get(self.scheme)
            if spot is not None:
                last = spot.name.rpartition(".")[2]
                spots.setdefault(last, []).append((compile_template(spot.name), module, spot))
        return spots

    def _spot(self, module: Module) -> Spot | None:
        spot = module.spots.get(self.scheme)
        return Spot(module.name) if spot is None and self._from_hf else spot

    def _home(self, hit: Hit, spot: Spot) -> Home:
        index = None if spot.stack is None else int(hit.fields[spot.stack])
        rows = self._rows(hit.module, spot)
        columns = self._axis(hit.module.ins)
        root = hit if self._from_hf else hit._replace(root="", found="")
        return Home(root_spelled(self, root, spot), spot.part, index, rows, columns)

    def _rows(self, module: Module, spot: Spot) -> Index | None:
        if spot.part is None:
            return self._axis(module.outs)
        fused = self._known_family().fused[self.scheme, spot.name]
        stored = compile_rows(fused.out)
        return stored.positions(spot.part, compile_rows(module.out), self._sizes(fused.out))

    def _axis(self, texts: Mapping[str, str]) -> Index | None:
        text = texts.get(self.scheme)
        if text is None or text == texts["hf"]:
            return None
        return compile_rows(text).positions("", compile_rows(texts["hf"]), self._sizes(text))

    def _sizes(self, text: str) -> Mapping[str, int]:
        hint = "give --base, or a folder with the base's config.json"
        try:
            sizes = self._known_family().known(text, self.sizes)
        except SpecError as error:
            raise FormatError("AT241", error.message, hint=hint) from None
        if (size := compile_rows(text).size(sizes)) > MOST_ROWS:
            raise FormatError("AT241", f"the config says {size:,} rows, which is absurd", hint=hint)
        return sizes

    def _in_order(self, found: list[Any]) -> list[Any]:
        if len(found) < 2:
            return found
        if any(spot.part is None for _, spot, _ in found):
            told = " or ".join(module.name for module, _, _ in found)
            raise FormatError("AT245", f"could be {told} of this model")
        parts = compile_rows(self._known_family().fused[self.scheme, found[0][1].name].out).parts
        return sorted(found, key=lambda item: parts.index(item[1].part))

    def _expand(self, module: Module, spot: Spot, fields: Mapping[str, str]) -> list[Member]:
        every: list[Mapping[str, Any]] = [fields]
        if spot.stack is not None:
            if spot.stack not in self.sizes:
                hint = "give --base, or a folder with the base's config.json"
                raise FormatError("AT241", "the number of experts is not known", hint=hint)
            count = self.sizes[spot.stack]
            if count > MOST_MEMBERS:
                raise FormatError("AT241", f"the config says {count:,} experts, which is absurd")
            every = [{**fields, spot.stack: n} for n in range(count)]
        name = compile_template(module.name)
        hits = [Hit(module, False, one, "", "") for one in every]
        return [Member(name.format(hit.fields), self._home(hit, spot)) for hit in hits]


def root_spelled(naming: Naming, hit: Hit, spot: Spot) -> str:
    """Return the name of a spot, under the root by which the module was found."""
    assert naming.family is not None
    return naming.family.spell(spot.name, hit, hit.fields)
