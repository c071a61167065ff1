"""What ends a run before its end: bad input, which a user sees as a single line, a search, and signals."""

import os
import signal
import sys
from collections.abc import Callable


class InputError(ValueError):
    """Bad input: the message says in one line what is wrong, where, and what to do.

    `train.py` and `evaluate.py` print it without a traceback and exit with 2.
    """


class AwayError(InputError):
    """A database has not answered for as long as one waits for it."""


def exit_status(do: Callable[[], int | None]) -> int:
    """Of a command: what it returns (None: 0), or 2 for bad input, which is one line on stderr."""
    try:
        return do() or 0
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


def in_a_line(error: object) -> str:
    """Its kind, and the first line of what it says."""
    return f"{type(error).__name__}: {error}".splitlines()[0]


class GivenUp(Exception):
    """A search has ended this run before its last step, since others are better: no fault."""


class Interrupted(SystemExit):
    """A signal ended the run: the process exits with 130 after SIGINT, with 143 after any other one.

    The latter is 0 where a W&B agent started the run, which counts all else as a failure, and on ranks above 0: their launcher takes
    all else for a failure and kills rank 0, which may still be writing. `is_agreed`: all ranks end here, and this one may just leave.
    """

    code: int

    def __init__(self, number: int, rank: int = 0, is_agreed: bool = False):
        self.is_agreed = is_agreed
        code = 130 if number == signal.SIGINT else 0 if "WANDB_SWEEP_ID" in os.environ else 143
        super().__init__(code if rank == 0 else 0)
