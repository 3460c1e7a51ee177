"""Layer types on models whose parts are known, and groups that train as plain parameters do."""

import copy
import re

import pytest
import torch
from torch import nn
from transformers import (
    BertConfig,
    BertForMaskedLM,
    BertForSequenceClassification,
    GPT2Config,
    GPT2ForSequenceClassification,
    GPT2LMHeadModel,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    ResNetConfig,
    ResNetForImageClassification,
    T5Config,
    T5ForConditionalGeneration,
    ViTConfig,
    ViTForImageClassification,
)

from tests.support.small_net import model, train
from thermoopt import Observer, ThermoAdamW, detect_layer_type, make_param_groups
from thermoopt.demo.gpt import GPT, GPTConfig
from thermoopt.param_groups import LAYER_TYPES, layer_types

SIZES = {"hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 16}
TEXT = {**SIZES, "vocab_size": 11}
GPT2 = {"n_embd": 8, "n_layer": 2, "n_head": 2, "n_positions": 8, "vocab_size": 11, "pad_token_id": 0}
T5 = {"d_model": 8, "d_kv": 4, "d_ff": 16, "num_layers": 1, "num_heads": 2, "vocab_size": 11}

GPT2_BODY = {
    r"transformer\.w[tp]e\..*": "embedding",
    r"transformer\.(h\.\d\.)?ln_\w\..*": "norm",
    r"transformer\.h\.\d\.attn\..*": "attention",
    r"transformer\.h\.\d\.mlp\..*": "mlp",
}
BERT_BODY = {
    r"bert\.embeddings\.\w+_embeddings\..*": "embedding",
    r"bert\..*LayerNorm\..*": "norm",
    r"bert\.encoder\.layer\.\d\.attention\.(self\.\w+|output\.dense)\..*": "attention",
    r"bert\.encoder\.layer\.\d\.(intermediate|output)\.dense\..*": "mlp",
}


def small_resnet():
    """Names as torchvision gives them."""
    net = nn.Module()
    net.conv1, net.bn1 = nn.Conv2d(3, 4, 7), nn.BatchNorm2d(4)
    block = nn.Module()
    block.conv1, block.bn1 = nn.Conv2d(4, 8, 3), nn.BatchNorm2d(8)
    block.downsample = nn.Sequential(nn.Conv2d(4, 8, 1), nn.BatchNorm2d(8))
    net.layer1 = nn.Sequential(block)
    net.fc = nn.Linear(8, 10)
    return net


# model, then a pattern for every parameter
MODELS = {
    "GPT-2": (
        lambda: GPT2LMHeadModel(GPT2Config(**GPT2)),  # the head is tied
        GPT2_BODY,
    ),
    "GPT-2 classifier": (
        lambda: GPT2ForSequenceClassification(GPT2Config(**GPT2)),
        {**GPT2_BODY, r"score\.weight": "head"},
    ),
    "Pythia": (
        lambda: GPTNeoXForCausalLM(GPTNeoXConfig(**TEXT)),
        {
            r"gpt_neox\.embed_in\.weight": "embedding",
            r"gpt_neox\..*(layernorm|layer_norm)\..*": "norm",
            r"gpt_neox\.layers\.\d\.attention\..*": "attention",
            r"gpt_neox\.layers\.\d\.mlp\..*": "mlp",
            r"(lm_head|embed_out)\.weight": "head",
        },
    ),
    "BERT": (
        lambda: BertForMaskedLM(BertConfig(**TEXT)),
        {
            **BERT_BODY,
            r"cls\.predictions\.(bias|transform\.dense\..*)": "head",
            r"cls\.predictions\.transform\.LayerNorm\..*": "norm",
        },
    ),
    "BERT classifier": (
        lambda: BertForSequenceClassification(BertConfig(**TEXT)),
        {**BERT_BODY, r"bert\.pooler\.dense\..*": "mlp", r"classifier\..*": "head"},
    ),
    "ViT": (
        lambda: ViTForImageClassification(ViTConfig(image_size=8, patch_size=4, **SIZES)),
        {
            r"vit\.embeddings\.(cls_token|position_embeddings)": "embedding",
            r"vit\.embeddings\.patch_embeddings\.projection\..*": "embedding",
            r"vit\..*layernorm\w*\..*": "norm",
            r"vit\..*\.attention\..*": "attention",
            r"vit\..*\.(mlp\.fc\d|intermediate\.dense|\d\.output\.dense)\..*": "mlp",
            r"classifier\..*": "head",
        },
    ),
    "ResNet": (
        lambda: ResNetForImageClassification(
            ResNetConfig(embedding_size=4, hidden_sizes=[4, 8], depths=[1, 1], num_labels=3)
        ),
        {r".*\.convolution\..*": "convolution", r".*\.normalization\..*": "norm", r"classifier\..*": "head"},
    ),
    "Llama": (
        lambda: LlamaForCausalLM(LlamaConfig(**TEXT)),
        {
            r"model\.embed_tokens\.weight": "embedding",
            r".*norm\.weight": "norm",
            r".*\.self_attn\..*": "attention",
            r".*\.mlp\..*": "mlp",
            r"lm_head\.weight": "head",
        },
    ),
    "T5": (
        lambda: T5ForConditionalGeneration(T5Config(**T5)),  # the head is tied
        {
            r"shared\.weight|.*\.relative_attention_bias\.weight": "embedding",
            r".*layer_norm\.weight": "norm",
            r".*Attention\.[qkvo]\.weight": "attention",
            r".*\.DenseReluDense\..*": "mlp",
        },
    ),
    "demo": (
        lambda: GPT(GPTConfig(depth=2, width=8, heads=2)),
        {
            r"(bytes|positions)\.weight": "embedding",
            r".*norm\d?\.weight": "norm",
            r".*\.attn\..*": "attention",
            r".*\.mlp\..*": "mlp",
            r"head\.weight": "head",
        },
    ),
    "torch's transformer": (
        lambda: nn.Transformer(8, 2, 1, 1, 16, batch_first=True),
        {
            r".*\.norm\d?\..*": "norm",
            r".*_attn\..*": "attention",
            r".*\.linear\d\..*": "mlp",
        },
    ),
    "encoder layer": (
        lambda: nn.TransformerEncoderLayer(8, 2, 16),
        {r"norm\d\..*": "norm", r"self_attn\..*": "attention", r"linear\d\..*": "mlp"},
    ),
    "decoder with a head": (
        lambda: nn.Sequential(
            nn.Embedding(9, 8),
            nn.TransformerDecoder(nn.TransformerDecoderLayer(8, 2, 16), 2),
            nn.Linear(8, 9),
        ),
        {
            r"0\..*": "embedding",
            r"1\..*\.norm\d\..*": "norm",
            r"1\..*_attn\..*": "attention",
            r"1\..*\.linear\d\..*": "mlp",
            r"2\..*": "head",
        },
    ),
    "attention alone": (
        lambda: nn.MultiheadAttention(8, 2, kdim=4, vdim=4, add_bias_kv=True),
        {r".*": "attention"},
    ),
    "recurrent": (
        lambda: nn.ModuleDict(
            {
                "a": nn.LSTM(4, 4, proj_size=2),
                "b": nn.GRU(4, 4),
                "c": nn.RNNCell(4, 4),
                "out": nn.Linear(4, 2),
            }
        ),
        {r"[abc]\..*": "recurrent", r"out\..*": "head"},
    ),
    "small ResNet": (
        small_resnet,
        {
            r".*conv\d\..*|.*downsample\.0\..*": "convolution",
            r".*bn\d\..*|.*downsample\.1\..*": "norm",
            r"fc\..*": "head",
        },
    ),
    "MLP on features": (
        lambda: nn.ModuleDict(
            {
                "body": nn.Sequential(nn.Conv1d(3, 4, 1), nn.ReLU()),
                "mlp": nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2)),
            }
        ),
        {r"body\..*": "convolution", r"mlp\.0\..*": "mlp", r"mlp\.2\..*": "head"},
    ),
    "MLP": (
        lambda: nn.Sequential(
            nn.Linear(4, 8), nn.PReLU(), nn.BatchNorm1d(8), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 2)
        ),
        {r"[03]\..*": "mlp", r"1\.weight": "other", r"2\..*": "norm", r"5\..*": "head"},
    ),
}


