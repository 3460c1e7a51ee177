"""All measures of irreversibility, and a quadratic to try them on."""

import torch

from thermoopt.irreversibility import phi_de, phi_leading, phi_st, phi_ta, phi_tr

ALL = (phi_de, phi_tr, phi_ta, phi_st, phi_leading)


def quadratic(n=5, largest=1.0):
    """A symmetric positive matrix, where A is, and the parameters."""
    rng = torch.Generator().manual_seed(0)
    q, _ = torch.linalg.qr(torch.randn(n, n, generator=rng, dtype=torch.float64))
    a = q @ torch.diag(torch.logspace(-1.5, 0, n, dtype=torch.float64) * largest) @ q.T
    return a, torch.randn(n, generator=rng, dtype=torch.float64)
