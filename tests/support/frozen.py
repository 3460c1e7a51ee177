"""Imported last by the fork server: its processes need not look through its objects for garbage."""

import gc

gc.collect()
gc.freeze()
