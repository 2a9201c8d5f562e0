"""Rules for complex numbers and Fourier transforms.

A scale is a positive factor of a complex number as well; a shift is of the whole number, not of its
real part, hence is settled wherever the two are told apart.
"""

import functools

from bnrate.certify.choices import either
from bnrate.certify.equations import Equation
from bnrate.certify.ledger import Ledger
from bnrate.certify.shapes import joined, resized
from bnrate.certify.values import Block, Value, settle

_PARTS = "a complex number whose parts scale differently"
_WAVES = "a Fourier transform of entries that scale differently"


def join(ledger: Ledger, real: Block, imaginary: Block) -> Block:
    """`complex`: both parts scale alike."""
    parts = (settle(ledger, b, _PARTS) for b in (real, imaginary))
    return either(ledger, _PARTS, *parts).only_knowing()


def part(ledger: Ledger, a: Block) -> Block:
    """`real`, `imag`, `conj`: they keep the scale."""
    return settle(ledger, a, "a part of a shifted value").only_knowing()


def fourier(ledger: Ledger, eqn: Equation, a: Value) -> Value:
    """`fft`: linear along its axes, the last ones, which then may have another length."""
    shape = eqn.outvars[0].aval.shape
    rank = len(shape)
    a = a.each(functools.partial(settle, ledger, what="a Fourier transform of a shifted value"))
    for axis in range(rank - len(eqn.params["fft_lengths"]), rank):
        a = resized(joined(ledger, a, axis, _WAVES), axis, shape[axis])
        along = [axis]
        a = a.each(lambda b, along=along: b._replace(varies=b.varies | {*b.along(along)}))
    return a.each(Block.only_knowing)
