"""The data of a torch pickle without running it: a machine for the few opcodes tensors need.

`torch.save` writes a zip whose `data.pkl` names each tensor's storage, dtype, shape and strides.
Here that pickle is *interpreted as data*: nothing is imported and nothing is called, so a file that
asks for `os.system` is refused by name, and a tensor becomes a byte range to be read lazily.
"""

from __future__ import annotations

import io
import pickletools
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

MAX_PICKLE = 100_000_000
MAX_DIMS = 64

STORAGES = {
    "DoubleStorage": "F64",
    "FloatStorage": "F32",
    "HalfStorage": "F16",
    "BFloat16Storage": "BF16",
    "LongStorage": "I64",
    "IntStorage": "I32",
    "ShortStorage": "I16",
    "CharStorage": "I8",
    "ByteStorage": "U8",
    "BoolStorage": "BOOL",
    "ComplexFloatStorage": "C64",
}


class UnsafePickleError(Exception):
    """The pickle is not plain tensor data; the message says what it asks for."""


@dataclass(frozen=True, slots=True)
class Global:
    """A name the pickle refers to; never imported."""

    module: str
    name: str

    def __str__(self) -> str:
        return f"{self.module}.{self.name}"


@dataclass(frozen=True, slots=True)
class Storage:
    dtype: str
    key: str


@dataclass(frozen=True, slots=True)
class Strided:
    """A tensor: `shape` and `strides` in elements, from `start` elements into `storage`."""

    storage: Storage
    start: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


def _rebuild_tensor(arguments: tuple[Any, ...]) -> Strided:
    storage, start, shape, strides = arguments[:4]
    if not isinstance(storage, Storage) or len(shape) != len(strides):
        raise UnsafePickleError("a tensor without a storage")
    if len(shape) > MAX_DIMS:
        raise UnsafePickleError(f"a tensor of {len(shape)} dimensions")
    numbers = (start, *shape, *strides)
    if not all(isinstance(n, int) and not isinstance(n, bool) and n >= 0 for n in numbers):
        raise UnsafePickleError("a tensor with impossible sizes")
    return Strided(storage, start, tuple(shape), tuple(strides))


def _table(pairs: Iterable[tuple[Any, Any]]) -> dict[Any, Any]:
    """Return a dict; a nested key is refused, for hashing a deep one would end the process."""
    table = {}
    for key, value in pairs:
        if not isinstance(key, str | int | float | bytes | None):
            raise UnsafePickleError(f"a key that is a {type(key).__name__}")
        table[key] = value
    return table


def _told(value: Any) -> str:
    """Return a short word for what a pickle refers to."""
    return str(value)[:120] if isinstance(value, Global | str) else f"a {type(value).__name__}"


_CALLS: dict[str, Callable[[tuple[Any, ...]], Any]] = {
    "collections.OrderedDict": lambda a: _table(a[0]) if a else {},
    "torch._utils._rebuild_tensor_v2": _rebuild_tensor,
    "torch._utils._rebuild_tensor": _rebuild_tensor,
    "torch._utils._rebuild_parameter": lambda a: a[0],
    "torch.Size": lambda a: tuple(a[0]),
    "builtins.set": lambda a: list(a[0]) if a else [],
    "torch.device": lambda a: "device",
}


def _persistent(value: Any) -> Storage:
    tag, kind, key = value[:3]
    name = kind.name if isinstance(kind, Global) else ""
    if tag != "storage" or name not in STORAGES or not isinstance(key, str):
        raise UnsafePickleError(f"a storage of type {_told(kind)}")
    return Storage(STORAGES[name], key)


