"""The neutral form: an adapter as an ordered list of updates on canonical parameters.

The set of updates is closed. What each does to a weight W (or to a bias b):

| update | result |
|---|---|
| `LowRank` | W + s·up@down; with a magnitude m (DoRA) m ⊙ (W + s·up@down) / ‖W + s·up@down‖ |
| `Scaling` | W ⊙ l along output rows (and b ⊙ l), or along input columns |
| `Dense` | W + diff |
| `Replace` | value |
| `Rows` | W with some rows replaced |

Hadamard, Kronecker and rotation updates of the image formats will join this list as dataclasses of
their own; whatever consumes updates dispatches on the type and refuses one it does not know.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from adaptertools.errors import Finding

if TYPE_CHECKING:
    import torch

Axis = Literal["out", "in"]
Orientation = Literal["module", "always", "inverted"]


@dataclass(frozen=True, slots=True)
class Target:
    """A canonical parameter: the `module` path in the model, and the parameter's name in it."""

    module: str
    param: str = "weight"

    @property
    def name(self) -> str:
        return f"{self.module}.{self.param}" if self.module else self.param

    def __str__(self) -> str:
        return self.name


@dataclass(frozen=True, slots=True)
class Factor:
    """One adapter tensor in canonical axes, read when `read()` is called.

    `read_flat(start, stop)` reads some elements of the tensor as it is stored, flattened.

    `shape` is canonical; `dtype` is the stored one (safetensors name); `key` is its name in `file`.
    `source` is the store's own handle of the tensor; `bits()` reads the values in canonical axes as
    a numpy array of raw bits (unsigned integers as wide as the dtype), without torch.
    """

    key: str
    shape: tuple[int, ...]
    dtype: str
    size: int
    file: str
    read: Callable[[], torch.Tensor] = field(compare=False, repr=False)
    read_flat: Callable[[int, int], torch.Tensor] = field(compare=False, repr=False)
    source: Any = field(compare=False, repr=False)
    bits: Callable[[], Any] = field(compare=False, repr=False)


@dataclass(frozen=True, slots=True)
class LowRank:
    """ΔW = scale · up @ down, of `rank`.

    Shapes: down [*experts, rank, in, *kernel], up [*experts, out, rank], magnitude [out], bias
    [out], gate [rank] (AdaLoRA's singular values). `weight` lists the dims patterns that the base
    tensor may have; `transposed`, or for experts `orientation`, breaks a tie when it is square: as
    the module stores it, always `in out`, or the inverse of the module.
    """

    kind: ClassVar[str] = "low_rank"
    target: Target
    down: Factor
    up: Factor
    scale: float
    rank: int
    alpha: float | None
    weight: tuple[str, ...]
    magnitude: Factor | None = None
    bias: Factor | None = None
    gate: Factor | None = None
    transposed: bool | None = None
    experts: int | None = None
    orientation: Orientation = "module"
    parts: int | None = None
    enabled: tuple[str, ...] = ()

    @property
    def of_embedding(self) -> bool:
        """Whether the target is an embedding: only that weight is always stored `in out`."""
        return self.weight == ("in out",)


@dataclass(frozen=True, slots=True)
class Scaling:
    """(IA)³: W ⊙ scale · vector along `axis`; along "out" the bias is scaled too.

    Shape: vector [n]. `enabled` names the parts of a fused weight that the vector is for, "" for
    one that it leaves alone; empty where it is for all.
    """

    kind: ClassVar[str] = "scaling"
    target: Target
    vector: Factor
    axis: Axis
    weight: tuple[str, ...]
    transposed: bool | None = None
    scale: float = 1.0
    enabled: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Dense:
    """W + diff, of the weight's own shape."""

    kind: ClassVar[str] = "dense"
    target: Target
    diff: Factor


@dataclass(frozen=True, slots=True)
class Replace:
    """The parameter becomes `value` (modules_to_save, trained biases, saved embeddings)."""

    kind: ClassVar[str] = "replace"
    target: Target
    value: Factor


@dataclass(frozen=True, slots=True)
class Rows:
    """Rows `index` of the parameter become `values` [len(index), dim] (trained token rows)."""

    kind: ClassVar[str] = "rows"
    target: Target
    index: tuple[int, ...]
    values: Factor


Update = LowRank | Scaling | Dense | Replace | Rows


def factors(update: Update) -> Iterator[Factor]:
    """Yield every adapter tensor that an update is made of."""
    for item in fields(update):
        value = getattr(update, item.name)
        if isinstance(value, Factor):
            yield value


@dataclass(frozen=True, slots=True)
class Adapter:
    """One adapter: what it is (`format`, `method`), what it does (`updates`), where it came from.

    `config` is the original configuration, verbatim. `findings` are all the observations made while
    reading; `keys` counts the tensors of the file and `unmatched` names those no update uses.
    `scheme` is the naming scheme of the targets: "hf" once they are canonical.
    """

    path: str
    format: str
    method: str
    updates: tuple[Update, ...]
    config: dict[str, Any] = field(default_factory=dict)
    base_model: str | None = None
    base_revision: str | None = None
    files: tuple[str, ...] = ()
    keys: int = 0
    unmatched: tuple[str, ...] = ()
    evidence: tuple[str, ...] = ()
    findings: tuple[Finding, ...] = ()
    config_schema: str | None = None
    scheme: str = "hf"

    @property
    def errors(self) -> tuple[Finding, ...]:
        return tuple(f for f in self.findings if f.severity == "error")
