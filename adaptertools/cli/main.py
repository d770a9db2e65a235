"""The entry point: a lazy table of commands, and the one place where errors become exit codes."""

from __future__ import annotations

import difflib
import io
import os
import sys
from collections.abc import Sequence
from importlib import import_module
from typing import Any, NoReturn

import click

from adaptertools.cli.output import Output
from adaptertools.errors import AdapterError

# name → (module, one-line help); the module's `command` is imported when it is used
COMMANDS: dict[str, tuple[str, str]] = {
    "inspect": ("inspect", "Say what an adapter or a checkpoint is, from headers alone."),
    "validate": ("validate", "Report everything that is wrong with an adapter."),
    "convert": ("convert", "Convert an adapter to another format."),
    "compose": ("compose", "Compose adapters into one adapter."),
    "resize": ("resize", "Write an adapter again with smaller ranks."),
    "extract": ("extract", "Find the adapter between two checkpoints."),
    "merge": ("merge", "Merge adapters into a base checkpoint."),
    "unmerge": ("unmerge", "Take adapters out of a checkpoint they were merged into."),
    "search": ("search", "Search the best weights by a scorer."),
    "verify": ("verify", "Check that a checkpoint holds a merge, whoever made it."),
    "diff": ("diff", "Compare two adapters or two checkpoints."),
    "run": ("run", "Run a recipe: compose, convert, merge."),
    "formats": ("formats", "List the supported formats, or show one."),
    "env": ("env", "Print versions for a bug report."),
}
ALIASES = {"fuse": "merge", "info": "inspect", "check": "validate"}
SHELLS = ("bash", "zsh", "fish")


class LazyGroup(click.Group):
    """A group whose commands are imported on use; unknown names get near misses."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        name = ALIASES.get(name, name)
        if name not in COMMANDS:
            return None
        module = import_module(f"adaptertools.cli.{COMMANDS[name][0]}")
        command: click.Command = module.command
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args and self.get_command(ctx, args[0]) is None:
            near = difflib.get_close_matches(args[0], [*COMMANDS, *ALIASES], n=1)
            hint = f" Did you mean '{near[0]}'?" if near else f" Known: {', '.join(COMMANDS)}."
            ctx.fail(f"No such command '{args[0]}'.{hint}")
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, text) in COMMANDS.items()])


def _show_completion(ctx: click.Context, _: click.Parameter, shell: str | None) -> None:
    if not shell or ctx.resilient_parsing:
        return
    from click.shell_completion import get_completion_class

    found = get_completion_class(shell)
    assert found is not None
    click.echo(found(cli, {}, "adaptertools", "_ADAPTERTOOLS_COMPLETE").source())
    ctx.exit()


@click.group(
    cls=LazyGroup,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog="Example: adaptertools merge ./base ./adapter -o ./merged",
)
@click.version_option(package_name="adaptertools", prog_name="adaptertools")
@click.option(
    "--show-completion",
    type=click.Choice(SHELLS),
    expose_value=False,
    is_eager=True,
    callback=_show_completion,
    help="Print the completion script of a shell, to be sourced by it.",
)
def cli() -> None:
    """Read, validate and merge LoRA and (IA)³ adapters: exact, streamed, in bounded memory."""


def main(argv: Sequence[str] | None = None) -> NoReturn:
    """Run the command line and exit: 0 done, 1 failed or findings, 2 usage, 130 interrupted."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    out = Output(json="--json" in arguments)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    try:
        code: Any = cli.main(arguments, prog_name="adaptertools", standalone_mode=False)
    except click.exceptions.Exit as error:
        code = error.exit_code
    except click.UsageError as error:
        code = _usage(error, out)
    except AdapterError as error:
        _debug()
        out.error(error)
        code = {"AT500": 2, "AT900": 130}.get(error.code, 1)
    except (KeyboardInterrupt, click.Abort):
        out.error(AdapterError("AT900", "interrupted; nothing was written"))
        code = 130
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 1
    except Exception as error:
        _debug()
        hint = "set ADAPTERTOOLS_DEBUG=1 to see where, and report it"
        out.error(AdapterError("AT999", f"unexpected {type(error).__name__}: {error}", hint=hint))
        code = 1
    sys.exit(code if isinstance(code, int) else 0)


def _usage(error: click.UsageError, out: Output) -> int:
    if out.json:
        out.error(AdapterError("AT500", error.format_message(), hint="see --help"))
    else:
        error.show()
    return 2


def _debug() -> None:
    """Let the traceback through where the user asks for it."""
    if os.environ.get("ADAPTERTOOLS_DEBUG") == "1":
        raise
