"""From opened inputs to a plan: every fault collected, files laid out, companions chosen."""

from __future__ import annotations

from collections.abc import Sequence

from adaptertools.adapter.model import Adapter
from adaptertools.base.checkpoint import Checkpoint
from adaptertools.base.companions import companions, dtype_changes
from adaptertools.base.options import MergeOptions
from adaptertools.base.outputs import index_file, lay_out
from adaptertools.base.plan import MergePlan
from adaptertools.base.planning import Planner
from adaptertools.base.quantised import refuse_quantised
from adaptertools.errors import FindingsError
from adaptertools.formats.config import config_findings
from adaptertools.store.dtypes import DTYPES


def make_plan(
    base: Checkpoint,
    adapters: Sequence[tuple[Adapter, float]],
    options: MergeOptions,
    file_name: str | None = None,
) -> MergePlan:
    """Plan a merge from headers; raises `FindingsError` with every fault found."""
    findings = [f for a, _ in adapters for f in (*a.findings, *config_findings(a))]
    if any(f.severity == "error" for f in findings):
        raise FindingsError(findings)
    refuse_quantised(base)
    planner = Planner(base, adapters, options.dtype)
    planner.run()
    findings += planner.findings
    if planner.errors:
        raise FindingsError(findings)
    torch_name = DTYPES[options.dtype].torch if options.dtype != "auto" else ""
    changes = dtype_changes(base, options.dtype, torch_name) | planner.config_changes
    files = lay_out(base, planner.tensors, planner.added, options.shard_size, file_name)
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
