"""Key templates such as `{module}.lora_A[.{adapter}].weight`, read and written from one text.

A template is literals, `{field}`s and `[optional]` parts. `{module}`, `{rest}` and `{path}` match a
dotted path, `{adapter}` and `{param}` one segment, every other field a decimal index. Compiled once
to an anchored regular expression with at most one path field, so matching is linear in practice,
and to a formatter; a template whose two directions are not inverse is rejected.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from itertools import pairwise

from adaptertools.errors import SpecError

PATHS = {"module", "rest", "path"}
SEGMENTS = {"adapter", "param"}
_TOKEN = re.compile(r"\{([a-z_][a-z0-9_]*)\}|([\[\]])|([^{}\[\]]+)")


@dataclass(frozen=True, slots=True)
class _Part:
    """A literal, a field, or (with `optional`) a group of both that may be absent."""

    literal: str = ""
    field: str = ""
    optional: tuple[_Part, ...] = ()


@dataclass(frozen=True, slots=True)
class Template:
    """One compiled key template.

    >>> t = compile_template("base_model.model.{module}.lora_A[.{adapter}].weight")
    >>> t.match("base_model.model.layers.0.q.lora_A.default.weight")
    {'module': 'layers.0.q', 'adapter': 'default'}
    >>> t.format({"module": "layers.0.q"})
    'base_model.model.layers.0.q.lora_A.weight'
    """

    text: str
    parts: tuple[_Part, ...]
    pattern: re.Pattern[str]

    @property
    def fields(self) -> tuple[str, ...]:
        return tuple(self.pattern.groupindex)

    def match(self, key: str) -> dict[str, str] | None:
        """Return the fields of `key` (absent optional ones left out), or None."""
        found = self.pattern.fullmatch(key)
        if found is None:
            return None
        return {name: value for name, value in found.groupdict().items() if value is not None}

    def format(self, fields: Mapping[str, object]) -> str:
        """Return the key for `fields`; an optional part is written when its fields are given."""
        try:
            return "".join(_write(part, fields) for part in self.parts)
        except KeyError as error:
            raise SpecError(
                "AT292", f"template {self.text!r} needs the field {error.args[0]!r}"
            ) from None


def _write(part: _Part, fields: Mapping[str, object]) -> str:
    if part.optional:
        if all(inner.field in fields for inner in part.optional if inner.field):
            return "".join(_write(inner, fields) for inner in part.optional)
        return ""
    return str(fields[part.field]) if part.field else part.literal


def _parse(text: str) -> tuple[_Part, ...]:
    outer: list[_Part] = []
    inner: list[_Part] | None = None
    position = 0
    while position < len(text):
        token = _TOKEN.match(text, position)
        if token is None:
            raise SpecError("AT292", f"template {text!r}: cannot read from {text[position:]!r}")
        position = token.end()
        field, bracket, literal = token.groups()
        if bracket == "[" and inner is None:
            inner = []
        elif bracket == "]" and inner:
            if not any(part.field for part in inner):
                raise SpecError("AT292", f"template {text!r}: an optional part needs a field")
            outer.append(_Part(optional=tuple(inner)))
            inner = None
        elif bracket:
            raise SpecError("AT292", f"template {text!r}: unexpected {bracket!r}")
        else:
            (outer if inner is None else inner).append(_Part(literal or "", field or ""))
    if inner is not None:
        raise SpecError("AT292", f"template {text!r}: '[' is never closed")
    return tuple(outer)


def _regex(part: _Part) -> str:
    if part.optional:
        return f"(?:{''.join(map(_regex, part.optional))})?"
    if not part.field:
        return re.escape(part.literal)
    if part.field in PATHS:
        return f"(?P<{part.field}>.+)"
    return f"(?P<{part.field}>{'[^.]+' if part.field in SEGMENTS else '[0-9]{1,9}'})"


def _check_inverse(template: Template) -> None:
    fields = template.fields
    flat = [f for p in template.parts for f in (p.optional or (p,))]
    if any(a.field and b.field for a, b in pairwise(flat)):
        raise SpecError("AT292", f"template {template.text!r}: two fields with nothing between")
    if sum(name in PATHS for name in fields) > 1:
        raise SpecError("AT292", f"template {template.text!r}: more than one path field")
    sample = {n: "a.0.b" if n in PATHS else "c" if n in SEGMENTS else "7" for n in fields}
    optional = {f.field for p in template.parts for f in p.optional if f.field}
    for given in (sample, {n: v for n, v in sample.items() if n not in optional}):
        if template.match(template.format(given)) != given:
            raise SpecError("AT292", f"template {template.text!r}: reading does not invert writing")


@cache
def compile_template(text: str) -> Template:
    """Compile `text`; raises `SpecError` (AT292) when it is malformed or not invertible."""
    parts = _parse(text)
    try:
        pattern = re.compile("".join(map(_regex, parts)))
    except re.error as error:
        raise SpecError("AT292", f"template {text!r}: {error}") from None
    template = Template(text, parts, pattern)
    _check_inverse(template)
    return template
