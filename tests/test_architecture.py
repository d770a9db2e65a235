"""The rules of the house: arrows between rooms, where torch may be, sizes, names, start-up."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "adaptertools"
FILES = sorted(PACKAGE.rglob("*.py"))
SHARED = {"errors", "schemas"}
# room → the rooms it may import: of the chain, those before it
CHAIN = (
    "formats",
    "algebra",
    "conversion",
    "base",
    "composition",
    "check",
    "recipes",
    "searching",
    "cli",
)
BELOW = SHARED | {"patterns", "adapter", "store"}
ARROWS: dict[str, set[str]] = {
    "errors": set(),
    "schemas": {"errors"},
    "store": {"errors"},
    "patterns": SHARED,
    "adapter": SHARED | {"patterns"},
    **{room: BELOW | set(CHAIN[:place]) for place, room in enumerate(CHAIN)},
    "algebra": SHARED | {"patterns", "adapter"},
}
ROOMS = ARROWS.keys() - SHARED
# what imports torch when it is loaded: rooms, and modules of other rooms
TORCH = {"algebra", "base/compute", "base/judge"}
# what every command loads, and so must not
FREE = {f"algebra/{name}" for name in ("step", "precision", "terms", "randomness")}
FREE |= {f"algebra/methods/{name}" for name in ("model", "registry")}
VAGUE = {"utils", "util", "common", "helpers", "helper", "misc"}


def name_of(path: Path) -> str:
    """Return a module's path within the package, e.g. `base/merge`."""
    return path.relative_to(PACKAGE).with_suffix("").as_posix()


def imports(tree: ast.AST, *, top: bool = False) -> Iterator[str]:
    """Yield the dotted names that a module imports; `top`: only what importing it runs."""
    for node in _reached(tree) if top else ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def _reached(tree: ast.AST) -> Iterator[ast.AST]:
    """Yield the nodes outside functions and outside `if TYPE_CHECKING`."""
    for child in ast.iter_child_nodes(tree):
        lazy = isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        typing = isinstance(child, ast.If) and "TYPE_CHECKING" in ast.dump(child.test)
        if not lazy and not typing:
            yield child
            yield from _reached(child)


def rooms_of(path: Path) -> set[str]:
    """Return the rooms that a module imports, at any depth and for types too."""
    names = [name.split(".") for name in imports(ast.parse(path.read_text()))]
    return {name[1] for name in names if name[0] == "adaptertools" and len(name) > 1}


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_arrows_go_down_only(path: Path) -> None:
    """A room imports itself and the rooms below it."""
    room = name_of(path).split("/")[0]
    if room in ("__init__", "__main__"):
        return
    assert room in ARROWS, f"a new room: say what {room} may import"
    assert rooms_of(path) <= ARROWS[room] | {room}


def test_the_arrows_have_no_cycle() -> None:
    """The table above is itself an order."""
    order: list[str] = []
    while len(order) < len(ARROWS):
        free = [r for r in ARROWS if r not in order and ARROWS[r] <= set(order)]
        assert free, f"a cycle among {ARROWS.keys() - set(order)}"
        order += free
    assert ARROWS.keys() == ROOMS | SHARED
    assert {p.name for p in PACKAGE.iterdir() if (p / "__init__.py").is_file()} == ROOMS


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_torch_is_imported_by_few(path: Path) -> None:
    """Only the rooms that compute import torch, and only a few modules when they are loaded."""
    tree = ast.parse(path.read_text())
    room = name_of(path).split("/")[0]
    anywhere = any(n.split(".")[0] == "torch" for n in imports(tree))
    outside_types = any(n.split(".")[0] == "torch" for n in _imports_run(tree))
    at_once = any(n.split(".")[0] == "torch" for n in imports(tree, top=True))
    assert not at_once or (TORCH & {room, name_of(path)} and name_of(path) not in FREE)
    if outside_types:
        assert room in ("store", "base", "algebra", "composition")
    if anywhere:
        assert room in ("store", "base", "algebra", "adapter", "conversion", "composition", "check")


