"""A saved run as tables, pictures and one page."""

from thermoopt.inspection.command import inspect_run
from thermoopt.inspection.follow import follow_run
from thermoopt.inspection.input_error import InputError
from thermoopt.inspection.page import Picture, document, html_picture, html_table
from thermoopt.inspection.tables import Table
from thermoopt.inspection.words import actions_in_words

__all__ = [
    "InputError",
    "Picture",
    "Table",
    "actions_in_words",
    "document",
    "follow_run",
    "html_picture",
    "html_table",
    "inspect_run",
]
