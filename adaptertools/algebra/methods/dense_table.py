"""The methods that work on the elements of dense changes, and those that need whole weights."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from adaptertools.algebra.methods.low_rank_table import (
    DIVIDE,
    ITERATED,
    LAMBDA,
    NORMALIZE,
    PER,
    SPHERE,
    UNDIVIDED,
    T,
)
from adaptertools.algebra.methods.model import Kind, Late, Method, Param, Params

DIVIDED = Param("normalize", "str", "abs", help=DIVIDE, choices=NORMALIZE)
ELECT = Param("elect", "str", "sum", help="the sign of Σwδ, or of signs", choices=("sum", "count"))
DENSITY = Param("density", "float", 1.0, 0.0, 1.0, "the share ρ of elements to keep")
WAYS = ("prob", "l1", "l2", "none")
RESCALE = "what makes up for dropped elements: 1/ρ, a norm kept, or nothing"
UNSCALED = Param("rescale", "str", "none", help=RESCALE, choices=WAYS)
SCALED = Param("rescale", "str", "prob", help=RESCALE, choices=WAYS)
GAMMA = Param("gamma", "float", 0.01, 0.0, 1.0, "the share of largest elements to drop")
SPREAD = Param("epsilon", "float", 0.15, 0.0, 0.5, "keep chances from ρ − ε to ρ + ε")


def _della_bounds(params: Params) -> str:
    density, epsilon = params["density"], params["epsilon"]
    if density in (0, 1) or (density - epsilon > 0 and density + epsilon < 1):
        return ""
    return f"density ± epsilon must lie between 0 and 1, not at {density:g} ± {epsilon:g}"


def _pair(
    linear: str,
    elected: str,
    titles: tuple[str, str],
    paper: str,
    formula: str,
    params: tuple[Param, ...],
    elected_divides: Param = UNDIVIDED,
    random: bool = False,
    check: Callable[[Params], str] | None = None,
) -> tuple[Method, Method]:
    """Return a way to sparsify with a plain sum, and with TIES' election."""
    first = Method(
        name=linear,
        title=titles[0],
        paper=paper,
        formula=f"λ Σ wᵢδ'ᵢ, {formula}",
        kind="dense",
        run=Late("elementwise", linear),
        params=(*params, UNDIVIDED, LAMBDA),
        random=random,
        row_local=random,
        check=check,
    )
    second = replace(
        first,
        name=elected,
        title=titles[1],
        formula=f"λ Σ wᵢδ'ᵢ / Σ|wᵢ| where sgn(wᵢδ'ᵢ) = sgn(Σ wδ'), {formula}",
        run=Late("elementwise", elected),
        params=(*params, elected_divides, ELECT, LAMBDA),
    )
    return first, second


