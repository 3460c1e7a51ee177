"""The part of a model that a parameter belongs to, and parameter groups by these parts."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from typing import Any

from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from thermoopt.param_groups.names import LAYER_TYPES, innermost, is_weak, kind_of_component, words_of

__all__ = ["layer_types", "make_param_groups"]

# ---------------------------------------------------------------- torch's own classes

_LINEAR = (nn.Linear, nn.Bilinear)
_CONVOLUTION = (
    nn.Conv1d,
    nn.Conv2d,
    nn.Conv3d,
    nn.ConvTranspose1d,
    nn.ConvTranspose2d,
    nn.ConvTranspose3d,
)
_TORCH_BLOCKS = (nn.TransformerEncoderLayer, nn.TransformerDecoderLayer)
_CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)
_TORCH: dict[str, tuple[type[nn.Module], ...]] = {
    "norm": (
        nn.LayerNorm,
        nn.RMSNorm,
        nn.GroupNorm,
        nn.BatchNorm1d,
        nn.BatchNorm2d,
        nn.BatchNorm3d,
        nn.SyncBatchNorm,
        nn.InstanceNorm1d,
        nn.InstanceNorm2d,
        nn.InstanceNorm3d,
    ),
    "embedding": (nn.Embedding, nn.EmbeddingBag),
    "recurrent": (nn.RNNBase, nn.RNNCellBase),
    "attention": (nn.MultiheadAttention,),
    "head": (nn.AdaptiveLogSoftmaxWithLoss,),
    "mlp": _TORCH_BLOCKS,  # their parameters other than attention and norms
}

# ---------------------------------------------------------------- other people's classes
# From the module names of transformers 5.24, torchvision, timm, nanoGPT and torch's examples.

_CLASS_ENDINGS = {
    "norm": "Norm",
    "attention": "Attention(?:Heads?)?|Attn",
    "mlp": "MLP|Mlp|FFN|FF|Feed[Ff]orward|Intermediate|Experts?|MoE|Moe|Router",
    "embedding": "Embed|Embeddings?|Embedder",
    "head": "Heads?",
    "convolution": "Conv|Convolution",
    "recurrent": "RNN|LSTM|GRU",
}
_CLASSES = {
    kind: re.compile(rf"(?:{ending})(?:Layer|Block|Module|Cell|\d+[dD]?)*$")
    for kind, ending in _CLASS_ENDINGS.items()
}


def _kind_of_class(module: nn.Module) -> str | None:
    """Return the type given by the end of a class name, its noun: ``BertSelfAttention``, ``T5LayerFF``."""
    name = type(module).__name__
    return next((kind for kind, ending in _CLASSES.items() if ending.search(name)), None)


def _kind_of_torch(module: nn.Module) -> str | None:
    return next((kind for kind, classes in _TORCH.items() if isinstance(module, classes)), None)


def _is_linear(module: nn.Module) -> bool:
    # Conv1D with a capital D is GPT-2's linear map, stored transposed
    return isinstance(module, _LINEAR) or type(module).__name__ == "Conv1D"


# ---------------------------------------------------------------- a model


class _Parts:
    """A model's modules by path, and where its output lies."""

    def __init__(self, model: nn.Module) -> None:
        self.modules = dict(nn.Module.named_modules(model, remove_duplicate=False))
        self.whole = self._wrappers(model)
        linear = [path for path, module in model.named_modules() if _is_linear(module)]
        self.output = linear[-1] if linear and self._ends_the_model(linear[-1]) else None

    @staticmethod
    def _wrappers(model: nn.Module) -> list[str]:
        """Paths of the model and of the modules that hold all its parameters, which tell of none of them."""
        params, module, whole = set(model.parameters()), model, [""]
        while True:
            for name, child in module.named_children():
                if params and set(child.parameters()) == params:
                    whole.append(f"{whole[-1]}.{name}".lstrip("."))
                    module = child
                    break
            else:
                return whole

    def _ends_the_model(self, path: str) -> bool:
        """Whether only plain containers lie between the model, or what it wraps, and this linear map."""
        between = [above for above in _ancestors(path)[1:] if above not in self.whole]
        blocks = any(isinstance(self.modules[above], _TORCH_BLOCKS) for above in self.whole)
        return not blocks and all(type(self.modules[above]) in _CONTAINERS for above in between)

    def kind(self, name: str) -> str:
        """Type of a parameter by the path under which it is found."""
        path, _, leaf = name.rpartition(".")
        above = _ancestors(path)
        around = [self.modules[p] for p in above if p in self.modules]  # names alone tell of TensorDictParams
        linear = any(map(_is_linear, around))
        convolution = any(isinstance(module, _CONVOLUTION) for module in around)
        told = innermost(
            kind for kind in self._told(leaf, above) if kind != "norm" or not (linear or convolution)
        )
        if self.output in above and told in (None, "mlp"):
            return "head"
        if told is not None:
            return told
        if linear or convolution:
            return "mlp" if linear else "convolution"
        return "mlp" if is_weak(name) else "other"

    def _told(self, leaf: str, above: list[str]) -> Iterator[str | None]:
        """What the parameter's name tells, then module by module what class and name do, going outwards."""
        yield kind_of_component(leaf)
        for path in above:
            module = self.modules.get(path)
            if module is not None:
                yield _kind_of_torch(module)
            if path not in self.whole:
                if module is not None and not (_is_linear(module) or isinstance(module, _CONVOLUTION)):
                    yield _kind_of_class(module)
                yield kind_of_component(path.rpartition(".")[2])


