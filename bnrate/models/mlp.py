"""Multi-layer perceptron."""

from collections.abc import Callable

import flax.linen as nn
from jaxtyping import Array, Float

from bnrate.conv import Dense
from bnrate.models.layers import Norm, normalised


class MLP(nn.Module):
    """Dense layers, each followed by `norm` and, but for the last, by the activation.

    Attributes:
      widths: of the hidden layers.
      classes: outputs.
      norm: makes a normalisation module, for example `BatchNorm`; None for none.
    """

    widths: tuple[int, ...]
    classes: int
    norm: Norm | None = None
    activation: Callable[[Array], Array] = nn.relu

    @nn.compact
    def __call__(
        self, x: Float[Array, "batch ..."], *, train: bool
    ) -> Float[Array, "batch classes"]:
        """Logits; images are flattened."""
        x = x.reshape(x.shape[0], -1)
        for i, width in enumerate((*self.widths, self.classes)):
            x = self.activation(x) if i > 0 else x
            x = normalised(Dense, i, width, self.norm, x, train)
        return x
