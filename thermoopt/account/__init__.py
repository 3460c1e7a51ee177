"""Keeps what the steps did: averages, readings, the history of a run and its losses."""

from typing import TYPE_CHECKING

from thermoopt.lazy import lazy_face

if TYPE_CHECKING:
    from thermoopt.account.device_table import DeviceSums as DeviceSums
    from thermoopt.account.device_table import reading_lag as reading_lag
    from thermoopt.account.following import follow_edit as follow_edit
    from thermoopt.account.following import is_exchange as is_exchange
    from thermoopt.account.history import ROWS_PER_EMA as ROWS_PER_EMA
    from thermoopt.account.history import History as History
    from thermoopt.account.history import HistoryLike as HistoryLike
    from thermoopt.account.history import reading_record as reading_record
    from thermoopt.account.json_state import as_leaf as as_leaf
    from thermoopt.account.json_state import from_leaf as from_leaf
    from thermoopt.account.ledger import Ledger as Ledger
    from thermoopt.account.ledger_view import LedgerView as LedgerView
    from thermoopt.account.ledger_view import if_alive as if_alive
    from thermoopt.account.losses import Losses as Losses
    from thermoopt.account.losses import as_loss as as_loss
    from thermoopt.account.meter import Meter as Meter
    from thermoopt.account.meter import is_measured as is_measured
    from thermoopt.account.meter import measured_steps as measured_steps
    from thermoopt.account.naming import add_to_meter as add_to_meter
    from thermoopt.account.naming import layer_names as layer_names
    from thermoopt.account.naming import names_by_position as names_by_position
    from thermoopt.account.naming import plain_name as plain_name
    from thermoopt.account.naming import with_plain_names as with_plain_names
    from thermoopt.account.naming import with_present_names as with_present_names
    from thermoopt.account.pending import MAX_PENDING as MAX_PENDING
    from thermoopt.account.pending import Averaged as Averaged
    from thermoopt.account.pending import Done as Done
    from thermoopt.account.pending import PendingSums as PendingSums
    from thermoopt.account.reading import BAND as BAND
    from thermoopt.account.reading import SKIP_CAUSES as SKIP_CAUSES
    from thermoopt.account.reading import Quantities as Quantities
    from thermoopt.account.reading import Reading as Reading
    from thermoopt.account.summary import epoch_record as epoch_record
    from thermoopt.account.summary import mean as mean
    from thermoopt.account.summary import run_summary as run_summary
    from thermoopt.account.summary import running_mean as running_mean

__getattr__, __dir__ = lazy_face(
    __name__,
    {
        "thermoopt.account.device_table": (
            "DeviceSums",
            "reading_lag",
        ),
        "thermoopt.account.following": (
            "follow_edit",
            "is_exchange",
        ),
        "thermoopt.account.history": (
            "History",
            "HistoryLike",
            "ROWS_PER_EMA",
            "reading_record",
        ),
        "thermoopt.account.json_state": (
            "as_leaf",
            "from_leaf",
        ),
        "thermoopt.account.naming": (
            "add_to_meter",
            "layer_names",
            "names_by_position",
            "plain_name",
            "with_plain_names",
            "with_present_names",
        ),
        "thermoopt.account.ledger": ("Ledger",),
        "thermoopt.account.ledger_view": ("LedgerView", "if_alive"),
        "thermoopt.account.losses": (
            "Losses",
            "as_loss",
        ),
        "thermoopt.account.meter": (
            "Meter",
            "is_measured",
            "measured_steps",
        ),
        "thermoopt.account.pending": (
            "Averaged",
            "Done",
            "MAX_PENDING",
            "PendingSums",
        ),
        "thermoopt.account.reading": (
            "BAND",
            "Quantities",
            "Reading",
            "SKIP_CAUSES",
        ),
        "thermoopt.account.summary": (
            "epoch_record",
            "mean",
            "run_summary",
            "running_mean",
        ),
    },
)

__all__ = [
    "BAND",
    "MAX_PENDING",
    "ROWS_PER_EMA",
    "SKIP_CAUSES",
    "Averaged",
    "DeviceSums",
    "Done",
    "History",
    "HistoryLike",
    "Ledger",
    "LedgerView",
    "Losses",
    "Meter",
    "PendingSums",
    "Quantities",
    "Reading",
    "add_to_meter",
    "as_leaf",
    "as_loss",
    "epoch_record",
    "follow_edit",
    "from_leaf",
    "is_exchange",
    "is_measured",
    "layer_names",
    "mean",
    "measured_steps",
    "names_by_position",
    "plain_name",
    "reading_lag",
    "reading_record",
    "run_summary",
    "running_mean",
    "with_plain_names",
    "with_present_names",
]
