"""The public `extract`: one call from two checkpoints to an adapter."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

from adaptertools.composition.extract import DEFAULT, Extraction, ExtractionResult
from adaptertools.composition.factoring import Factoring
from adaptertools.composition.resizing import PEER_RULES, chosen
from adaptertools.composition.tensors import Choice, Embeddings, Vocab
from adaptertools.errors import AdapterError
from adaptertools.store.dtypes import dtype_name
from adaptertools.store.threads import available_cores


def extraction(
    base: Path,
    tuned: Path,
    out: Path,
    *,
    rule: tuple[tuple[str, float], int | None] | None = None,
    full_svd: bool = False,
    seed: int = 0,
    split: str = "balanced",
    embeddings: str = "full",
    vocab: str = "refuse",
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
    dtype: str = "auto",
) -> Extraction:
    """Return an extraction; raises `AdapterError` (AT500) for what is not one."""
    _one_of("embeddings", embeddings, ("full", "lora", "skip"))
    _one_of("vocab", vocab, ("refuse", "truncate", "extend"))
    _one_of("split", split, ("balanced", "up", "down"))
    (name, value), most = rule or ((DEFAULT[0], DEFAULT[1]), None)
    from adaptertools.algebra.recompress import Rule

    ours: Any = PEER_RULES.get(name, name)
    Rule(ours, value, most)
    choice = Choice(
        tuple(include), tuple(exclude), cast(Embeddings, embeddings), cast(Vocab, vocab)
    )
    factoring = Factoring((ours, value, most), full_svd, seed, cast(Any, split))
    stored = dtype if dtype == "auto" else dtype_name(dtype)
    return Extraction(base, tuned, out, factoring, choice, dtype=stored)


def _one_of(what: str, word: str, known: Sequence[str]) -> None:
    if word not in known:
        raise AdapterError("AT500", f"{what} is {' or '.join(known)}, not {word!r}")


def extract(
    base: str | Path,
    tuned: str | Path,
    out: str | Path,
    *,
    full_svd: bool = False,
    seed: int = 0,
    split: str = "balanced",
    embeddings: str = "full",
    vocab: str = "refuse",
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
    to: str = "peft-lora",
    dtype: str = "auto",
    lossy: bool = False,
    overwrite: bool = False,
    jobs: int | None = None,
    specs: Sequence[str | Path] = (),
    **rules: float,
) -> ExtractionResult:
    """Write the adapter that makes `tuned` of `base`, of small rank by one of `resize`'s rules.

    Weights that differ become LoRA (`rank` 16 unless a rule is given), norms, biases and by default
    embeddings and the head full values; equal ones are left out. `full_svd` takes a full SVD, not
    the randomised range finder; the residual is computed either way, not estimated. Raises
    `AdapterError`; then nothing is left.
    """
    job = extraction(
        Path(base),
        Path(tuned),
        Path(out),
        rule=chosen(rules) if rules else None,
        full_svd=full_svd,
        seed=seed,
        split=split,
        embeddings=embeddings,
        vocab=vocab,
        include=include,
        exclude=exclude,
        dtype=dtype,
    )
    job.to, job.lossy, job.overwrite = to, lossy, overwrite
    job.jobs, job.specs = jobs or available_cores(), tuple(Path(spec) for spec in specs)
    return job.run(job.plan())
