#!/usr/bin/env bash
# optax 0.2.8, flax 0.12.1, keras 3.15.1: Muon orthogonalises the biases of attention layers, and trains their matrices by Adam.
#
# Muon is for the matrices of hidden layers, vectors are left to Adam, and both libraries tell the two apart by counting dimensions: what is not 2D goes
# to Adam. One would guess that the attention of a transformer is then trained by Muon. Seen: the projections of flax's and keras's own attention layers
# have the shape (width, heads, size) and all go to Adam, their biases have (heads, size) and go to Muon: a step turns each head's bias to a right
# angle with the others', at the size of a matrix's step. Of a keras model made of attention, none of the projections is trained by Muon. A GRU's bias
# is 2D as well. A model that is scanned over its layers stacks them: there every matrix is 3D, every bias and scale 2D.
#
# Exits non-zero if it does something else.
set -euo pipefail
tmp=$(mktemp -d); trap 'rm -rf "$tmp"' EXIT
python=${PYTHON:-python3}
"$python" -m pip install --quiet --no-compile --target "$tmp" optax==0.2.8 jax==0.8.1 jaxlib==0.8.1 flax==0.12.1 keras==3.15.1
JAX_PLATFORMS=cpu KERAS_BACKEND=jax PYTHONPATH=$tmp "$python" -W ignore - <<'PY'
import flax
import flax.linen as nn
import jax
import jax.numpy as jnp
import keras
import numpy as np
import optax

print("optax", optax.__version__, "flax", flax.__version__, "keras", keras.__version__)
x = jnp.ones((2, 5, 16))


def chosen(weights):
    """Which leaves have a momentum in Muon's part of the state."""
    state = optax.contrib.muon(1e-3).init(weights).inner_states["muon"].inner_state[0].mu
    return {"/".join(str(k.key) for k in path): leaf.shape for path, leaf in jax.tree_util.tree_leaves_with_path(state)}


attention = nn.MultiHeadDotProductAttention(num_heads=4)
weights = attention.init(jax.random.PRNGKey(0), x, x)["params"]
taken = chosen(weights)
print("flax, attention: Muon trains", taken)
assert taken == {f"{name}/bias": (4, 4) for name in ("query", "key", "value")}


class Layer(nn.Module):
    @nn.compact
    def __call__(self, x, _):
        return nn.Dense(16)(nn.LayerNorm()(x)), None


stack = nn.scan(Layer, variable_axes={"params": 0}, split_rngs={"params": True}, length=3)()
taken = chosen(stack.init(jax.random.PRNGKey(0), x, None)["params"])
print("flax, three scanned layers: Muon trains", taken)
assert taken == {"Dense_0/bias": (3, 16), "LayerNorm_0/bias": (3, 16), "LayerNorm_0/scale": (3, 16)}

layers = {"attention": keras.layers.MultiHeadAttention(4, 4), "GRU": keras.layers.GRU(8), "Dense": keras.layers.Dense(8)}
for name, layer in layers.items():
    layer(*[np.ones((2, 5, 16), "float32")] * (2 if name == "attention" else 1))
    optimizer = keras.optimizers.Muon()
    optimizer.build(layer.trainable_variables)
    taken = []
    for variable, velocity in zip(layer.trainable_variables, optimizer.adam_velocities, strict=True):
        if velocity is None:
            taken.append("/".join(variable.path.split("/")[-2:]))
    print(f"keras, {name}: Muon trains", taken)
    if name == "attention":
        assert taken == ["query/bias", "key/bias", "value/bias"]
    else:
        assert ("dense/kernel" in taken) if name == "Dense" else ("gru_cell/bias" in taken)

bias = jnp.ones((4, 4)) + 0.1 * jnp.eye(4)
optimizer = optax.contrib.muon(1.0)
step, _ = optimizer.update({"bias": bias}, optimizer.init({"bias": bias}), {"bias": bias})
angles = {"gradients": bias, "steps": step["bias"]}
for name, rows in angles.items():
    angles[name] = float(rows[0] @ rows[1] / jnp.linalg.norm(rows[0]) / jnp.linalg.norm(rows[1]))
print("cosine between two heads' biases:", {name: round(value, 2) for name, value in angles.items()})
assert angles["gradients"] > 0.99 and abs(angles["steps"]) < 0.9
PY
