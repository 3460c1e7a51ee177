r"""Update fields of a model: SGD, SGD with frozen momentum, Adam with frozen moments.

The loss is given as a function of the model on one fixed batch, ``lambda net: mse_loss(net(x), y)``. It is
handed a float64 copy whose parameters are replaced at every evaluation; the model itself is never touched,
and its buffers start from the same values every time.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.optim import SGD, Adam, Optimizer

from thermoopt.irreversibility.fields import UpdateField

__all__ = ["Loss", "adam_field", "momentum_field", "sgd_field"]

Loss = Callable[[Any], Tensor]
"""A scalar loss of a model on a fixed batch."""

LOW_PRECISION = 1e-6
"""Machine epsilon above which a parameter's type rounds steps away: float32 has 1.2e-7, bfloat16 7.8e-3."""


def sgd_field(model: nn.Module, loss: Loss) -> UpdateField:
    """Return plain SGD's field, U = g: the gradient of the loss on the batch.

    One evaluation is one gradient, in float64.

    Args:
        model: gives the parameters that take gradients; it is copied.
        loss: scalar loss of the model it is handed, on a fixed batch. Floating inputs of the model's
            ``forward`` are converted to float64.

    Raises:
        TypeError, ValueError: naming the argument: when dropout is active, when no parameter takes a
            gradient, or the loss is no real float64 scalar or does not depend differentiably on the
            parameters of the model it is handed.

    Warns:
        RuntimeWarning: parameters are of less precision than float32, or batch normalisation is in training
            mode.
    """
    return UpdateField(*_gradient(model, loss))


def momentum_field(model: nn.Module, loss: Loss, optimizer: SGD) -> UpdateField:
    r"""Return the field of SGD whose momentum buffer b is frozen as it is now.

    :math:`U = \mu b + (1-\tau)(g+\lambda\theta)` with torch's momentum μ, dampening τ and coupled decay λ,
    and
    :math:`g+\lambda\theta+\mu U` with Nesterov's. A parameter without a buffer has U = g + λθ, as in torch.

    Args:
        model, loss: as in :func:`sgd_field`.
        optimizer: a ``torch.optim.SGD`` over the model's parameters, with one lr for all groups.

    Raises:
        TypeError, ValueError: as :func:`sgd_field`, and for an optimizer of another kind or other parameters.
    """
    _check_optimizer(optimizer, SGD, "torch.optim.SGD")
    params, gradient = _gradient(model, loss)
    groups = _groups(model, optimizer, params)
    buffers = {
        name: _state(optimizer, p, "momentum_buffer")
        for name, p in model.named_parameters()
        if name in params
    }

    def update(at: Mapping[str, Tensor]) -> dict[str, Tensor]:
        out = {}
        for name, g in gradient(at).items():
            group, b = groups[name], buffers[name]
            d = (-g if group["maximize"] else g) + group["weight_decay"] * at[name]
            mu = group["momentum"]
            moved = d if b is None or not mu else mu * b + (1 - group["dampening"]) * d
            out[name] = d + mu * moved if group["nesterov"] else moved
        return out

    return UpdateField(params, update)


