"""Looks through a pickle before anything reads it, so that a small one cannot take much time or memory.

A pickle is a program for a stack machine. Apart from calls of foreign functions, which nothing here makes, it does harm by what it unfolds to:
memo slots of large numbers, up to which the reader makes room, and tuples of tuples of one and the same tuple, whose hash takes 2^depth steps.
"""

from __future__ import annotations

import pickletools
from typing import IO

from gancompress.errors import CheckpointError

#: operations of one pickle; the largest networks' take some hundred thousand
MAX_OPERATIONS = 2_000_000
#: leaves of all tuples, those of one that is used again counted again: what hashing every one of them may take
MAX_LEAVES = 20_000_000

_MARK = -1
_TUPLES = {"EMPTY_TUPLE": 0, "TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}
#: (things it takes from below a mark or where there is none, whether it takes all down to a mark, things it leaves) of an operation
_EFFECTS = {
    op.name: (
        len([o.name for o in op.stack_before if o.name not in ("mark", "stackslice")]) if op.name != "OBJ" else 0,
        any(o.name == "mark" for o in op.stack_before),
        len(op.stack_after),
    )
    for op in pickletools.opcodes
}


def check_pickle(file: IO[bytes]) -> None:
    """Go through one pickle to its end, making nothing of it; the file's position is behind it then.

    Raises:
        CheckpointError: it ends early, is no pickle, or unfolds beyond bounds.
    """
    stack: list[int] = []  # the leaves of each thing on it, or a mark
    memo: dict[int, int] = {}
    leaves = 0
    try:
        for number, (op, arg, _) in enumerate(pickletools.genops(file)):
            if number >= MAX_OPERATIONS:
                raise CheckpointError(f"its pickle has more than {MAX_OPERATIONS:,} operations; no network's has")
            if op.name in ("PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE"):
                slot = len(memo) if arg is None else arg
                if slot > number:  # those that pickles are written with count
                    raise CheckpointError(f"its pickle asks for a memory of {slot:,} things after {number:,} operations")
                memo[slot] = _top(stack)
            elif op.name in ("GET", "BINGET", "LONG_BINGET"):
                stack.append(memo[-1 if arg is None else arg])
            elif op.name == "DUP":
                stack.append(_top(stack))
            else:
                _apply(op.name, stack)
            leaves += stack[-1] - 1 if stack and stack[-1] > 1 else 0
            if leaves > MAX_LEAVES:
                raise CheckpointError("its pickle has tuples that hold one another too many times over")
    except (ValueError, IndexError, KeyError, OverflowError, MemoryError) as error:
        raise CheckpointError(f"it is damaged or no checkpoint ({type(error).__name__}: {str(error)[:120]})") from None


def _top(stack: list[int]) -> int:
    if stack[-1] == _MARK:
        raise ValueError("a mark in the place of a value")
    return stack[-1]


def _apply(name: str, stack: list[int]) -> None:
    """Change the stack as an operation does."""
    found = 1
    if name in _TUPLES:
        for _ in range(_TUPLES[name]):
            found += _top(stack)
            stack.pop()
        stack.append(found)
        return
    taken, to_mark, left = _EFFECTS[name]
    while to_mark and (top := stack.pop()) != _MARK:
        found += top
    for _ in range(taken):
        if name != "POP":  # which takes a mark too
            _top(stack)
        stack.pop()
    stack += [_MARK if name == "MARK" else found if name == "TUPLE" else 1] * left
