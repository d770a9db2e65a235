"""The output place: what it may be, checked before the first byte, and filled by a rename."""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from adaptertools.errors import OutputError

MAX_NAME = 200
_MODEL_ENDINGS = (".safetensors", "config.json", ".gguf", ".pt", ".pth", ".lora", ".nemo")


def check_place(
    out: Path,
    inputs: Iterable[Path],
    *,
    is_file: bool | None,
    overwrite: bool,
    ending: str = ".safetensors",
) -> None:
    """Raise `OutputError` (AT501 to AT503, AT508) when `out` cannot take the result.

    `is_file`: the result is one file with this `ending`; None where it may be a file or a folder.
    """
    parent = out.parent
    try:
        out.is_dir()
        (parent / out.name).stat()
    except FileNotFoundError:
        pass
    except OSError as error:
        raise OutputError("AT503", f"cannot be used: {error.strerror}", file=out) from None
    if not parent.is_dir():
        raise OutputError(
            "AT503", f"its folder {parent} does not exist", file=out, hint=f"mkdir -p '{parent}'"
        )
    if not os.access(parent, os.W_OK):
        raise OutputError("AT503", f"its folder {parent} cannot be written to", file=out)
    here = Path.cwd().resolve()
    if out.resolve() == here or out.resolve() in here.parents:
        raise OutputError("AT503", "is the current folder, or one it lies in", file=out)
    _check_overlap(out, inputs)
    if is_file and (out.is_dir() or out.suffix != ending):
        raise OutputError(
            "AT508",
            "the base is a single file, so the output must be a file name",
            file=out,
            hint=f"end it in {ending}",
        )
    if out.exists() and not _is_empty_dir(out):
        if not overwrite:
            raise OutputError(
                "AT501", "exists already", file=out, hint="give --overwrite, or another name"
            )
        _check_replaceable(out, is_file=is_file)


def _check_overlap(out: Path, inputs: Iterable[Path]) -> None:
    real = out.resolve()
    for given in inputs:
        source = given.resolve()
        if real == source or real in source.parents or source in real.parents:
            word = (
                "is" if real == source else "contains" if real in source.parents else "lies inside"
            )
            raise OutputError(
                "AT502",
                f"the output {word} the input {given}",
                file=out,
                hint="choose another place",
            )


def _is_empty_dir(path: Path) -> bool:
    return path.is_dir() and not any(path.iterdir())


def _check_replaceable(out: Path, *, is_file: bool | None) -> None:
    """Refuse to replace what does not look like a model: a slip must not cost a home folder."""
    if is_file or (is_file is None and out.is_file()):
        if not out.is_file():
            raise OutputError("AT501", "exists and is not a file", file=out)
        return
    looks = out.is_dir() and any(any(out.glob(f"*{end}")) for end in _MODEL_ENDINGS)
    if not looks:
        raise OutputError(
            "AT501",
            "exists and does not look like a model folder",
            file=out,
            hint="delete it yourself",
        )


def check_space(out: Path, needed: int, present: int) -> None:
    """Raise `OutputError` (AT504) when the disk lacks room for what is still to be written."""
    free = shutil.disk_usage(out.parent).free
    if free < needed - present:
        raise OutputError(
            "AT504",
            f"needs {needed - present:,} bytes, the disk has {free:,} free",
            file=out,
            hint="free some space, or choose another disk",
        )


@contextmanager
def staged(out: Path) -> Iterator[Path]:
    """Yield an empty hidden folder beside `out`, to be published from; it is gone afterwards."""
    folder = hidden_sibling(out, "new")
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def publish(source: Path, out: Path) -> None:
    """Move `source` to `out` by rename; what stood there before goes only after that."""
    if not out.exists() or _is_empty_dir(out) or source.is_file():
        source.replace(out) if source.is_file() else _rename_dir(source, out)
        _remove(hidden_sibling(out, "old"))  # of a run that was killed between its two renames
        return
    old = hidden_sibling(out, "old")
    _remove(old)
    out.rename(old)
    try:
        source.rename(out)
    except OSError:
        old.rename(out)
        raise
    _remove(old)


def _remove(path: Path) -> None:
    if path.is_symlink():
        path.unlink()
    elif path.exists():
        shutil.rmtree(path)


def hidden_sibling(out: Path, what: str) -> Path:
    """Return a hidden place beside `out`; a long name is shortened to fit the file system."""
    name = os.fsencode(out.name)
    if len(name) > MAX_NAME:
        digest = hashlib.sha256(name).hexdigest()[:16]
        return out.parent / f".{digest}.adaptertools-{what}"
    return out.parent / f".{out.name}.adaptertools-{what}"


def _rename_dir(source: Path, out: Path) -> None:
    if out.exists():
        out.rmdir()
    source.rename(out)
