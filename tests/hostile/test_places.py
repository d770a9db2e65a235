"""Where the output may be, and what the machine may lack."""

from __future__ import annotations

import resource
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from builders import tiny_base, tiny_lora

from adaptertools import AdapterError

from .arena import Arena, assert_sentence, cli, snapshot

# --- the place of the output --------------------------------------------------------------------


def out_is_base(arena: Arena) -> Path:
    return arena.base


def out_is_adapter(arena: Arena) -> Path:
    return arena.adapter


def out_in_base(arena: Arena) -> Path:
    return arena.base / "merged"


def out_in_adapter(arena: Arena) -> Path:
    return arena.adapter / "merged"


def out_holds_both(arena: Arena) -> Path:
    return arena.root


def out_by_link(arena: Arena) -> Path:
    link = arena.root / "link"
    link.symlink_to(arena.base, target_is_directory=True)
    return link


def out_in_link(arena: Arena) -> Path:
    return out_by_link(arena) / "merged"


def out_by_dots(arena: Arena) -> Path:
    return arena.adapter / ".." / "base"


def out_is_weights_file(arena: Arena) -> Path:
    return arena.model


OVERLAPS = [
    out_is_base,
    out_is_adapter,
    out_in_base,
    out_in_adapter,
    out_holds_both,
    out_by_link,
    out_in_link,
    out_by_dots,
    out_is_weights_file,
]


@pytest.mark.parametrize("overwrite", [False, True], ids=["", "overwrite"])
@pytest.mark.parametrize("place", OVERLAPS)
def test_output_that_overlaps_an_input(
    arena: Arena, place: Callable[[Arena], Path], overwrite: bool
) -> None:
    """The output is never, holds never, and lies never in an input, with --overwrite either."""
    arena.out = place(arena)
    arena.refuses(overwrite=overwrite)


def test_input_that_is_a_link_into_the_output(arena: Arena) -> None:
    """An input reached by links counts where it really is."""
    real = arena.root / "out" / "base"
    shutil.copytree(arena.base, real)
    link = arena.root / "link"
    link.symlink_to(real, target_is_directory=True)
    arena.base = link
    arena.refuses(overwrite=True)


def test_overlap_on_the_command_line(arena: Arena) -> None:
    """The command names the place."""
    arena.out = arena.base / "merged"
    arena.refuses_cli(file=str(arena.out))


@pytest.mark.parametrize("name", ["file.txt", ".hidden", "sub/file"])
def test_output_that_exists(arena: Arena, name: str) -> None:
    """What is there is not touched without --overwrite, and replaced with it."""
    (arena.out / name).parent.mkdir(parents=True)
    (arena.out / name).write_text("precious")
    (arena.out / "config.json").write_text("{}")
    error = arena.refuses(file=str(arena.out))
    assert "overwrite" in f"{error.message} {error.hint}"
    arena.refuses_cli(file=str(arena.out))
    arena.merge(overwrite=True)
    arena.check()
    assert not (arena.out / name).exists(), "the old and the new are mixed"
    assert {path.name for path in arena.root.iterdir()} == {"base", "adapter", "out"}


def test_overwrite_spares_what_is_no_model(arena: Arena) -> None:
    """A slip of the hand with --overwrite must not cost a folder of other things."""
    (arena.out / "thesis").mkdir(parents=True)
    (arena.out / "thesis" / "chapter-1.tex").write_text("precious")
    arena.refuses(file=str(arena.out), overwrite=True)


def test_output_that_is_empty(arena: Arena) -> None:
    """An empty directory is as good as none."""
    arena.out.mkdir()
    arena.merge()
    arena.check()


def test_output_that_is_a_file(arena: Arena) -> None:
    """A file in the way is not replaced unasked."""
    arena.out.write_text("precious")
    arena.refuses(file=str(arena.out))
    assert arena.out.read_text() == "precious"


def test_output_that_is_a_link_to_a_full_directory(arena: Arena) -> None:
    """A link in the way counts as what it points to."""
    precious = arena.root / "precious"
    precious.mkdir()
    (precious / "file.txt").write_text("precious")
    arena.out.symlink_to(precious, target_is_directory=True)
    arena.refuses()
    assert (precious / "file.txt").read_text() == "precious"


@pytest.mark.parametrize("what", ["nowhere", "empty", "model"])
def test_output_that_is_a_link(arena: Arena, what: str) -> None:
    """Through a link the output is whole, or the link is refused and nothing has happened."""
    target = arena.root / what
    if what != "nowhere":
        target.mkdir()
    if what == "model":
        (target / "config.json").write_text("{}")
    arena.out.symlink_to(target)
    before = snapshot(arena.root)
    try:
        arena.merge(overwrite=True)
    except AdapterError:
        assert snapshot(arena.root) == before
    else:
        arena.check()
        assert {path.name for path in arena.root.iterdir()} <= {"base", "adapter", "out", what}


