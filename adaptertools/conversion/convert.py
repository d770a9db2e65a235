"""`convert`: an adapter in one format to the same adapter in another, checked after writing."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from adaptertools.conversion.compare import Comparison, check_equal
from adaptertools.conversion.output import is_single, write_plan
from adaptertools.conversion.plain import one_rank_spec, plain_spec
from adaptertools.conversion.prepare import ConversionPlan, prepare
from adaptertools.errors import FindingsError
from adaptertools.formats.config import config_findings
from adaptertools.formats.model import UNKNOWN, read_model
from adaptertools.formats.opening import open_adapter
from adaptertools.formats.registry import get_format
from adaptertools.formats.spec import FormatSpec
from adaptertools.store.place import check_place, check_space, publish, staged

Progress = Callable[[int, int], None]


@dataclass(frozen=True, slots=True)
class ConversionResult:
    """A finished conversion: `checked` compares what was written with the source, per target."""

    out: Path
    plan: ConversionPlan
    checked: tuple[Comparison, ...]

    @property
    def exact(self) -> bool:
        """Whether every target was read back and is the same bit for bit."""
        return bool(self.checked) and all(one.exact for one in self.checked)

    @property
    def error(self) -> float:
        """The largest relative difference of any target's ΔW."""
        return max((one.error for one in self.checked), default=0.0)

    def to_json(self) -> dict[str, Any]:
        return {
            "out": str(self.out),
            **self.plan.to_json(),
            "checked": len(self.checked),
            "exact": sum(one.exact for one in self.checked),
            "largest_error": self.error,
        }


@dataclass(slots=True)
class Conversion:
    """One conversion, to be planned and then run.

    `plain` writes one scale and `one_rank` one rank for all modules, of at least `rank`; `trim`
    leaves out what changes nothing. `judge` is called with the finished file before it is moved
    into place, and may raise.
    """

    ref: Path
    to: str
    out: Path
    base: Path | None = None
    lossy: bool = False
    dtype: str = "auto"
    overwrite: bool = False
    check: bool = True
    jobs: int = 1
    specs: Sequence[Path] = ()
    given: Mapping[str, Any] | None = None
    progress: Progress = lambda done, total: None
    plain: bool = False
    one_rank: bool = False
    trim: bool = False
    rank: int = 0
    judge: Callable[[Path], None] | None = None

    def plan(self) -> ConversionPlan:
        """Plan from headers; raises `AdapterError` for whatever stands in the way."""
        spec = self._spec()
        inputs = [self.ref] if self.base is None else [self.ref, self.base]
        check_place(self.out, inputs, is_file=None, overwrite=self.overwrite)
        model = None if self.base is None else read_model(self.base)
        adapter = open_adapter(self.ref, specs=self.specs, model=model, given=self.given)
        found = config_findings(adapter)
        if any(finding.severity == "error" for finding in found):
            raise FindingsError([*adapter.findings, *found])
        plan = prepare(
            adapter,
            spec,
            model or UNKNOWN,
            dtype=self.dtype,
            lossy=self.lossy,
            trim=self.trim,
            rank=self.rank,
        )
        is_single(plan, self.out)
        return plan

    def run(self, plan: ConversionPlan) -> ConversionResult:
        """Write the plan, read it back, compare, and only then move it into place."""
        single = is_single(plan, self.out)
        check_space(self.out, plan.bytes, 0)
        with staged(self.out) as folder:
            path = write_plan(plan, folder, self.dtype, self.jobs, self.progress)
            readable = plan.spec.write["container"] != "rows"
            checked = (
                check_equal(plan, path, self.dtype, self.jobs, self.specs)
                if self.check and readable
                else []
            )
            if self.judge is not None:
                self.judge(path)
            publish(path if single else folder, self.out)
        return ConversionResult(self.out, plan, tuple(checked))

    def _spec(self) -> FormatSpec:
        spec = get_format(self.to, tuple(self.specs))
        if self.plain:
            return plain_spec(spec)
        return one_rank_spec(spec) if self.one_rank else spec
