"""How fast the three parts of a convolution are inside a loop; a JSON line for each.

python benchmarks/convolutions.py --shapes 32:32:32 64:64:16 --batches 32 128

All results are first compared with JAX's own.  Then the output, the gradient of the input and that
of the kernel (3x3, stride 1, `inputs:outputs:size`) are computed again and again inside a scan, as
training does.  `of_dot` compares with the product of two matrices in the same process, `faster`
with JAX's autodiff in the same loop and with PyTorch, channels last, outside of one.  Times are the
processor's, of all threads together, so that other work on the machine disturbs them little.
"""

import argparse
import functools
import json
import time
from collections.abc import Callable, Iterator
from statistics import median
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from bnrate import conv

SHAPES = (
    *("3:32:32", "32:32:32", "32:64:16", "64:64:16"),
    *("16:16:28", "32:32:14", "64:64:7", "128:128:3", "128:128:2"),
)
NUMBERS = ("NHWC", "HWIO", "NHWC")
DOT = 2048


def main() -> None:
    flags = argparse.ArgumentParser(description=__doc__)
    flags.add_argument("--shapes", nargs="+", default=SHAPES)
    flags.add_argument("--batches", nargs="+", type=int, default=(32, 128))
    flags.add_argument("--repeats", type=int, default=5)
    flags.add_argument("--plain", action="store_true", help="also autodiff, which is very slow")
    options = flags.parse_args()
    for shape in options.shapes:
        for batch in options.batches:
            sizes = map(int, shape.split(":"))
            for line in measured(batch, *sizes, repeats=options.repeats, plain=options.plain):
                print(json.dumps({"benchmark": "convolutions", "shape": shape, **line}), flush=True)


def measured(
    batch: int, inputs: int, outputs: int, size: int, *, repeats: int, plain: bool
) -> Iterator[dict[str, Any]]:
    """A line for each part."""
    rng = np.random.default_rng(0)
    shapes = (batch, size, size, inputs), (3, 3, inputs, outputs), (batch, size, size, outputs)
    x, w, y = (rng.standard_normal(shape).astype(np.float32) for shape in shapes)
    flops = 2 * 9 * batch * size**2 * inputs * outputs
    ours, theirs, torch = parts(conv.convolve), parts(lax.conv_general_dilated), torch_parts()
    for part in ours:
        expected = jax.jit(theirs[part])(x, w, y)
        error = jnp.max(jnp.abs(jax.jit(ours[part])(x, w, y) - expected))
        assert error <= 1e-5 * jnp.max(jnp.abs(expected)), (part, error)
        ways = {"ours": looped(ours[part], (x, w, y), max(1, int(1e9 / flops))), "dot": dot()}
        if plain:
            ways["plain"] = looped(theirs[part], (x, w, y), 1)
        if part in torch:
            ways["torch"] = torch[part](x, w, y)
        seconds = in_turns(ways, repeats)
        rate = {way: flops / t for way, t in seconds.items()} | {"dot": 2 * DOT**3 / seconds["dot"]}
        yield {
            "batch": batch, "part": part, "gflops_per_cpu_second": round(rate["ours"] / 1e9, 1),
            "of_dot": round(rate["ours"] / rate["dot"], 3),
            "faster": {
                way: round(rate["ours"] / r, 2)
                for way, r in rate.items() if way not in ("ours", "dot")
            },
        }  # fmt: skip


def parts(convolve: Callable[..., Any]) -> dict[str, Callable[..., Any]]:
    """Functions of input, kernel and cotangent."""

    def output(x, w, y=None):
        return convolve(x, w, (1, 1), "SAME", dimension_numbers=NUMBERS)

    return {
        "output": output,
        "input": lambda x, w, y: jax.vjp(lambda x: output(x, w), x)[1](y)[0],
        "kernel": lambda x, w, y: jax.vjp(lambda w: output(x, w), w)[1](y)[0],
    }


def looped(part: Callable[..., Any], arguments: Any, times: int) -> Callable[[], float]:
    """CPU seconds of one evaluation inside a scan that cannot foresee its result."""

    def step(carry, _):
        arguments, result = carry
        arguments, _ = lax.optimization_barrier((arguments, result.ravel()[0]))
        return (arguments, part(*arguments)), None

    @jax.jit
    def loop(arguments):
        like = jax.eval_shape(part, *arguments)
        return lax.scan(step, (arguments, jnp.zeros(like.shape)), length=times)[0]

    arguments = jax.tree.map(jnp.asarray, arguments)
    jax.block_until_ready(loop(arguments))
    return lambda: timed(lambda: jax.block_until_ready(loop(arguments))) / times


@functools.cache
def dot() -> Callable[[], float]:
    """CPU seconds of a product of two square matrices."""
    a, product = jnp.ones((DOT, DOT)), jax.jit(jnp.dot)
    product(a, a).block_until_ready()
    return lambda: timed(lambda: product(a, a).block_until_ready())


def torch_parts() -> dict[str, Callable[..., Callable[[], float]]]:
    """The same parts in PyTorch, where it is installed; on one thread, which does not spin."""
    try:
        import torch  # noqa: PLC0415
    except ImportError:
        return {}
    torch.set_num_threads(1)

    def made(mask: tuple[bool, bool] | None) -> Callable[..., Callable[[], float]]:
        def prepared(x, w, y):
            x, w, y = (
                torch.tensor(a).permute(*axes).contiguous(memory_format=torch.channels_last)
                for a, axes in ((x, (0, 3, 1, 2)), (w, (3, 2, 0, 1)), (y, (0, 3, 1, 2)))
            )
            if mask is None:
                evaluate = functools.partial(torch.conv2d, x, w, padding=1)
            else:
                evaluate = functools.partial(
                    torch.ops.aten.convolution_backward, y, x, w, None, (1, 1), (1, 1), (1, 1),
                    False, (0, 0), 1, (*mask, False),
                )  # fmt: skip
            evaluate()
            return lambda: timed(evaluate)

        return prepared

    return {"output": made(None), "input": made((True, False)), "kernel": made((False, True))}


def timed(evaluate: Callable[[], Any]) -> float:
    start = time.process_time()
    evaluate()
    return time.process_time() - start


def in_turns(ways: dict[str, Callable[[], float]], repeats: int) -> dict[str, float]:
    """Medians of measurements that take turns."""
    rounds = [{way: time() for way, time in ways.items()} for _ in range(repeats)]
    return {way: median(taken[way] for taken in rounds) for way in ways}


if __name__ == "__main__":
    main()