@pytest.mark.parametrize("name", MODELS)
def test_every_parameter_of_known_models(name):
    build, expected = MODELS[name]
    net = build()
    types = layer_types(net)
    assert list(types) == [n for n, _ in net.named_parameters()]
    used = set()
    for parameter, kind in types.items():
        (pattern,) = [p for p in expected if re.fullmatch(p, parameter)]
        used.add(pattern)
        assert kind == expected[pattern], parameter
        assert kind in LAYER_TYPES
    assert used == set(expected)


class Head(nn.Module):
    """One head of an attention, as in many a lesson."""

    def __init__(self):
        super().__init__()
        self.key, self.value = nn.Linear(4, 2), nn.Linear(4, 2)


class MultiHeadAttention(nn.Module):
    def __init__(self):
        super().__init__()
        self.heads = nn.ModuleList([Head(), Head()])
        self.proj, self.norm = nn.Conv1d(4, 4, 1), nn.LayerNorm(4)


class ScaleNorm(nn.Module):
    def __init__(self):
        super().__init__()
        self.g = nn.Parameter(torch.ones(1))


class ConditionalNorm(nn.Module):
    def __init__(self):
        super().__init__()
        self.shift, self.gain = nn.Linear(4, 4), nn.Parameter(torch.ones(4))


