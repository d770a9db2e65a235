"""A walk over the head of a GGUF file: bounded reads, and the key-value pairs.

Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md. Nothing is loaded, counted or
allocated before the file is known to be large enough for it. Codes: see `store/gguf.py`.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from struct import Struct, unpack_from
from typing import BinaryIO

from adaptertools.errors import SourceError

MAX_HEADER = 1 << 27
MAX_KEY = (1 << 16) - 1
STRING, ARRAY = 8, 9
# value type number → (kind, code of the struct module); a string is its length and its bytes
KINDS = {
    0: ("uint8", "B"),
    1: ("int8", "b"),
    2: ("uint16", "H"),
    3: ("int16", "h"),
    4: ("uint32", "I"),
    5: ("int32", "i"),
    6: ("float32", "f"),
    7: ("bool", "?"),
    STRING: ("string", ""),
    10: ("uint64", "Q"),
    11: ("int64", "q"),
    12: ("float64", "d"),
}
CODES = dict(KINDS.values())
U32, U64 = Struct("<I"), Struct("<Q")
DAMAGED = "the file is damaged or hostile"
_FIRST = 1 << 16

Scalar = int | float | bool | str


@dataclass(frozen=True, slots=True)
class Value:
    """One key-value pair: `raw` is its bytes in the file, from the length of its key on.

    `kind` is `uint32`, `string`, …, with `[]` behind it for an array; the payload begins at `start`
    of `raw` and holds `count` items (1 for a scalar).
    """

    key: str
    kind: str
    count: int
    raw: bytes
    start: int

    @property
    def value(self) -> Scalar | list[Scalar]:
        """The decoded value, anew at each call; what is not UTF-8 shows as U+FFFD."""
        items = list(self._items())
        return items if self.kind.endswith("[]") else items[0]

    def _items(self) -> Iterator[Scalar]:
        code = CODES[self.kind.removesuffix("[]")]
        if code:
            yield from unpack_from(f"<{self.count}{code}", self.raw, self.start)
            return
        at = self.start
        for _ in range(self.count):
            begin = at + 8
            at = begin + U64.unpack_from(self.raw, at)[0]
            yield self.raw[begin:at].decode("utf-8", "replace")


class Head:
    """The bytes of a file from its start, loaded as far as they are needed; `at` is the place.

    `key` names what is being read, for the errors.
    """

    def __init__(self, path: Path, stream: BinaryIO) -> None:
        self.path, self.stream = path, stream
        self.size = os.fstat(stream.fileno()).st_size
        self.data = bytearray()
        self.at = 0
        self.key: str | None = None

    def error(self, code: str, why: str, hint: str = DAMAGED) -> SourceError:
        """Return an error about this file and key, of which a long one is cut."""
        key = self.key if self.key is None or len(self.key) <= 120 else self.key[:120] + "…"
        return SourceError(code, why, file=self.path, key=key, hint=hint)

    def load(self, end: int) -> None:
        """Have the bytes before `end` in memory; AT141 when the file ends earlier, AT142 limit."""
        if end <= len(self.data):
            return
        if end <= self.size:
            if end > MAX_HEADER:
                raise self.error("AT142", f"its header is over {MAX_HEADER} bytes")
            want = min(max(end, 2 * len(self.data), _FIRST), self.size, MAX_HEADER)
            self.data += self.stream.read(want - len(self.data))
        if end > len(self.data):
            why = f"truncated: its header needs {end} bytes or more, the file has {self.size}"
            raise self.error("AT141", why, "download it again")

    def take(self, count: int) -> int:
        """Step over `count` bytes; returns where they begin."""
        begin, end = self.at, self.at + count
        self.load(end)
        self.at = end
        return begin

    def number(self, codec: Struct) -> int:
        """Step over one integer and return it."""
        found: int = codec.unpack_from(self.data, self.take(codec.size))[0]
        return found

    def name(self, what: str, code: str, limit: int) -> str:
        """Step over one string and return it; `code` when it is too long or not UTF-8."""
        length = self.number(U64)
        if limit < length <= self.size - self.at:
            raise self.error(code, f"a {what} of {length} bytes, over {limit}")
        begin = self.take(length)
        try:
            return self.data[begin : self.at].decode("utf-8")
        except UnicodeDecodeError:
            raise self.error(code, f"a {what} that is not UTF-8") from None

    def count(self, what: str, least: int) -> int:
        """Step over a count of things that take `least` bytes each or more (AT141)."""
        found = self.number(U64)
        if found * least > self.size - self.at:
            why = f"truncated: {found} {what} do not fit into a file of {self.size} bytes"
            raise self.error("AT141", why, "download it again")
        return found

    def skip_strings(self, count: int) -> None:
        """Step over strings by their lengths: 400 000 of them in less than a tenth of a second."""
        at, loaded, unpack = self.at, len(self.data), U64.unpack_from
        for _ in range(count):
            if at + 8 > loaded:
                self.load(at + 8)
                loaded = len(self.data)
            at += 8 + unpack(self.data, at)[0]
        self.load(at)
        self.at = at

    def pair(self) -> Value:
        """Step over one key-value pair, its content checked but not decoded; AT143."""
        begin = self.at
        self.key = None
        key = self.name("key", "AT143", MAX_KEY)
        if not key:
            raise self.error("AT143", "a key is empty")
        self.key = key
        number = self.number(U32)
        array = number == ARRAY
        if array:
            number = self.number(U32)
        if number not in KINDS:
            what = "an array of arrays" if number == ARRAY else f"unknown value type {number}"
            raise self.error("AT143", f"{what}, which no reader of GGUF supports")
        kind, code = KINDS[number]
        size = Struct("<" + code).size or U64.size
        count = self.count("array items", size) if array else 1
        start = self.at
        if number == STRING:
            self.skip_strings(count)
        else:
            self.take(size * count)
        raw = bytes(memoryview(self.data)[begin : self.at])
        if kind == "bool" and raw[start - begin :].strip(b"\0\1"):
            raise self.error("AT143", "a bool that is neither 0 nor 1")
        return Value(key, kind + "[]" * array, count, raw, start - begin)
