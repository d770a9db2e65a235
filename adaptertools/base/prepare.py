"""From opened inputs to a plan: every fault collected, files laid out, companions chosen."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from adaptertools.adapter.model import Adapter
from adaptertools.base.checkpoint import Checkpoint
from adaptertools.base.companions import companions, dtype_changes
from adaptertools.base.options import MergeOptions
from adaptertools.base.outputs import index_file, lay_out
from adaptertools.base.plan import MergePlan
from adaptertools.base.planning import Planner
from adaptertools.base.quantised import refuse_quantised
from adaptertools.base.retype import retyped
from adaptertools.errors import FindingsError, MergeError
from adaptertools.formats.config import config_findings
from adaptertools.store.dtypes import DTYPES
from adaptertools.store.slot import Slot


def make_plan(
    base: Checkpoint,
    adapters: Sequence[tuple[Adapter, float]],
    options: MergeOptions,
    file_name: str | None = None,
    made: Mapping[str, Slot] | None = None,
) -> MergePlan:
    """Plan a merge from headers; raises `FindingsError` with every fault found.

    `made` is an output that is to be judged: what it chose among dtypes is taken as given.
    """
    findings = [f for a, _ in adapters for f in (*a.findings, *config_findings(a))]
    if any(f.severity == "error" for f in findings):
        raise FindingsError(findings)
    refuse_quantised(base)
    _check_options(base, options)
    kept = base.layout.kept
    planner = Planner(base, adapters, "auto" if kept else options.dtype)
    planner.run()
    tensors, findings = planner.tensors, findings + planner.findings
    if kept and not planner.errors:
        tensors, unsettled = retyped(base, tensors, options.dtype, made)
        findings += unsettled
    if any(f.severity == "error" for f in findings):
        raise FindingsError(findings)
    torch_name = DTYPES[options.dtype].torch if options.dtype in DTYPES else ""
    changes = dtype_changes(base, options.dtype, torch_name) | planner.config_changes
    files = lay_out(base, tensors, planner.added, options.shard_size, file_name)
    beside, left_out = companions(
        base, [a for a, _ in adapters], changes, with_code=options.with_code
    )
    index = index_file(base, files)
    return MergePlan(
        base,
        tuple(adapters),
        files,
        (*beside, *([index] if index else [])),
        left_out,
        options.compute_dtype,
        planner.targets,
        tuple(findings),
        changes if not base.is_file else {},
        options.residual_base,
    )


def _check_options(base: Checkpoint, options: MergeOptions) -> None:
    """Refuse (AT413) what the base's layout cannot have."""
    title = base.layout.title
    if base.layout.kept and options.shard_size is not None:
        hint = "leave --shard-size out"
        raise MergeError("AT413", f"the {title} layout keeps its files", file=base.root, hint=hint)
    if not base.layout.kept and options.dtype not in ("auto", *DTYPES):
        why = f"{options.dtype} is a type of GGUF, the base is in the {title} layout"
        raise MergeError("AT413", why, file=base.root, hint="use bf16, f16, f32 or f64")
