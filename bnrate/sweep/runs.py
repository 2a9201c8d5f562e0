"""What a sweep asks of a run, and what a run says of itself before any step is computed."""

import hashlib
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import ClosedJaxpr, Jaxpr
from jaxtyping import Array, PyTree


@runtime_checkable
class Run(Protocol):
    """Pure functions for one point of the grid, and static names.

    Three more attributes are optional.  `alive`, from a state to a boolean: a run that is not alive
    any more is not computed any further.  `words`, by the name of a final value: what its whole
    numbers stand for.  `unit`: what progress calls a step, if not that.
    """

    @property
    def init(self) -> Callable[[dict[str, Any]], Any]:
        """From a point, a scalar by name, to a state."""
        ...

    @property
    def advance(self) -> Callable[[Any], tuple[Any, dict[str, Any]]]:
        """From a state to the one `stride` steps later, and a record: a dict of arrays."""
        ...

    @property
    def finish(self) -> Callable[[Any], dict[str, Any]]:
        """From a state to the final values by name."""
        ...

    @property
    def stride(self) -> int:
        """Steps from one record to the next."""
        ...

    @property
    def dims(self) -> Mapping[str, tuple[str, ...]]:
        """The names of the axes of each recorded array; those left out are numbered."""
        ...

    @property
    def coords(self) -> Mapping[str, tuple[str, ...]]:
        """The entries along these axes."""
        ...


class Traced(NamedTuple):
    """A run and the shapes that flow through it, of one point (no arrays).

    Attributes:
      run: its functions, jitted, so that each is traced once whatever it is placed in.
      point, state, record, final: trees of `jax.ShapeDtypeStruct`.
      fingerprint: of the program and the data in it; the same in another process.
    """

    run: Run
    point: dict[str, Any]
    state: PyTree
    record: dict[str, Any]
    final: dict[str, Any]
    alive: Callable[[PyTree], Array]
    init: Callable[..., Any]
    advance: Callable[..., Any]
    finish: Callable[..., Any]
    fingerprint: str


def trace(run: Run, point: Mapping[str, np.ndarray]) -> Traced:
    """Trace the functions of a run on a point of the grid.

    Raises:
      ValueError: something is missing; a record or the final values are no dict of arrays, or have
        dimensions that do not fit `dims` and `coords`; a state changes its shapes from step to
        step; a function is not pure: traced twice, it gives two programs.
    """
    if not isinstance(run, Run):
        wanted = ("init", "advance", "finish", "stride", "dims", "coords")
        missing = ", ".join(name for name in wanted if not hasattr(run, name))
        raise ValueError(f"a run needs {missing}, which {type(run).__name__} does not have")
    shapes = {
        name: jax.ShapeDtypeStruct((), jax.dtypes.canonicalize_dtype(values.dtype))
        for name, values in point.items()
    }
    lives = getattr(run, "alive", lambda state: jnp.array(True))
    init, advance, finish, alive = map(jax.jit, (run.init, run.advance, run.finish, lives))
    state, first = _traced("init", run.init, init, shapes)
    (after, record), second = _traced("advance", run.advance, advance, state)
    final, third = _traced("finish", run.finish, finish, state)
    _check_state(state, after)
    for name, values in (("advance", record), ("finish", final)):
        _check_values(name, values)
    living, fourth = _traced("alive", lives, alive, state)
    if getattr(living, "shape", None) != () or living.dtype != bool:
        raise ValueError(f"`alive` must return one boolean, got {living}")
    _check_dims(run, {**final, **record})
    fingerprint = hashlib.sha256("".join((first, second, third, fourth)).encode()).hexdigest()[:16]
    return Traced(run, shapes, state, record, final, alive, init, advance, finish, fingerprint)


def dims_of(run: Run, record: Mapping[str, Any]) -> dict[str, tuple[str, ...]]:
    """The names of the axes of each recorded array."""
    numbered = {name: tuple(f"{name}_{i}" for i in range(a.ndim)) for name, a in record.items()}
    return {name: tuple(run.dims.get(name, numbered[name])) for name in record}


