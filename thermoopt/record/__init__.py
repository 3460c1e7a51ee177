"""The record of a run on file: its format, and runs read back from it."""

from thermoopt.record.columns import CLOSED, META, layer_table, pyarrow, tables_of
from thermoopt.record.form import (
    BEGUN_AT,
    ENDED,
    LAST,
    RUN,
    VERSION,
    facts_of,
    head_line,
    journal_path,
    lasting,
    layer_path,
    layout_line,
    layout_of,
    merged_facts,
    note_line,
    pack_terms,
    reading_lines,
    row_line,
    scope_values,
)
from thermoopt.record.history import SavedHistory, Trajectory
from thermoopt.record.lines import lines, pieces
from thermoopt.record.rates import RATES, condensed, rate_notes, standings_in
from thermoopt.record.reader import Reader, layer_rows
from thermoopt.record.saved import SavedLosses, SavedRun

__all__ = [
    "BEGUN_AT",
    "CLOSED",
    "ENDED",
    "LAST",
    "META",
    "RATES",
    "RUN",
    "VERSION",
    "Reader",
    "SavedHistory",
    "SavedLosses",
    "SavedRun",
    "Trajectory",
    "condensed",
    "facts_of",
    "head_line",
    "journal_path",
    "lasting",
    "layer_path",
    "layer_rows",
    "layer_table",
    "layout_line",
    "layout_of",
    "lines",
    "merged_facts",
    "note_line",
    "pack_terms",
    "pieces",
    "pyarrow",
    "rate_notes",
    "reading_lines",
    "row_line",
    "scope_values",
    "standings_in",
    "tables_of",
]