def _ancestors(path: str) -> list[str]:
    """``"a.b"`` gives ``["a.b", "a", ""]``."""
    parts = path.split(".") if path else []
    return [".".join(parts[:n]) for n in range(len(parts), -1, -1)]


def layer_types(model: nn.Module) -> dict[str, str]:
    """Type of every parameter of a model, by module class first and by names second.

    In this order, the first that tells anything decides:

    1. From the inside out: the parameter's own name, then of each module around it the class, then the name.
       Torch's own classes tell embedding, norm, recurrent and attention
       (:class:`torch.nn.MultiheadAttention`), and mlp for what a torch transformer layer holds besides;
       others by the end of the class name (``GPTNeoXMLP``, ``ViTPatchEmbeddings``, ``LlamaRMSNorm``); names
       in whole words as :func:`detect_layer_type` reads them. So a norm is a norm wherever it stands, and an
       embedding an embedding (T5's table of relative positions); a linear map or a convolution in an
       attention block is attention, and the convolution that cuts a ViT's patches is embedding. Hidden
       layers of a head are head, unless something further inside says otherwise; a head inside an attention
       is attention. Linear maps and convolutions are never norms. The model itself and a module that holds
       all its parameters (a wrapper) are ignored, unless they are torch's own classes.
    2. The last linear map of the model is the head if only plain containers surround it, even if step 1 says
       mlp.
    3. Any other linear map is mlp, a convolution is convolution; the rest is mlp if its name contains a word
       for a linear map (``fc``, ``dense``), else other.

    Args:
        model: the model; it is not run.

    Returns:
        One of :data:`LAYER_TYPES` by name, as in ``model.named_parameters()``. A shared parameter appears
        once: as embedding if any of its places is one (a tied head), else as the type of its first place.

    Raises:
        TypeError: if ``model`` is not a module.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, got {model!r}")
    parts = _Parts(model)
    names = {p: name for name, p in model.named_parameters()}
    types: dict[str, str] = {}
    # a model's own named_parameters may take fewer arguments and leave some out, as TorchRL's losses do
    for name, p in nn.Module.named_parameters(model, remove_duplicate=False):
        kind = parts.kind(name)
        if p in names and (kind == "embedding" or names[p] not in types):
            types[names[p]] = kind
    return {name: types[name] if name in types else parts.kind(name) for name in names.values()}


# ---------------------------------------------------------------- groups


def make_param_groups(
    model: nn.Module,
    lr: float | Tensor | None = None,
    weight_decay: float | None = None,
    by: str = "layer",
    **options: Any,
) -> list[dict[str, Any]]:
    """Divide a model's trainable parameters into named groups for any torch optimizer.

    Args:
        model: the model whose parameters to take; frozen ones are left out, shared ones appear once.
        lr: learning rate of every group, >= 0; None leaves it to the optimizer.
        weight_decay: likewise. With ``by="layer"`` and ``by="type"`` it applies to all groups, including
            biases and norms.
        by: ``"layer"``: one group per module that owns parameters, with the module's name (the class name
            for the model itself). ``"type"``: one per type of :data:`LAYER_TYPES` that occurs.
            ``"decay"``: two groups, ``"decay"`` for parameters of two or more dimensions, including
            embeddings, and ``"no_decay"``, with weight decay 0, for vectors, biases and norms.
        options: further keys for every group, such as ``betas``.

    Returns:
        Groups with ``params``, ``param_names`` (full names, which ThermoAdamW and Observer use), ``name``
        and the given options.

    Raises:
        TypeError: if ``model`` is not a module, ``lr`` or ``weight_decay`` is not a number, or ``options``
            contain ``params``, ``param_names`` or ``name``.
        ValueError: for an unknown ``by``, an lr or weight_decay that is negative or not finite, a model
            without trainable parameters, or ``by="decay"`` with lazy parameters, whose shape is not known
            yet.

    References:
        Decay of matrices only: Radford et al. 2018, "Improving language understanding by generative
        pre-training", section 4.1.
    """
    types = layer_types(model)
    if not isinstance(by, str) or by not in _ORDER:
        raise ValueError(f"by must be 'layer', 'type' or 'decay', got {by!r}")
    _check_rate("lr", lr)
    _check_rate("weight_decay", weight_decay)
    for key in ("params", "param_names", "name"):
        if key in options:
            raise TypeError(f"{key} must not be passed, got {options[key]!r}: the groups set it")
    trainable = {name: p for name, p in model.named_parameters() if p.requires_grad}
    if not trainable:
        raise ValueError(
            "model must have at least one parameter with requires_grad=True, got a "
            f"{type(model).__name__} with none"
        )
    given = {key: value for key, value in (("lr", lr), ("weight_decay", weight_decay)) if value is not None}
    members: dict[str, list[str]] = {place: [] for place in _ORDER[by]}
    for name, p in trainable.items():
        members.setdefault(_place(model, name, p, types[name], by), []).append(name)
    groups = []
    for place, names in members.items():
        if names:
            params = [trainable[name] for name in names]
            groups.append({"params": params, "param_names": names, "name": place, **given, **options})
            if by == "decay" and place == "no_decay":
                groups[-1]["weight_decay"] = 0.0
    return groups


_ORDER: dict[str, tuple[str, ...]] = {"layer": (), "type": LAYER_TYPES, "decay": ("decay", "no_decay")}
"""Ways to divide, and the order of their groups where it is not that of the model."""


def _place(model: nn.Module, name: str, p: Tensor, kind: str, by: str) -> str:
    """Name of the group that a parameter goes to."""
    path, _, leaf = name.rpartition(".")
    if by == "layer":
        return path or type(model).__name__
    if by == "type":
        return kind
    if is_lazy(p):
        raise ValueError(
            f"by must not be 'decay' before all parameters have a shape, got {name!r} without "
            "one: run the model forward once first"
        )
    return "decay" if p.ndim >= 2 and kind != "norm" and "bias" not in words_of(leaf) else "no_decay"


def _check_rate(name: str, rate: object) -> None:
    """Refuse what is not None or a number from 0."""
    if rate is None:
        return
    if (
        not isinstance(rate, (int, float, Tensor))
        or isinstance(rate, bool)
        or (isinstance(rate, Tensor) and rate.numel() != 1)
    ):
        raise TypeError(f"{name} must be None or a number >= 0, got {rate!r}")
    if not (math.isfinite(rate) and rate >= 0):
        raise ValueError(f"{name} must be None or a number >= 0, got {rate!r}")
