"""Rescaling and displacing the units of one group, in numpy: nothing is compiled for it."""

from collections.abc import Callable

import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from bnrate import groups as gr


def by_unit(member: gr.Member, array: np.ndarray | np.float64) -> np.ndarray:
    """Return the sum over each unit of a member, of an array like its leaf."""
    view = _view(member, np.asarray(array))
    others = tuple(axis for axis in range(view.ndim) if axis not in member.axes)
    places = [sorted(member.axes).index(axis) for axis in member.axes]
    return view.sum(axis=others).transpose(places).ravel()


def norms(group: gr.Group, params: PyTree) -> np.ndarray:
    """Return the norm of each unit."""
    leaves = gr.leaves(params)
    squares = [by_unit(m, np.asarray(leaves[m.path], np.float64) ** 2) for m in group.members]
    return np.sqrt(np.sum(squares, axis=0))


def rescale(group: gr.Group, params: PyTree, factors: np.ndarray) -> PyTree:
    """Return the parameters with each unit multiplied by its factor."""
    return _changed(group, params, lambda member, view: view * _aligned(member, view, factors))


def displace(
    group: gr.Group, params: PyTree, distances: np.ndarray, rng: np.random.Generator
) -> PyTree:
    """Return the parameters with each unit moved at random, so far."""
    leaves = gr.leaves(params)
    paths = dict.fromkeys(member.path for member in group.members)
    noise = {path: rng.standard_normal(np.shape(leaves[path])) for path in paths}
    lengths = np.sqrt(np.sum([by_unit(m, noise[m.path] ** 2) for m in group.members], axis=0))
    factors = distances / np.where(lengths > 0, lengths, 1)

    def step(member: gr.Member, view: np.ndarray) -> np.ndarray:
        return view + _view(member, noise[member.path]) * _aligned(member, view, factors)

    return _changed(group, params, step)


def _changed(
    group: gr.Group, params: PyTree, change: Callable[[gr.Member, np.ndarray], np.ndarray]
) -> PyTree:
    """The parameters with another view for each member."""
    leaves, new = gr.leaves(params), {}
    for member in group.members:
        leaf = new.setdefault(member.path, np.array(leaves[member.path], np.float64))
        view = _view(member, leaf)
        view[...] = change(member, view)
    return gr.replace(params, {p: jnp.asarray(leaf, leaves[p].dtype) for p, leaf in new.items()})


def _view(member: gr.Member, leaf: np.ndarray) -> np.ndarray:
    """The member's entries of a leaf, without a copy."""
    view = leaf.reshape(leaf.shape if member.shape is None else member.shape)
    ranges = {axis: slice(start, stop) for axis, start, stop in member.part}
    return view[(*(ranges.get(axis, slice(None)) for axis in range(view.ndim)), ...)]


def _aligned(member: gr.Member, view: np.ndarray, factors: np.ndarray) -> np.ndarray:
    """One factor per unit, in a shape that broadcasts against the view."""
    by_axis = factors.reshape([view.shape[axis] for axis in member.axes])
    by_axis = by_axis.transpose(np.argsort(member.axes).tolist())
    kept = [n if axis in member.axes else 1 for axis, n in enumerate(view.shape)]
    return by_axis.reshape(kept)
