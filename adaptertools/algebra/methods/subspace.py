"""KnOTS and Core Space: another method applied in coordinates that the adapters share.

The result's rank is at most Σ rᵢ, whatever the inner method.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from adaptertools.algebra.methods.linear import refuse_shapes
from adaptertools.algebra.methods.registry import REGISTRY
from adaptertools.algebra.recompress import dense_spectrum, signed, small_svd
from adaptertools.algebra.terms import Term

if TYPE_CHECKING:
    from torch import Tensor

    from adaptertools.algebra.methods.model import Params
    from adaptertools.algebra.randomness import Key
    from adaptertools.algebra.terms import Factors


def knots(terms: Sequence[Term], params: Params, key: Key) -> Factors:
    """Return U · merge(S V₁ᵀ, …, S V_kᵀ) for [δ₁ … δ_k] = U S [V₁ᵀ … V_kᵀ], by QR of the factors.

    Singular values up to `drop` (upstream: 10⁻⁵), and those that are rounding, are left out.
    """
    left, cores, rights = _joined(terms)
    if not left.shape[1]:
        return left, terms[0].down[:0]
    coordinates = [core @ right.T for core, right in zip(cores, rights, strict=True)]
    kept = slice(int((torch.linalg.vector_norm(torch.cat(cores, 1), dim=1) > params["drop"]).sum()))
    weights = [term.weight for term in terms]
    return left[:, kept], _merged([c[kept] for c in coordinates], weights, params, key)


def core_space(terms: Sequence[Term], params: Params, key: Key) -> Factors:
    """Return U · merge(Uᵀδ₁V, …) · Vᵀ for bases U and V of what all adapters write and read.

    basis = delta: the singular vectors of [δ₁ … δ_k] and of [δ₁; …; δ_k], which depend on the
    changes alone. basis = factors: those of [up₁ … ] and [down₁; …], as published, where an adapter
    factored otherwise gives another result.
    """
    refuse_shapes(terms)
    if params["basis"] == "factors":
        u = _span([term.up for term in terms])
        v = _span([term.down.T for term in terms])
    else:
        u = _joined(terms)[0]
        v = _joined([Term(t.down.T, t.up.T, t.weight) for t in terms])[0]
    cores = [(u.T @ term.up) @ (term.down @ v) for term in terms]
    if not cores[0].numel():
        return u[:, :0], v.T[:0]
    return u @ _merged(cores, [term.weight for term in terms], params, key), v.T


def _joined(terms: Sequence[Term]) -> tuple[Tensor, list[Tensor], list[Tensor]]:
    """Return U, cores and rights with δᵢ = U coreᵢ rightᵢᵀ, U the left vectors of [δ₁ … δ_k].

    Row j of all the cores together has the norm σⱼ.
    """
    refuse_shapes(terms)
    basis = torch.linalg.qr(torch.cat([term.up for term in terms], 1))
    rights = [torch.linalg.qr(term.down.T) for term in terms]
    blocks = basis.R.split([term.up.shape[1] for term in terms], 1)
    parts = [block @ right.R.T for block, right in zip(blocks, rights, strict=True)]
    u, sigma, _ = small_svd(torch.cat(parts, 1))
    size = max(basis.Q.shape[0], sum(term.down.shape[1] for term in terms))
    floor = size * torch.finfo(sigma.dtype).eps * (float(sigma[0]) if sigma.numel() else 0.0)
    kept = int((sigma > floor).sum())
    left, turn = signed(basis.Q @ u[:, :kept], u[:, :kept])
    return left, [turn.T @ part for part in parts], [right.Q for right in rights]


def _span(columns: Sequence[Tensor]) -> Tensor:
    """Return the left singular vectors of columns side by side, without the null ones."""
    return dense_spectrum(torch.cat(list(columns), 1)).u


def _merged(deltas: Sequence[Tensor], weights: Sequence[float], params: Params, key: Key) -> Tensor:
    """Return the result of the inner method, dense in the shared coordinates."""
    method = REGISTRY[params["inner"]]
    inner = {param.name: params[param.name] for param in method.params}
    if method.kind == "dense":
        merged: Tensor = method.run(deltas, weights, inner, key)
        return merged
    eye = torch.eye(deltas[0].shape[1], dtype=deltas[0].dtype)
    terms = [Term(delta, eye, weight) for delta, weight in zip(deltas, weights, strict=True)]
    factors: Factors = method.run(terms, inner, key)
    return torch.matmul(*factors)
