"""The primitives that programs are made of, and those that have a rule."""

import jax
from jax.extend.core import ClosedJaxpr, Jaxpr

from bnrate.certify import rules

RULES = rules.table(lambda ledger, jaxpr, values: [])


def primitives_of(jaxpr):
    """The names of a program's primitives, of programs within it as well."""
    names = set()
    for eqn in getattr(jaxpr, "jaxpr", jaxpr).eqns:
        names.add(eqn.primitive.name)
        for part in jax.tree.leaves([*eqn.params.values()], is_leaf=is_program):
            names |= primitives_of(part) if is_program(part) else set()
    return names


def is_program(part):
    return isinstance(part, ClosedJaxpr | Jaxpr)
