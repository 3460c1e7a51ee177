"""A tier and a row to test sweeps with."""

import copy

TIER = {
    "about": "a test",
    "workloads": {"linear": [0], "mlp": [0, 1]},
    "methods": ["adamw linear", "autotune"],
    "seeds": [3, 5],
    "budget": 4,
    "design": 4,
    "sampler": "none",
    "lr": [1e-4, 1e-1],
    "decay": [1e-3, 1e-1],
    "evaluations": 5,
    "log_every": 1,
}


def changed(**fields) -> dict:
    return {**copy.deepcopy(TIER), **fields}


def row(k=0, valid=1.0, **fields):
    return {
        "protocol": "p",
        "tier": "t",
        "workload": "linear",
        "metric": "mse",
        "steps": 500,
        "method": "adamw linear",
        "tunables": ["lr"],
        "seed": 0,
        "k": k,
        "lr": 0.1,
        "decay": None,
        "valid": valid,
        "initial": 2.0,
        "diverged": False,
        "curve": [[0, 2.0], [500, valid]],
        **fields,
    }
