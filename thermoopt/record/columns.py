"""Columns of a record in Parquet (extra ``record``): one row per reading and scope."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from thermoopt.physics import QUANTITIES
from thermoopt.record.form import EXACTLY, RUN, VERSION, journal_path, rounded
from thermoopt.record.history import COLUMN, LayerRow, Trajectory
from thermoopt.record.lines import lines
from thermoopt.record.reader import Reader

__all__ = ["CLOSED", "META", "pyarrow", "read_parquet", "tables_of"]

META = b"thermoopt"
"""Key of the metadata in the file's footer: JSON with everything that columns do not hold."""

CLOSED = "closed"
"""Key in that JSON: the journal whose readings are all in row groups by now."""


def pyarrow() -> tuple[Any, Any]:
    """Return pyarrow and pyarrow.parquet.

    Raises:
        ImportError: saying what to install.
    """
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError as error:
        raise ImportError("Parquet needs pyarrow: pip install thermoopt[record]") from error
    return pa, pq


def tables_of(readings: Trajectory) -> Any:
    """Return readings as a table: step, scope, loss, and one column per quantity.

    Quantities are float32; averages are rounded as those of layers are, so that columns compress. Numbers of
    elements are exact.
    """
    pa, _ = pyarrow()
    parts = []
    for segment in readings.segments:
        values = segment.values()
        n, scopes, _ = values.shape
        flat = values.reshape(n * scopes, -1)
        columns: dict[str, Any] = {
            "step": pa.array(np.repeat(np.array(segment.steps, np.int64), scopes)),
            "scope": pa.DictionaryArray.from_arrays(
                np.tile(np.arange(scopes, dtype=np.int32), n), list(segment.scopes)
            ),
            "loss": pa.array(np.repeat(np.array(segment.losses), scopes)),
        }
        for name in QUANTITIES:
            column = flat[:, COLUMN[name]]
            columns[name] = pa.array(column.astype(np.int64) if name == "numel" else _float32(name, column))
        parts.append(pa.table(columns))
    return pa.concat_tables(parts) if parts else None


def _float32(name: str, values: NDArray[np.float64]) -> NDArray[np.float32]:
    """Return a column as it is stored."""
    with np.errstate(over="ignore"):  # values beyond float32 become infinite
        return values.astype(np.float32) if name in EXACTLY else rounded(values)


def read_parquet(
    path: Path, progress: Callable[[int, int], None] | None
) -> tuple[Trajectory, dict[str, int], list[dict[str, Any]], list[LayerRow], list[str]]:
    """Read row groups, and the journal of readings that are not in one yet.

    Returns:
        Readings, steps skipped by cause, notes, rows of layers (none), remarks on the file.

    Raises:
        ImportError: without pyarrow.
        ValueError: if the file is not a record, or nothing in it can be read.
    """
    pa, pq = pyarrow()
    told: list[str] = []
    whole = Trajectory("parquet")
    meta: Mapping[str, Any] = {}
    journal = journal_path(path)
    waiting = journal.exists() and journal.stat().st_size > 0
    file = None
    if path.exists() or not journal.exists():
        path.open("rb").close()  # the system's own words where it cannot be read
        try:
            file = pq.ParquetFile(path)
            meta = json.loads((file.metadata.metadata or {}).get(META, b"null"))
        except (pa.ArrowException, OSError, ValueError) as error:
            what = f"incomplete, or not a Parquet file ({_words(error)})"
            if not waiting:
                raise ValueError(f"{path}: {what}") from error
            told.append(f"{what}: only the readings in {journal.name} are shown")
    if file is not None:
        if isinstance(meta, Mapping) and meta.get("version", VERSION) != VERSION:
            raise ValueError(
                f"{path}: a record of version {meta['version']!r}; this thermoopt reads {VERSION}: update "
                "thermoopt"
            )
        if {"step", "layer"} <= set(file.schema_arrow.names):
            raise ValueError(f"{path}: holds the layers of a record; its readings are in the file beside it")
        if not isinstance(meta, Mapping) or not {"step", "scope"} <= set(file.schema_arrow.names):
            raise ValueError(f"{path}: a Parquet file, but not one of readings (ParquetSink writes them)")
        for i in range(file.num_row_groups):
            try:
                table = file.read_row_group(i)
            except (pa.ArrowException, OSError) as error:
                which = f"row group {i + 1} of {file.num_row_groups}"
                told.append(f"{which} is damaged ({_words(error)}): skipped")
                continue
            _take(whole, table)
            if progress is not None:
                progress(i + 1, file.num_row_groups)
    skipped, notes = dict(meta.get("skipped", {})), list(meta.get("notes", []))
    if waiting:
        reader = Reader(str(journal))
        for line in lines(journal):
            reader.take(line)
        readings, more, new, said = reader.finish()
        told += [f"{journal.name}: {what}" for what in said]
        names = [n.get("id") for n in new if n.get("note") == "journal"]
        if meta.get(CLOSED) not in names:
            whole.follow(readings)
            skipped.update(more)
            for note in notes:
                if note.get("note") == RUN:
                    note.pop("steps", None)  # older than the journal's readings
            notes += [note for note in new if note.get("note") != "journal"]
    for segment in whole.segments:
        segment.session = ""
    if not whole.segments:
        raise ValueError(f"{path}: it holds no reading yet")
    return whole, skipped, notes, [], told


def _words(error: Exception) -> str:
    """What an error says, in one line."""
    return " ".join(str(error).split()).rstrip(".")


def _take(whole: Trajectory, table: Any) -> None:
    """Append the readings of a row group, those with the same scopes at once."""
    steps = table["step"].to_numpy()
    scopes = np.array(table["scope"].to_pylist(), dtype=object)
    losses = table["loss"].to_numpy()
    values = np.full((len(steps), len(QUANTITIES)), np.nan)
    for name in QUANTITIES:
        if name in table.column_names:
            values[:, COLUMN[name]] = table[name].to_numpy().astype(np.float64)
    starts = np.flatnonzero(scopes == "total")
    ends = np.append(starts[1:], len(steps))
    for start, end in zip(starts.tolist(), ends.tolist(), strict=True):
        loss = float(losses[start])
        whole.append(int(steps[start]), loss, tuple(scopes[start:end].tolist()), values[start:end])


def layer_table(rows: Sequence[LayerRow]) -> Any:
    """Return rows of layers as a table: step, layer, why, and one column per quantity."""
    pa, _ = pyarrow()
    parts = []
    for row in rows:
        values = row.formed().values
        assert isinstance(values, np.ndarray)
        n = len(row.names)
        columns: dict[str, Any] = {
            "step": pa.array(np.full(n, row.step, np.int64)),
            "layer": pa.array(list(row.names)).dictionary_encode(),
            "why": pa.array([row.why] * n).dictionary_encode(),
        }
        for name in QUANTITIES:
            columns[name] = pa.array(_float32(name, values[:, COLUMN[name]]))
        parts.append(pa.table(columns))
    return pa.concat_tables(parts).unify_dictionaries() if parts else None
