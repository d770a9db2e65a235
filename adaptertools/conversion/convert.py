"""`convert`: an adapter in one format to the same adapter in another, checked after writing."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from adaptertools.adapter.model import Adapter
from adaptertools.conversion.compare import ROUNDING, Comparison, compare
from adaptertools.conversion.output import write_plan
from adaptertools.conversion.prepare import ConversionPlan, prepare
from adaptertools.errors import FormatError
from adaptertools.formats.model import UNKNOWN, Model, read_model
from adaptertools.formats.opening import open_adapter
from adaptertools.formats.registry import get_format
from adaptertools.store.place import check_place, check_space, hidden_sibling, publish

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
    """One conversion, to be planned and then run."""

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

    def plan(self) -> ConversionPlan:
        """Plan from headers; raises `AdapterError` for whatever stands in the way."""
        spec = get_format(self.to, tuple(self.specs))
        inputs = [self.ref] if self.base is None else [self.ref, self.base]
        check_place(self.out, inputs, is_file=None, overwrite=self.overwrite)
        model = None if self.base is None else read_model(self.base)
        adapter = open_adapter(self.ref, specs=self.specs, model=model, given=self.given)
        plan = prepare(
            adapter, spec, self._model(adapter, model), dtype=self.dtype, lossy=self.lossy
        )
        self.is_file(plan)
        return plan

    def run(self, plan: ConversionPlan) -> ConversionResult:
        """Write the plan, read it back, compare, and only then move it into place."""
        single = self.is_file(plan)
        check_space(self.out, plan.bytes, 0)
        folder = hidden_sibling(self.out, "new")
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        try:
            path = write_plan(plan, folder, self.dtype, self.jobs, self.progress)
            readable = plan.spec.write["container"] != "rows"
            checked = self._checked(plan, path) if self.check and readable else ()
            publish(path if single else folder, self.out)
        finally:
            shutil.rmtree(folder, ignore_errors=True)
        return ConversionResult(self.out, plan, tuple(checked))

    def _model(self, adapter: Adapter, model: Model | None) -> Model:
        """Return the model by --base, else by what the adapter's own config tells of it."""
        return model or UNKNOWN

    def is_file(self, plan: ConversionPlan) -> bool:
        """Say whether OUT is to be the weight file itself: it has the ending of one."""
        ending = "".join(Path(plan.file).suffixes)
        if not self.out.name.endswith(ending) or self.out.is_dir():
            return False
        if plan.beside:
            names = ", ".join(plan.beside)
            raise FormatError(
                "AT257",
                f"{plan.spec.title} has files beside the weights ({names}), so OUT is a folder",
                hint=f"leave {ending} away",
            )
        return True

    def _checked(self, plan: ConversionPlan, path: Path) -> list[Comparison]:
        """Read back what was written and compare; raises `FormatError` (AT258) where it differs."""
        model = self._model(plan.source, None if self.base is None else read_model(self.base))
        back = open_adapter(path, specs=self.specs, model=model, given=plan.told)
        if back.errors:
            first = back.errors[0]
            raise FormatError("AT258", f"what was written cannot be read back: {first}")
        found = compare(plan.updates, back.updates, self.jobs, model.same_name)
        dtypes = {self.dtype, *(tensor.dtype for tensor in plan.tensors)}
        limit = max(ROUNDING.get(dtype, 0.0) for dtype in dtypes)
        wrong = [one for one in found if not one.error <= limit]
        if wrong:
            raise FormatError(
                "AT258",
                f"what was written differs from the source by {wrong[0].error:.2g}",
                key=wrong[0].target,
                hint="nothing was kept; please report this",
            )
        return found


def convert(
    ref: str | Path,
    to: str,
    out: str | Path,
    *,
    base: str | Path | None = None,
    lossy: bool = False,
    dtype: str = "auto",
    overwrite: bool = False,
    check: bool = True,
    jobs: int | None = None,
    specs: Sequence[str | Path] = (),
    given: Mapping[str, Any] | None = None,
) -> ConversionResult:
    """Convert the adapter at `ref` to the format `to`, written to the folder or file `out`.

    `base` (a folder, its config alone, or a GGUF file) tells names and head counts where a format
    has its own. What cannot be held is an error unless `lossy`; `given` are config fields that the
    source does not tell. Raises `AdapterError`; then nothing is left at `out`.
    """
    from adaptertools.store.dtypes import dtype_name
    from adaptertools.store.threads import available_cores

    job = Conversion(
        Path(ref),
        to,
        Path(out),
        None if base is None else Path(base),
        lossy,
        dtype if dtype == "auto" else "Q8_0" if dtype.lower() == "q8_0" else dtype_name(dtype),
        overwrite,
        check,
        jobs or available_cores(),
        tuple(Path(spec) for spec in specs),
        given,
    )
    return job.run(job.plan())
