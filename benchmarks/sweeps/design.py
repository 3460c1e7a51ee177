"""The points of learning rate and weight decay at which a method is run."""

from __future__ import annotations

import numpy as np

from thermoopt.benchmarks.sweeps.protocol import Protocol

__all__ = ["SPACE", "design"]

SPACE = ("lr", "decay")
"""The values of a point, in the order of the design's coordinates."""


def design(protocol: Protocol, seed: int) -> list[dict[str, float]]:
    """Draw the points of a tuning seed, the same for all methods and workloads.

    They are a Sobol sequence in the unit square, scrambled by the seed, mapped by
    u -> least (largest/least)^u. The first k points do not depend on the total number, so that budgets of
    1, 2, 4 ... are prefixes of each other.

    Returns:
        ``lr`` and ``decay`` of ``protocol.design`` points.
    """
    from scipy.stats import qmc  # over a second of a core, which workers do without

    # a generator, because scipy draws different sequences for an int passed as `seed` and as `rng`
    sobol = qmc.Sobol(len(SPACE), scramble=True, seed=np.random.default_rng(seed))
    unit = sobol.random_base2((protocol.design - 1).bit_length())[: protocol.design]
    return [
        {
            name: float(low * (high / low) ** x)
            for name, x, (low, high) in zip(SPACE, row, (protocol.lr, protocol.decay), strict=True)
        }
        for row in unit
    ]
