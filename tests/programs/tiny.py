"""The tiny number in random programs: proven for one, they are tried with a far smaller one."""

import contextlib
from contextvars import ContextVar

_TINY = ContextVar("tiny", default=1e-6)


def tiny():
    return _TINY.get()


@contextlib.contextmanager
def as_tiny(number):
    """Programs that are traced here have this number in place of 1e-6."""
    token = _TINY.set(number)
    try:
        yield
    finally:
        _TINY.reset(token)
