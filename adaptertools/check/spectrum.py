"""How much of its rank an adapter uses: the singular values of every low-rank ΔW."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from adaptertools.adapter.model import Adapter, LowRank
from adaptertools.check.pairing import change_of
from adaptertools.errors import FindingsError
from adaptertools.store.threads import available_cores

if TYPE_CHECKING:
    from adaptertools.algebra.compare import Spectrum


@dataclass(frozen=True, slots=True)
class TargetSpectrum:
    """One target (of a stack, one expert) and its spectrum; None where a value is not finite.

    `rank` is that of the factors; with DoRA magnitudes the spectrum is that of s·BA alone.
    """

    name: str
    rank: int
    spectrum: Spectrum | None

    @property
    def module(self) -> str:
        """The kind of module: the last word of its path."""
        return self.name.partition("[")[0].removesuffix(".weight").rpartition(".")[2]

    @property
    def layer(self) -> int | None:
        """The first number in the path."""
        return next((int(part) for part in self.name.split(".") if part.isdigit()), None)

    def to_json(self) -> dict[str, Any]:
        found = self.spectrum
        if found is None:
            return {"name": self.name, "rank": self.rank, "finite": False}
        return {
            "name": self.name,
            "rank": self.rank,
            "finite": True,
            "norm": found.norm,
            "top": found.top,
            "k90": found.energy_rank(0.90),
            "k99": found.energy_rank(0.99),
            "stable_rank": found.stable_rank,
            "entropy_rank": found.entropy_rank,
            "values": list(found.values),
        }


def spectrum(adapter: Adapter, jobs: int | None = None) -> tuple[TargetSpectrum, ...]:
    """Return the spectrum of every low-rank target; others have none.

    Raises `FindingsError` where the adapter cannot be read in full.
    """
    if adapter.errors:
        raise FindingsError(adapter.errors)
    updates = [u for u in adapter.updates if isinstance(u, LowRank)]
    with ThreadPoolExecutor(jobs or available_cores()) as pool:
        found = list(pool.map(_target, updates))
    return tuple(one for several in found for one in several)


def _target(update: LowRank) -> Sequence[TargetSpectrum]:
    from adaptertools.algebra.compare import one_thread, spectra

    one_thread()
    found = spectra(change_of(update))
    name, rank = update.target.name, update.rank
    if found is None:
        return [TargetSpectrum(name, rank, None)]
    if update.experts is None:
        return [TargetSpectrum(name, rank, found[0])]
    return [TargetSpectrum(f"{name}[{e}]", rank, one) for e, one in enumerate(found)]
