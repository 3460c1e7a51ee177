"""Make the checkpoint that ``test_older_checkpoint`` loads: run it with the commit whose file it is to be."""

import sys

import torch

from thermoopt import ThermoAdamW, autotune

STEPS, MORE = 12, 5


def parameters():
    """Two named layers, the same numbers at every call."""
    rng = torch.Generator().manual_seed(0)
    return [(name, torch.nn.Parameter(torch.randn(n, generator=rng))) for name, n in (("a", 40), ("b", 7))]


def gradients(step):
    """Gradients of a step."""
    rng = torch.Generator().manual_seed(step)
    return [torch.randn(n, generator=rng) for n in (40, 7)]


def run(opt, params, steps):
    """Take the steps of these numbers."""
    for step in steps:
        for (_, p), g in zip(params, gradients(step), strict=True):
            p.grad = g
        opt.step()


def optimizer(params, backend):
    """The optimizer of the checkpoint."""
    groups = [{"params": params[:1], "name": "matrices"}, {"params": params[1:], "weight_decay": 0.0}]
    return ThermoAdamW(groups, controller=autotune(400), backend=backend)


def main():
    """Write the file that the command line names."""
    out = {}
    for backend in ("torch", "native"):
        params = parameters()
        opt = optimizer(params, backend)
        opt.set_layer_factors({"b": 0.5})
        run(opt, params, range(1, STEPS + 1))
        out[backend] = {"params": [p.detach().clone() for _, p in params], "state": opt.state_dict()}
        out[backend]["state"] = torch_copy(out[backend]["state"])
        run(opt, params, range(STEPS + 1, STEPS + MORE + 1))
        out[backend]["later"] = [p.detach().clone() for _, p in params]
        out[backend]["terms"] = torch.from_numpy(opt.reading.terms.copy())
    torch.save(out, sys.argv[1])


def torch_copy(state):
    """A copy that shares no memory."""
    import copy

    return copy.deepcopy(state)


if __name__ == "__main__":
    main()
