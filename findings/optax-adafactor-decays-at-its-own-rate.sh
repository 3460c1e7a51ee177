#!/usr/bin/env bash
# optax 0.2.8: adafactor's weight_decay_rate is not multiplied by the learning rate.
#
# optax's adamw and lion decay weights by lr times weight_decay. One would guess the same of adafactor, whose
# documentation calls the argument a rate at which to decay weights. Seen: weights are multiplied by 1 - weight_decay_rate in each step,
# whatever the learning rate and its schedule are: ten steps with the 0.1 that is usual with AdamW leave 35 % of them, at lr 0, too. In a warm-up from 0
# the first steps do nothing but take the initialisation away, and 0.01 leaves 0.004 % after 1,000 steps.
#
# Exits non-zero if it does something else.
set -euo pipefail
tmp=$(mktemp -d); trap 'rm -rf "$tmp"' EXIT
python=${PYTHON:-python3}
"$python" -m pip install --quiet --no-compile --target "$tmp" optax==0.2.8 jax==0.8.1 jaxlib==0.8.1
JAX_PLATFORMS=cpu PYTHONPATH=$tmp "$python" -W ignore - <<'PY'
import jax.numpy as jnp
import optax

print("optax", optax.__version__)
left = {}
for name, option in (("adamw", "weight_decay"), ("lion", "weight_decay"), ("adafactor", "weight_decay_rate")):
    for rate in (0.01, 0.0001, 0.0):
        optimizer = getattr(optax, name)(rate, **{option: 0.1})
        weights = {"weight": jnp.ones((4, 4))}
        state = optimizer.init(weights)
        for _ in range(10):
            updates, state = optimizer.update({"weight": jnp.zeros((4, 4))}, state, weights)
            weights = optax.apply_updates(weights, updates)
        left[name, rate] = round(float(weights["weight"][0, 0]), 4)
        print(f"{name} at lr {rate}: ten steps with zero gradients leave {left[name, rate]}")
for (name, rate), kept in left.items():
    assert kept == (0.3487 if name == "adafactor" else {0.01: 0.99, 0.0001: 0.9999, 0.0: 1.0}[rate])
PY
