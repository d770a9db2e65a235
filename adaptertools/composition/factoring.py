"""One tensor of two checkpoints as an update: a low-rank change and its residual, or a value."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

from adaptertools.adapter.model import Factor, LowRank, Replace, Update
from adaptertools.composition.results import held
from adaptertools.composition.tensors import Pair
from adaptertools.errors import AdapterError
from adaptertools.formats.factors import reshaped, whole_factor
from adaptertools.store.dtypes import dtype_of
from adaptertools.store.read import read_tensor, same_bytes

if TYPE_CHECKING:
    import torch

LINEAR = ("out in *k", "in out")
EMBEDDING = ("in out",)


@dataclass(frozen=True, slots=True)
class Factoring:
    """How a change is factored: a rank rule (name, value, most), the seed, and where σ goes."""

    rule: tuple[str, float, int | None]
    full_svd: bool = False
    seed: int = 0
    split: Literal["balanced", "up", "down"] = "balanced"


@dataclass(frozen=True, slots=True)
class Extracted:
    """What became of one tensor that differs.

    `residual` is the share of ‖Δ‖² that is left out, `ratio` is ‖Δ‖/‖W‖, `noise` the share of
    ‖Δ‖² that rounding the tuned weights to their 16-bit dtype makes; None for full values.
    """

    name: str
    how: str
    updates: tuple[Update, ...] = ()
    rank: int | None = None
    residual: float | None = None
    energy: float = 0.0
    ratio: float | None = None
    noise: float | None = None

    def to_json(self) -> dict[str, Any]:
        facts = ("name", "how", "rank", "residual", "energy", "ratio", "noise")
        return {fact: getattr(self, fact) for fact in facts}


def differs(pair: Pair) -> bool:
    """Say whether a tensor differs by its bytes, compared without torch.

    Of two dtypes: whether one is more than the other rounded to the narrower of them.
    """
    one, other = pair.base, pair.tuned
    if one.dtype == other.dtype or one.shape != other.shape:
        return not same_bytes(one, other)
    from adaptertools.base.compute import as_stored

    narrow = min(one.dtype, other.dtype, key=lambda name: dtype_of(name).bits)
    left, right = (as_stored(read_tensor(slot), narrow) for slot in (one, other))
    return not bool((left == right).all())


def extracted(pair: Pair, how: Factoring) -> Extracted:
    """Return the update that makes the tuned tensor of the base's; raises `AdapterError`."""
    if pair.how == "skipped":
        return Extracted(pair.name, "skipped")
    if pair.how == "full":
        value = whole_factor(pair.tuned)
        targets = [pair.target] + ([pair.twin] if pair.twin else [])
        return Extracted(pair.name, "full", tuple(Replace(target, value) for target in targets))
    return _low_rank(pair, how)


def _low_rank(pair: Pair, how: Factoring) -> Extracted:
    from adaptertools.algebra.compare import one_thread
    from adaptertools.algebra.randomness import Key
    from adaptertools.algebra.range_finder import dense_to_low_rank
    from adaptertools.algebra.recompress import Rule, padded, split

    one_thread()
    delta, size, noise = _difference(pair)
    name, value, most = how.rule
    rule: Any = Rule(name, value, most)  # type: ignore[arg-type]
    key = Key(how.seed, pair.name, ())
    spectrum = dense_to_low_rank(delta, rule, key, full=how.full_svd)
    up, down = padded(split(spectrum, how.split), 1)
    energy = spectrum.energy
    return Extracted(
        pair.name,
        "low rank",
        _updates(pair, up, down),
        up.shape[1],
        spectrum.discarded / energy if energy else 0.0,
        energy,
        (energy / size) ** 0.5 if size else None,
        min(1.0, noise / energy) if energy else 0.0,
    )


def _difference(pair: Pair) -> tuple[torch.Tensor, float, float]:
    """Return Δ as a matrix [out, in·kernel], ‖W‖², and the expected ‖rounding of the tuned W‖².

    Computed in F64, or in F32 where both are 16 bits wide.
    """
    import torch

    from adaptertools.base.recovering import ulp

    old, new = read_tensor(pair.base), read_tensor(pair.tuned)
    narrow = all(dtype_of(slot.dtype).bits <= 16 for slot in (pair.base, pair.tuned))
    wide = torch.float32 if narrow else torch.float64
    noise = 0.0
    if dtype_of(pair.tuned.dtype).bits <= 16:
        blocks = (new[row : row + 1024] for row in range(0, new.shape[0], 1024))
        noise = sum((float(ulp(block).square().sum()) for block in blocks), 0.0) / 12
    before = old.to(wide)
    delta = new.to(wide) - before
    if not bool(delta.isfinite().all()):
        hint = "is one of the files damaged?"
        raise AdapterError("AT658", "holds NaN or Inf", key=pair.name, hint=hint)
    size = float(torch.linalg.vector_norm(before, dtype=torch.float64)) ** 2
    if pair.transposed or pair.how == "embedding":
        return delta.T.contiguous(), size, noise
    return delta.flatten(1), size, noise


def _updates(pair: Pair, up: torch.Tensor, down: torch.Tensor) -> tuple[LowRank, ...]:
    """Return the update; of an embedding that is the head too, one of the head beside it."""
    rank, kernel = up.shape[1], pair.tuned.shape[2:]
    like = whole_factor(pair.tuned)
    if kernel:
        down = down.reshape(rank, pair.tuned.shape[1], *kernel)
    update = LowRank(
        pair.target,
        held(down, replace(like, key=f"{pair.name} (down)"), "F32"),
        held(up, replace(like, key=f"{pair.name} (up)"), "F32"),
        1.0,
        rank,
        float(rank),
        EMBEDDING if pair.how == "embedding" else LINEAR,
        transposed=pair.transposed if not kernel else None,
    )
    if pair.twin is None:
        return (update,)
    head = replace(
        update,
        target=pair.twin,
        down=_turned(update.up),
        up=_turned(update.down),
        weight=LINEAR,
        transposed=False,
    )
    return update, head


def _turned(factor: Factor) -> Factor:
    return reshaped(factor, factor.shape[::-1], lambda bits: bits.T)
