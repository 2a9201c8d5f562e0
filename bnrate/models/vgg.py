"""The VGG-like network of Arora, Li & Lyu 2019, after Simonyan & Zisserman 2014."""

from collections.abc import Callable

import flax.linen as nn
from jaxtyping import Array, Float

from bnrate.conv import Conv, Dense
from bnrate.models.layers import Norm, max_pool, normalised

# For each layer the multiple of the width; 0 is a max-pooling.
_STAGES = (1, 1, 0, 2, 2, 2, 0, 4, 4, 4, 0, 8, 8, 8, 0, 8, 8, 8, 0)


class VGG(nn.Module):
    """14 convolutions 3x3 in five stages, each with max-pooling after it, and two dense layers.

    At width 64: 2 x 64, 3 x 128, 3 x 256, 3 x 512, 3 x 512, dense 512, dense `classes`.  Each layer
    is followed by `norm`, and by the activation but for the last.  Pooling rounds up, so that small
    images work too.

    Attributes:
      classes: outputs.
      width: channels of the first stage.
      norm: makes a normalisation module, for example `BatchNorm`; None for none.
    """

    classes: int
    width: int = 64
    norm: Norm | None = None
    activation: Callable[[Array], Array] = nn.relu

    @nn.compact
    def __call__(
        self, x: Float[Array, "batch height width channels"], *, train: bool
    ) -> Float[Array, "batch classes"]:
        """Logits."""
        i = 0
        for multiple in _STAGES:
            if multiple:
                features = multiple * self.width
                x = normalised(Conv, i, features, self.norm, x, train, kernel_size=(3, 3))
                x = self.activation(x)
                i += 1
            else:
                x = max_pool(x)
        x = x.reshape(x.shape[0], -1)
        x = self.activation(normalised(Dense, i, 8 * self.width, self.norm, x, train))
        return normalised(Dense, i + 1, self.classes, self.norm, x, train)
