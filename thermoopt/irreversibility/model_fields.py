r"""Update fields of a model: SGD, SGD with frozen momentum, Adam with frozen moments.

The loss is a function of the model on one fixed batch, ``lambda net: mse_loss(net(x), y)``. It receives a
float64 copy whose parameters are replaced at every evaluation; the model itself is never touched, and its
buffers start from the same values every time.
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
from thermoopt.traits import is_decoupled

__all__ = ["Loss", "adam_field", "momentum_field", "sgd_field"]

Loss = Callable[[Any], Tensor]
"""A scalar loss of a model on a fixed batch."""

LOW_PRECISION = 1e-6
"""Machine epsilon above which a parameter's dtype rounds steps away: float32 has 1.2e-7, bfloat16 7.8e-3."""


def sgd_field(model: nn.Module, loss: Loss) -> UpdateField:
    """Return plain SGD's field, U = g: the gradient of the loss on the batch.

    One evaluation is one gradient, in float64.

    Args:
        model: its parameters that require gradients are used; the model is copied.
        loss: scalar loss of the model passed to it, on a fixed batch. Floating-point inputs of the model's
            ``forward`` are converted to float64.

    Raises:
        TypeError, ValueError: naming the argument, if dropout is active, if no parameter requires a gradient,
            or if the loss is not a real float64 scalar or does not depend differentiably on the parameters
            of the model passed to it.

    Warns:
        RuntimeWarning: parameters have lower precision than float32, or batch normalisation is in training
            mode.
    """
    return UpdateField(*_gradient(model, loss))


def momentum_field(model: nn.Module, loss: Loss, optimizer: SGD) -> UpdateField:
    r"""Return the field of SGD with its momentum buffer b frozen at its present value.

    :math:`U = \mu b + (1-\tau)(g+\lambda\theta)` with torch's momentum μ, dampening τ and coupled decay λ,
    and :math:`g+\lambda\theta+\mu U` with Nesterov's. For a parameter without a buffer U = g + λθ, as in
    torch.

    Args:
        model, loss: as in :func:`sgd_field`.
        optimizer: a ``torch.optim.SGD`` over the model's parameters, with one lr for all groups.

    Raises:
        TypeError, ValueError: as :func:`sgd_field`, and for an optimizer of another class or with other
            parameters.
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
    r"""Return Adam's field with both moments frozen at their present values, after t steps.

    .. math::
        U = P\,\frac{\beta_1 m_t+(1-\beta_1)g}{1-\beta_1^{t+1}},\qquad
        P = 1/(\sqrt{v_t/(1-\beta_2^t)}+\epsilon)

    (``max_exp_avg_sq`` in place of v with amsgrad). Decoupled decay is not part of U; coupled decay is added
    to g. The metric is 1/P, in which the Jacobian is symmetric and phi is
    :math:`(\eta/4)\langle\hat m,U\rangle`. Elements whose v is 0 never had a gradient: they do not move, and
    have weight 1.

    Args:
        model, loss: as in :func:`sgd_field`.
        optimizer: ThermoAdamW, or torch's Adam or AdamW, over the model's parameters, with one lr for all
            groups, after at least one step.

    Raises:
        TypeError, ValueError: as :func:`sgd_field`, and for an optimizer of another class, with other
            parameters, or without moments yet.
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
            raise ValueError(f"optimizer must have taken a step, got one without moments of {name!r}")
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
    """A loss wrapped as a module, so that the model inside can be called with other parameters."""

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
        raise TypeError(f"model must be a torch.nn.Module, got {type(model).__name__}")
    if not callable(loss):
        raise TypeError(f"loss must be a function of the model, on a fixed batch, got {loss!r}")
    _check_modules(model)
    _check_precision(model)
    double = copy.deepcopy(model).double()
    double.register_forward_pre_hook(_to_float64, with_kwargs=True)
    whole = _Loss(double, loss)
    params = {name: p.detach() for name, p in double.named_parameters() if p.requires_grad}
    if not params:
        raise ValueError("model must have at least one parameter that requires a gradient, got none")

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
                "loss must depend on the parameters of the model passed to it: write a function like "
                "lambda net: mse_loss(net(x), y), which calls its argument"
            )
        return {
            name: torch.zeros_like(t) if g is None else g
            for (name, t), g in zip(here.items(), grads, strict=True)
        }

    with torch.no_grad():
        gradient(params)  # raises if the loss cannot be used
    return params, gradient


