"""``python -m thermoopt``."""

import sys

from thermoopt.cli import main

sys.exit(main())
