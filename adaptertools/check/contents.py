"""Predicates on what an adapter holds: kinds of update, embeddings, experts, full tensors."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from adaptertools.adapter.model import LowRank, Rows, Scaling
from adaptertools.check.case import (
    Case,
    Hit,
    expert,
    hit,
    is_copy,
    is_embedding,
    is_head,
    last,
    layer,
    like,
)
from adaptertools.errors import AdapterError
from adaptertools.formats.opening import read_config
from adaptertools.store.scan import scan


def dora(case: Case) -> Iterator[Hit]:
    """A magnitude; with `experts`, one of a module inside an expert."""
    for update in case.low_rank:
        inside = update.experts is not None or expert(update.target.module) is not None
        if update.magnitude is not None and (inside or not case.params.get("experts")):
            yield hit(update)


def lora_bias(case: Case) -> Iterator[Hit]:
    """A bias beside B."""
    for update in case.low_rank:
        if update.bias is not None:
            yield Hit(update.bias.key, last(update.target.module))


def bias(case: Case) -> Iterator[Hit]:
    """A trained bias of the base; with `config`, also a config that only says so."""
    whole = {update.target.module for update in case.full if update.target.param == "weight"}
    found = [
        hit(update)
        for update in case.full
        if update.target.param == "bias"
        and update.target.module not in whole
        and not is_copy(update)
    ]
    told = case.adapter.config.get("bias")
    if case.params.get("config") and not found and told not in (None, "none"):
        found.append(Hit("bias", f"bias {told!r}", "bias 'none'", in_config=True))
    yield from found


def full_tensor(case: Case) -> Iterator[Hit]:
    """A whole weight beside the updates (modules_to_save, saved embeddings, norms).

    `only` and `but` are patterns of the module's name; with `config`, a `modules_to_save` without
    tensors counts too.
    """
    found = [
        hit(update)
        for update in case.full
        if not is_copy(update)
        and update.target.param != "bias"
        and _listed(case, last(update.target.module))
    ]
    told = case.adapter.config.get("modules_to_save")
    if case.params.get("config") and not found and isinstance(told, list):
        names = [name for name in told if isinstance(name, str) and _listed(case, last(name))]
        found += [Hit("modules_to_save", name, "no such modules", in_config=True) for name in names]
    yield from found


def base_layer(case: Case) -> Iterator[Hit]:
    """A copy of a base weight beside an update; `only` and `but` are patterns of its module."""
    for update in case.full:
        if is_copy(update) and _listed(case, last(update.target.module)):
            yield hit(update)


def _listed(case: Case, name: str) -> bool:
    only = case.names("only") or ("*",)
    return like(name, only) and not like(name, case.names("but"))


def embedding_lora(case: Case) -> Iterator[Hit]:
    """An update on an input embedding."""
    return (hit(update) for update in case.low_rank if is_embedding(update))


def embedding_size(case: Case) -> Iterator[Hit]:
    """An update on an embedding with more or fewer rows than the base's vocabulary."""
    vocab = case.size("vocab_size")
    for update in case.low_rank:
        if not is_embedding(update):
            continue
        rows = update.down.shape[-1]
        if vocab is None:
            yield Hit(update.down.key, f"{rows} rows", unknown=True)
        elif rows != vocab:
            yield hit(update, f"{rows} rows", f"{vocab} rows")


def added_tokens(case: Case) -> Iterator[Hit]:
    """Tokens beside the adapter (added_tokens.json) that the base's vocabulary lacks."""
    path = Path(case.adapter.files[0]).parent / "added_tokens.json"
    try:
        numbers = read_config(path).values() if path.is_file() else ()
    except AdapterError:
        return
    vocab = case.size("vocab_size")
    new = [n for n in numbers if isinstance(n, int) and (vocab is None or n >= vocab)]
    if new:
        told = f"token {max(new)} in added_tokens.json"
        expected = "" if vocab is None else f"tokens below {vocab}"
        yield Hit(None, told, expected, unknown=vocab is None)


