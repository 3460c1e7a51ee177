"""Twenty layers in sequence without skip connections, so that small changes of each add up."""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

from thermoopt.benchmarks.workloads.digits import labelled
from thermoopt.benchmarks.workloads.kinds.images import ABOUT, digits_hash
from thermoopt.benchmarks.workloads.supervised import supervised_task
from thermoopt.benchmarks.workloads.task import Workload

__all__ = ["STACK_BATCHNORM", "STACK_LAYERNORM", "STACK_RELU", "STACK_TANH", "stack"]

DEPTH, WIDTH, SIZE = 20, 64, 32


def stack(
    activation: type[nn.Module], norm: type[nn.Module] | None = None, gain: float | None = None
) -> nn.Module:
    """Return a perceptron of :data:`DEPTH` matrices.

    Args:
        activation: between them.
        norm: in front of each activation, by width; None for none.
        gain: entries are normal with this gain over the root of fan-in, biases 0; None is torch's default.
    """
    layers: list[nn.Module] = [nn.Flatten()]
    for _ in range(DEPTH - 1):
        linear = nn.Linear(WIDTH, WIDTH)
        if gain is not None:
            nn.init.normal_(linear.weight, std=gain / WIDTH**0.5)
            nn.init.zeros_(linear.bias)
        layers += [linear, *([] if norm is None else [norm(WIDTH)]), activation()]
    return nn.Sequential(*layers, nn.Linear(WIDTH, 10))


def _workload(name: str, words: str, make: Callable[[], nn.Module]) -> Workload:
    return Workload(
        name,
        f"{ABOUT}, batch {SIZE}; {DEPTH} matrices of width {WIDTH} without skip connections, {words}; "
        "cross-entropy",
        (400, 1600),
        lambda seed, batch=1.0: supervised_task(labelled(), make, seed, batch, size=SIZE),
        digits_hash,
        family="deep stacks",
    )


STACK_RELU = _workload("stack-relu", "ReLU, He's initialisation", lambda: stack(nn.ReLU, gain=2**0.5))
STACK_TANH = _workload("stack-tanh", "tanh, gain 5/3", lambda: stack(nn.Tanh, gain=5 / 3))
STACK_LAYERNORM = _workload("stack-layernorm", "LayerNorm and ReLU", lambda: stack(nn.ReLU, nn.LayerNorm))
STACK_BATCHNORM = _workload("stack-batchnorm", "BatchNorm and ReLU", lambda: stack(nn.ReLU, nn.BatchNorm1d))
