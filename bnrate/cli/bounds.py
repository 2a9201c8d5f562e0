"""What is printed of the experiments that hold theorems against runs."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import xarray as xr


def gd_rate(ds: "xr.Dataset") -> Iterator[str]:
    """How tight the GD bound is, and whether it ever fails."""
    yield from _tightness(ds, "the sum of squared gradients", "sum, least and norms")


def sgd_rate(ds: "xr.Dataset") -> Iterator[str]:
    """How tight the SGD bound is, and whether it ever fails."""
    yield from _tightness(ds, "the weighted sum of mean squared gradients", "sum, least and norms")


def _tightness(ds: "xr.Dataset", what: str, claims: str) -> Iterator[str]:
    """Least and median over the instances, for each problem and rate."""
    ratio, rates = ds["tightness"], ds["rate_invariant"].values
    others = [dim for dim in ratio.dims if dim not in ("problem", "rate_invariant")]
    runs = np.prod([ds.sizes[dim] for dim in others])
    yield f"{ds.attrs['experiment']}, {int(ds['time'][-1])} steps: bound / measured of {what},"
    yield f"least and median over {runs} runs"
    yield ""
    yield f"  {'rate':25}" + "".join(f"{rate:>10.3g}" for rate in rates)
    for problem in ds["problem"].values:
        one = ratio.sel(problem=problem)
        title = str(ds["title"].sel(problem=problem).item())
        yield f"  {title:25}" + "".join(f"{_short(x):>10}" for x in one.min(others).values)
        yield f"  {'':25}" + "".join(f"{_short(x):>10}" for x in one.median(others).values)
    records = int(ds["violations"].size) * ds.sizes["step"]
    yield ""
    yield (
        f"violations ({claims}, {ds['violations'].size} runs, {records} records): "
        f"{int(ds['violations'].sum())}"
    )


def _short(ratio: float) -> str:
    """Three digits, and more of a bound that is all but attained."""
    return f"{ratio:.4f}" if ratio < 1.1 else f"{ratio:.3g}"


def certificate(ds: "xr.Dataset") -> Iterator[str]:
    """What each run is certified, next to what was measured."""
    steps = ds.sizes["step"] - 1
    yield f"certificate, {steps} steps of gradient descent: sum of squared gradients and largest"
    yield "norm2, measured and certified; C is the curvature that the certificate rests on"
    yield ""
    yield (
        f"  {'rate':>8}  {'loss':>9}  {'C':>9}  {'sum':>9}  {'certified':>9}  {'norm2':>9}  "
        f"{'certified':>9}  label"
    )
    runs = ds.stack(run=("rate_invariant", "rate_rest", "seed"))
    for i in range(runs.sizes["run"]):
        one = runs.isel(run=i)
        numbers = (
            one["final_loss"], one["curvature"], one["measured_sum"], one["certified_sum"],
            one["norm2"].isel(step=-1).max(), one["certified_norm2"].max(),
        )  # fmt: skip
        shown = "  ".join(f"{number.item():9.3g}" for number in numbers)
        yield f"  {one['rate_invariant'].item():>8.3g}  {shown}  {one['label'].item()}"
    for reason in dict.fromkeys(ds["reason"].values.ravel()):
        if reason:
            yield f"  {reason}"


def psgd_fails(ds: "xr.Dataset") -> Iterator[str]:
    """The orbit, how many starts end on it, and what is left of the gradient with noise."""
    steps, starts = int(ds["time"][-1]), ds.sizes["seed"]
    last = ds["gradient2"].isel(step=-1) ** 0.5
    yield f"psgd-fails, {starts} starts, after {steps} steps: the norm of the gradient from the"
    yield "start on the orbit (the largest if there is none), and how many end within 1e-8 of it"
    yield ""
    yield f"  {'rate':>8}  {'orbit':>12}  {'projected GD':>12}  {'there':>6}  {'GD, largest':>11}"
    for rate in ds["rate"].values:
        orbit, at = ds["orbit"].sel(rate=rate).item(), last.sel(rate=rate)
        projected, plain = at.sel(rule="projected-gd"), at.sel(rule="gd").max().item()
        there = int((abs(projected - orbit) < 1e-8).sum())
        named, count = ("none", "") if np.isnan(orbit) else (f"{orbit:.10f}", f"{there}/{starts}")
        shown = projected.max().item() if np.isnan(orbit) else projected.isel(seed=0).item()
        yield f"  {rate:>8.4g}  {named:>12}  {shown:>12.10f}  {count:>6}  {plain:>11.2g}"
    tail = steps - int(ds["time"][-2])
    yield ""
    yield f"with noise: mean squared gradient of the last {tail} steps, over all starts"
    yield ""
    yield f"  {'rate':>8}  {'projected SGD':>13}  {'SGD':>9}"
    late = ds["gradient2_sum"].isel(step=[-2, -1]).diff("step").isel(step=0).mean("seed") / tail
    for rate in ds["rate"].values:
        projected, plain = (late.sel(rate=rate, rule=r).item() for r in ("projected-sgd", "sgd"))
        yield f"  {rate:>8.4g}  {projected:>13.4g}  {plain:>9.3g}"


def lower_bound(ds: "xr.Dataset") -> Iterator[str]:
    """Steps that each chain needs at each rate, and at the best."""
    yield "lower-bound: steps until the spherical gradient is below half of the radius"
    yield "(-: not in time)"
    yield ""
    rates = "".join(f"{rate:>8.0e}" for rate in ds["rate"].values)
    yield f"  {'length':>7}  {'best':>5}  rate{rates}"
    for length, row in zip(ds["length"].values, ds["needed"].isel(seed=0).values, strict=True):
        cells = "".join(f"{'-' if np.isnan(n) else f'{n:.0f}':>8}" for n in row)
        best = "-" if np.isnan(row).all() else f"{np.nanmin(row):.0f}"
        yield f"  {length:>7}  {best:>5}      {cells}"


def gdnp(ds: "xr.Dataset") -> Iterator[str]:
    """The contraction of GDNP, and how far gradient descent comes."""
    steps, seeds = ds.sizes["step"] - 1, ds.sizes["seed"]
    yield f"gdnp, {seeds} instances: the factor by which the distance from the minimum shrinks,"
    yield f"and what is left of it after {steps} steps (median; of GD at its best rate)"
    yield ""
    yield (
        f"  {'condition':>9}  {'proved':>8}  {'measured, worst':>15}  {'GDNP, left':>10}  "
        f"{'GD, left':>9}  {'at rate':>8}"
    )
    for problem in ds["problem"].values:
        one = ds.sel(problem=problem)
        left = one["above"].isel(step=-1).median("seed")
        plain, ours = left.sel(rule="gd"), left.sel(rule="gdnp").isel(rate=0).item()
        worst = one["worst"].sel(rule="gdnp").max().item()
        best = plain["rate"].values[int(plain.argmin("rate"))]
        yield (
            f"  {one['kappa'].item():>9.4g}  {one['contraction'].item():>8.4f}  {worst:>15.4f}  "
            f"{ours:>10.2g}  {plain.min().item():>9.2g}  {best:>8.3g}"
        )


def smoothness(ds: "xr.Dataset") -> Iterator[str]:
    """Effective smoothness and top eigenvalue of each network, at the start and at the end."""
    steps = int(ds["step"][-1])
    yield "smoothness: effective smoothness along the gradient, and top eigenvalue of the Hessian,"
    yield f"at the start and at the last record, after {steps} steps; means over the seeds"
    yield ""
    columns = "".join(f"{name:>9}" for name in ("start", "end", "start", "end"))
    yield f"  {'':32}{'smoothness':>18}{'eigenvalue':>18}"
    yield f"  {'rate':>6}  {'':24}{columns}"
    means = ds.isel(step=[0, -1]).mean("seed")
    for rate in ds["rate"].values:
        for rule, place, title in (
            ("sgd-bn", "sphere", "BN, on the spheres"),
            ("sgd-bn", "raw", "BN, in the weights"),
            ("sgd", "raw", "no normalisation"),
        ):
            at = means.sel(rate=rate, rule=rule)
            names = (f"{place}_smoothness", f"{place}_highest")
            numbers = "".join(f"{x:9.3g}" for name in names for x in at[name].values)
            yield f"  {rate:>6.3g}  {title:24}{numbers}"
