"""The options of the conformance suite, and the specs and adapters that its tests run on."""

from __future__ import annotations

from pathlib import Path

import pytest
from convert.catalogue import CASES

from adaptertools import schemas
from adaptertools.formats.spec import FormatSpec, load_spec

OPTIONS = {
    "spec": "a format spec of your own, to be tested instead of the shipped ones",
    "sample": "an adapter in this format, written by the format's own library",
    "same-as": "the PEFT folder of the adapter that --sample holds",
    "base": "the base's folder, or its config.json, of --sample",
}


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("conformance of format specs")
    for name, told in OPTIONS.items():
        group.addoption(f"--{name}", type=Path, help=told)


def option(config: pytest.Config, name: str) -> Path | None:
    """Return an option, None where another folder's run did not know it."""
    value = config.getoption(name.replace("-", "_"), default=None)
    return None if value is None else Path(value)


def spec_files(config: pytest.Config) -> list[Path]:
    own = option(config, "spec")
    return [own] if own else sorted((schemas.root() / "formats").glob("*.toml"))


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run a test of `path` on every spec, one of `writable` on those that can be written."""
    files = spec_files(metafunc.config)
    if "path" in metafunc.fixturenames:
        metafunc.parametrize("path", files, ids=lambda file: file.stem)
    if "writable" in metafunc.fixturenames:
        specs = [spec for spec in map(load_spec, files) if spec.write]
        metafunc.parametrize("writable", specs, ids=lambda spec: spec.id)
    if "case" in metafunc.fixturenames:
        metafunc.parametrize("case", CASES)


@pytest.fixture(scope="session")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that holds every adapter of the catalogue, with its base's config."""
    root = tmp_path_factory.mktemp("catalogue")
    for name, make in CASES.items():
        make().write(root / name)
    return root


@pytest.fixture
def spec(path: Path) -> FormatSpec:
    return load_spec(path)


@pytest.fixture
def own(request: pytest.FixtureRequest) -> tuple[Path, ...]:
    """The spec file given by --spec, as the library's functions take it."""
    file = option(request.config, "spec")
    return (file,) if file else ()


@pytest.fixture
def sample(request: pytest.FixtureRequest) -> dict[str, Path | None]:
    """What the command line tells of a file by the format's own library."""
    given = {name: option(request.config, name) for name in OPTIONS}
    if None in (given["spec"], given["sample"], given["same-as"]):
        pytest.skip("no --spec with --sample and --same-as")
    return given