def storable(dtype: Any) -> np.dtype:
    """The dtype in which an array is kept: NumPy's own, or float32 for bfloat16 and its like."""
    return np.dtype(dtype) if np.dtype(dtype).kind in "fiub" else np.dtype(np.float32)


def _traced(name: str, given: Callable, jitted: Any, argument: PyTree) -> tuple[PyTree, str]:
    """The shapes that a function returns, and the fingerprint of its program."""
    traced = jitted.trace(argument)
    again = jax.make_jaxpr(lambda a: given(a))(argument)
    once, twice = _fingerprint(traced.jaxpr), _fingerprint(again)
    if once != twice:
        raise ValueError(
            f"`{name}` is not pure: traced twice it gives two programs (is there NumPy randomness, "
            "a counter or a clock in it? use jax.random and the state)"
        )
    return traced.out_info, once


def _fingerprint(program: Any) -> str:
    """A hash of a program's text and of the constants in it."""
    digest = hashlib.sha256(re.sub(r"0x[0-9a-f]+", "", str(program.jaxpr)).encode())
    for constant in _constants(program):
        if isinstance(constant, jax.Array) and jnp.issubdtype(constant.dtype, jax.dtypes.prng_key):
            constant = jax.random.key_data(constant)
        digest.update(np.ascontiguousarray(constant).tobytes())
    return digest.hexdigest()


def _constants(program: Any) -> Iterator[Any]:
    """Those of a program and of the programs that it calls."""
    if isinstance(program, tuple | list):
        for one in program:
            yield from _constants(one)
    elif isinstance(program, ClosedJaxpr):
        yield from program.consts
        yield from _constants(program.jaxpr)
    elif isinstance(program, Jaxpr):
        for equation in program.eqns:
            yield from _constants(list(equation.params.values()))


def _check_state(before: PyTree, after: PyTree) -> None:
    """A state must keep its structure, or no loop can carry it."""
    if jax.tree.structure(before) != jax.tree.structure(after):
        raise ValueError(
            f"`advance` must keep the structure of the state: {jax.tree.structure(before)} became "
            f"{jax.tree.structure(after)}"
        )
    for (path, old), new in zip(
        jax.tree.leaves_with_path(before), jax.tree.leaves(after), strict=True
    ):
        if (old.shape, old.dtype) != (new.shape, new.dtype):
            raise ValueError(
                f"`advance` must keep the shapes of the state: state{jax.tree_util.keystr(path)} "
                f"was {old.dtype}{list(old.shape)} and became {new.dtype}{list(new.shape)}"
            )


def _check_values(name: str, values: Any) -> None:
    """Records and final values are numbers by name."""
    if not isinstance(values, dict):
        raise ValueError(f"`{name}` must return a dict of arrays, got {type(values).__name__}")
    for key, array in values.items():
        numeric = hasattr(array, "dtype") and (
            array.dtype == bool or jnp.issubdtype(array.dtype, np.number)
        )
        if not numeric:
            raise ValueError(f"`{name}` must return a dict of numeric arrays; '{key}' is {array}")
        if not isinstance(key, str) or set(key) & set("/*?[]"):
            raise ValueError(f"`{name}` must return arrays by names without /*?[], got {key!r}")
        if jnp.issubdtype(array.dtype, np.complexfloating):
            raise ValueError(f"'{key}' of `{name}` is complex; give its real and imaginary parts")


def _check_dims(run: Run, record: Mapping[str, Any]) -> None:
    """The names of axes fit the arrays, and the entries along them their lengths."""
    lengths = {name: len(entries) for name, entries in run.coords.items()}
    for name, dims in dims_of(run, record).items():
        shape = record[name].shape
        if len(dims) != len(shape):
            raise ValueError(
                f"'{name}' has shape {shape}, but `dims` names {len(dims)} axes: {dims}"
            )
        for dim, length in zip(dims, shape, strict=True):
            if lengths.setdefault(dim, length) != length:
                raise ValueError(
                    f"'{name}' has {length} entries along '{dim}', where there are {lengths[dim]}"
                )
