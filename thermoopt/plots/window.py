"""Showing a figure in a window."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["check_display", "show_figure"]

_HEADLESS = ("agg", "cairo", "pdf", "pgf", "ps", "svg", "template", "inline")
"""Ends of the names of matplotlib's backends that have no window (a notebook's shows what a cell returns)."""


def check_display() -> None:
    """Refuse to show where there is nothing to show on.

    Raises:
        ImportError: matplotlib is missing; the message says what to install.
        RuntimeError: matplotlib's backend has no window; the message says what to do.
    """
    try:
        import matplotlib.pyplot as plt
    except ImportError as e:
        raise ImportError("plots need matplotlib: pip install thermoopt[viz]") from e
    backend = plt.get_backend()
    if backend.lower().rpartition("_")[2] in _HEADLESS:
        raise RuntimeError(
            f"show is True, and matplotlib's backend {backend!r} opens no window; allowed is show=False with "
            "a path to save to, or another backend: matplotlib.use('tkagg'), say, where there is a display"
        )


def show_figure(figure: Figure) -> None:
    """Open a figure that pyplot did not make in a window of matplotlib's backend, and wait as pyplot does.

    Raises:
        ImportError, RuntimeError: as :func:`check_display`.
    """
    check_display()
    import matplotlib.pyplot as plt

    held = plt.figure()
    canvas = type(held.canvas)
    plt.close(held)
    manager = canvas.new_manager(figure, 1)
    manager.show()
    manager.start_main_loop()
