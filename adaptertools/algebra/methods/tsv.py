"""TSV-Merge: a few singular triplets of each task, made orthogonal to the other tasks'."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from adaptertools.algebra.methods.linear import refuse_shapes
from adaptertools.algebra.recompress import recompress_terms, small_svd

if TYPE_CHECKING:
    from torch import Tensor

    from adaptertools.algebra.methods.model import Params
    from adaptertools.algebra.randomness import Key
    from adaptertools.algebra.terms import Factors, Term


def tsv(terms: Sequence[Term], params: Params, key: Key) -> Factors:
    """Return U⊥ diag(σ) V⊥ᵀ: the polar factors of all tasks' kept U and V, with their own σ.

    Each of k tasks keeps its first min(m, n)/k triplets, or `keep` of them, of those that it has.
    Upstream takes triplets of σ ≈ 0 too, whose arbitrary vectors turn the polar factor; a low-rank
    adapter has many of them.
    """
    refuse_shapes(terms)
    rows, columns = terms[0].up.shape[0], terms[0].down.shape[1]
    keep = params["keep"] or max(1, min(rows, columns) // len(terms))
    found = [recompress_terms([term]) for term in terms]
    u = torch.cat([one.u[:, :keep] for one in found], 1)
    v = torch.cat([one.v[:, :keep] for one in found], 1)
    sigma = torch.cat([one.sigma[:keep] for one in found])
    return polar_factor(u) * sigma, polar_factor(v).T


def polar_factor(matrix: Tensor) -> Tensor:
    """Return the nearest matrix of orthonormal columns; of rank-deficient ones, a partial isometry.

    Directions in which the columns have no extent stay empty instead of being chosen by chance.
    """
    if not matrix.numel():
        return matrix
    basis = torch.linalg.qr(matrix)
    u, sigma, v = small_svd(basis.R)
    kept = sigma > max(matrix.shape) * torch.finfo(matrix.dtype).eps * sigma[0]
    return torch.matmul(basis.Q, u[:, kept] @ v[:, kept].T)
