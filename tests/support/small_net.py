"""A small network, a loop that trains it, and a comparison of bits."""

import torch


def model(dtype=torch.float32, seed=0):
    torch.manual_seed(seed)
    net = torch.nn.Sequential(torch.nn.Linear(6, 17), torch.nn.Tanh(), torch.nn.Linear(17, 3))
    return net.to(dtype)


def train(net, opt, steps, *, seed=1, scheduler=None, start=0):
    params = list(net.parameters())
    for step in range(start, start + steps):
        rng = torch.Generator().manual_seed(seed * 1000 + step)
        x = torch.randn(16, 6, generator=rng).to(params[0].dtype)
        opt.zero_grad()
        loss = net(x).square().mean()
        loss.backward()
        opt.step()
        if scheduler is not None:
            scheduler.step()
    return [p.detach().clone() for p in params]


def assert_same_bits(net_a, opt_a, net_b, opt_b):
    for p, q in zip(net_a.parameters(), net_b.parameters(), strict=True):
        assert torch.equal(p, q)
        a, b = opt_a.state[p], opt_b.state[q]
        assert a.keys() == b.keys()
        for key in a:
            assert torch.equal(torch.as_tensor(a[key]), torch.as_tensor(b[key])), key
