"""Showing a figure in a window."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["check_display", "show_figure"]

_HEADLESS = ("agg", "cairo", "pdf", "pgf", "ps", "svg", "template", "inline")
"""Endings of the names of matplotlib's backends without a window (a notebook shows what a cell returns)."""


def check_display() -> None:
    """Raise if matplotlib cannot open a window.

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
            f"show must be False with matplotlib's backend {backend!r}, which opens no window, "
            "got True: pass a path to save to, or choose another backend where there is a "
            "display, for example matplotlib.use('tkagg')"
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