def adam_field(model: nn.Module, loss: Loss, optimizer: Optimizer) -> UpdateField:
    r"""Return Adam's field with both moments frozen as they are now, after t steps.

    .. math::
        U = P\,\frac{\beta_1 m_t+(1-\beta_1)g}{1-\beta_1^{t+1}},\qquad
        P = 1/(\sqrt{v_t/(1-\beta_2^t)}+\epsilon)

    (``max_exp_avg_sq`` in the place of v with amsgrad). Decoupled decay is no part of U; coupled decay is
    added to g. The metric is 1/P, in which the Jacobian is symmetric and phi is
    :math:`(\eta/4)\langle\hat m,U\rangle`. Elements whose v is 0 never had a gradient: they stay put, with
    weight 1.

    Args:
        model, loss: as in :func:`sgd_field`.
        optimizer: ThermoAdamW, or torch's Adam or AdamW, over the model's parameters, with one lr for all
            groups, after a step at least.

    Raises:
        TypeError, ValueError: as :func:`sgd_field`, and for an optimizer of another kind, other parameters,
            or without moments yet.
    """
    _check_optimizer(optimizer, Adam, "ThermoAdamW, torch.optim.AdamW or torch.optim.Adam")
    params, gradient = _gradient(model, loss)
    groups = _groups(model, optimizer, params)
    scale: dict[str, Tensor] = {}
    kept: dict[str, Tensor] = {}
    fresh: dict[str, float] = {}
    for name, p in model.named_parameters():
        if name not in params:
            continue
        group = groups[name]
        m = _state(optimizer, p, "exp_avg")
        v = _state(optimizer, p, "max_exp_avg_sq" if group["amsgrad"] else "exp_avg_sq")
        if m is None or v is None:
            raise ValueError(
                f"optimizer has no moments of {name!r} yet; allowed is one that has taken a step"
            )
        beta1, beta2 = (float(beta) for beta in group["betas"])
        t = float(optimizer.state[p]["step"])
        past = v > 0
        scale[name] = torch.where(past, 1 / ((v / (1 - beta2**t)).sqrt() + group["eps"]), 0.0)
        kept[name] = beta1 * m / (1 - beta1 ** (t + 1))
        fresh[name] = (1 - beta1) / (1 - beta1 ** (t + 1))

    def update(at: Mapping[str, Tensor]) -> dict[str, Tensor]:
        out = {}
        for name, g in gradient(at).items():
            group = groups[name]
            d = -g if group["maximize"] else g
            if group["weight_decay"] and not group["decoupled_weight_decay"]:
                d = d + group["weight_decay"] * at[name]
            out[name] = scale[name] * (kept[name] + fresh[name] * d)
        return out

    metric = {name: torch.where(s > 0, 1 / s, 1.0) for name, s in scale.items()}
    return UpdateField(params, update, metric)


class _Loss(nn.Module):
    """A loss as a module, so that the model inside it can be called with other parameters."""

    def __init__(self, model: nn.Module, loss: Loss) -> None:
        super().__init__()
        self.model = model
        self._loss = loss

    def forward(self) -> Tensor:
        return self._loss(self.model)


def _gradient(
    model: nn.Module, loss: Loss
) -> tuple[dict[str, Tensor], Callable[[Mapping[str, Tensor]], dict[str, Tensor]]]:
    """Check a model and its loss; return the parameters, and the gradient as a function of them."""
    if not isinstance(model, nn.Module):
        raise TypeError(f"model is {type(model).__name__}; allowed is a torch.nn.Module")
    if not callable(loss):
        raise TypeError(f"loss is {loss!r}; allowed is a function of the model, on a fixed batch")
    _check_modules(model)
    _check_precision(model)
    double = copy.deepcopy(model).double()
    double.register_forward_pre_hook(_to_float64, with_kwargs=True)
    whole = _Loss(double, loss)
    params = {name: p.detach() for name, p in double.named_parameters() if p.requires_grad}
    if not params:
        raise ValueError("model has no parameter that takes a gradient; allowed is one at least")

    def gradient(at: Mapping[str, Tensor]) -> dict[str, Tensor]:
        twice = torch.is_grad_enabled() and any(t.requires_grad for t in at.values())
        with torch.enable_grad(), sdpa_kernel(SDPBackend.MATH):
            here = {name: t if twice else t.detach().requires_grad_(True) for name, t in at.items()}
            buffers = {f"model.{name}": b.clone() for name, b in double.named_buffers()}
            value = functional_call(
                whole, {**{f"model.{name}": t for name, t in here.items()}, **buffers}, ()
            )
            _check_loss(value)
            grads = torch.autograd.grad(value, list(here.values()), create_graph=twice, allow_unused=True)
        if all(g is None for g in grads):
            raise ValueError(
                "loss does not depend on the parameters of the model that it is handed; allowed is a "
                "function like lambda net: mse_loss(net(x), y), which calls its argument"
            )
        return {
            name: torch.zeros_like(t) if g is None else g
            for (name, t), g in zip(here.items(), grads, strict=True)
        }

    with torch.no_grad():
        gradient(params)  # a loss that cannot be used says so here
    return params, gradient