def _imports_run(tree: ast.AST) -> Iterator[str]:
    """Yield what a module imports when loaded or when its functions run."""
    typed = [
        node
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test)
    ]
    hidden = {id(inner) for node in typed for inner in ast.walk(node)}
    for node in ast.walk(tree):
        if id(node) not in hidden and isinstance(node, ast.Import | ast.ImportFrom):
            yield from imports(ast.Module([node], []))


@pytest.mark.parametrize(
    "path", [p for p in FILES if name_of(p).startswith("algebra/")], ids=name_of
)
def test_algebra_knows_no_files(path: Path) -> None:
    """Pure functions on tensors: no store, no paths, no os."""
    names = {name.split(".")[0] for name in imports(ast.parse(path.read_text()))}
    assert not names & {"os", "pathlib", "io", "shutil", "json", "click"}
    assert "store" not in rooms_of(path)


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_sizes_and_names(path: Path) -> None:
    """Files of at most 300 lines, functions of at most 60, and no drawer for anything."""
    text = path.read_text()
    assert len(text.splitlines()) <= 300
    assert not VAGUE & set(path.relative_to(PACKAGE).with_suffix("").parts)
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            assert node.end_lineno is not None
            assert node.end_lineno - node.lineno < 60, node.name


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_a_pickle_is_never_loaded(path: Path) -> None:
    """No unpickling, no eval; torch.load only with weights_only."""
    tree = ast.parse(path.read_text())
    assert "pickle" not in {name.split(".")[0] for name in imports(tree)}
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        called = ast.unparse(node.func)
        assert called not in ("eval", "exec", "compile", "os.system", "pickle.load")
        if called == "torch.load":
            flags = {k.arg: ast.unparse(k.value) for k in node.keywords}
            assert flags.get("weights_only") == "True"


def loaded(code: str) -> set[str]:
    """Run code in a fresh interpreter; return the top-level modules that are loaded at its end."""
    full = f"{code}\nimport sys, json\nprint('\\n' + json.dumps(sorted(sys.modules)))"
    done = subprocess.run(
        [sys.executable, "-c", full], capture_output=True, text=True, check=False, timeout=60
    )
    assert done.returncode == 0, done.stderr
    return {name.split(".")[0] for name in json.loads(done.stdout.splitlines()[-1])}


def command(*arguments: object) -> str:
    """Return code that runs the command line and requires success."""
    told = [str(argument) for argument in arguments]
    return (
        "from adaptertools.cli.main import main\n"
        f"try: main({told!r})\nexcept SystemExit as e: assert not e.code, e.code"
    )


F = ROOT / "fixtures"
QUICK = {
    "help": ("--help",),
    "merge help": ("merge", "--help"),
    "formats": ("formats",),
    "one format": ("formats", "peft-lora"),
    "env": ("env",),
    "inspect": ("inspect", F / "tiny-llama-lora"),
    "inspect base": ("inspect", F / "tiny-llama"),
    "validate": ("validate", F / "tiny-llama-dora"),
    "validate base": ("validate", F / "tiny-llama-ia3", "--base", F / "tiny-llama"),
    "dry run": ("merge", F / "tiny-gpt2", F / "tiny-gpt2-lora", "-o", "/tmp/n", "--dry-run"),
}


@pytest.mark.parametrize("name", QUICK)
def test_start_up_never_imports_torch(name: str) -> None:
    """What reads headers only does not load torch."""
    assert "torch" not in loaded(command(*QUICK[name]))


def test_the_probe_sees_torch() -> None:
    """The control: a command that computes does load it."""
    assert "torch" in loaded("import adaptertools.algebra.kernels")


def test_importing_the_package_is_free() -> None:
    """`import adaptertools` loads neither click nor numpy nor torch, nor anything installed."""
    extra = loaded("import adaptertools") - loaded("pass")
    heavy = {"click", "numpy", "torch", "jsonschema", "safetensors", "tqdm", "huggingface_hub"}
    assert not extra & heavy
