"""Creating an output file at its full size, its space taken from the disk at once."""

from __future__ import annotations

import ctypes
import errno
import os
from pathlib import Path

NO_ROOM = (errno.ENOSPC, errno.EFBIG, errno.EDQUOT)


def create(path: Path, header: bytes, size: int) -> None:
    """Create `path` with `header` and room for `size` bytes; what it holds already stays.

    Taking the space at once finds a full disk before the work, and makes the writes cheaper.
    """
    with path.open("r+b" if path.exists() else "w+b") as stream:
        stream.write(header)
        stream.flush()
        _allocate(stream.fileno(), size)
        stream.truncate(size)


def _allocate(descriptor: int, size: int) -> None:
    """Call fallocate(2) itself: the C library's posix_fallocate may write every block instead."""
    try:
        fallocate = ctypes.CDLL(None, use_errno=True).fallocate
    except (AttributeError, OSError):
        return
    offset = ctypes.c_longlong
    failed = size and fallocate(descriptor, 0, offset(0), offset(size))
    if failed and (number := ctypes.get_errno()) in NO_ROOM:
        raise OSError(number, os.strerror(number))
