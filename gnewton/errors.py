"""The errors that end a command, each with the exit code a shell sees."""

from __future__ import annotations

FULL_ERROR = "HYDRA_FULL_ERROR"
"""The environment variable that, set to 1, asks for tracebacks: Hydra's own, honoured by every command."""


class GnewtonError(Exception):
    """Base of every error that is reported to the user as one message, without a traceback."""

    exit_code = 1


class InputError(GnewtonError, ValueError):
    """A bad option, argument or file. The message names the option, the value and what is allowed."""

    exit_code = 2


class OutOfMemory(GnewtonError):
    """The memory of the device did not do; the message names what to lower."""


class Diverged(GnewtonError):
    """The loss or the parameters stopped being finite, or the loss rose far above its start."""

    exit_code = 3


class Interrupted(GnewtonError):
    """A signal asked the run to stop; the checkpoint has been written."""

    def __init__(self, message: str, signal_number: int) -> None:
        super().__init__(message)
        self.exit_code = 128 + signal_number