@pytest.mark.parametrize("deep", ["a", "a/b/c"])
def test_parent_that_is_missing(arena: Arena, deep: str) -> None:
    """A missing parent is made, or named; never half made."""
    before = snapshot(arena.root)
    arena.out = arena.root / deep / "out"
    result = cli("merge", arena.base, arena.adapter, "-o", arena.out)
    if result.code == 0:
        arena.check()
    else:
        assert result.code == 1
        assert str(arena.root / "a") in result.err
        assert snapshot(arena.root) == before


def test_parent_that_is_missing_and_bad_input(arena: Arena) -> None:
    """Bad input leaves no parents of the output behind."""
    arena.weights.write_bytes(b"")
    arena.out = arena.root / "a" / "b" / "out"
    arena.refuses(file=str(arena.weights))


def test_parent_that_is_a_file(arena: Arena) -> None:
    """A file cannot hold the output."""
    (arena.root / "file").write_text("x")
    arena.out = arena.root / "file" / "out"
    arena.refuses()


@pytest.mark.parametrize("length", [300, 250])
def test_name_that_is_too_long(arena: Arena, length: int) -> None:
    """A name that the file system cannot hold, or whose hidden twin it cannot, is no crash."""
    arena.out = arena.root / ("x" * length)
    try:
        arena.passes()
    except AdapterError as error:
        assert_sentence(str(error))
        assert {path.name for path in arena.root.iterdir()} == {"base", "adapter"}


def test_bad_input_keeps_the_old_output(arena: Arena) -> None:
    """--overwrite removes the old result only once the new one is whole."""
    arena.merge()
    arena.weights.write_bytes(arena.weights.read_bytes()[:-1])
    arena.refuses(overwrite=True)
    arena.refuses_cli(
        arguments=("merge", arena.base, arena.adapter, "-o", arena.out, "--overwrite")
    )


def test_late_failure_keeps_the_old_output(arena: Arena) -> None:
    """A fault that only shows in the numbers of the last tensor leaves the old result alone too."""
    arena.merge()

    def spoil(tensors: dict) -> None:
        key = next(key for key in reversed(tensors) if ".lora_B." in key)
        dtype, shape, data = tensors[key]
        tensors[key] = (dtype, shape, data[:-4] + b"\x00\x00\xc0\x7f")

    arena.edit_weights(spoil)
    arena.refuses(overwrite=True)


def test_dry_run_writes_nothing(arena: Arena) -> None:
    """A dry run needs no output place to be free and leaves everything as it was."""
    before = snapshot(arena.root)
    result = cli("merge", arena.base, arena.adapter, "-o", arena.out, "--dry-run", "--json")
    assert result.code == 0, result.text
    assert snapshot(arena.root) == before


# --- what the machine lacks ---------------------------------------------------------------------


def limit(what: int, value: int) -> Callable[[], None]:
    """Return a function that lowers a limit in a child."""
    return lambda: resource.setrlimit(what, (value, value))


@pytest.mark.parametrize("size", [0, 4096, 100_000])
@pytest.mark.parametrize("shards", [1, 4])
def test_full_disk(arena: Arena, size: int, shards: int) -> None:
    """When a write fails, the output is named and nothing of it is left."""
    arena.base = tiny_base(arena.root / "big", hidden=256, inter=512, layers=2, shards=shards)
    arena.adapter = tiny_lora(arena.root / "fits", arena.base)
    before = snapshot(arena.root)
    result = cli(
        *("merge", arena.base, arena.adapter, "-o", arena.out, "--json"),
        preexec_fn=limit(resource.RLIMIT_FSIZE, size),
    )
    assert result.code == 1, result.text
    assert result.error["code"].startswith("AT5"), result.error
    assert "out" in f"{result.error}"
    assert snapshot(arena.root) == before


def test_full_disk_keeps_the_old_output(arena: Arena) -> None:
    """A failed --overwrite leaves the old result whole."""
    arena.merge()
    before = snapshot(arena.root)
    result = cli(
        *("merge", arena.base, arena.adapter, "-o", arena.out, "--overwrite"),
        preexec_fn=limit(resource.RLIMIT_FSIZE, 30_000),
    )
    assert result.code == 1, result.text
    assert snapshot(arena.root) == before


def test_few_file_descriptors(arena: Arena) -> None:
    """Thirty shards need no thirty open files."""
    arena.base = tiny_base(arena.root / "many", layers=4, shards=30)
    arena.adapter = tiny_lora(arena.root / "fits", arena.base)
    arena.passes_cli("--jobs", "4", preexec_fn=limit(resource.RLIMIT_NOFILE, 32))