class Tied(nn.Module):
    """The head comes first, and has a bias of its own."""

    def __init__(self):
        super().__init__()
        self.lm_head, self.tokens = nn.Linear(4, 9), nn.Embedding(9, 4)
        self.tokens.weight = self.lm_head.weight


class Everything(nn.Module):
    def __init__(self):
        super().__init__()
        self.mix, self.scale, self.normal_fc = MultiHeadAttention(), ScaleNorm(), nn.Linear(4, 4)
        self.headless = nn.Sequential(nn.Linear(4, 4))
        self.head_norm = nn.LayerNorm(4)
        self.filters = nn.utils.parametrizations.weight_norm(nn.Conv1d(4, 4, 3))
        self.conditional = ConditionalNorm()
        self.temperature = nn.Parameter(torch.ones(()))
        self.predict = nn.utils.parametrizations.weight_norm(nn.Linear(4, 2))


def test_classes_and_names_that_mislead():
    types = layer_types(Everything())
    assert types["mix.heads.1.key.weight"] == "attention"
    assert types["mix.proj.weight"] == "attention"
    assert types["mix.norm.weight"] == "norm"
    assert types["scale.g"] == "norm"
    assert types["normal_fc.weight"] == "mlp"
    assert types["headless.0.weight"] == "mlp"
    assert types["head_norm.weight"] == "norm"
    assert types["filters.parametrizations.weight.original1"] == "convolution"
    assert types["conditional.gain"] == "norm"
    assert types["conditional.shift.weight"] == "mlp"
    assert types["temperature"] == "other"
    assert types["predict.parametrizations.weight.original1"] == types["predict.bias"] == "head"


def test_a_tied_head_is_an_embedding_and_comes_once():
    assert layer_types(Tied()) == {"lm_head.weight": "embedding", "lm_head.bias": "head"}


class Loss(nn.Module):
    """As TorchRL's losses: parameters without modules, targets left out by a named_parameters of its own."""

    def __init__(self):
        super().__init__()
        self.held, self._target = nn.Module(), nn.Linear(4, 4)
        for name in ("attention.0.weight", "module.2.weight", "norm.bias"):
            self.held._parameters[name] = nn.Parameter(torch.ones(4, 4))

    def named_parameters(self, prefix="", recurse=True):
        for name, p in super().named_parameters(prefix, recurse):
            if not name.startswith("_target"):
                yield name, p

    def parameters(self, recurse=True):
        return (p for _, p in self.named_parameters())


def test_parameters_without_modules_are_typed_by_their_names():
    types = {
        "held.attention.0.weight": "attention",
        "held.module.2.weight": "other",
        "held.norm.bias": "norm",
    }
    loss = Loss()
    assert layer_types(loss) == types
    observer = Observer(loss, torch.optim.AdamW(loss.parameters()))
    assert observer.layer_types == types


