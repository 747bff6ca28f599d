"""Errors as a person at a terminal should meet them."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager


class WorkerError(RuntimeError):
    """What a worker said that failed for a reason which trying again cannot mend."""


class Preempted(KeyboardInterrupt):
    """The run was told to end, and kept what it has; as with Ctrl-C, the same command goes on."""


GO_ON = 75  # sysexits.h: a failure that passes, try again


@contextmanager
def for_people(command: str) -> Iterator[None]:
    """One line on stderr and exit code 1 where the message says all that there is to say: wrong settings or data, a
    disk that is full, a loss that is not finite; exit code 130 for Ctrl-C, GO_ON where a run was told to end. Anything
    else is a fault of ours and keeps its traceback.

    command: of `lead-ray`, or a script's file.
    """
    named = command if command.endswith(".py") else f"lead-ray {command}"
    try:
        yield
    except (ValueError, OSError, FloatingPointError, WorkerError) as error:
        sys.exit(f"{named}: {error}")
    except Preempted as stopped:
        print(f"{named}: {stopped}; the same command goes on from there", file=sys.stderr)
        sys.exit(GO_ON)
    except KeyboardInterrupt:
        print(f"{named}: interrupted; the same command goes on from the last checkpoint", file=sys.stderr)
        sys.exit(130)
