"""A composed change brought back to a small rank: by a method on ΔW, then a rank rule.

Low-rank methods never form ΔW; dense ones form it for one target at a time.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal

from adaptertools.adapter.model import Adapter, Factor, LowRank, factors
from adaptertools.composition.exact import Part
from adaptertools.composition.results import combined, held
from adaptertools.conversion.values import common_dtype
from adaptertools.errors import AdapterError

if TYPE_CHECKING:
    import torch

    from adaptertools.algebra.terms import Term


@dataclass(frozen=True, slots=True)
class Reduction:
    """A method with its checked parameters, and the rule for the rank: a name, a value, a most.

    Without a rule a low-rank method keeps all of its result. `ids` tell the adapters apart by their
    content, for methods that draw random numbers. `dtype` "source" is the wider of both factors'.
    `alpha` "one" puts the scale into the factors, "keep" leaves the first adapter's beside them.
    """

    method: str = "linear"
    params: Mapping[str, Any] = field(default_factory=dict)
    rule: tuple[str, float] | tuple[str, float, int | None] | None = None
    seed: int = 0
    ids: tuple[str, ...] = ()
    dtype: str = "F32"
    split: str = "balanced"
    compat: Literal["", "peft"] = ""
    alpha: Literal["one", "keep"] = "one"


def check_rule(rule: tuple[str, float]) -> None:
    """Raise `AdapterError` (AT500) where a rank rule's value is not one."""
    from adaptertools.algebra.recompress import Rule

    name, value = rule
    if name == "rank" and not float(value).is_integer():
        raise AdapterError("AT500", f"a rank is a whole number, not {value}")
    Rule(name, value)  # type: ignore[arg-type]


def reduced(
    parts: Mapping[int, Part], weights: Sequence[float], reduction: Reduction
) -> tuple[LowRank, float]:
    """Return one update, and the share of its energy ‖ΔW‖² that the rank rule left out.

    `parts` are by the adapters' places; `weights` hold for all adapters, also those without a part.
    """
    from adaptertools.algebra.methods.registry import get_method
    from adaptertools.algebra.randomness import Key
    from adaptertools.algebra.range_finder import dense_to_low_rank
    from adaptertools.algebra.recompress import (
        Rule,
        above_noise,
        padded,
        recompress,
        split,
        truncated,
    )

    first = next(iter(parts.values())).update
    if first.experts is not None:
        raise AdapterError(
            "AT274",
            "experts in one tensor are composed exactly only",
            key=first.target.name,
            hint="leave the method and the rank out",
        )
    method = get_method(reduction.method, reduction.compat)
    key = Key(reduction.seed, first.target.name, reduction.ids)
    terms = _terms(parts, weights)
    if reduction.compat:  # PEFT leaves out, module by module, adapters that lack it
        here = sorted(parts)
        terms = [terms[number] for number in here]
        key = replace(key, adapters=tuple(reduction.ids[number] for number in here))
    rule: Any = reduction.rule and Rule(*reduction.rule)
    if method.kind == "low_rank":
        up, down = method.run(terms, reduction.params, key)
        spectrum = above_noise(recompress([up], [down]), _noise(terms))
        spectrum = truncated(spectrum, rule) if rule else spectrum
    else:
        deltas = [term.up @ term.down for term in terms]
        delta = method.run(deltas, [term.weight for term in terms], reduction.params, key)
        widest = sum(part.update.rank for part in parts.values())
        spectrum = dense_to_low_rank(delta, rule or Rule("rank", widest), key)
    new_up, new_down = padded(split(spectrum, reduction.split), 1)  # type: ignore[arg-type]
    update = _update(first, new_up, new_down, reduction)
    lost = spectrum.discarded / spectrum.energy if spectrum.energy else 0.0
    return replace(update, bias=_bias(parts.values(), update, reduction)), lost


def _bias(parts: Iterable[Part], update: LowRank, reduction: Reduction) -> Factor | None:
    """Return the sum of the biases beside ΔW, in the scale of `update`; raises (AT278)."""
    biases = [
        (part.update.bias, part.coefficient / update.scale)
        for part in parts
        if part.update.bias is not None
    ]
    params = reduction.params
    plain = (params.get("normalize", "none"), params.get("lambda", 1.0)) == ("none", 1.0)
    if biases and (reduction.method != "linear" or not plain):
        raise AdapterError(
            "AT278",
            f"has a bias beside ΔW, and the method {reduction.method} says nothing of biases",
            key=update.target.name,
            hint="leave the method out: an exact sum has one",
        )
    return combined(biases, dtype=update.up.dtype) if biases else None


def _terms(parts: Mapping[int, Part], weights: Sequence[float]) -> list[Term]:
    """Return a term for every adapter; one without this target has rank zero."""
    from adaptertools.algebra.terms import Term

    first = _factors(next(iter(parts.values())).update)
    none = (first[0][:, :0], first[1][:0])
    terms = []
    for number, weight in enumerate(weights):
        part = parts.get(number)
        if part is None:
            terms.append(Term(*none, weight))
        else:
            terms.append(Term(*_factors(part.update), part.weight, part.update.scale))
    return terms


def _noise(terms: Sequence[Term]) -> float:
    """Return the size below which a singular value is the rounding of what was added up."""
    norms = (abs(t.weight) * float(t.up.norm()) * float(t.down.norm()) for t in terms)
    largest = max(terms[0].up.shape[0], terms[0].down.shape[1])
    return largest * 2.0**-52 * sum(norms)


def _factors(update: LowRank) -> tuple[torch.Tensor, torch.Tensor]:
    """Return up [out, rank], with scale and singular values in it, and down [rank, in·kernel]."""
    up = update.up.read().double() * update.scale
    down = update.down.read().double().flatten(1)
    if update.gate is not None:
        up = up * update.gate.read().double().flatten()
    return up, down


def _update(like: LowRank, up: torch.Tensor, down: torch.Tensor, how: Reduction) -> LowRank:
    rank, dtype = up.shape[1], how.dtype
    if dtype == "source":
        dtype = common_dtype([like.up.dtype, like.down.dtype])
    scale = like.scale if how.alpha == "keep" and like.scale else 1.0
    if scale != 1.0:  # half of it from each side, as a balanced split has it
        half = abs(scale) ** 0.5
        shares = {"balanced": (half, half), "up": (half**2, 1.0), "down": (1.0, half**2)}
        share_up, share_down = shares[how.split]
        up, down = up / math.copysign(share_up, scale), down / share_down
    return replace(
        like,
        up=held(up, like.up, dtype),
        down=held(down.reshape(rank, *like.down.shape[1:]), like.down, dtype),
        scale=scale,
        alpha=float(rank) if scale == 1.0 else None,
        rank=rank,
        gate=None,
    )


def content_id(adapter: Adapter) -> str:
    """Return a hash of what an adapter does: its canonical tensors, and their scales."""
    digest = hashlib.sha256()
    for update in sorted(adapter.updates, key=lambda u: (u.target.name, u.kind)):
        told = f"{update.target.name}\0{update.kind}\0{getattr(update, 'scale', 1.0)!r}\0"
        digest.update(told.encode())
        for factor in factors(update):
            digest.update(factor.bits().tobytes())
    return digest.hexdigest()
