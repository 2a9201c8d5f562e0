"""Random programs: a list of nodes, drawn from a seed, that can be run, varied and reduced."""

from dataclasses import dataclass, field, replace

import jax
import jax.numpy as jnp
import numpy as np

from programs.operations import OPERATIONS, Unfit

SHAPES = [
    (6, 4),
    (6, 4),
    (5, 3),
    (4, 6),
    (2, 5, 4),
    (3, 4, 6),
    (2, 5, 5, 3),
    (2, 4, 4, 4),
    (4, 3, 5, 2),
]
LEAVES = [(), (3,), (4,), (2, 3), (3, 4), (4, 6), (6, 4), (2, 3, 4), (2, 2, 3, 4)]
SOURCES = ("param", "data", "labels", "constant")


@dataclass(frozen=True)
class Node:
    """A source (a leaf, a batch array, integer labels, a constant) or an operation on nodes."""

    operation: str
    operands: tuple[int, ...] = ()
    seed: int = 0
    shape: tuple[int, ...] = ()
    bound: int = 0

    def sample(self, rng):
        """An array for a source: labels, or entries of either sign that keep away from zero."""
        if self.operation == "labels":
            return rng.integers(self.bound, size=self.shape)
        values = rng.uniform(0.3, 1.8, self.shape)
        positive = self.operation == "param" and self.seed % 8 == 0
        return values if positive else values * rng.choice([-1, 1], self.shape)

    def constant(self):
        rng = np.random.default_rng(self.seed)
        kind = self.seed % 16
        return np.full(self.shape, float(kind)) if kind < 2 else self.sample(rng)


