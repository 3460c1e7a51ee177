"""The definition: one AdamW step and its sums as a plain loop over tensors, in any precision."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from thermoopt.physics.sums import Sum

__all__ = ["reference_step"]


@torch.no_grad()
def reference_step(
    params: Sequence[Tensor],
    grads: Sequence[Tensor],
    exp_avgs: Sequence[Tensor],
    exp_avg_sqs: Sequence[Tensor],
    max_exp_avg_sqs: Sequence[Tensor],
    steps: Sequence[Tensor],
    *,
    lr: float | Sequence[float],
    betas: tuple[float, float],
    eps: float,
    weight_decay: float | Sequence[float],
    maximize: bool = False,
    dtype: torch.dtype = torch.float64,
) -> Tensor:
    r"""Take one AdamW step in place and return the sums of every tensor.

    .. math::
        t \leftarrow t+1,\quad m \leftarrow \beta_1 m + (1-\beta_1) g,\quad
        v \leftarrow \beta_2 v + (1-\beta_2) g^2,\quad
        \theta \leftarrow (1-\eta\lambda)\,\theta - \eta\,\hat m / (\sqrt{\hat v} + \epsilon)

    Args:
        params, grads, exp_avgs, exp_avg_sqs: the tensors of the step, ``n`` each; all but the
            gradients are updated in place and rounded to their own dtype.
        max_exp_avg_sqs: ``n`` tensors for amsgrad, or empty.
        steps: ``n`` zero-dimensional step counts, incremented in place.
        lr, weight_decay: one number, or one per tensor.
        betas, eps, maximize: as in :class:`torch.optim.AdamW`.
        dtype: the precision everything is computed in.

    Returns:
        Tensor ``[n, len(Sum)]`` of ``dtype``; see :class:`~thermoopt.physics.Sum` for units.

    References:
        Loshchilov and Hutter, arXiv 1711.05101, algorithm 2; Reddi et al., arXiv 1904.09237 (amsgrad).
    """
    beta1, beta2 = betas
    out = torch.zeros(len(params), len(Sum), dtype=dtype, device=params[0].device if params else "cpu")
    lrs = lr if isinstance(lr, Sequence) else [lr] * len(params)
    decays = weight_decay if isinstance(weight_decay, Sequence) else [weight_decay] * len(params)
    for i, p in enumerate(params):
        steps[i].add_(1)
        t = float(steps[i])
        # work on the real view, in the precision asked for
        th = _real(p).to(dtype)
        g = _real(grads[i]).to(dtype)
        g = -g if maximize else g
        m = _real(exp_avgs[i]).to(dtype)
        v = _real(exp_avg_sqs[i]).to(dtype)
        # moments
        m = beta1 * m + (1 - beta1) * g
        v = beta2 * v + (1 - beta2) * g * g
        mh = m / (1 - beta1**t)
        vh = v / (1 - beta2**t)
        top = vh
        if max_exp_avg_sqs:
            vmax = torch.maximum(_real(max_exp_avg_sqs[i]).to(dtype), v)
            top = vmax / (1 - beta2**t)
            _real(max_exp_avg_sqs[i]).copy_(vmax)
        # update direction
        pre = 1 / (top.sqrt() + eps)
        u = mh * pre
        # sums
        row = out[i]
        row[Sum.A] = (g * u).sum()
        row[Sum.B] = (g * g * pre).sum()
        row[Sum.UU] = (u * u).sum()
        row[Sum.TU] = (th * u).sum()
        row[Sum.TT] = (th * th).sum()
        row[Sum.MU] = (mh * u).sum()
        row[Sum.SV] = (vh * pre).sum()
        row[Sum.GG] = (g * g).sum()
        row[Sum.GT] = (g * th).sum()
        row[Sum.V] = vh.sum()
        row[Sum.M2] = (mh * mh).sum()
        row[Sum.C] = (g * g / (vh + eps * eps))[vh > 0].sum()
        row[Sum.N1] = (g.abs() * pre).sum()
        row[Sum.D] = (vh > 0).sum()
        # write back
        _real(exp_avgs[i]).copy_(m)
        _real(exp_avg_sqs[i]).copy_(v)
        _real(p).copy_((1 - lrs[i] * decays[i]) * th - lrs[i] * u)
    return out


def _real(x: Tensor) -> Tensor:
    return torch.view_as_real(x) if x.is_complex() else x
