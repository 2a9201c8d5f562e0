"""Record what other implementations do: trajectories to hold ours against.

Each writes one JSON file beside this one.  It runs by hand, not in CI, in an environment of its own
(CPython 3.11, on a CPU), from this directory:

    python3.11 -m venv refs
    refs/bin/pip install torch==2.13.0 numpy==2.4.6 scipy==1.17.1 setuptools wheel
    refs/bin/pip install geoopt==0.5.1
    refs/bin/pip install --no-build-isolation adamp==0.3.0
    PYTHONPATH=REQ:RBN refs/bin/python record.py

REQ is a checkout of github.com/epfml/REQ at 29ffb09ca296cb275590fa51c84c720bf84b03a8, and RBN one
of github.com/MinhyungCho/riemannian-batch-normalization-pytorch.  PyTorch has the output channel
first, here it is last: W is transposed on the way in and on the way out.
"""

import itertools
import json
import platform
from importlib.metadata import version
from pathlib import Path

import numpy as np
from gradients import GRADIENTS, START

STEPS, EVERY = 40, 5
REQ_COMMIT = "29ffb09ca296cb275590fa51c84c720bf84b03a8"


def descend(optimizer, p, problem):
    """W at every fifth step, the start included."""
    import torch

    gradient, found = GRADIENTS[problem], [p.detach().numpy().T.tolist()]
    for step in range(1, STEPS + 1):
        p.grad = torch.tensor(gradient(p.detach().numpy().T).T.copy())
        optimizer.step()
        if step % EVERY == 0:
            found.append(p.detach().numpy().T.tolist())
    return found


def parameter(W):
    import torch

    return torch.nn.Parameter(torch.tensor(W.T.copy()))


def case(rule, problem, settings, weights, **notes):
    return {
        "rule": rule,
        "problem": problem,
        "settings": settings,
        **notes,
        "every": EVERY,
        "weights": weights,
    }


def plain(classes, problem, rule, settings, W=START, **fixed):
    """A case of an optimizer that needs nothing but its settings, and what we have no word for."""
    p = parameter(W)
    weights = descend(classes[rule]([p], **settings, **fixed), p, problem)
    return case(rule, problem, settings, weights, fixed=fixed)


def torch_cases():
    import torch

    classes = {f.__name__: f for f in (torch.optim.SGD, torch.optim.Adagrad)}
    classes |= {f.__name__: f for f in (torch.optim.Adam, torch.optim.AdamW)}
    sgd = [
        {},
        {"momentum": 0.9},
        {"momentum": 0.9, "nesterov": True},
        {"momentum": 0.8, "weight_decay": 0.1},
        {"momentum": 0.8, "nesterov": True, "weight_decay": 0.1},
        {"momentum": 0.8, "dampening": 0.5},
    ]
    adam = {"lr": 0.02, "betas": (0.8, 0.95), "eps": 1e-3}
    adagrad = {"lr": 0.1, "eps": 1e-3}
    return [
        *(plain(classes, "mixed", "SGD", {"lr": 0.05} | extra) for extra in sgd),
        plain(classes, "quadratic", "Adagrad", adagrad),
        plain(
            classes,
            "quadratic",
            "Adagrad",
            {"lr": 0.1, "eps": 0.0, "initial_accumulator_value": 0.25},
        ),
        plain(classes, "mixed", "Adam", adam),
        plain(classes, "mixed", "AdamW", adam | {"weight_decay": 0.1}),
    ]


def adamp_cases():
    from adamp import SGDP, AdamP

    classes = {"SGDP": SGDP, "AdamP": AdamP}
    sgdp = [
        {},
        {"momentum": 0.8},
        {"momentum": 0.8, "dampening": 0.5, "eps": 1e-3},
        {"momentum": 0.8, "weight_decay": 0.05, "wd_ratio": 0.5},
        {"momentum": 0.8, "nesterov": True, "weight_decay": 0.05, "delta": 0.2},
    ]
    adamp = [
        {},
        {"weight_decay": 0.1, "wd_ratio": 0.5},
        {"nesterov": True, "weight_decay": 0.1, "delta": 0.12},
    ]
    adam = {"lr": 0.02, "betas": (0.8, 0.95), "eps": 1e-3}
    rows = [("SGDP", {"lr": 0.05} | extra) for extra in sgdp]
    rows += [("AdamP", adam | extra) for extra in adamp]
    return [
        projected(classes, problem, rule, settings)
        for (rule, settings), problem in itertools.product(rows, GRADIENTS)
    ]


def projected(classes, problem, rule, settings):
    """A case of AdamP or SGDP, with the branch taken at each step: channel, layer or none."""
    p = parameter(START)
    optimizer = classes[rule]([p], **settings)
    looked, inner = [], optimizer._projection

    def projection(p, grad, perturb, delta, wd_ratio, eps):
        # A wd_ratio of its own tells whether one of the projections was made.
        views = []
        optimizer._cosine_similarity = lambda *args: (
            views.append(args[3]) or type(optimizer)._cosine_similarity(optimizer, *args)
        )
        perturb, made = inner(p, grad, perturb, delta, "made", eps)
        branch = "none" if made != "made" else ("channel", "layer")[len(views) - 1]
        looked.append(branch)
        return perturb, wd_ratio if made == "made" else made

    optimizer._projection = projection
    weights = descend(optimizer, p, problem)
    branches = [[name, len(list(run))] for name, run in itertools.groupby(looked)]
    return case(rule, problem, settings, weights, branches=branches)