@pytest.mark.parametrize("name", ["MLP", "demo", "small ResNet", "encoder layer"])
def test_a_wrapper_changes_nothing(name):
    build, _ = MODELS[name]

    class SelfAttention(nn.Module):  # tells nothing, nor does the name within: both hold everything
        def __init__(self):
            super().__init__()
            self.attn, self.loss = build(), nn.CrossEntropyLoss()

    wrapped = layer_types(SelfAttention())
    assert wrapped == {f"attn.{n}": kind for n, kind in layer_types(build()).items()}


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("transformer.wte.weight", "embedding"),
        ("embed_out.weight", "head"),
        ("lm_head.weight", "head"),
        ("ffn_stack.lm_head.weight", "head"),
        ("module.fc_classifier.bias", "head"),
        ("h.0.attn.c_proj.weight", "attention"),
        ("encoder.layer.0.SelfAttention.q", "attention"),
        ("decoder.layers.3.post_attention_layernorm.weight", "norm"),
        ("attention.output.LayerNorm.bias", "norm"),
        ("blocks.1.norm_attn.weight", "norm"),
        ("encoder.layer.0.intermediate.dense.weight", "mlp"),
        ("layers.0.fc1.weight", "mlp"),
        ("slf_attn.fc.weight", "attention"),
        ("normal_fc.weight", "mlp"),
        ("headless.weight", "other"),
        ("abnormal.weight", "other"),
        ("layer1.0.conv2.weight", "convolution"),
        ("layer1.0.bn2.weight", "norm"),
        ("rnn.weight_ih_l0", "recurrent"),
        ("vit.embeddings.cls_token", "embedding"),
        ("patch_embed.proj.weight", "embedding"),
        ("sa.heads.0.key.weight", "attention"),
        ("0.weight", "other"),
        ("", "other"),
    ],
)
def test_types_by_name(name, kind):
    assert detect_layer_type(name) == kind


# ---------------------------------------------------------------- groups


def test_layer_groups_are_the_modules_that_own_parameters():
    groups = make_param_groups(MODELS["MLP"][0](), lr=0.1, weight_decay=0.2, betas=(0.8, 0.9))
    assert [g["name"] for g in groups] == ["0", "1", "2", "3", "5"]
    assert groups[0]["param_names"] == ["0.weight", "0.bias"]
    for group in groups:
        assert (group["lr"], group["weight_decay"], group["betas"]) == (0.1, 0.2, (0.8, 0.9))


def test_a_models_own_parameters_go_by_its_class():
    groups = make_param_groups(Everything())
    assert groups[0]["name"] == "Everything"
    assert groups[0]["param_names"] == ["temperature"]
    assert len({g["name"] for g in groups}) == len(groups)


def test_type_groups():
    net = GPT(GPTConfig(depth=2, width=8, heads=2))
    groups = make_param_groups(net, by="type")
    assert [g["name"] for g in groups] == ["embedding", "attention", "mlp", "norm", "head"]
    assert groups[1]["param_names"] == [n for n, _ in net.named_parameters() if ".attn." in n]
    assert all(set(g) == {"params", "param_names", "name"} for g in groups)


def test_decay_groups():
    net = nn.Sequential(
        nn.Embedding(5, 4), nn.MultiheadAttention(4, 2, add_bias_kv=True), nn.LayerNorm([2, 4])
    )
    decay, rest = make_param_groups(net, lr=0.1, weight_decay=0.3, by="decay")
    assert decay["param_names"] == ["0.weight", "1.in_proj_weight", "1.out_proj.weight"]
    assert rest["param_names"] == [
        "1.in_proj_bias",
        "1.bias_k",
        "1.bias_v",
        "1.out_proj.bias",
        "2.weight",
        "2.bias",
    ]
    assert (decay["name"], decay["weight_decay"]) == ("decay", 0.3)
    assert (rest["name"], rest["weight_decay"]) == ("no_decay", 0.0)
    decay, rest = make_param_groups(net, by="decay")
    assert "weight_decay" not in decay
    assert rest["weight_decay"] == 0.0
    assert "lr" not in rest


@pytest.mark.parametrize("by", ["layer", "type", "decay"])
@pytest.mark.parametrize("name", ["BERT", "GPT-2", "T5", "recurrent"])
def test_every_trainable_parameter_is_in_one_group(name, by):
    net = MODELS[name][0]()
    frozen = list(net.parameters())[1].requires_grad_(False)
    groups = make_param_groups(net, by=by)
    pairs = [pair for g in groups for pair in zip(g["param_names"], g["params"], strict=True)]
    expected = {n: p for n, p in net.named_parameters() if p is not frozen}
    assert len(pairs) == len(expected)
    assert all(expected[n] is p for n, p in pairs)


