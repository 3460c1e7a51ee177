"""Records of another version: named, and what is whole is shown."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from thermoopt import JSONLSink, ThermoAdamW
from thermoopt.record import SavedRun
from thermoopt.sinks import ParquetSink


def write(sink: Any) -> None:
    parameter = torch.nn.Parameter(torch.ones(4, 3))
    optimizer = ThermoAdamW([("w", parameter)], measure_every=1, ema_steps=1, sinks=[sink])
    for _ in range(4):
        parameter.grad = torch.randn(4, 3)
        optimizer.step()
    sink.close()


def of_version_3(path: Path) -> None:
    text = path.read_text()
    assert '{"thermoopt": 2' in text
    path.write_text(text.replace('{"thermoopt": 2', '{"thermoopt": 3'))


def test_a_later_record_is_named_and_not_written_to(tmp_path: Path) -> None:
    path = tmp_path / "run.jsonl"
    write(JSONLSink(path))
    of_version_3(path)
    before = path.read_bytes()
    with pytest.raises(ValueError, match=r"line 1: a record of version 3; this thermoopt reads 1 and 2"):
        SavedRun.read(path)
    with pytest.raises(ValueError, match=r"of version 2 or older, got .* of version 3: give"):
        JSONLSink(path)
    assert path.read_bytes() == before


def test_readings_are_shown_without_layers_of_a_later_version(tmp_path: Path) -> None:
    path = tmp_path / "run.jsonl"
    write(JSONLSink(path))
    of_version_3(tmp_path / "run.layers.jsonl")
    with pytest.warns(RuntimeWarning, match=r"run.layers.jsonl: rows of layers of version 3.*left out"):
        run = SavedRun.read(path)
    assert run.history.steps.tolist() == [1, 2, 3, 4]
    assert run.history.layer_names == []


def test_columns_of_a_later_version(tmp_path: Path) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    path = tmp_path / "run.parquet"
    write(ParquetSink(path))
    table = parquet.read_table(path)
    meta = json.loads(table.schema.metadata[b"thermoopt"])
    assert meta["version"] == 2
    later = {b"thermoopt": json.dumps({**meta, "version": 3}).encode()}
    parquet.write_table(table.replace_schema_metadata(later), path)
    with pytest.raises(ValueError, match=r"a record of version 3; this thermoopt reads 2: update thermoopt"):
        SavedRun.read(path)
    with pytest.raises(ValueError, match=r"or a record, got .* of version 3; this thermoopt writes 2"):
        ParquetSink(path)