def _check_modules(model: nn.Module) -> None:
    for name, module in model.named_modules():
        if not module.training:
            continue
        if _dropout(module) > 0:
            raise ValueError(
                f"model has active dropout in {name or type(module).__name__!r}: its update is random and no "
                "function of the parameters; call model.eval()"
            )
        if isinstance(module, nn.modules.batchnorm._NormBase) and not isinstance(
            module, nn.modules.instancenorm._InstanceNorm
        ):
            warnings.warn(
                f"model has batch normalisation in training mode in {name or type(module).__name__!r}: the "
                "update is that of this batch's own statistics, and what training does to the running ones "
                "is left out; call model.eval() for a field of the parameters alone",
                RuntimeWarning,
                stacklevel=4,
            )


def _dropout(module: nn.Module) -> float:
    if isinstance(module, (nn.RNNBase, nn.MultiheadAttention)):
        return float(module.dropout)
    return float(module.p) if isinstance(module, nn.modules.dropout._DropoutNd) else 0.0


def _check_precision(model: nn.Module) -> None:
    for name, p in model.named_parameters():
        if not p.is_floating_point():
            raise TypeError(f"model's parameter {name!r} is {p.dtype}; allowed are real floating ones")
        if torch.finfo(p.dtype).eps > LOW_PRECISION:
            warnings.warn(
                f"model's parameter {name!r} is {p.dtype}, which rounds away changes below "
                f"{torch.finfo(p.dtype).eps:.1e} of a weight: phi is computed in float64 and tells what the "
                "update would do, not what training in this precision does",
                RuntimeWarning,
                stacklevel=4,
            )
            return


def _to_float64(module: nn.Module, args: Any, kwargs: Any) -> tuple[Any, Any]:
    return tuple(_double(a) for a in args), {key: _double(a) for key, a in kwargs.items()}


def _double(value: Any) -> Any:
    return value.double() if isinstance(value, Tensor) and value.is_floating_point() else value


def _check_loss(value: object) -> None:
    if not isinstance(value, Tensor) or value.numel() != 1:
        what = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
        raise TypeError(f"loss returned {what}; allowed is a tensor of one element")
    if not value.requires_grad:
        raise ValueError(
            "loss is not differentiable in the parameters of the model that it is handed (an argmax, a "
            "rounding, a detach or a number taken out of its tensor; or it does not call its argument): "
            "there is no update"
        )
    if value.dtype != torch.float64:
        raise ValueError(
            f"loss came out as {value.dtype}: something in it converts to low precision, in which "
            "differences of order eta**2 are rounding, or it calls another model than the copy it is handed; "
            "allowed is float64 throughout"
        )
    if not bool(torch.isfinite(value)):
        raise ValueError(f"loss is {value.item()!r} at these parameters; allowed is a finite number")


def _check_optimizer(optimizer: object, kind: type, allowed: str) -> None:
    if not isinstance(optimizer, kind):
        raise TypeError(f"optimizer is {type(optimizer).__name__}; allowed is {allowed}")


def _groups(
    model: nn.Module, optimizer: Optimizer, params: Mapping[str, Tensor]
) -> dict[str, dict[str, Any]]:
    """Hyperparameters of each parameter, copied: what the optimizer does later does not count."""
    of = {id(p): group for group in optimizer.param_groups for p in group["params"]}
    named = {name: p for name, p in model.named_parameters() if name in params}
    missing = [name for name, p in named.items() if id(p) not in of]
    if missing:
        raise ValueError(f"optimizer does not hold the model's {missing[0]!r}; allowed is one that holds all")
    rates = sorted({float(group["lr"]) for group in optimizer.param_groups})
    if len(rates) > 1:
        raise ValueError(f"optimizer's groups have the lrs {rates}; allowed is one lr, as there is one eta")
    plain = ("lr", "betas", "eps", "weight_decay", "momentum", "dampening", "nesterov", "amsgrad", "maximize")
    return {
        name: {
            "decoupled_weight_decay": isinstance(optimizer, torch.optim.AdamW),
            **{key: of[id(p)][key] for key in (*plain, "decoupled_weight_decay") if key in of[id(p)]},
        }
        for name, p in named.items()
    }


def _state(optimizer: Optimizer, p: Tensor, key: str) -> Tensor | None:
    value = optimizer.state.get(p, {}).get(key)
    return None if value is None else value.detach().to(torch.float64, copy=True)
