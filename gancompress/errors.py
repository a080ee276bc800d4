"""Every failure a user can cause, as one small tree; the command line turns each into a line and an exit code.

    GanCompressError            1   failure (disk full, out of memory, not writable)
    +-- UsageError              2   usage or configuration
    +-- CheckpointError         3   unsafe or unsupported checkpoint
    |   +-- UnsafeCheckpointError
    +-- MissingError            4   missing data, weights or network
    +-- DivergedError           5   training diverged
    +-- ParityError             6   a threshold or parity check failed
    +-- StoppedError           75   stopped by SIGTERM with the state saved (130: Ctrl-C)

A message says what is wrong, with which value and in which file; ``hint`` says what to do.
"""

from __future__ import annotations

import re

#: what acts on a terminal or turns a line around: control characters (line ends and tabs are kept), bidirectional marks, lone surrogates
_UNPRINTABLE = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


def printable(text: str, most: int = 4000, lines: bool = False) -> str:
    """``text`` as it may be shown: what acts on a terminal as escapes such as ``\\x1b``, and no more than ``most`` characters.

    ``lines``: line ends are the program's own and stay; a name from a file has none.
    """
    text = text if len(text) <= most else f"{text[:most]} ... ({len(text) - most:,} more)"
    text = _UNPRINTABLE.sub(lambda found: found[0].encode("unicode_escape").decode(), text)
    return text if lines else text.replace("\n", "\\n").replace("\t", "\\t")


class GanCompressError(Exception):
    """Base of all errors a user can cause. ``hint`` is printed on a line of its own."""

    exit_code = 1

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(printable(message, lines=True))  # it repeats what files say
        self.hint = printable(hint, lines=True)


class UsageError(GanCompressError):
    """A wrong argument, recipe, key or value."""

    exit_code = 2


class CheckpointError(GanCompressError):
    """A file that is not a checkpoint we can read."""

    exit_code = 3


class UnsafeCheckpointError(CheckpointError):
    """A file that would run code when loaded in the ordinary way. None of it was run."""


class MissingError(GanCompressError):
    """Something needed is not there: a file, data, weights, a network connection."""

    exit_code = 4


class DivergedError(GanCompressError):
    """A loss or a weight was not finite three times; the last good student is kept."""

    exit_code = 5


class ParityError(GanCompressError):
    """What was written does not do what the source does; nothing is left behind."""

    exit_code = 6


class StoppedError(GanCompressError):
    """A signal stopped the run; its state is saved and the same command goes on."""

    def __init__(self, message: str, hint: str = "", *, exit_code: int = 75) -> None:
        super().__init__(message, hint)
        self.exit_code = exit_code


def is_out_of_memory(error: BaseException) -> bool:
    """Whether torch or Python ran out of memory, on the GPU or the CPU; torch has a type of its own for the first alone."""
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    return type(error) is RuntimeError and bool(re.search("out of memory|not enough memory|can't allocate memory", str(error)))
