"""Which elements a probe samples, written out one by one."""

import torch

from thermoopt.tensors.sampling import BLOCK, STRIDE


def sampled(p, large):
    """Memory positions that a tensor is sampled at, one by one."""
    n, block = p.numel(), BLOCK
    if not large:
        return list(range(n))
    if p.ndim == 2:  # of every row a seventeenth, and at least one element
        row = len(p) if p.stride() == (1, len(p)) else p.shape[1]
        block = min(BLOCK, max(1, row // STRIDE))
    whole = n // (block * STRIDE)
    if whole == 0:
        return list(range(n // STRIDE))
    return [i for i in range(whole * block * STRIDE) if (i // block) % STRIDE == 0]


def logical(x):
    """Real elements in the order of indices, float64."""
    x = x.detach()
    return (torch.view_as_real(x) if x.is_complex() else x).double().contiguous().view(-1).numpy().copy()
