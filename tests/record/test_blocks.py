"""Many readings at once: the same as one by one, and nothing but what the sinks write."""

from __future__ import annotations

import json
import warnings
from pathlib import Path

import numpy as np
import pytest

from thermoopt.account.reading import SKIP_CAUSES
from thermoopt.physics import QUANTITIES, Term
from thermoopt.record import SavedRun, head_line, note_line, reading_lines
from thermoopt.record.blocks import numbers_of

GROUPS = ("a", "b")
RNG = np.random.default_rng(0)


def line(step: int, loss: float | None = 2.5, scale: float = 1.0) -> str:
    terms = scale * RNG.standard_normal((len(Term), len(GROUPS)))
    return reading_lines([step], [loss], [[step // 3, 0, *[0] * (len(SKIP_CAUSES) - 2)]], [terms])


def other_spaces(text: str) -> str:
    """The same line in a form that only a parser of JSON reads."""
    return json.dumps(json.loads(text)) + "\n"


HEAD = head_line("s", "2026-01-01", GROUPS, SKIP_CAUSES)
PLAIN = [line(s, None if s % 7 == 0 else 2.0 + s, 10.0 ** (s % 9 - 4)) for s in range(1, 40)]
BODIES = {
    "plain": PLAIN,
    "a note between": [*PLAIN[:20], note_line("spike", 20, {"of": "loss"}), *PLAIN[20:]],
    "steps go back": [*PLAIN, *(line(s) for s in range(30, 50))],
    "two sessions": [*PLAIN[:25], head_line("t", "2026-01-02", GROUPS[:1], SKIP_CAUSES)]
    + [reading_lines([s], [1.0], [[0] * len(SKIP_CAUSES)], [np.ones((len(Term), 1))]) for s in (20, 21)],
    "torn": [*PLAIN[:10], PLAIN[10][:70] + "\n", *PLAIN[11:]],
    "torn and joined": [*PLAIN[:10], PLAIN[10][:70] + PLAIN[11], *PLAIN[12:]],
    "no number": [*PLAIN[:10], PLAIN[10].replace('"loss":', '"loss":1.2.3'), *PLAIN[11:]],
}


def read(path: Path, text: str) -> tuple[SavedRun, list[str]]:
    path.write_text(text)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        run = SavedRun.read(path)
    return run, [str(w.message) for w in caught]


@pytest.mark.parametrize("name", BODIES)
def test_at_once_and_one_by_one_are_the_same(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("thermoopt.record.reader.BLOCK", 8)
    path = tmp_path / "run.jsonl"
    fast, told = read(path, HEAD + "".join(BODIES[name]))
    monkeypatch.setattr("thermoopt.record.reader.is_reading", lambda text: False)
    slow, told_then = read(path, HEAD + "".join(BODIES[name]))
    assert told == told_then
    assert fast.skipped == slow.skipped
    assert fast.notes == slow.notes
    assert fast.history.steps.tolist() == slow.history.steps.tolist()
    assert np.array_equal(fast.history.losses, slow.history.losses, equal_nan=True)
    for quantity in QUANTITIES:
        pairs = [(fast.history.total(quantity), slow.history.total(quantity))]
        pairs.append((fast.history.group(1, quantity), slow.history.group(1, quantity)))
        for a, b in pairs:
            assert np.array_equal(a, b, equal_nan=True), quantity


def test_what_the_sinks_write_is_read_at_once() -> None:
    texts = [text.rstrip("\n").encode() for text in PLAIN]
    numbers = numbers_of(texts, len(SKIP_CAUSES), 3, len(QUANTITIES))
    assert numbers is not None
    first, groups = numbers
    for row, rest, text in zip(first, groups(), texts, strict=True):
        held = json.loads(text)
        loss = [np.nan if held["loss"] is None else held["loss"]]
        flat = [held["step"], *loss, *held["skipped"], *held["values"][0]]
        assert np.array_equal(row, np.array(flat, dtype=float), equal_nan=True)
        assert np.array_equal(rest, np.array(held["values"][1:], dtype=float), equal_nan=True)


def test_of_one_group_and_of_none() -> None:
    for n in (0, 1):
        terms = RNG.standard_normal((len(Term), n))
        text = reading_lines([3, 4], [1.0, 2.0], [[0] * len(SKIP_CAUSES)] * 2, [terms] * 2)
        numbers = numbers_of(text.encode().splitlines(), len(SKIP_CAUSES), 1 + n, len(QUANTITIES))
        assert numbers is not None
        assert numbers[1]().shape == (2, n, len(QUANTITIES))


def test_what_is_no_number_in_a_group_is_unknown_in_that_line_alone(tmp_path: Path) -> None:
    held = json.loads(PLAIN[5])["values"][2][3]
    place = PLAIN[5].rindex(f"{held:.4g},")
    broken = PLAIN[5][:place] + "1.2.3," + PLAIN[5][place + len(f"{held:.4g},") :]
    run, _ = read(tmp_path / "run.jsonl", HEAD + "".join([*PLAIN[:5], broken, *PLAIN[6:]]))
    known = np.isfinite(run.history.group(1, QUANTITIES[3]))
    assert np.flatnonzero(~known).tolist() == [5]
    assert np.isfinite(run.history.total(QUANTITIES[3])[5])


@pytest.mark.parametrize(
    "change",
    [
        other_spaces,
        lambda text: text.replace("],[", ",", 1),
        lambda text: text.replace("[[", "[[null,", 1),
        lambda text: text.replace('"step":3', '"step":3.5'),
        lambda text: text.replace('"step":3', '"step":-3'),
        lambda text: text.replace("],[", "],[[", 1),
        lambda text: text.replace('"loss"', '"lose"'),
    ],
)
def test_other_forms_are_left_to_a_parser_of_json(change) -> None:  # type: ignore[no-untyped-def]
    changed = change(PLAIN[2])
    assert changed != PLAIN[2]
    texts = [text.rstrip("\n").encode() for text in (*PLAIN[:2], changed, *PLAIN[3:5])]
    assert numbers_of(texts, len(SKIP_CAUSES), 3, len(QUANTITIES)) is None


def test_errors_name_the_same_line(tmp_path: Path) -> None:
    text = HEAD + "".join([*PLAIN[:10], PLAIN[10].replace("],[", "],[1,", 1), *PLAIN[11:]])
    path = tmp_path / "run.jsonl"
    path.write_text(text)
    with pytest.raises(ValueError, match=r"run\.jsonl, line 12: values hold \["):
        SavedRun.read(path)
