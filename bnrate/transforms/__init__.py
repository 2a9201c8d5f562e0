"""Optax transformations that know which units are scale-invariant.

They take the groups first and change only their units, one by one; all other leaves pass
unchanged, so that `by_group` or a chain decides about them.  (`by_group` and `auto` decide about
everything, `sgdp` and `adamp` about all units of a group together.)  All are plain optax: under
jit, vmap and scan, inside `optax.chain`, `inject_hyperparams` or `MultiSteps`, and but for `auto`
inside `partition`.

- `splitting`: one transformation for the invariant leaves, another for the rest.
- `norms`: what becomes of a unit's norm; last in a chain.
- `riemannian`: SGD and Adam along great circles.
- `cosine`: SGDP and AdamP, which guess what is invariant; for comparison.
- `automatic`: the rule that needs no rate.
- `scalars`: one adaptive number per unit; before the learning rate.
- `schedules`: rates over time.

    >>> import jax.numpy as jnp, optax
    >>> from bnrate.groups import Group, Groups, Member
    >>> groups = Groups([Group([Member("kernel")])])
    >>> tx = by_group(groups, invariant=optax.sgd(0.3), rest=optax.sgd(0.01))
    >>> params = {"kernel": jnp.array([2., 4.]), "bias": jnp.array([1.])}
    >>> tx.update(params, tx.init(params), params)[0]
    {'bias': Array([-0.01], dtype=float32), 'kernel': Array([-0.6, -1.2], dtype=float32)}
"""

from bnrate.transforms.automatic import auto
from bnrate.transforms.cosine import adamp, sgdp
from bnrate.transforms.norms import bounded_norm, keep_norm, rotational, set_norm, tangent
from bnrate.transforms.riemannian import (
    grassmann_adam,
    grassmann_sgd,
    riemannian_adam,
    riemannian_sgd,
)
from bnrate.transforms.scalars import (
    adagrad_norm,
    delayed_adagrad,
    effective_rate,
    gdnp,
    normalized_gradient,
    trust_ratio,
    weighted_adagrad_momentum,
    wngrad,
)
from bnrate.transforms.schedules import exponential_equivalent, inverse_power
from bnrate.transforms.splitting import by_group

__all__ = [
    "adagrad_norm",
    "adamp",
    "auto",
    "bounded_norm",
    "by_group",
    "delayed_adagrad",
    "effective_rate",
    "exponential_equivalent",
    "gdnp",
    "grassmann_adam",
    "grassmann_sgd",
    "inverse_power",
    "keep_norm",
    "normalized_gradient",
    "riemannian_adam",
    "riemannian_sgd",
    "rotational",
    "set_norm",
    "sgdp",
    "tangent",
    "trust_ratio",
    "weighted_adagrad_momentum",
    "wngrad",
]
