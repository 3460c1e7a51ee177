"""The error for an argument of a command that cannot be used."""

from __future__ import annotations

__all__ = ["InputError"]


class InputError(ValueError):
    """An argument of a command that cannot be used.

    Attributes:
        argument: its name.
        value: what was given.
        why: what is wrong and what is allowed.
    """

    def __init__(self, argument: str, value: object, why: str) -> None:
        """Keep the parts for a caller with its own way to name arguments.

        Args:
            argument: its name.
            value: what was given.
            why: what is wrong and what is allowed.
        """
        super().__init__(f"{argument}={str(value)!r}: {why}")
        self.argument, self.value, self.why = argument, value, why
