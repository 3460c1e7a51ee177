"""A made-up run to draw, and what is looked at in a picture."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from thermoopt.physics import Standing
from thermoopt.plots import LossCurve


class FakeHistory:
    """Columns of a made-up run of ``n`` readings."""

    def __init__(self, n: int, names: list[str] | None = None, fill: float | None = None) -> None:
        self.steps = self.layer_steps = np.arange(1, n + 1) * 10
        self.layer_names = [
            "wte.weight",
            "blocks.0.a.weight",
            "blocks.0.b.bias",
            "blocks.1.a.weight",
            "head.weight",
        ]
        if names is not None:
            self.layer_names = names
        self.group_names = ["decay"]
        self.standings: list[Standing] = []
        self.fill = fill
        self.asked: set[str] = set()

    def total(self, name: str) -> np.ndarray:
        return self._values(name, (len(self.steps),))

    def group(self, index: int, name: str) -> np.ndarray:
        return self.total(name)

    def layers(self, name: str) -> np.ndarray:
        return self._values(name, (len(self.steps), len(self.layer_names)))

    def _values(self, name: str, shape: tuple[int, ...]) -> np.ndarray:
        self.asked.add(name)
        if self.fill is not None:
            return np.full(shape, self.fill)
        values = np.exp(np.random.default_rng(len(name)).normal(size=shape))
        return -values if name == "d_iS_momentum" else values


def losses() -> LossCurve:
    return LossCurve(list(range(1, 201)), list(np.linspace(5, 2, 200)), [100, 200], [3.0, 2.1], 3.1)


def png_size(path: Path) -> tuple[int, int]:
    head = path.read_bytes()[:24]
    assert head[:8] == b"\x89PNG\r\n\x1a\n"
    return int.from_bytes(head[16:20], "big"), int.from_bytes(head[20:24], "big")


def titles(figure) -> str:
    return " | ".join(ax.get_title(loc="left") for ax in figure.axes)
