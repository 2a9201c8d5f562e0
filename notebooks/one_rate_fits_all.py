# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # One rate fits all
#
# A weight that batch normalisation follows is *scale-invariant*: multiply it by any $c > 0$ and
# the loss stays the same. So the gradient is orthogonal to it, every step lengthens it, and its
# *effective rate* $\eta / |w|^2$ falls by itself until it is right. This notebook shows that on
# real digits, after Arora, Li & Lyu, *Theoretical Analysis of Auto Rate-Tuning by Batch
# Normalization* (ICLR 2019). It takes about two minutes on two cores.

# %%
import importlib.util

if importlib.util.find_spec("bnrate") is None:  # on Colab
    get_ipython().run_line_magic("pip", "install -q 'bnrate[plot,data]'")

# %%
import functools
import os

import jax

from bnrate import data, experiments, invariance, models, plots, results

jax.config.update("jax_num_cpu_devices", os.cpu_count())  # runs are spread over all devices

# %% [markdown]
# ## Which parameters are scale-invariant?
#
# A network with BatchNorm after each layer.

# %%
digits = data.load("digits")
model = models.MLP((128, 128), digits.classes, models.BatchNorm)
batch = data.batch(digits, jax.random.key(0), step=0, size=128)
params, moments = experiments.initial(model, jax.random.key(1), batch[0])

# %% [markdown]
# `detect` tries it: is the gradient orthogonal, does the loss stay the same? Each output channel of
# each kernel may be scaled alone. Scale and bias of a BatchNorm may be scaled *together*, unless it
# is the last.

# %%
loss = functools.partial(experiments.cross_entropy, model)
print(invariance.detect(loss, params, moments, batch))

# %% [markdown]
# ## Seventeen rates over four decades
#
# Plain SGD with one rate for all parameters, with and without normalisation; and *projected* SGD,
# which puts every scale-invariant weight back to the norm that it had, and so takes exactly the
# self-tuning away.

# %%
config = experiments.Config(seeds=1)
if os.environ.get("BNRATE_SMOKE"):  # a run of seconds, to check the notebook itself
    config = experiments.Config(rates=(0.1, 10.0), seeds=1, steps=20, width=16)

# %%
ds = experiments.unified_rate(config)

# %%
plots.plot_final(ds).figure

# %% [markdown]
# How many decades may the rate be off, with the final loss still at most 0.2?

# %%
results.tuning_freedom(ds, 0.2)["decades_mean"].to_series()

# %% [markdown]
# ## Why it works
#
# Under SGD the squared norm grows until the effective rate fits, so that even the largest rates end
# low. Projection holds the norm, and with it the effective rate: what was too high stays too high.

# %%
plots.figures(ds)["spheres"]

# %% [markdown]
# ## Only the rest needs a tuned rate
#
# Now 0.1 for the few parameters that are not scale-invariant, and any rate for the others.

# %%
plots.plot_final(experiments.separate_rates(config)).figure
