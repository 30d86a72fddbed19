"""How the command speaks: results on stdout, one paragraph for an error on stderr, and the exit code."""

from __future__ import annotations

import json
import sys
from typing import Any, NoReturn

import typer
from typer.core import TyperGroup

from fedloom.errors import FedloomError

__all__ = ["Verbs", "print_json"]

_USER_INPUT, _OTHER, _INTERRUPTED = 2, 1, 130


class Verbs(TyperGroup):
    """The verbs, with errors told in one paragraph.

    Exit codes: 2 when the user's input is wrong, 130 when interrupted, 1 for the rest. `--debug`, anywhere on the line,
    shows the traceback.
    """

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Let `--debug` stand behind the verb too."""
        end = args.index("--") if "--" in args else len(args)
        if "--debug" in args[:end]:
            args = ["--debug", *(arg for at, arg in enumerate(args) if arg != "--debug" or at > end)]
        return super().parse_args(ctx, args)

    def invoke(self, ctx: Any) -> Any:
        """Run the verb."""
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt as error:
            _stop(ctx, error, "interrupted", _INTERRUPTED)
        except BrokenPipeError:
            # The reader of our output has gone (`fedloom list models | head`); nobody is left to tell.
            sys.stdout = None
            raise typer.Exit(_OTHER) from None
        except FedloomError as error:
            _stop(ctx, error, f"error: {error}", error.exit_code)
        except Exception as error:
            if type(error).__module__.startswith(("click", "typer")):
                raise  # the end of a verb, or a mistake in the arguments, which typer tells itself
            what = f"error: {type(error).__name__}: {error}".rstrip(": ")
            _stop(ctx, error, f"{what}. This is a fault of fedloom; run again with --debug to see where.", _OTHER)


def _stop(ctx: Any, error: BaseException, message: str, code: int) -> NoReturn:
    if ctx.params.get("debug"):
        import traceback

        traceback.print_exception(error, file=sys.stderr)
    typer.echo(message, err=True)
    raise typer.Exit(code) from None


def print_json(data: Any) -> None:
    """Data on stdout, for another program."""
    typer.echo(json.dumps(data, indent=2, ensure_ascii=False, default=str))
