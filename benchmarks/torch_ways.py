"""The ways of training in PyTorch; see `ways`.

Running moments are left out, and the batches are drawn beforehand: both in favour of PyTorch.
"""

import copy
import functools
import os

import jax
import jax.numpy as jnp
import numpy as np
import torch
from problems import Problem, Shape
from torch import nn
from torch.nn.functional import cross_entropy


def loop(problem: Problem, rates: np.ndarray, steps: int, chunk: int, channels_last: bool = False):
    """One run after the other, by `torch.optim.SGD`."""
    net, x, y, batches = _start(problem, steps, channels_last)
    nets = [copy.deepcopy(net) for _ in rates]
    optimisers = [
        torch.optim.SGD(net.parameters(), lr=float(rate), fused=True)
        for net, rate in zip(nets, rates, strict=True)
    ]
    losses = [torch.zeros(())] * len(nets)
    for first in range(0, steps, chunk):
        for i, (net, optimiser) in enumerate(zip(nets, optimisers, strict=True)):
            for chosen in batches[first : first + chunk]:
                optimiser.zero_grad()
                losses[i] = cross_entropy(net(x[chosen]), y[chosen])
                losses[i].backward()
                optimiser.step()
        yield
    return torch.stack(losses).detach().numpy()


def vmap(problem: Problem, rates: np.ndarray, steps: int, chunk: int):
    """All runs together, by `torch.func`; they share the batches."""
    net, x, y, batches = _start(problem, steps, channels_last=False)
    params = {
        name: torch.stack([value.detach()] * len(rates)) for name, value in net.named_parameters()
    }
    rate, losses = torch.from_numpy(rates), torch.zeros(len(rates))

    def loss(params, x, y):
        return cross_entropy(torch.func.functional_call(net, params, (x,)), y)

    step = torch.func.vmap(torch.func.grad_and_value(loss), in_dims=(0, None, None))
    for first in range(0, steps, chunk):
        for chosen in batches[first : first + chunk]:
            grads, losses = step(params, x[chosen], y[chosen])
            for name, grad in grads.items():
                params[name] -= rate.reshape(-1, *[1] * (grad.ndim - 1)) * grad
        yield
    return losses.numpy()


WAYS = {
    "torch": loop,
    "torch-channels-last": functools.partial(loop, channels_last=True),
    "torch-vmap": vmap,
}


def _start(problem: Problem, steps: int, channels_last: bool):
    """The network at the parameters of the problem, the data, and the batches of each step."""
    torch.set_num_threads(os.cpu_count() or 1)
    (params, _, _), key = problem.start()
    net, x = _network(problem.shape, params), torch.from_numpy(np.array(problem.x))
    if problem.shape.features:
        layout = torch.channels_last if channels_last else torch.contiguous_format
        x = x.permute(0, 3, 1, 2).contiguous(memory_format=layout)
        net = net.to(memory_format=layout)  # pyright: ignore[reportCallIssue]
    batches = jax.vmap(functools.partial(problem.chosen, key))(jnp.arange(steps))
    y, batches = (torch.from_numpy(np.array(whole)).long() for whole in (problem.y, batches))
    return net, x, y, batches


def _network(shape: Shape, params) -> nn.Sequential:
    modules, (*space, channels) = [], shape.input
    options = {"eps": 1e-30, "track_running_stats": False}  # 0 is refused; this has no effect
    layers = ((params[f"layer{i}"], params[f"norm{i}"]) for i in range(len(params) // 2))
    for width in shape.features:
        if width == 0:
            modules.append(nn.MaxPool2d(2))
            space = [n // 2 for n in space]
            continue
        layer, norm = next(layers)
        modules += [
            _at(nn.Conv2d(channels, width, 3, padding=1, bias=False), _oihw(layer["kernel"])),
            _at(nn.BatchNorm2d(width, **options), norm["scale"], norm["bias"]),
            nn.ReLU(),
        ]
        channels = width
    modules.append(nn.Flatten())
    for layer, norm in layers:
        kernel = np.asarray(layer["kernel"])
        inputs, width = kernel.shape
        if space:  # here the channels come first
            kernel = kernel.reshape(*space, channels, width).transpose(2, 0, 1, 3)
            kernel, space = kernel.reshape(inputs, width), []
        modules += [
            _at(nn.Linear(inputs, width, bias=False), kernel.T),
            _at(nn.BatchNorm1d(width, **options), norm["scale"], norm["bias"]),
            nn.ReLU(),
        ]
    return nn.Sequential(*modules[:-1])


def _oihw(kernel) -> np.ndarray:
    return np.transpose(kernel, (3, 2, 0, 1))


def _at(module: nn.Module, *values) -> nn.Module:
    """The module with its parameters set."""
    for parameter, value in zip(module.parameters(), values, strict=True):
        parameter.data = torch.from_numpy(np.array(value, order="C"))
    return module
