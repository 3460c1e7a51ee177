"""Which steps are measured when one in n is, by a way other than the library's."""

from math import isqrt


def measured(every: int, last: int) -> list[int]:
    r"""Return the measured steps up to ``last``, :math:`\lceil k(n+\varphi)-2\varphi\rceil`, by integers."""
    if every == 1:
        return list(range(1, last + 1))
    steps = [every]
    for j in range(last // every):  # k = j + 2; j phi = (sqrt(5 j**2) - j) / 2 is rounded up
        steps.append((j + 2) * every + (isqrt(5 * j * j) - j) // 2 + (j > 0))
    return [step for step in steps if step <= last]
