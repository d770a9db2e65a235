"""PEFT's methods under the names that PEFT gives them, for reproducing its results."""

from __future__ import annotations

from adaptertools.algebra.methods.model import Kind, Late, Method, Param

SOURCE = "https://github.com/huggingface/peft/blob/v0.21.2/src/peft/utils/merge_utils.py"
DENSITY = Param("density", "float", 0.5, 0.0, 1.0, "the share of elements to keep; PEFT has none")
ELECT = Param(
    *("majority_sign_method", "str", "total"),
    help="the sign of the sum of values, or of signs",
    choices=("total", "frequency"),
)
RANK = Param("svd_rank", "int", 0, 0, help="the rank to keep; 0: the largest of the adapters")


def _peft(
    name: str, run: str, formula: str, kind: Kind = "low_rank", *params: Param, exact: bool = False
) -> Method:
    late = Late("peft_compat", run)
    random = name.startswith("dare")
    return Method(
        name, f"PEFT's {name}", SOURCE, formula, kind, late, params, exact=exact, random=random
    )


FACTORS = "(Σ √|c|B'ᵢ)(Σ √|c|sgn(c)A'ᵢ)"
PEFT = (
    _peft("cat", "cat", "Σ cᵢBᵢAᵢ", exact=True),
    _peft("svd", "svd", "the best rank k of Σ cᵢBᵢAᵢ", "low_rank", RANK),
    _peft("linear", "linear", f"{FACTORS}: cross terms"),
    _peft(
        *("magnitude_prune", "magnitude_prune", f"{FACTORS}, A' and B' trimmed", "low_rank"),
        DENSITY,
    ),
    _peft("ties", "ties", "TIES of A and of B", "low_rank", DENSITY, ELECT),
    _peft(
        *("dare_linear", "dare_linear", f"{FACTORS}, A' and B' dropped at random", "low_rank"),
        DENSITY,
    ),
    _peft("dare_ties", "dare_ties", "DARE and TIES of A and of B", "low_rank", DENSITY, ELECT),
    _peft(
        *("magnitude_prune_svd", "magnitude_prune_dense", "Σ wᵢ topₖ(δᵢ)", "dense"),
        DENSITY,
    ),
    _peft(
        *("ties_svd", "ties_dense", "TIES, elected unweighted, over the count", "dense"),
        *(DENSITY, ELECT),
    ),
    _peft(
        *("dare_linear_svd", "dare_linear_dense", "Σ wᵢ (mask ∘ δᵢ / ρ)", "dense"),
        DENSITY,
    ),
    _peft(
        *("dare_ties_svd", "dare_ties_dense", "DARE, then ties_svd", "dense"),
        *(DENSITY, ELECT),
    ),
)