OPTIMIZERS = {
    "AdamW": torch.optim.AdamW,
    "SGD": torch.optim.SGD,
    "ThermoAdamW": lambda params, **kw: ThermoAdamW(params, measure_every=1, **kw),
}


@pytest.mark.parametrize("by", ["layer", "type", "decay"])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_training_is_that_of_plain_parameters(optimizer, by):
    make, one, other = OPTIMIZERS[optimizer], model(), model()
    plain = list(one.parameters())
    if by == "decay":
        vectors = [p for p in plain if p.ndim < 2]
        plain = [
            {"params": [p for p in plain if p.ndim >= 2], "weight_decay": 0.5},
            {"params": vectors, "weight_decay": 0.0},
        ]
        expected = make(plain, lr=0.01)
    else:
        expected = make(plain, lr=0.01, weight_decay=0.5)
    groups = make_param_groups(other, lr=0.01, weight_decay=0.5, by=by)
    for a, b in zip(train(one, expected, 12), train(other, make(groups), 12), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("by", ["layer", "type", "decay"])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_names_reach_the_readings(optimizer, by):
    net = model()
    groups = make_param_groups(net, lr=0.01, by=by)
    names = [name for g in groups for name in g["param_names"]]
    opt = OPTIMIZERS[optimizer](groups)
    observer = Observer(net, opt)
    train(net, opt, 20)
    assert list(observer.reading.names) == names
    assert set(names) == {n for n, _ in net.named_parameters()}
    assert list(observer.reading.group_names) == [g["name"] for g in groups]


def test_groups_survive_a_state_dict():
    net = model()
    opt = torch.optim.AdamW(make_param_groups(net, lr=0.01))
    train(net, opt, 2)
    again = torch.optim.AdamW(make_param_groups(copy.deepcopy(net), lr=0.5))
    again.load_state_dict(opt.state_dict())
    assert [g["name"] for g in again.param_groups] == ["0", "2"]
    assert [g["lr"] for g in again.param_groups] == [0.01, 0.01]


def test_a_tensor_lr_stays_one():
    lr = torch.tensor(0.01)
    assert all(g["lr"] is lr for g in make_param_groups(model(), lr=lr))


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        ({"by": "size"}, ValueError, ["by must be", "got 'size'", "'layer', 'type' or 'decay'"]),
        ({"by": ["layer"]}, ValueError, ["by must be", "got ['layer']"]),
        ({"lr": -1e-3}, ValueError, ["lr must be", "got -0.001", ">= 0"]),
        ({"lr": float("nan")}, ValueError, ["lr must be", "got nan"]),
        ({"lr": torch.tensor(-1.0)}, ValueError, ["lr must be", "got tensor(-1.)"]),
        ({"lr": "1e-3"}, TypeError, ["lr must be", "got '1e-3'"]),
        ({"lr": torch.ones(2)}, TypeError, ["lr must be", "got tensor"]),
        ({"lr": True}, TypeError, ["lr must be", "got True"]),
        ({"weight_decay": -0.1}, ValueError, ["weight_decay must be", "got -0.1", ">= 0"]),
        ({"name": "all"}, TypeError, ["name must not be", "got 'all'"]),
    ],
)
def test_bad_arguments(arguments, error, words):
    with pytest.raises(error) as caught:
        make_param_groups(model(), **arguments)
    for word in words:
        assert word in str(caught.value)


def test_nothing_to_train():
    for net in (model().requires_grad_(False), nn.Sequential(nn.Tanh())):
        with pytest.raises(ValueError, match="one parameter with requires_grad=True, got a Sequential"):
            make_param_groups(net)


def test_not_a_model_or_a_name():
    with pytest.raises(TypeError, match=r"model must be .*got 3"):
        layer_types(3)
    with pytest.raises(TypeError, match=r"model must be .*got 'net'"):
        make_param_groups("net")
    with pytest.raises(TypeError, match=r"name must be .*got None"):
        detect_layer_type(None)


def test_lazy_parameters_have_no_decay_yet():
    net = nn.Sequential(nn.LazyLinear(3))
    assert make_param_groups(net)[0]["param_names"] == ["0.weight", "0.bias"]
    with pytest.raises(ValueError, match=r"got '0\.weight' without one"):
        make_param_groups(net, by="decay")
    net(torch.ones(1, 2))
    assert [g["name"] for g in make_param_groups(net, by="decay")] == ["decay", "no_decay"]
