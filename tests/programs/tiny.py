"""The tiny number in random programs: proven for one, they are tried with a far smaller one."""

import contextlib
from contextvars import ContextVar

TINY = 1e-6
_TINY = ContextVar("tiny", default=TINY)
_ASKED = ContextVar[list | None]("asked", default=None)


def tiny():
    if (asked := _ASKED.get()) is not None:
        asked.append(_TINY.get())
    return _TINY.get()


@contextlib.contextmanager
def as_tiny(number):
    """Programs that are traced here have this number in place of 1e-6.

    What is yielded is empty afterwards if none of them has any.
    """
    asked = []
    tokens = _TINY.set(number), _ASKED.set(asked)
    try:
        yield asked
    finally:
        _TINY.reset(tokens[0])
        _ASKED.reset(tokens[1])
