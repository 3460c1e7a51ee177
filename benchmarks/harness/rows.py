"""Rows of a benchmark that can be resumed: one JSON object per line."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

__all__ = ["read_rows"]


def read_rows(path: Path) -> Iterator[dict[str, Any]]:
    """Return the rows of earlier runs; a line torn by a crash is skipped, and its case runs again."""
    if path.exists():
        for line in path.read_text().splitlines():
            try:
                yield json.loads(line)
            except json.JSONDecodeError:
                continue
