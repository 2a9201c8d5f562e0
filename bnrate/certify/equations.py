"""What the rules read of an equation of a traced program."""

from collections.abc import Mapping, Sequence
from typing import Any, Protocol, runtime_checkable


@runtime_checkable
class Equation(Protocol):
    """An operation on some variables that gives others: a `jax.extend.core.JaxprEqn`.

    `primitive` has the operation's `name`; variables have an `aval` with a shape and a dtype.
    """

    primitive: Any
    params: Mapping[str, Any]
    invars: Sequence[Any]
    outvars: Sequence[Any]
