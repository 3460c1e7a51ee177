"""Which elements a probe samples, written out one by one."""

import torch

from thermoopt.tensors.sampling import BLOCK, STRIDE


def sampled(n, large):
    """Memory positions that a tensor of n elements is sampled at, one by one."""
    if not large:
        return list(range(n))
    whole = n // (BLOCK * STRIDE)
    if whole == 0:
        return list(range(n // STRIDE))
    return [i for i in range(whole * BLOCK * STRIDE) if (i // BLOCK) % STRIDE == 0]


def logical(x):
    """Real elements in the order of indices, float64."""
    x = x.detach()
    return (torch.view_as_real(x) if x.is_complex() else x).double().contiguous().view(-1).numpy().copy()
