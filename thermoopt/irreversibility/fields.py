"""Update fields: the update of an optimizer as a function of the parameters, as one vector in float64."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

__all__ = ["FlatField", "Point", "UpdateField", "check_eta"]

Point = Tensor | Sequence[Tensor] | Mapping[str, Tensor]
"""Parameters, or anything of their shapes: a tensor, a list of tensors, or tensors by name."""


@dataclass(frozen=True)
class UpdateField:
    """An update as a function of parameters, made by :mod:`thermoopt.irreversibility.model_fields`.

    Attributes:
        params: the model's parameters in float64, by name.
        function: U, from parameters to an update with the same names and shapes.
        metric: positive weight of each element in inner products; None if all are 1.
    """

    params: dict[str, Tensor]
    function: Callable[[Mapping[str, Tensor]], dict[str, Tensor]]
    metric: dict[str, Tensor] | None = None

    def __call__(self, params: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Evaluate U."""
        return self.function(params)


class FlatField:
    """An update field as a function from vectors to vectors in float64, which counts its evaluations.

    Args:
        update: U, from parameters to an update of the same structure; a closure or an :class:`UpdateField`.
        params: the point at which it is studied.
        metric: weights of the inner product <a, b> = Σ metric·a·b, in the structure of ``params``; None takes
            those of an :class:`UpdateField`, else 1.

    Attributes:
        theta: ``[n]`` the parameters as one vector.
        evaluations: evaluations of U so far, one gradient of the loss each.
        products: products with the transposed Jacobian so far, two to three gradients each.

    Raises:
        TypeError, ValueError: naming the argument, if ``params`` holds no real floating-point tensor or
            non-finite numbers, or if a metric is not positive or has other shapes.
    """

    def __init__(self, update: Callable[[Any], Any], params: Point, metric: Point | None = None) -> None:
        if not callable(update):
            raise TypeError(f"update must be a function from parameters to their update, got {update!r}")
        if metric is None and isinstance(update, UpdateField):
            metric = update.metric
        self._update = update
        self._structure = params
        tensors = _tensors(params, "params")
        self._shapes = [t.shape for t in tensors]
        self.theta = self.flat(params, "params").detach()
        self.metric = None if metric is None else self.flat(metric, "metric").detach()
        if self.metric is not None and not bool((self.metric > 0).all()):
            raise ValueError(
                f"metric must be > 0 everywhere, got a smallest weight of {float(self.metric.min())!r}"
            )
        self.evaluations = 0
        self.products = 0

    def flat(self, point: Point, name: str) -> Tensor:
        """Return parameters, or anything in their structure, as one vector.

        Raises:
            TypeError, ValueError: naming the argument, for another structure or non-finite numbers.
        """
        tensors = _tensors(point, name)
        if isinstance(self._structure, Mapping) and isinstance(point, Mapping):
            if point.keys() != self._structure.keys():
                raise ValueError(f"{name} must have the names {list(self._structure)}, got {list(point)}")
            tensors = [point[key] for key in self._structure]
        shapes = [t.shape for t in tensors]
        if shapes != self._shapes:
            raise ValueError(
                f"{name} must have the shapes of params, {[tuple(s) for s in self._shapes]}, got "
                f"{[tuple(s) for s in shapes]}"
            )
        vector = torch.cat([t.reshape(-1).to(torch.float64) for t in tensors])
        if not bool(torch.isfinite(vector.detach()).all()):
            raise ValueError(f"{name} must be finite, got NaN or infinity")
        return vector

    def shaped(self, vector: Tensor) -> Any:
        """Return a vector in the structure of the parameters."""
        parts = vector.split([shape.numel() for shape in self._shapes])
        tensors = [part.view(shape) for part, shape in zip(parts, self._shapes, strict=True)]
        if isinstance(self._structure, Mapping):
            return dict(zip(self._structure, tensors, strict=True))
        return tensors[0] if isinstance(self._structure, Tensor) else tensors

    def __call__(self, vector: Tensor) -> Tensor:
        """Evaluate U, ``[n]``."""
        self.evaluations += 1
        with torch.no_grad():
            return self.flat(self._update(self.shaped(vector)), "update's value").detach()

    def pullback(self, vector: Tensor, cotangent: Tensor) -> tuple[Tensor, Tensor]:
        """Return U and the product of its transposed Jacobian with a vector, ``[n]`` each.

        No Jacobian is formed: this is a second backward pass.

        Raises:
            ValueError: if U does not depend differentiably on the parameters.
        """
        self.products += 1
        start = vector.detach().clone().requires_grad_(True)
        # fused attention has no second derivative
        with torch.enable_grad(), sdpa_kernel(SDPBackend.MATH):
            value = self.flat(self._update(self.shaped(start)), "update's value")
            if not value.requires_grad:
                raise ValueError(
                    "update must be differentiable, got values without a derivative, so products with "
                    "its Jacobian do not exist: use differentiable torch operations, and "
                    "create_graph=True in any torch.autograd.grad inside it"
                )
            (product,) = torch.autograd.grad(value, start, cotangent, allow_unused=True)
        if product is None:
            product = torch.zeros_like(start)
        return value.detach(), product.detach()

    def dot(self, a: Tensor, b: Tensor) -> float:
        """Inner product in the metric."""
        return float(a @ b if self.metric is None else (a * self.metric) @ b)

    def norm(self, a: Tensor) -> float:
        """Length in the metric."""
        return math.sqrt(self.dot(a, a))

    def lower(self, vector: Tensor) -> Tensor:
        """Return metric · vector."""
        return vector if self.metric is None else self.metric * vector

    def lift(self, covector: Tensor) -> Tensor:
        """Return the vector that represents a derivative: the derivative divided by the metric."""
        return covector if self.metric is None else covector / self.metric


def check_eta(eta: object, name: str = "eta") -> float:
    """Return a step size as a float.

    Raises:
        TypeError, ValueError: unless it is a finite number above 0.
    """
    if isinstance(eta, bool) or not isinstance(eta, (int, float)):
        raise TypeError(f"{name} must be a number > 0, got {eta!r}")
    if not (math.isfinite(eta) and eta > 0):
        raise ValueError(f"{name} must be a finite number > 0, got {eta!r}")
    return float(eta)


def _tensors(point: object, name: str) -> list[Tensor]:
    if isinstance(point, Tensor):
        tensors: list[Any] = [point]
    elif isinstance(point, Mapping):
        tensors = list(point.values())
    elif isinstance(point, Sequence) and not isinstance(point, str):
        tensors = list(point)
    else:
        raise TypeError(f"{name} must be a tensor, a list or a dict of tensors, got {type(point).__name__}")
    for tensor in tensors:
        if not isinstance(tensor, Tensor) or not tensor.is_floating_point():
            what = tensor.dtype if isinstance(tensor, Tensor) else type(tensor).__name__
            raise TypeError(
                f"{name} must hold real floating-point tensors, got {what} (see torch.view_as_real)"
            )
    if not tensors or not sum(t.numel() for t in tensors):
        raise ValueError(f"{name} must hold at least one element, got none")
    return tensors