def tied(case: Case) -> Iterator[Hit]:
    """An update on one side (`side`, "embedding" or "head") of tied embeddings."""
    side = is_embedding if case.params["side"] == "embedding" else is_head
    for update in case.low_rank:
        if side(update) and case.tied is not False:
            yield Hit(update.down.key, last(update.target.module), unknown=case.tied is None)


def token_rows(case: Case) -> Iterator[Hit]:
    """Trained token rows."""
    for update in case.adapter.updates:
        if isinstance(update, Rows):
            yield hit(update, f"{len(update.index)} rows of {last(update.target.module)}")


def ia3(case: Case) -> Iterator[Hit]:
    """An (IA)³ vector."""
    return (hit(update) for update in case.adapter.updates if isinstance(update, Scaling))


def adalora(case: Case) -> Iterator[Hit]:
    """AdaLoRA's singular values between A and B."""
    return (hit(update) for update in case.low_rank if update.gate is not None)


def conv(case: Case) -> Iterator[Hit]:
    """An update on a convolution."""
    for update in case.low_rank:
        if len(update.down.shape) > (2 if update.experts is None else 3):
            yield hit(update)


def experts(case: Case) -> Iterator[Hit]:
    """An update on a module inside one expert."""
    for update in case.low_rank:
        if expert(update.target.module) is not None:
            yield hit(update)


def experts_3d(case: Case) -> Iterator[Hit]:
    """An update on a named parameter, such as the experts' three-dimensional one."""
    for update in case.low_rank:
        if update.experts is not None or update.target.param != "weight":
            yield hit(update, f"{last(update.target.module)}.{update.target.param}")


def experts_missing(case: Case) -> Iterator[Hit]:
    """A layer some of whose experts lack an update that others have."""
    layers: dict[str, dict[str, dict[int, LowRank]]] = {}
    for update in case.low_rank:
        if place := expert(update.target.module):
            path, number, kind = place
            layers.setdefault(path, {}).setdefault(kind, {})[number] = update
    told = case.size("num_local_experts", "num_experts", "n_routed_experts")
    for path, kinds in layers.items():
        count = told or 1 + max(number for numbers in kinds.values() for number in numbers)
        for kind, numbers in kinds.items():
            if len(numbers) < count:
                found = f"{len(numbers)} of {count} in {path}.*.{kind}"
                yield hit(next(iter(numbers.values())), found)


def partner_missing(case: Case) -> Iterator[Hit]:
    """A module named `has` in a layer where `needs` has no update."""
    beside: dict[str, set[str]] = {}
    for update in case.low_rank:
        parent, _, name = update.target.module.rpartition(".")
        beside.setdefault(parent, set()).add(name)
    for update in case.low_rank:
        parent, _, name = update.target.module.rpartition(".")
        if name == case.params["has"] and case.params["needs"] not in beside[parent]:
            yield hit(update, f"{name} alone", f"{case.params['needs']} too")


def layers_missing(case: Case) -> Iterator[Hit]:
    """A kind of module that has an update in some layers only."""
    where: dict[tuple[str, str], dict[int, LowRank]] = {}
    count: dict[str, int] = {}
    for update in case.low_rank:
        if place := layer(update.target.module):
            prefix, number, kind = place
            where.setdefault((prefix, kind), {})[number] = update
            count[prefix] = max(count.get(prefix, 0), number + 1)
    told = case.size("num_hidden_layers", "n_layer", "num_layers") or 0
    for (prefix, kind), numbers in where.items():
        total = max(told, count[prefix])
        if len(numbers) < total:
            first = numbers[min(numbers)]
            yield hit(first, f"{last(kind)} in {len(numbers)} layers", f"in all {total}")


def zero_update(case: Case) -> Iterator[Hit]:
    """An update whose B is all zeros, so that it changes nothing; this reads the tensors."""
    for update in case.low_rank:
        plain = update.magnitude is None and update.bias is None
        if plain and scan(update.up.source).zero:
            yield Hit(update.up.key, last(update.target.module))