def _check_modules(model: nn.Module) -> None:
    for name, module in model.named_modules():
        if not module.training:
            continue
        if _dropout(module) > 0:
            raise ValueError(
                f"model must not have active dropout, got it in {name or type(module).__name__!r}: its "
                "update is random and not a function of the parameters; call model.eval()"
            )
        if isinstance(module, nn.modules.batchnorm._NormBase) and not isinstance(
            module, nn.modules.instancenorm._InstanceNorm
        ):
            warnings.warn(
                f"model has batch normalisation in training mode in {name or type(module).__name__!r}: the "
                "update uses this batch's own statistics, and the effect of training on the running ones is "
                "left out; call model.eval() for a field of the parameters alone",
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
            raise TypeError(f"model's parameter {name!r} must be real floating point, got {p.dtype}")
        if torch.finfo(p.dtype).eps > LOW_PRECISION:
            warnings.warn(
                f"model's parameter {name!r} is {p.dtype}, which rounds away changes below "
                f"{torch.finfo(p.dtype).eps:.1e} of a weight: phi is computed in float64 and describes what "
                "the update would do, not what training in this precision does",
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
        raise TypeError(f"loss must return a tensor of one element, got {what}")
    if not value.requires_grad:
        raise ValueError(
            "loss must be differentiable in the parameters of the model passed to it, got one without a "
            "gradient (an argmax, rounding, detach() or item(); or it does not call its argument): there is "
            "no update"
        )
    if value.dtype != torch.float64:
        raise ValueError(
            f"loss must be computed in float64 throughout, got {value.dtype}: something in it "
            "converts to low precision, in which differences of order eta**2 are rounding "
            "errors, or it calls another model than the copy it receives"
        )
    if not bool(torch.isfinite(value)):
        raise ValueError(f"loss must be finite at these parameters, got {value.item()!r}")


def _check_optimizer(optimizer: object, kind: type, allowed: str) -> None:
    if not isinstance(optimizer, kind):
        raise TypeError(f"optimizer must be {allowed}, got {type(optimizer).__name__}")


def _groups(
    model: nn.Module, optimizer: Optimizer, params: Mapping[str, Tensor]
) -> dict[str, dict[str, Any]]:
    """Return a copy of each parameter's hyperparameters, unaffected by later changes to the optimizer."""
    of = {id(p): group for group in optimizer.param_groups for p in group["params"]}
    named = {name: p for name, p in model.named_parameters() if name in params}
    missing = [name for name, p in named.items() if id(p) not in of]
    if missing:
        raise ValueError(f"optimizer must hold all of the model's parameters, got one without {missing[0]!r}")
    rates = sorted({float(group["lr"]) for group in optimizer.param_groups})
    if len(rates) > 1:
        raise ValueError(f"optimizer must have one lr for all groups, as there is one eta, got {rates}")
    plain = ("lr", "betas", "eps", "weight_decay", "momentum", "dampening", "nesterov", "amsgrad", "maximize")
    return {
        name: {
            "decoupled_weight_decay": is_decoupled(optimizer, of[id(p)]),
            **{key: of[id(p)][key] for key in plain if key in of[id(p)]},
        }
        for name, p in named.items()
    }


def _state(optimizer: Optimizer, p: Tensor, key: str) -> Tensor | None:
    value = optimizer.state.get(p, {}).get(key)
    return None if value is None else value.detach().to(torch.float64, copy=True)