class _Machine:
    """The pickle machine, restricted to containers, numbers, strings and `_CALLS`.

    `budget` bounds what calls may copy: a list is written once, and so copied once.
    """

    def __init__(self, budget: int) -> None:
        self.budget = budget
        self.stack: list[Any] = []
        self.marks: list[int] = []
        self.memo: dict[int, Any] = {}

    def pop_mark(self) -> list[Any]:
        at = self.marks.pop()
        items = self.stack[at:]
        del self.stack[at:]
        return items

    def step(self, name: str, argument: Any) -> None:
        handler = getattr(self, f"op_{name.lower()}", None)
        if handler is not None:
            handler(argument)
        elif name in _PUSH:
            self.stack.append(_PUSH[name](argument))
        elif name not in ("PROTO", "FRAME", "STOP"):
            raise UnsafePickleError(f"the pickle operation {name}")

    def op_mark(self, _: Any) -> None:
        self.marks.append(len(self.stack))

    def op_tuple(self, _: Any) -> None:
        self.stack.append(tuple(self.pop_mark()))

    def op_tuple1(self, _: Any) -> None:
        self.stack[-1:] = [(self.stack[-1],)]

    def op_tuple2(self, _: Any) -> None:
        self.stack[-2:] = [tuple(self.stack[-2:])]

    def op_tuple3(self, _: Any) -> None:
        self.stack[-3:] = [tuple(self.stack[-3:])]

    def op_append(self, _: Any) -> None:
        self.stack[-2].append(self.stack.pop())

    def op_appends(self, _: Any) -> None:
        items = self.pop_mark()
        self.stack[-1].extend(items)

    def op_setitem(self, _: Any) -> None:
        value, key = self.stack.pop(), self.stack.pop()
        self.stack[-1].update(_table([(key, value)]))

    def op_setitems(self, _: Any) -> None:
        items = self.pop_mark()
        self.stack[-1].update(_table(zip(items[::2], items[1::2], strict=True)))

    def op_build(self, _: Any) -> None:
        if not isinstance(self.stack[-2], dict):
            raise UnsafePickleError(f"the state of an object ({type(self.stack[-2]).__name__})")
        self.stack.pop()

    def op_global(self, argument: str) -> None:
        module, name = argument.split(" ", 1)
        self.stack.append(Global(module, name))

    def op_stack_global(self, _: Any) -> None:
        name, module = self.stack.pop(), self.stack.pop()
        self.stack.append(Global(str(module), str(name)))

    def op_reduce(self, _: Any) -> None:
        arguments, function = self.stack.pop(), self.stack.pop()
        call = _CALLS.get(str(function)) if isinstance(function, Global) else None
        if call is None:
            raise UnsafePickleError(f"a call of {_told(function)}")
        self.budget -= sum(len(a) for a in arguments[:1] if isinstance(a, list | tuple))
        if self.budget < 0:
            raise UnsafePickleError("more items than it has bytes")
        self.stack.append(call(arguments))

    def op_binpersid(self, _: Any) -> None:
        self.stack.append(_persistent(self.stack.pop()))

    def op_put(self, argument: int) -> None:
        self.memo[int(argument)] = self.stack[-1]

    op_binput = op_long_binput = op_put

    def op_memoize(self, _: Any) -> None:
        self.memo[len(self.memo)] = self.stack[-1]

    def op_get(self, argument: int) -> None:
        self.stack.append(self.memo[int(argument)])

    op_binget = op_long_binget = op_get


_LITERALS = (
    "BININT",
    "BININT1",
    "BININT2",
    "LONG1",
    "BINFLOAT",
    "INT",
    "LONG",
    "FLOAT",
    "UNICODE",
    "BINUNICODE",
    "SHORT_BINUNICODE",
    "BINUNICODE8",
    "SHORT_BINBYTES",
    "BINBYTES",
    "SHORT_BINSTRING",
    "BINSTRING",
)
_PUSH: dict[str, Callable[[Any], Any]] = {
    "NONE": lambda _: None,
    "NEWTRUE": lambda _: True,
    "NEWFALSE": lambda _: False,
    "EMPTY_DICT": lambda _: {},
    "EMPTY_LIST": lambda _: [],
    "EMPTY_TUPLE": lambda _: (),
    **{name: (lambda argument: argument) for name in _LITERALS},
}


def interpret(data: bytes) -> Any:
    """Return the plain value that a pickle describes, with tensors as `Strided`.

    Raises `UnsafePickleError` for anything that is not plain tensor data, and for damage.
    """
    machine = _Machine(len(data))
    try:
        for opcode, argument, _ in pickletools.genops(io.BytesIO(data)):
            machine.step(opcode.name, argument)
        return machine.stack[-1]
    except UnsafePickleError:
        raise
    except Exception as error:
        raise UnsafePickleError(f"damaged data ({type(error).__name__})") from None
