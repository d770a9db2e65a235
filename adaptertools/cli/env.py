"""`adaptertools env`."""

from __future__ import annotations

import platform
import sys
from importlib.metadata import PackageNotFoundError, version

import click

from adaptertools import schemas
from adaptertools.cli.options import examples, output_options
from adaptertools.cli.output import Output, table
from adaptertools.store.threads import available_cores

PACKAGES = (
    "adaptertools",
    "torch",
    "safetensors",
    "numpy",
    "huggingface-hub",
    "click",
    "jsonschema",
)


@click.command("env", epilog=examples("env", "env --json"))
@output_options
def command(as_json: bool, quiet: bool) -> None:
    """Print versions for a bug report."""
    facts = {
        "python": sys.version.split()[0],
        "platform": platform.platform(),
        "cores": str(available_cores()),
        "schemas": str(schemas.root()),
        **{name: _version(name) for name in PACKAGES},
    }
    lines = table(list(facts.items()))
    Output(json=as_json, quiet=quiet).result(facts, lines, facts["adaptertools"])


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "not installed"
