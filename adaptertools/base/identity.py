"""Which file was this? A sha256 where it is known or cheap, else a stated fingerprint."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

from adaptertools.store.read import sha256

SAMPLES, SAMPLE_BYTES = 64, 4096
_BLOB = re.compile(r"[0-9a-f]{64}")


def identify(path: Path, *, full: bool = False) -> dict[str, str | int]:
    """Return `size` and either `sha256` or `fingerprint` of a file.

    A file in the hub's cache is a link to a blob named by its sha256, which is taken as known. The
    fingerprint is the sha256 over the size and 64 evenly spaced samples of 4 KiB, the first of
    which covers the start of the header: it tells files apart, it does not prove them equal.
    """
    size = path.stat().st_size
    real = path.resolve()
    if _BLOB.fullmatch(real.name) and real.parent.name == "blobs":
        return {"size": size, "sha256": real.name}
    if full:
        return {"size": size, "sha256": sha256(path)}
    return {"size": size, "fingerprint": fingerprint(path)}


def fingerprint(path: Path) -> str:
    """Return the sampled fingerprint of a file, e.g. `sampled-v1:3f…`."""
    size = path.stat().st_size
    digest = hashlib.sha256(str(size).encode())
    with path.open("rb", buffering=0) as stream:
        for number in range(SAMPLES):
            stream.seek(
                (size - SAMPLE_BYTES) * number // (SAMPLES - 1) if size > SAMPLE_BYTES else 0
            )
            digest.update(stream.read(SAMPLE_BYTES))
    return f"sampled-v1:{digest.hexdigest()}"
