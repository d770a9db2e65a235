"""Row blocks: bounds that depend on a tensor's shape alone, so bytes never depend on threads."""

from __future__ import annotations

from collections.abc import Iterator

BLOCK_ELEMENTS = 1 << 19
CHUNK_BLOCKS = 32


def block_rows(columns: int) -> int:
    """Return how many rows of `columns` elements make one block (two megabytes in fp32)."""
    return max(1, BLOCK_ELEMENTS // max(1, columns))


def blocks(start: int, stop: int, columns: int) -> Iterator[tuple[int, int]]:
    """Yield the (start, stop) rows of each block within a chunk."""
    step = block_rows(columns)
    for row in range(start, stop, step):
        yield row, min(row + step, stop)


def chunks(rows: int, columns: int) -> Iterator[tuple[int, int]]:
    """Yield the (start, stop) rows of each chunk of whole blocks: one unit of work."""
    step = block_rows(columns) * CHUNK_BLOCKS
    for row in range(0, rows, step):
        yield row, min(row + step, rows)
