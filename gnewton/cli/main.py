"""The entry point: dispatches to a command, and turns its errors into one message and an exit code."""

from __future__ import annotations

import os
import sys

import gnewton
from gnewton.cli.commands import COMMANDS, OF_RUNS, find_command
from gnewton.errors import FULL_ERROR, GnewtonError, Interrupted


def main(arguments: list[str] | None = None) -> int:
    """Run ``gnewton`` with the given arguments (the process's own by default) and return the exit code.

    0: done; 2: bad option, configuration or input; 3: the run diverged; 130 or 143: stopped by a signal.
    An error is one message on standard error, with a traceback only if HYDRA_FULL_ERROR=1.
    """
    arguments = sys.argv[1:] if arguments is None else arguments
    full_error = os.environ.get(FULL_ERROR) == "1"
    if os.environ.get("GNEWTON_DATA") == "":  # an empty value counts as unset
        del os.environ["GNEWTON_DATA"]
    try:
        return _uninterrupted(arguments)
    except GnewtonError as error:
        if full_error:
            raise
        print(f"gnewton: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("gnewton: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:  # the reader of our output has gone, as in `gnewton --help | head -1`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141


def _uninterrupted(arguments: list[str]) -> int:
    """The exit code of the command.

    Raises:
        KeyboardInterrupt: also where a library that was cut off raised something else while it cleaned up.
    """
    try:
        return _dispatch(arguments)
    except Interrupted:
        raise
    except Exception as error:
        cause: BaseException | None = error
        while cause is not None:
            cause = cause.__cause__ or cause.__context__
            if isinstance(cause, KeyboardInterrupt):
                raise cause from None
        raise


def _dispatch(arguments: list[str]) -> int:
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(_overview())
        return 0
    if arguments[0] in ("-V", "--version"):
        print(f"gnewton {gnewton.__version__}")
        return 0
    if arguments[0] in ("-sc", "--shell-completion"):
        from gnewton.cli.completion import complete

        return complete(arguments)
    return find_command(arguments[0]).load()(_with_own_parts(arguments[0], arguments[1:]))


def _with_own_parts(command: str, arguments: list[str]) -> list[str]:
    """The arguments of a command, the own parts that they name loaded; ``import=`` becomes ``imports=``."""
    if command not in OF_RUNS:
        return arguments
    from gnewton.cli.commands import with_imports

    return with_imports(arguments)


def _overview() -> str:
    from gnewton.cli.choices import describe_choices

    width = max(map(len, COMMANDS))
    commands = "\n".join(f"  {command.name:<{width}}  {command.summary}" for command in COMMANDS.values())
    return f"""gnewton {gnewton.__version__}: train networks with GroupedNewton, and compare it fairly

usage: gnewton COMMAND [ARGUMENTS]

commands:
{commands}

`gnewton COMMAND --help` says more. Configuration groups of `gnewton train`, the default marked by *:

{describe_choices()}"""
