"""Networks that take their normalisation as an argument, each linear layer followed by it.

Every layer `layer{i}` is followed by `norm{i}` (if there is a normalisation), the last one too, so
that with BatchNorm every kernel is scale-invariant; but ResNet ends, as published, with a `head`
that nothing follows.  All weights are Glorot-uniform.
"""

from bnrate.models.initial import data_dependent
from bnrate.models.layers import BatchNorm, max_pool, per_example
from bnrate.models.mlp import MLP
from bnrate.models.resnet import ResNet
from bnrate.models.vgg import VGG

__all__ = ["MLP", "VGG", "BatchNorm", "ResNet", "data_dependent", "max_pool", "per_example"]
