"""One model family: what its modules are called on disk, how large they are, what is fused.

Names are on-disk module paths; `v5` is the name in the transformers 5 module tree where it differs.
"""

from __future__ import annotations

from collections import ChainMap
from collections.abc import Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import cached_property
from itertools import product
from typing import Any, NamedTuple

from adaptertools.errors import SpecError
from adaptertools.patterns.dims import evaluate
from adaptertools.patterns.rows import compile_rows
from adaptertools.patterns.template import Template, compile_template

LAYOUTS = {"linear": "out in", "conv1d": "in out", "embedding": "in out", "norm": "out"}
LAYOUTS["parameter"] = LAYOUTS["linear"]
Sizes = Mapping[str, int]


@dataclass(frozen=True, slots=True)
class Expected:
    """What a family says of one module; a size that the config does not tell is None.

    `layout` is `out in`, `in out` or `out` (norms, stacked biases), with stacked experts
    `experts out in` and so on. A `parameter` is named by its tensor, all else by its module.
    """

    kind: str
    layout: str
    out: int | None
    in_: int | None
    experts: int | None = None


@dataclass(frozen=True, slots=True)
class Piece:
    """A tensor that is part of another, or holds it: the expert `index`, and `rows` along `out`."""

    tensor: str
    index: int | None = None
    rows: tuple[int, int] | None = None


@dataclass(frozen=True, slots=True)
class Spot:
    """Where a naming scheme keeps a module: `name`, a `part` of it, or one of its `stack`."""

    name: str
    part: str | None = None
    stack: str | None = None


@dataclass(frozen=True, slots=True)
class Module:
    """One entry of a family; `virtual` if it is only in the transformers 5 tree, not on disk.

    `v5` is the name there, or with `part` the name of the fused parameter that holds it. `spots`
    are its places in other naming schemes, `outs` and `ins` the axes that these order otherwise.
    """

    name: str
    kind: str
    layout: str
    out: str
    in_: str | None
    stack: str | None
    optional: bool
    virtual: bool
    v5: str | None
    part: str | None
    spots: Mapping[str, Spot]
    outs: Mapping[str, str]
    ins: Mapping[str, str]
    split: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Fused:
    """A stored tensor of a naming scheme that holds parts: how these lie along `out`.

    `partial` is how they lie in an adapter that has only some of the parts, if otherwise.
    """

    out: str
    partial: str | None = None


@dataclass(frozen=True, slots=True)
class Twin:
    """Two modules of which scaling the inputs of one is scaling the outputs of the other."""

    in_: str
    out: str
    when: Mapping[str, str]

    def holds(self, config: Mapping[str, Any]) -> bool:
        return all(fnmatchcase(str(config.get(f)), text) for f, text in self.when.items())


class Hit(NamedTuple):
    module: Module
    v5: bool
    fields: Mapping[str, str]
    root: str
    found: str