ELEMENTWISE = (
    *_pair(
        *("magnitude", "ties"),
        ("Sum of trimmed changes", "TIES"),
        "https://arxiv.org/abs/2306.01708",
        "δ' = topₖ|δ|, k = ⌊ρN⌋",
        (DENSITY, UNSCALED),
        DIVIDED,
    ),
    *_pair(
        *("dare_linear", "dare_ties"),
        ("DARE", "DARE with TIES' election"),
        "https://arxiv.org/abs/2311.03099",
        "δ' = Bernoulli(ρ) ∘ δ / ρ",
        (DENSITY, SCALED),
        random=True,
    ),
    *_pair(
        *("della_linear", "della"),
        ("DELLA without election", "DELLA"),
        "https://arxiv.org/abs/2406.11617",
        "δ' = Bernoulli(p) ∘ δ / p, p from ρ−ε to ρ+ε by rank of |δ| in the row",
        (DENSITY, SPREAD, SCALED),
        DIVIDED,
        random=True,
        check=_della_bounds,
    ),
    *_pair(
        *("breadcrumbs", "breadcrumbs_ties"),
        ("Model Breadcrumbs", "Model Breadcrumbs with TIES' election"),
        "https://arxiv.org/abs/2312.06795",
        "δ' = δ without its top ⌊γN⌋, then topₖ, k = ⌊ρN⌋",
        (DENSITY, GAMMA, UNSCALED),
    ),
)
ABOVE = Param("epsilon", "float", 1e-5, 0.0, help="what counts as a change of an element")
DENSE = (
    *ELEMENTWISE,
    Method(
        name="sce",
        title="SCE: select, calculate, erase",
        paper="https://arxiv.org/abs/2408.07990",
        formula="Σ sᵢδᵢ / Σ sᵢ where signs agree, sᵢ ∝ mean(δᵢ²), of the most varying elements",
        kind="dense",
        run=Late("sce", "sce"),
        params=(Param("select_topk", "float", 1.0, 0.0, 1.0, "the share of elements to use"),),
    ),
    Method(
        name="ram",
        title="Reinforced Agent Merging",
        paper="https://arxiv.org/abs/2601.13572",
        formula="δᵢ where one alone exceeds ε, else the mean of those that do",
        kind="dense",
        run=Late("ram", "ram"),
        params=(ABOVE,),
        row_local=True,
    ),
    Method(
        name="ramplus_tl",
        title="Reinforced Agent Merging Plus, tensor-local",
        paper="https://arxiv.org/abs/2601.13572",
        formula="ram with unique elements times 1 + r·clip(shared/unique, 0, α)",
        kind="dense",
        run=Late("ram", "ramplus_tl"),
        params=(
            ABOVE,
            Param("r", "float", 0.1, 0.0, help="how much unique elements are boosted"),
            Param("alpha", "float", 0.2, 0.0, help="the most of shared / unique that counts"),
        ),
    ),
    Method(
        name="iso_c",
        title="Iso-C",
        paper="https://arxiv.org/abs/2502.04959",
        formula="mean(σ) · UVᵀ of Σ wᵢδᵢ over min(m, n): full rank",
        kind="dense",
        run=Late("iso_c", "iso_c"),
        note="of a low-rank sum most of U and V is arbitrary; prefer iso_c_lowrank",
    ),
)


def _whole(
    name: str,
    title: str,
    paper: str,
    formula: str,
    run: str,
    params: tuple[Param, ...] = (),
    **more: Any,
) -> Method:
    kind: Kind = "base"
    late = Late("whole_weights", run)
    return Method(name, title, paper, formula, kind, late, params, **more)


MERGEKIT = "https://github.com/arcee-ai/mergekit"
BASE = (
    _whole(
        *("slerp_weights", "SLERP of whole weights", "https://en.wikipedia.org/wiki/Slerp"),
        *("SLERP of W and W+w₁δ₁, or of W+w₁δ₁ and W+w₂δ₂", "slerp_weights", (T,)),
        most=2,
    ),
    _whole(
        *("nuslerp_weights", "NuSLERP of whole weights", MERGEKIT),
        *("SLERP of W+δ₁ and W+δ₂ at t = w₂/(w₁+w₂)", "nuslerp_weights", (PER,)),
        least=2,
        most=2,
    ),
    _whole(
        "multislerp_weights",
        "Multi-SLERP of whole weights",
        "https://goddard.blog/posts/multislerp-wow-what-a-cool-idea",
        *("the normalised mean of W+δᵢ, with the mean norm", "multislerp_weights", SPHERE),
    ),
    _whole(
        *("karcher_weights", "Karcher mean of whole weights", "https://arxiv.org/abs/2603.04972"),
        *("the spherical mean of W+δᵢ, with the mean norm", "karcher_weights", ITERATED),
    ),
    _whole(
        "nearswap",
        "NearSwap",
        "https://huggingface.co/alchemonaut/QuartetAnemoi-70B-t0.0001",
        *("clip(w₁δ₁, −t, t)", "nearswap"),
        (Param("t", "float", 1e-4, 0.0, help="the most that an element moves"),),
        most=1,
        row_local=True,
    ),
    _whole(
        *("arcee_fusion", "Arcee Fusion", MERGEKIT),
        "δ where |δ|·KL(softmax(W+δ)‖softmax(W)) of its row ≥ median + 1.5·IQR",
        "arcee_fusion",
        most=1,
    ),
)
