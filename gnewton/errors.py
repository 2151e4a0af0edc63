"""The errors that end a command, each with the exit code a shell sees."""

from __future__ import annotations

import signal

FULL_ERROR = "HYDRA_FULL_ERROR"
"""The environment variable that, set to 1, asks for tracebacks: Hydra's own, honoured by every command."""


class GnewtonError(Exception):
    """Base of every error that is reported to the user as one message, without a traceback."""

    exit_code = 1


class InputError(GnewtonError, ValueError):
    """A bad option, argument or file. The message names the option, the value and what is allowed."""

    exit_code = 2


class OutOfMemory(GnewtonError):
    """The device ran out of memory; the message names the option to lower."""


class Diverged(GnewtonError):
    """The loss or the parameters stopped being finite, or the loss rose far above its start."""

    exit_code = 3


class Interrupted(GnewtonError):
    """A signal asked the run to stop; the checkpoint has been written.

    Every signal but SIGINT, SIGUSR1 for one, is a request to terminate: the exit code is that of SIGTERM.
    """

    def __init__(self, message: str, signal_number: int) -> None:
        super().__init__(message)
        self.exit_code = 128 + (signal_number if signal_number == signal.SIGINT else signal.SIGTERM)


def first_line(error: BaseException, *, with_type: bool = False) -> str:
    """The first line of an error's message, or the name of its type where the message is empty.

    Args:
        error: the error.
        with_type: whether to put the name of the type in front of the message.
    """
    name, message = type(error).__name__, str(error).strip()
    if not message:
        return name
    line = message.splitlines()[0].strip()
    return f"{name}: {line}" if with_type else line
