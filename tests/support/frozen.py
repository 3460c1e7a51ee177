"""Imported last by the fork server: its processes need not look through its objects for garbage."""

import gc

from tests.support.kept_signals import keep_signals

keep_signals()
gc.collect()
gc.freeze()