def geoopt_cases():
    sgd = {"lr": 0.1}
    heavy = sgd | {"momentum": 0.8}
    adam = {"lr": 0.05, "betas": (0.8, 0.95), "eps": 1e-3}
    # Their buffer starts at the gradient itself, which is a tangent vector in `columns` only.
    rows = [
        ("RiemannianSGD", "mixed", sgd, {}),
        ("RiemannianSGD", "columns", heavy, {"buffer": "gradient"}),
        ("RiemannianSGD", "mixed", heavy, {"buffer": "zero"}),
        ("RiemannianAdam", "mixed", adam, {}),
    ]
    manifolds = ("Sphere", "SphereExact")
    return [on_sphere(name, *row, **notes) for *row, notes in rows for name in manifolds]


def on_sphere(manifold, rule, problem, settings, buffer="none"):
    """A case of geoopt; its SGD starts the momentum at the gradient, or here on request at zero."""
    import geoopt
    import torch

    W = START / np.linalg.norm(START, axis=0)
    manifold_class = getattr(geoopt.manifolds.sphere, manifold)
    p = geoopt.ManifoldParameter(torch.tensor(W.T.copy()), manifold=manifold_class())
    optimizer = getattr(geoopt.optim, rule)([p], **settings)
    if buffer == "zero":
        optimizer.state[p]["momentum_buffer"] = torch.zeros_like(p.data)
    weights = descend(optimizer, p, problem)
    return case(rule, problem, settings, weights, manifold=manifold, buffer=buffer)


def req_cases():
    from shared.optimizers.rotational_adamw import RotationalAdamW
    from shared.optimizers.rotational_lion import RotationalLion
    from shared.optimizers.rotational_sgd import RotationalSGD

    classes = {f.__name__: f for f in (RotationalSGD, RotationalAdamW, RotationalLion)}
    sgd = {"lr": 0.1, "momentum": 0.8, "weight_decay": 0.02}
    adamw = {"lr": 0.02, "betas": (0.8, 0.95), "eps": 1e-3, "weight_decay": 0.1}
    lion = {"lr": 0.05, "betas": (0.8, 0.95), "weight_decay": 0.01}
    rows = [
        ("RotationalSGD", sgd | {"update_norm_decay_factor": 0.99}),
        ("RotationalSGD", sgd | {"update_norm_decay_factor": 0.9, "nesterov": True}),
        ("RotationalSGD", sgd | {"update_norm_decay_factor": 0.0}),
        ("RotationalSGD", sgd | {"update_norm_decay_factor": 0.9, "per_neuron": False}),
        ("RotationalAdamW", adamw | {"update_norm_decay_factor": 0.99}),
        ("RotationalAdamW", adamw | {"update_norm_decay_factor": 0.9}),
        ("RotationalLion", lion | {"update_norm_decay_factor": 0.99}),
        ("RotationalLion", lion | {"update_norm_decay_factor": 0.9, "per_neuron": False}),
    ]
    fixed = {"zero_mean": False, "rotational_eps": 0.0}
    return [
        plain(classes, problem, rule, settings, **fixed)
        for (rule, settings), problem in itertools.product(rows, ("columns", "quadratic"))
    ]


def grassmann_cases():
    import gutils
    from grassmann_optimizer import SGDG, AdamG

    # They divide by |v| + 1e-8 where the paper divides by |v|: too coarse for a comparison.
    gutils.unit.__defaults__ = (0.0,)
    classes, unit = {"SGDG": SGDG, "AdamG": AdamG}, START / np.linalg.norm(START, axis=0)
    rows = [
        ("SGDG", {"lr": 0.2, "momentum": 0.9, "grad_clip": 0.1}),
        ("SGDG", {"lr": 0.1, "momentum": 0.0, "grad_clip": 100.0}),
        ("AdamG", {"lr": 0.05, "momentum": 0.9, "grad_clip": 0.1, "epsilon": 1e-8}),
        ("AdamG", {"lr": 0.05, "momentum": 0.8, "beta2": 0.9, "grad_clip": 1.0, "epsilon": 1e-3}),
    ]
    return [
        plain(classes, "mixed", rule, settings, W=unit, grassmann=True) for rule, settings in rows
    ]


def write(name, cases, versions):
    """One file: what made it, then one case a line; floats are written so that they read back."""
    versions = {"python": platform.python_version(), "numpy": version("numpy")} | versions
    lines = ",\n".join(json.dumps(case) for case in cases)
    path = Path(__file__).parent / f"{name}.json"
    path.write_text(f'{{"versions": {json.dumps(versions)},\n"cases": [\n{lines}\n]}}\n')
    print(f"{path.name}: {len(cases)} cases, {path.stat().st_size / 1000:.0f} kB")


def main():
    import torch

    torch.set_default_dtype(torch.float64)
    with_torch = {"torch": torch.__version__}
    write("torch", torch_cases(), with_torch)
    write("adamp", adamp_cases(), with_torch | {"adamp": version("adamp")})
    write("geoopt", geoopt_cases(), with_torch | {"geoopt": version("geoopt")})
    write("req", req_cases(), with_torch | {"REQ": REQ_COMMIT})
    write("grassmann", grassmann_cases(), with_torch)


if __name__ == "__main__":
    main()
