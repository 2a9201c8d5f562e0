"""Residual networks: He, Zhang, Ren & Sun 2016, Deep Residual Learning for Image Recognition."""

import itertools
from collections.abc import Callable

import flax.linen as nn
from jaxtyping import Array, Float

from bnrate.conv import Conv, Dense
from bnrate.models.layers import Norm, normalised

# Kernel size and multiple of the stage's width, for each layer of a block.
_BASIC = ((3, 1), (3, 1))
_BOTTLENECK = ((1, 1), (3, 1), (1, 4))

# For each depth the kind of block, and how many of them in each stage (their table 1).
_DEPTHS = {
    18: (_BASIC, (2, 2, 2, 2)),
    34: (_BASIC, (3, 4, 6, 3)),
    50: (_BOTTLENECK, (3, 4, 6, 3)),
    101: (_BOTTLENECK, (3, 4, 23, 3)),
    152: (_BOTTLENECK, (3, 8, 36, 3)),
}


class ResNet(nn.Module):
    """A convolution 7x7, four stages of residual blocks, and a dense `head`, as published.

    Block: activation(shortcut + branch), where the shortcut is a convolution 1x1 if shapes differ
    (option B).  The first layer of a stage's first block has the stride, also in a bottleneck.
    Each convolution `layer{i}`, counted as applied, shortcuts after their branch, is followed by
    `norm{i}`; the head has a bias and no normalisation.

    Attributes:
      classes: outputs.
      depth: 18 or 34 (basic blocks), 50, 101 or 152 (bottlenecks).
      width: channels of the first stage; each next one has twice as many.
      norm: makes a normalisation module, for example `BatchNorm`; None for none.
    """

    classes: int
    depth: int = 50
    width: int = 64
    norm: Norm | None = None
    activation: Callable[[Array], Array] = nn.relu

    @nn.compact
    def __call__(
        self, x: Float[Array, "batch height width channels"], *, train: bool
    ) -> Float[Array, "batch classes"]:
        """Logits.

        Raises:
          ValueError: there is no ResNet of this depth.
        """
        if self.depth not in _DEPTHS:
            raise ValueError(f"there is no ResNet of depth {self.depth}; there are {[*_DEPTHS]}")
        block, stages = _DEPTHS[self.depth]
        numbers = itertools.count()

        def conv(x: Array, features: int, size: int, stride: int) -> Array:
            window = {"kernel_size": (size, size), "strides": (stride, stride)}
            return normalised(Conv, next(numbers), features, self.norm, x, train, **window)

        def residual(x: Array, width: int, stride: int) -> Array:
            branch = x
            for i, (size, multiple) in enumerate(block):
                branch = self.activation(branch) if i > 0 else branch
                branch = conv(branch, multiple * width, size, 1 if i > 0 else stride)
            same = branch.shape == x.shape
            shortcut = x if same else conv(x, branch.shape[-1], 1, stride)
            return self.activation(shortcut + branch)

        x = self.activation(conv(x, self.width, 7, 2))
        x = nn.max_pool(x, (3, 3), strides=(2, 2), padding="SAME")
        for stage, blocks in enumerate(stages):
            for i in range(blocks):
                x = residual(x, 2**stage * self.width, 2 if stage > 0 and i == 0 else 1)
        kernel_init = nn.initializers.glorot_uniform()
        return Dense(self.classes, kernel_init=kernel_init, name="head")(x.mean((1, 2)))
