"""The type of a layer from its name alone: no torch, so that saved runs are read without loading it."""

from __future__ import annotations

import re
from collections.abc import Iterable

__all__ = ["LAYER_TYPES", "detect_layer_type", "innermost", "is_weak", "kind_of_component", "words_of"]

LAYER_TYPES = ("embedding", "attention", "mlp", "norm", "head", "convolution", "recurrent", "other")
"""The names of layer types, in the order of groups by type."""

# From the module names of transformers 5.24, torchvision, timm, nanoGPT and torch's examples.

_PHRASES = {
    "embed_out": "head",  # GPT-NeoX before transformers 5
    "cls": "head",  # BERT's pre-training heads
    "text_projection": "head",  # CLIP has two outputs
    "visual_projection": "head",
    "conv_head": "convolution",  # timm: the last convolution before pooling
    **dict.fromkeys(("cls_token", "class_token", "mask_token", "dist_token"), "embedding"),
    **dict.fromkeys(("q_proj", "k_proj", "v_proj", "o_proj", "query_key_value", "sa"), "attention"),
    **dict.fromkeys(("in_proj_weight", "in_proj_bias"), "attention"),
}
_WORDS = {
    word: kind
    for kind, words in {
        "norm": "norm norms normalization ln bn gn layernorm layrnorm rmsnorm batchnorm groupnorm",
        "attention": "attention attentions attn attns mha mhsa qkv",
        "mlp": "mlp mlps ffn ff ffwd feed feedforward intermediate expert experts moe router",
        "embedding": "embed embeds embedding embeddings embedder emb wte wpe",
        "head": "head heads classifier logits",
        "convolution": "conv convs convolution dwconv pwconv",
        "recurrent": "rnn lstm gru ih hh",
    }.items()
    for word in words.split()
}
_WEAK_WORDS = {"fc", "linear", "lin", "dense"}
_SPLIT = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+")


def words_of(component: str) -> list[str]:
    """``"self_attn1"`` and ``"SelfAttn"`` are both ``["self", "attn"]``."""
    return [word.lower() for word in _SPLIT.findall(component)]


def kind_of_component(component: str) -> str | None:
    """Return the type that one component of a name gives: a phrase, any norm, else its last known word."""
    phrase = _PHRASES.get(component.lower())
    if phrase is not None:
        return phrase
    kinds = [_WORDS[word] for word in words_of(component) if word in _WORDS]
    return "norm" if "norm" in kinds else kinds[-1] if kinds else None


def innermost(kinds: Iterable[str | None]) -> str | None:
    """Return the first known type, from the inside out; a head inside an attention is one of its heads."""
    head = False
    for kind in kinds:
        if kind == "head":
            head = True
        elif kind is not None and (not head or kind == "attention"):
            return kind
    return "head" if head else None


def is_weak(name: str) -> bool:
    """Whether a name contains a common word for a linear map."""
    return not _WEAK_WORDS.isdisjoint(words_of(name))


def detect_layer_type(name: str) -> str:
    """Return the type of a layer from its name alone, for saved runs; with a model use :func:`layer_types`.

    The name is read from its last component to its first, in whole words (``"normal_fc"`` is not a norm,
    ``"headless"`` not a head). The last word of a component decides, except that any norm makes it a norm
    (``"post_attention_layernorm"``, ``"norm_attn"``). A head inside an attention is attention. In the absence
    of other words, ``fc``, ``linear`` and ``dense`` mean an MLP.

    Args:
        name: name of a parameter or module, as in ``named_parameters()`` and ``named_modules()``.

    Returns:
        One of :data:`LAYER_TYPES`.

    Raises:
        TypeError: if the name is not a string.
    """
    if not isinstance(name, str):
        raise TypeError(f"name must be the name of a parameter or of a module, got {name!r}")
    kind = innermost(kind_of_component(part) for part in reversed(name.split(".")))
    return kind or ("mlp" if is_weak(name) else "other")
