"""Update fields: what an optimizer does at any parameters, as one vector in float64."""

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
        params: where the model stands, in float64, by name.
        function: U, from parameters to an update of the same names and shapes.
        metric: positive weight of each element in inner products; None where all are 1.
    """

    params: dict[str, Tensor]
    function: Callable[[Mapping[str, Tensor]], dict[str, Tensor]]
    metric: dict[str, Tensor] | None = None

    def __call__(self, params: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Evaluate U."""
        return self.function(params)


class FlatField:
    """An update field as a function from vectors to vectors, in float64, that counts what it costs.

    Args:
        update: U, from parameters to an update of the same structure; a closure or an :class:`UpdateField`.
        params: where it is asked about.
        metric: weights of the inner product <a, b> = Σ metric·a·b, of the structure of ``params``; None takes
            that of an :class:`UpdateField`, else 1.

    Attributes:
        theta: ``[n]`` the parameters as one vector.
        evaluations: of U so far: one gradient of the loss each.
        products: with the transposed Jacobian so far: two to three gradients each.

    Raises:
        TypeError, ValueError: naming the argument, when ``params`` holds no real floating tensor or numbers
            that are not finite, or a metric is not positive or has other shapes.
    """

    def __init__(self, update: Callable[[Any], Any], params: Point, metric: Point | None = None) -> None:
        if not callable(update):
            raise TypeError(f"update is {update!r}; allowed is a function from parameters to their update")
        if metric is None and isinstance(update, UpdateField):
            metric = update.metric
        self._update = update
        self._structure = params
        tensors = _tensors(params, "params")
        self._shapes = [t.shape for t in tensors]
        self.theta = self.flat(params, "params").detach()
        self.metric = None if metric is None else self.flat(metric, "metric").detach()
        if self.metric is not None and not bool((self.metric > 0).all()):
            raise ValueError(f"metric has a smallest weight of {float(self.metric.min())!r}; allowed is > 0")
        self.evaluations = 0
        self.products = 0

    def flat(self, point: Point, name: str) -> Tensor:
        """Return parameters, or anything of their structure, as one vector.

        Raises:
            TypeError, ValueError: naming the argument, for other structures and for numbers not finite.
        """
        tensors = _tensors(point, name)
        if isinstance(self._structure, Mapping) and isinstance(point, Mapping):
            if point.keys() != self._structure.keys():
                raise ValueError(f"{name} has the names {list(point)}; allowed are {list(self._structure)}")
            tensors = [point[key] for key in self._structure]
        shapes = [t.shape for t in tensors]
        if shapes != self._shapes:
            raise ValueError(
                f"{name} has the shapes {[tuple(s) for s in shapes]}; allowed are those of params, "
                f"{[tuple(s) for s in self._shapes]}"
            )
        vector = torch.cat([t.reshape(-1).to(torch.float64) for t in tensors])
        if not bool(torch.isfinite(vector.detach()).all()):
            raise ValueError(f"{name} holds values that are not finite; allowed are finite ones")
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
            ValueError: U does not depend differentiably on the parameters.
        """
        self.products += 1
        start = vector.detach().clone().requires_grad_(True)
        # fused attention has no second derivative
        with torch.enable_grad(), sdpa_kernel(SDPBackend.MATH):
            value = self.flat(self._update(self.shaped(start)), "update's value")
            if not value.requires_grad:
                raise ValueError(
                    "update gives values without a derivative, so products with its Jacobian do not exist; "
                    "allowed is a function in differentiable torch operations (torch.autograd.grad inside it "
                    "needs create_graph=True)"
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
        """Return the vector that stands for a derivative: the derivative over the metric."""
        return covector if self.metric is None else covector / self.metric


def check_eta(eta: object, name: str = "eta") -> float:
    """Return a step size as a float.

    Raises:
        TypeError, ValueError: unless it is a finite number above 0.
    """
    if isinstance(eta, bool) or not isinstance(eta, (int, float)):
        raise TypeError(f"{name} is {eta!r}; allowed is a number > 0")
    if not (math.isfinite(eta) and eta > 0):
        raise ValueError(f"{name} is {eta!r}; allowed is a finite number > 0")
    return float(eta)


def _tensors(point: object, name: str) -> list[Tensor]:
    if isinstance(point, Tensor):
        tensors: list[Any] = [point]
    elif isinstance(point, Mapping):
        tensors = list(point.values())
    elif isinstance(point, Sequence) and not isinstance(point, str):
        tensors = list(point)
    else:
        raise TypeError(f"{name} is {type(point).__name__}; allowed is a tensor, a list or a dict of tensors")
    for tensor in tensors:
        if not isinstance(tensor, Tensor) or not tensor.is_floating_point():
            what = tensor.dtype if isinstance(tensor, Tensor) else type(tensor).__name__
            raise TypeError(f"{name} holds {what}; allowed are real floating tensors (of complex ones, "
                            "torch.view_as_real)")  # fmt: skip
    if not tensors or not sum(t.numel() for t in tensors):
        raise ValueError(f"{name} holds no element; allowed is one at least")
    return tensors
