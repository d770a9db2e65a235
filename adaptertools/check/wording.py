"""Predicates on how an adapter is written: format, files, dtypes, key names, config fields."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from adaptertools import schemas
from adaptertools.adapter.model import factors
from adaptertools.check.case import Case, Hit, alike, hit, last, layer, like
from adaptertools.patterns.template import compile_template


def format_(case: Case) -> Iterator[Hit]:
    """A format that is none of `formats`; where nothing is low-rank, writing it anew is no help."""
    if any(case.low_rank) and case.adapter.format not in case.names("formats"):
        yield Hit(None, case.adapter.format, " or ".join(case.names("formats")))


def file_name(case: Case) -> Iterator[Hit]:
    """A weight file whose name fits none of `names`."""
    name = Path(case.adapter.files[0]).name
    if not like(name, case.names("names")):
        yield Hit(None, name, " or ".join(case.names("names")))


def dtype(case: Case) -> Iterator[Hit]:
    """A tensor whose dtype is none of `dtypes`."""
    for update in case.adapter.updates:
        for factor in factors(update):
            if factor.dtype not in case.names("dtypes"):
                yield Hit(factor.key, factor.dtype, " or ".join(case.names("dtypes")))


def target_modules(case: Case) -> Iterator[Hit]:
    """An update on a module whose name fits none of `names`, or one of `but`.

    Updates on a named parameter of a module are left to `experts_3d`.
    """
    for update in case.low_rank:
        name = last(update.target.module)
        if update.experts is not None or update.target.param != "weight":
            continue
        known = like(name, case.names("names") or ("*",))
        if not known or like(name, case.names("but")):
            yield hit(update)


def target_regex(case: Case) -> Iterator[Hit]:
    """A `target_modules` that is no list of names and none of the words `but`."""
    config = case.adapter.config
    named = config.get("target_modules")
    if config and not isinstance(named, list) and named not in case.names("but"):
        told = "null" if named is None else repr(named)[:60]
        yield Hit("target_modules", told, "a list of names", in_config=True)


def init(case: Case) -> Iterator[Hit]:
    """An `init_lora_weights` that is a word and fits none of `but`."""
    told = case.adapter.config.get("init_lora_weights")
    if isinstance(told, str) and not like(told.lower(), case.names("but")):
        yield Hit("init_lora_weights", told[:60], in_config=True)


def variant(case: Case) -> Iterator[Hit]:
    """One of the config's `fields` is set."""
    for name in case.names("fields"):
        if case.adapter.config.get(name):
            yield Hit(name, name, in_config=True)


def config_lacks(case: Case) -> Iterator[Hit]:
    """A config without one of `fields`."""
    for name in case.names("fields"):
        if case.adapter.config and name not in case.adapter.config:
            yield Hit(name, "no such field", name, in_config=True)


def key_form(case: Case) -> Iterator[Hit]:
    """A key of an update in a layer that fits none of the `templates`."""
    templates = [compile_template(text) for text in case.names("templates")]
    for update in case.low_rank:
        if layer(update.target.module) is None:
            continue
        for factor in (update.down, update.up):
            if not any(template.match(factor.key) for template in templates):
                yield Hit(factor.key, alike(factor.key), templates[0].text)
                break


def wrapped_keys(case: Case) -> Iterator[Hit]:
    """A key with a segment that a training wrapper left."""
    wrappers = set(schemas.table("names")["wrappers"])
    for update in case.adapter.updates:
        for factor in factors(update):
            if left := wrappers & set(factor.key.split(".")):
                yield Hit(factor.key, ", ".join(sorted(left)))
                break
