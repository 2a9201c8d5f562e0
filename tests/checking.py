"""The run-time type checker of the tests."""

import beartype


def check(function, *args, **kwargs):
    """Check what a function takes and returns.

    One inside another function is left alone: it would be compiled anew at each call of the outer
    one, which was a third of the time of the certificates' tests.
    """
    nested = "<locals>" in function.__qualname__
    return function if nested else beartype.beartype(function, *args, **kwargs)