@dataclass(frozen=True)
class Family:
    """One model family; look-ups take a name and the sizes that `sizes()` read from the config."""

    id: str
    title: str
    model_types: tuple[str, ...]
    tied_head: str | None
    tied_to: str | None
    tied_default: bool
    roots: tuple[tuple[str, ...], ...]
    expressions: Mapping[str, tuple[str, ...]]
    modules: tuple[Module, ...]
    fused: Mapping[tuple[str, str], Fused]
    schemes: Mapping[str, Mapping[str, Any]]
    twins: tuple[Twin, ...]
    source: str

    def sizes(self, config: Mapping[str, Any]) -> dict[str, int]:
        """Return the sizes, and the count of each index, that a parsed config.json tells.

        A nested `text_config` goes before the top level; what is not told is left out.
        """
        nested = {k: v for k, v in config.items() if isinstance(v, Mapping)}
        dotted = {f"{k}.{name}": value for k, v in nested.items() for name, value in v.items()}
        values = {**config, **dotted, **nested.get("text_config", {})}
        found: dict[str, int] = {}
        for name, texts in self.expressions.items():
            tried = (evaluate(text, ChainMap(found, values)) for text in texts)
            if (size := next((s for s in tried if s is not None), None)) is not None:
                found[name] = size
        return found

    def is_tied(self, config: Mapping[str, Any]) -> bool:
        """Say whether the output head shares the embedding's tensor, going by the config."""
        for level in (config, config.get("text_config")):
            if isinstance(level, Mapping) and isinstance(level.get("tie_word_embeddings"), bool):
                return bool(level["tie_word_embeddings"])
        return self.tied_default

    def expected(self, name: str, sizes: Sizes) -> Expected | None:
        """Return what the module `name` should be, None where the family has no such module.

        The tensor `name.weight` means the same; stacked experts and the like are bare parameters.
        """
        hit = self.find(name) or self.find(name.removesuffix(".weight"))
        if hit is None or any(i in sizes and int(n) >= sizes[i] for i, n in hit.fields.items()):
            return None
        module = hit.module
        out, in_ = _extent(module.out, sizes), _extent(module.in_, sizes)
        if module.stack is None:
            return Expected(module.kind, module.layout, out, in_)
        return Expected(module.kind, f"experts {module.layout}", out, in_, sizes.get(module.stack))

    def pieces(self, name: str, sizes: Sizes) -> tuple[Piece, ...]:
        """Return the on-disk tensors that make up the transformers 5 parameter `name`.

        Empty where the tree has no such parameter or it is called the same on disk. Raises
        `SpecError` (AT294) where a size is needed that `sizes` lacks.
        """
        for path, tail in _splits(name):
            hit = self.find(path)
            if hit is None or not hit.v5:
                continue
            if not hit.module.virtual:
                return (Piece(self.spell(hit.module.name, hit, hit.fields) + tail),)
            stack, rows = hit.module.stack or "", self._rows(hit.module, sizes)
            parts = [m for m in self.modules if m.part and m.v5 == hit.module.name]
            return tuple(
                Piece(
                    self.spell(f"{m.name}.weight", hit, {**hit.fields, stack: e}), e, rows[m.part]
                )
                for e in range(self.known(stack, sizes)[stack])
                for m in parts
                if m.part
            )
        return ()

    def placed_in(self, tensor: str, sizes: Sizes) -> Piece | None:
        """Return what holds the on-disk `tensor` in the transformers 5 tree: `pieces` inverted.

        None where it is called the same there. Raises `SpecError` (AT294) like `pieces`.
        """
        for path, tail in _splits(tensor):
            hit = self.find(path)
            if hit is None or hit.v5 or hit.module.v5 is None:
                continue
            holder = self.spell(hit.module.v5, hit, hit.fields)
            if hit.module.part is None:
                return Piece(holder + tail)
            if tail in ("", ".weight"):
                whole = next(m for m in self.modules if m.name == hit.module.v5)
                index = int(hit.fields[whole.stack or ""])
                return Piece(holder, index, self._rows(whole, sizes)[hit.module.part])
        return None

    def modules_of(self, sizes: Sizes) -> list[str]:
        """Return the names of all modules on disk, for the counts in `sizes`."""
        names = []
        for module in self.modules:
            if not module.virtual:
                template = compile_template(module.name)
                ranges = [range(sizes.get(index, 0)) for index in template.fields]
                names += [
                    template.format(dict(zip(template.fields, numbers, strict=True)))
                    for numbers in product(*ranges)
                ]
        return names

    def twin(self, module: str, config: Mapping[str, Any]) -> str | None:
        """Return the module whose scaled output is this one's scaled input: W2(v ∘ x · W3)."""
        hit = self.find(module)
        if hit is None:
            return None
        twins = (t for t in self.twins if t.in_ == hit.module.name and t.holds(config))
        found = next(twins, None)
        return None if found is None else self.spell(found.out, hit, hit.fields)

    @cached_property
    def _names(self) -> dict[str, list[tuple[Template, Module, bool]]]:
        """All names, compiled when the first is looked up, by their last segment."""
        names: dict[str, list[tuple[Template, Module, bool]]] = {}
        for module in self.modules:
            renamed = module.v5 if module.part is None else None
            for text, v5 in ((module.name, module.virtual), (renamed, True)):
                if text is not None:
                    last = text.rpartition(".")[2]
                    names.setdefault(last, []).append((self._compile(text), module, v5))
        return names

    def _compile(self, text: str) -> Template:
        try:
            template = compile_template(text)
        except SpecError as error:
            raise SpecError("AT294", error.message, file=self.source) from None
        if lacking := set(template.fields) - self.expressions.keys():
            why = f"the name {text!r} needs the counts {sorted(lacking)}"
            raise SpecError("AT294", why, file=self.source)
        return template

    def check(self) -> None:
        """Compile every name; raises `SpecError` (AT294), which else the first look-up does."""
        _ = self._names

    def find(self, name: str) -> Hit | None:
        """Find a module by its name, then by that with the first root of each group in place."""
        swaps = [("", ""), *((group[0], other) for group in self.roots for other in group[1:])]
        for root, found in swaps:
            if name.startswith(found):
                path = root + name[len(found) :]
                for template, module, v5 in self._names.get(path.rpartition(".")[2], ()):
                    if (fields := template.match(path)) is not None:
                        return Hit(module, v5, fields, root, found)
        return None

    def spell(self, text: str, hit: Hit, fields: Mapping[str, object]) -> str:
        """Format a template, under the root by which `hit` was found."""
        return hit.found + compile_template(text).format(fields).removeprefix(hit.root)

    def _rows(self, fused: Module, sizes: Sizes) -> dict[str, tuple[int, int]]:
        rows, known = compile_rows(fused.out), self.known(fused.out, sizes)
        found = {part: rows.positions(part, rows, known) for part in rows.parts}
        return {part: (index.start, index.stop) for part, index in found.items()}

    def known(self, text: str, sizes: Sizes) -> Sizes:
        """Return `sizes`; raises where it lacks one that the row pattern `text` names."""
        for name in sorted(compile_rows(text).names - sizes.keys()):
            fields = " or ".join(self.expressions[name])
            why = f"the size {name!r} of this {self.title} model is not known"
            raise SpecError("AT294", why, hint=f"the base's config.json should tell {fields}")
        return sizes


def _splits(name: str) -> tuple[tuple[str, str], ...]:
    """Return `name` as a module or bare parameter, then as a module and its parameter."""
    module, dot, param = name.rpartition(".")
    return (name, ""), (module, dot + param)


def _extent(text: str | None, sizes: Sizes) -> int | None:
    if text is None or not compile_rows(text).names <= sizes.keys():
        return None
    return compile_rows(text).size(sizes)
