"""A file by the format's own library, against the same adapter as PEFT has it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from convert.compare import differences
from convert.sources import peft_meanings

import adaptertools
from adaptertools.formats.model import read_model
from adaptertools.formats.spec import FormatSpec

from .meaning import meanings_read

ROUNDING = 2.0**-23  # the library may have multiplied a scale in


def test_a_sample_means_what_peft_means(spec: FormatSpec, sample: Any) -> None:
    """The sample, read, changes every weight as the PEFT folder does."""
    model = None if sample["base"] is None else read_model(sample["base"])
    adapter = adaptertools.open(sample["sample"], specs=[sample["spec"]], model=model)
    assert adapter.format == spec.id
    assert not adapter.errors
    wanted = peft_meanings(sample["same-as"])
    assert differences(wanted, meanings_read(adapter.updates), ROUNDING) == []


def test_what_is_written_is_like_the_sample(
    writable: FormatSpec, sample: Any, tmp_path: Path
) -> None:
    """The PEFT folder, converted, has the sample's tensors: names, shapes and dtypes."""
    adaptertools.convert(
        sample["same-as"],
        writable.id,
        tmp_path / "out",
        base=sample["base"],
        specs=[sample["spec"]],
        jobs=1,
    )
    found = [shapes(place, sample) for place in (sample["sample"], tmp_path / "out")]
    assert found[0] == found[1]


def shapes(place: Path, sample: Any) -> dict[str, Any]:
    """Return key, stored shape and dtype of every tensor that an adapter is made of."""
    from adaptertools.adapter.model import factors

    adapter = adaptertools.open(place, specs=[sample["spec"]])
    stored = [factor for update in adapter.updates for factor in factors(update)]
    return {factor.key: (tuple(factor.source.shape), factor.dtype) for factor in stored}
