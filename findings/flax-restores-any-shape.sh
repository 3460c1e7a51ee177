#!/usr/bin/env bash
# flax 0.12.1: from_bytes and from_state_dict take arrays of any shape and type for those of the target.
#
# The docstring of from_state_dict says that of the target only the structure, the shapes and the types are used, and that it allows to assert that shapes
# and types don't change. One would guess that a checkpoint of a wider network, or one in float32 for a target in bfloat16, is refused or cast.
# Seen: the leaves are put in as they are, whatever the target's are. Only names are compared. A kernel of (2, 3) in the place of one of (5, 7)
# is not noticed, Adam's moments may have another shape than their weights, and where shapes broadcast, the run goes on with other
# numbers: a bias or a scale of shape (1,) serves for all units of a layer.
#
# Exits non-zero if it does something else.
set -euo pipefail
tmp=$(mktemp -d); trap 'rm -rf "$tmp"' EXIT
python=${PYTHON:-python3}
"$python" -m pip install --quiet --no-compile --target "$tmp" flax==0.12.1 jax==0.8.1 jaxlib==0.8.1
JAX_PLATFORMS=cpu PYTHONPATH=$tmp "$python" -W ignore - <<'PY'
from importlib.metadata import version

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import serialization

print("flax", version("flax"), "jax", jax.__version__)
saved = {"kernel": jnp.ones((2, 3)), "bias": jnp.ones((3,))}
target = {"kernel": jnp.zeros((5, 7), jnp.bfloat16), "bias": jnp.zeros((7,), jnp.bfloat16)}
restored = {
    "from_bytes": serialization.from_bytes(target, serialization.to_bytes(saved)),
    "from_state_dict": serialization.from_state_dict(target, serialization.to_state_dict(saved)),
}
for name, weights in restored.items():
    print(f"{name}: kernel of {target['kernel'].shape} {target['kernel'].dtype} is restored as {weights['kernel'].shape} {weights['kernel'].dtype}")
    assert weights["kernel"].shape == (2, 3) and weights["kernel"].dtype == jnp.float32 and weights["bias"].shape == (3,)
try:
    serialization.from_bytes({"weight": target["kernel"], "bias": target["bias"]}, serialization.to_bytes(saved))
except ValueError as error:
    print("another name is refused:", str(error)[:70])
else:
    raise AssertionError("another name")
norm = nn.GroupNorm(num_groups=1)
x = jax.random.normal(jax.random.PRNGKey(0), (4, 8))
wide, one = norm.init(jax.random.PRNGKey(0), x), norm.init(jax.random.PRNGKey(0), x[:, :1])
one["params"]["scale"] = jnp.full((1,), 5.0)
wide = serialization.from_bytes(wide, serialization.to_bytes(one))
shape = wide["params"]["scale"].shape
output = x * wide["params"]["scale"] + wide["params"]["bias"]
print(f"a norm of 8 channels gets the scale of a norm of one: {shape}; x * scale is {output.shape} and five times x")
assert shape == (1,) and jnp.allclose(output, 5 * x)
PY
