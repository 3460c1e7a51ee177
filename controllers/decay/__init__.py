"""Weight decay under control: the barostat, and what it keeps of each group."""

from thermoopt.controllers.decay.barostat import Barostat

__all__ = ["Barostat"]
