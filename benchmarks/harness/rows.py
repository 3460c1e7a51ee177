"""Rows of a benchmark that goes on where it stopped: one JSON object a line."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

__all__ = ["read_rows"]


def read_rows(path: Path) -> Iterator[dict[str, Any]]:
    """Rows of earlier runs; a line torn by a crash is passed over and run again."""
    if path.exists():
        for line in path.read_text().splitlines():
            try:
                yield json.loads(line)
            except json.JSONDecodeError:
                continue
