"""The public `convert`: one call from file to file, for a format or for a server."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from adaptertools.check.repairing import fit_server
from adaptertools.conversion.convert import Conversion, ConversionResult
from adaptertools.store.dtypes import storage_word
from adaptertools.store.threads import available_cores


def convert(
    ref: str | Path,
    to: str | None,
    out: str | Path,
    *,
    server: str | None = None,
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
    has its own. `server` names a profile: exact repairs are made for it, and its format is chosen
    where `to` is None. What cannot be held is an error unless `lossy`; `given` are config fields
    that the source does not tell. Raises `AdapterError`; then nothing is left at `out`.
    """
    job = Conversion(
        Path(ref),
        to or "",
        Path(out),
        None if base is None else Path(base),
        lossy,
        storage_word(dtype),
        overwrite,
        check,
        jobs or available_cores(),
        tuple(Path(spec) for spec in specs),
        given,
    )
    if server is not None:
        fit_server(job, server)
    return job.run(job.plan())
