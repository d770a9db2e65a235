"""The methods whose result has a rank of at most Σ rᵢ, computed from the factors alone."""

from __future__ import annotations

from adaptertools.algebra.methods.model import Late, Method, Param

LAMBDA = Param("lambda", "float", 1.0, help="a factor on the result")
NORMALIZE = ("none", "abs", "sum")
DIVIDE = "what to divide by: abs: Σ|w|; sum: Σw, which refuses mixed signs"
UNDIVIDED = Param("normalize", "str", "none", help=DIVIDE, choices=NORMALIZE)
T = Param("t", "float", 0.5, 0.0, 1.0, "the place between the first (0) and the second (1)")
PER = Param(
    "per", "str", "whole", help="one angle for ΔW, or for each", choices=("whole", "row", "column")
)
SPHERE = (
    Param("normalize_weights", "bool", True, help="divide the weights by their sum"),
    Param("eps", "float", 1e-8, 0.0, help="added to each norm; the least length of the mean"),
)
ITERATED = (
    Param("max_iter", "int", 10, 0, help="the most iterations"),
    Param("tol", "float", 1e-5, 0.0, help="the step, in radians, that ends them"),
)
INNER_FOR_KNOTS = (
    *("ties", "linear", "magnitude", "dare_linear", "dare_ties", "della", "della_linear"),
    *("breadcrumbs", "breadcrumbs_ties", "sce"),
)
INNER_FOR_CORE = (*INNER_FOR_KNOTS, "iso_c", "tsv")

LOW_RANK = (
    Method(
        name="linear",
        title="Task arithmetic: the exact weighted sum",
        paper="https://arxiv.org/abs/2212.04089",
        formula="λ Σ wᵢδᵢ (/ Σ|wᵢ|)",
        kind="low_rank",
        run=Late("linear", "linear"),
        params=(UNDIVIDED, LAMBDA),
        exact=True,
        note="also concatenation and LoRA Soups (arXiv:2410.13025), whose weights are per layer; "
        "a negative weight unlearns",
    ),
    Method(
        name="average",
        title="Weighted mean",
        paper="https://arxiv.org/abs/2203.05482",
        formula="Σ wᵢδᵢ / (Σ wᵢ + w₀)",
        kind="low_rank",
        run=Late("linear", "average"),
        params=(Param("base_weight", "float", 0.0, help="the base's own weight w₀"),),
        exact=True,
    ),
    Method(
        name="slerp",
        title="SLERP of two changes",
        paper="https://en.wikipedia.org/wiki/Slerp",
        formula="sin((1−t)θ)/sin θ · w₁δ₁ + sin(tθ)/sin θ · w₂δ₂; linear if |cos θ| > 0.9995",
        kind="low_rank",
        run=Late("slerp", "slerp"),
        params=(T,),
        exact=True,
        least=2,
        most=2,
    ),
    Method(
        name="nuslerp",
        title="NuSLERP of two changes",
        paper="https://github.com/arcee-ai/mergekit",
        formula="SLERP of δ₁ and δ₂ at t = w₂/(w₁+w₂)",
        kind="low_rank",
        run=Late("slerp", "nuslerp"),
        params=(PER,),
        exact=True,
        least=2,
        most=2,
    ),
    Method(
        name="multislerp",
        title="Multi-SLERP",
        paper="https://goddard.blog/posts/multislerp-wow-what-a-cool-idea",
        formula="(Σ wᵢ‖δᵢ‖) · Σ wᵢuᵢ / ‖Σ wᵢuᵢ‖, uᵢ = δᵢ/‖δᵢ‖",
        kind="low_rank",
        run=Late("multislerp", "multislerp"),
        params=SPHERE,
        exact=True,
    ),
    Method(
        name="karcher",
        title="Karcher mean of the directions",
        paper="https://arxiv.org/abs/2603.04972",
        formula="(Σ wᵢ‖δᵢ‖ / Σ wᵢ) · argmin Σ wᵢ∠(u, δᵢ)²",
        kind="low_rank",
        run=Late("karcher", "karcher"),
        params=ITERATED,
        exact=True,
    ),
    Method(
        name="model_stock",
        title="Model Stock",
        paper="https://arxiv.org/abs/2403.19522",
        formula="kc̄/(1+(k−1)c̄) · mean(wᵢδᵢ), c̄ the mean pairwise cosine",
        kind="low_rank",
        run=Late("model_stock", "model_stock"),
        params=(
            Param("filter_wise", "bool", False, help="one ratio for each row of ΔW"),
            Param("clamp", "bool", True, help="keep the ratio in 0 to 1 (mergekit does not)"),
        ),
        exact=True,
        least=2,
    ),
    Method(
        name="knots",
        title="KnOTS: an inner method on aligned coordinates",
        paper="https://arxiv.org/abs/2410.19735",
        formula="U · merge(SV₁ᵀ, …), [δ₁ … δ_k] = US[V₁ᵀ …]",
        kind="low_rank",
        run=Late("subspace", "knots"),
        params=(
            Param("inner", "str", "ties", help="the method within", choices=INNER_FOR_KNOTS),
            Param("drop", "float", 0.0, 0.0, help="singular values to leave out (upstream: 1e-5)"),
        ),
        exact=True,
        inner=INNER_FOR_KNOTS,
    ),
    Method(
        name="core_space",
        title="Core Space: an inner method on R×R cores",
        paper="https://arxiv.org/abs/2509.17786",
        formula="U · merge(Uᵀδ₁V, …) · Vᵀ",
        kind="low_rank",
        run=Late("subspace", "core_space"),
        params=(
            Param("inner", "str", "ties", help="the method within", choices=INNER_FOR_CORE),
            Param(
                *("basis", "str", "delta"),
                help="bases from the changes, or from the factors as published",
                choices=("delta", "factors"),
            ),
        ),
        exact=True,
        inner=INNER_FOR_CORE,
    ),
    Method(
        name="tsv",
        title="TSV-Merge",
        paper="https://arxiv.org/abs/2412.00081",
        formula="polar([U₁ …]) diag(σ) polar([V₁ …])ᵀ",
        kind="low_rank",
        run=Late("tsv", "tsv"),
        params=(Param("keep", "int", 0, 0, help="triplets of each task; 0: min(m, n) / tasks"),),
        exact=True,
        note="true triplets only; upstream also takes null-space vectors of low-rank adapters",
    ),
    Method(
        name="iso_c_lowrank",
        title="Iso-C within the sum's own rank",
        paper="https://arxiv.org/abs/2502.04959",
        formula="mean(σ) · UVᵀ of Σ wᵢδᵢ over its numerical rank",
        kind="low_rank",
        run=Late("iso_c", "iso_c_lowrank"),
        exact=True,
        note="upstream (iso_c) takes the mean over min(m, n)",
    ),
)