@dataclass
class Step:
    """What an operation may ask for: its own random choices, and further values."""

    rng: np.random.Generator
    fetch: object

    def choose(self, options):
        return options[int(self.rng.integers(len(options)))]

    def flag(self, probability=0.5):
        return bool(self.rng.random() < probability)

    def size(self):
        return self.choose([2, 3, 4, 4, 5, 6])

    def axis(self, x):
        return int(self.rng.integers(x.ndim))

    def axes(self, x):
        """Axes to act on: often all but the last, the last, all, or any."""
        kinds = [range(x.ndim - 1), [x.ndim - 1], range(x.ndim), [0]]
        kinds.append(np.flatnonzero(self.rng.random(x.ndim) < 0.5))
        return tuple(int(a) for a in self.choose(kinds)) or (0,)

    def collapsed(self, x):
        """A shape that broadcasts to that of x."""
        keep = self.rng.random(x.ndim) < 0.3
        kinds = [
            (),
            x.shape[-1:],
            x.shape[-1:],
            tuple(n if k else 1 for n, k in zip(x.shape, keep, strict=True)),
        ]
        return self.choose([*kinds, x.shape])

    def factorised(self, size):
        pairs = [(n, size // n) for n in range(2, size) if size % n == 0]
        return self.choose([(size,), *pairs])

    def leaf(self, *shape):
        return self.fetch("leaf", shape)

    def data(self, *shape):
        return self.fetch("data", shape)

    def constant(self, *shape):
        return self.fetch("constant", shape)

    def labels(self, count, bound):
        return self.fetch("labels", (count,), bound)

    def other(self, x):
        return self.fetch("other", x.shape)

    def rest(self):
        """All operands that are left."""
        return self.fetch("rest", ())


@dataclass(frozen=True)
class Program:
    """A loss of named leaves and named batch arrays."""

    nodes: tuple[Node, ...]
    constants: dict = field(init=False, compare=False, repr=False)

    def __post_init__(self):
        closed_over = {
            k: n.constant() for k, n in enumerate(self.nodes) if n.operation == "constant"
        }
        object.__setattr__(self, "constants", closed_over)

    def names(self, *kinds):
        return {f"{n.operation[0]}{k}": n for k, n in enumerate(self.nodes) if n.operation in kinds}

    @property
    def leaves(self):
        return self.names("param")

    @property
    def operations(self):
        return [node.operation for node in self.nodes if node.operation not in SOURCES]

    def draw(self, seed):
        """Leaves and batch at a random point."""
        rng = np.random.default_rng(seed)
        batch = self.names("data", "labels")
        return tuple({k: n.sample(rng) for k, n in part.items()} for part in (self.leaves, batch))

    def loss(self, params, batch):
        return self.values(params | batch)[-1]

    def values(self, sources):
        values = []
        for k, node in enumerate(self.nodes):
            if node.operation == "constant":
                values.append(jnp.asarray(self.constants[k]))
            elif node.operation in SOURCES:
                values.append(sources[f"{node.operation[0]}{k}"])
            else:
                values.append(apply(node, values))
        return values


def apply(node, values):
    """The value of an operation whose operands are recorded."""
    operands = iter([values[k] for k in node.operands])
    first = next(operands)

    def fetch(kind, shape, bound=0):
        return list(operands) if kind == "rest" else next(operands)

    return OPERATIONS[node.operation][1](Step(np.random.default_rng(node.seed), fetch), first)


class Writer:
    """Writes a program node by node; runs under a trace, as the shapes decide what fits."""

    def __init__(self, seed):
        self.rng = np.random.default_rng(seed)
        self.nodes, self.values = [], []
        self.used, self.trained = set(), set()  # operands; what depends on a leaf

    def source(self, kind, shape, bound=0):
        seed = int(self.rng.integers(2**31))
        self.nodes.append(Node(kind, seed=seed, shape=tuple(shape), bound=bound))
        self.values.append(jnp.zeros(shape, int if kind == "labels" else float))
        self.trained |= {len(self.nodes) - 1} if kind == "param" else set()
        return len(self.nodes) - 1

    def pick(self, shape=None):
        """A recent value, preferably one without a use."""
        candidates = [k for k, x in enumerate(self.values) if x.dtype == float]
        candidates = [k for k in candidates if shape is None or self.values[k].shape == shape]
        if not candidates:
            return None
        age = len(self.values) - np.array(candidates)
        weights = 0.8**age * [1.0 if k in self.used else 4.0 for k in candidates]
        return int(self.rng.choice(candidates, p=weights / weights.sum()))

    def find(self, kind, shape, bound):
        """A node of this kind and shape, there already or new."""
        if kind in SOURCES:
            return self.source(kind, shape, bound)
        reuse = {"leaf": 0.15, "other": 0.6}[kind]
        there = self.pick(tuple(shape)) if self.rng.random() < reuse else None
        new = self.rng.choice(["param", "data", "constant"], p=[0.8, 0.12, 0.08])
        return self.source(str(new), shape) if there is None else there

    def add(self, name, first):
        """Append an operation on a first value; raises where it does not fit."""
        node = Node(name, seed=int(self.rng.integers(2**31)))
        operands, length = [first], len(self.nodes)

        def fetch(kind, shape, bound=0):
            operands.append(self.find(kind, shape, bound))
            return self.values[operands[-1]]

        try:
            value = OPERATIONS[name][1](
                Step(np.random.default_rng(node.seed), fetch), self.values[first]
            )
        except Exception:
            del self.nodes[length:], self.values[length:]
            self.trained -= {*range(length, length + len(operands))}
            raise
        self.nodes.append(replace(node, operands=tuple(operands)))
        self.values.append(value)
        self.used.update(operands)
        self.trained |= {len(self.nodes) - 1} if self.trained & {*operands} else set()

    def write(self, steps):
        self.source("data", SHAPES[self.rng.integers(len(SHAPES))])
        self.source("param", LEAVES[self.rng.integers(len(LEAVES))])
        names = [name for name, (weight, _) in OPERATIONS.items() if weight]
        weights = np.array([OPERATIONS[name][0] for name in names])
        done = 0
        while done < steps or not self.trained - {1}:
            try:
                self.add(str(self.rng.choice(names, p=weights / weights.sum())), self.pick())
                done += 1
            except (Unfit, TypeError, ValueError):
                continue
        self.finish()

    def finish(self):
        """The loss: the sum of scalars of up to three values, the last without a use."""
        ends = [k for k in sorted(self.trained) if self.nodes[k].operation not in SOURCES]
        unused = [k for k in ends if k not in self.used][-int(self.rng.integers(1, 4)) :]
        scalars = []
        for k in unused or ends[-1:]:
            shape = self.values[k].shape
            crossed = len(shape) >= 2 and shape[-1] > 1 and self.rng.random() < 0.3
            self.add("cross_entropy" if crossed else "terminal", k)
            scalars.append(len(self.nodes) - 1)
        self.nodes.append(Node("total", operands=tuple(scalars)))


def generate(seed, steps=(3, 16)):
    """The program of this seed; without its dead code, mostly."""
    writer = Writer(seed)
    jax.make_jaxpr(lambda: writer.write(int(writer.rng.integers(*steps))))()
    program = Program(tuple(writer.nodes))
    return program if writer.rng.random() < 0.3 else pruned(program)


def pruned(program):
    """Without the nodes that the loss does not depend on."""
    nodes, needed = program.nodes, {len(program.nodes) - 1}
    for k in reversed(range(len(nodes))):
        needed.update(nodes[k].operands if k in needed else ())
    place = {k: new for new, k in enumerate(sorted(needed))}
    kept = (replace(nodes[k], operands=tuple(place[o] for o in nodes[k].operands)) for k in place)
    return Program(tuple(kept))


def reductions(program):
    """Smaller programs: without one operation, its users taking another value instead.

    It has the same shape; a terminal takes any, hence also what the operation was applied to.
    """
    shapes = jax.eval_shape(program.values, program.draw(0)[0] | program.draw(0)[1])
    for k in reversed(range(len(program.nodes) - 1)):
        node, shape = program.nodes[k], shapes[k]
        if node.operation in SOURCES or shape.dtype != float:
            continue
        users = {n.operation for n in program.nodes if k in n.operands}
        fits = [*node.operands] if users == {"terminal"} else []
        alike = [
            j for j in range(k)
            if shapes[j].dtype == float and (shapes[j].shape == shape.shape or j in fits)
        ]  # fmt: skip
        for j in (*sorted(alike, key=lambda j: j not in node.operands), None):
            yield pruned(without(program, k, j, shape.shape))


def without(program, k, instead, shape):
    """Node k becomes batch data, or all its users take another node."""
    nodes = list(program.nodes)
    if instead is None:
        nodes[k] = Node("data", seed=nodes[k].seed, shape=shape)
    else:
        nodes = [
            replace(n, operands=tuple(instead if o == k else o for o in n.operands)) for n in nodes
        ]
    return Program(tuple(nodes))


def shrink(program, fails):
    """A program that still fails and of which no operation can be left out."""
    smaller = next((p for p in reductions(program) if fails(p)), None)
    return program if smaller is None else shrink(smaller, fails)
