"""When a record has worn out: it was used often enough to tell, and helped too rarely."""

from __future__ import annotations

import math

from remnant.memory.record import Utility


def wilson(share: float, count: int, z: float) -> tuple[float, float]:
    """The interval in which a share lies that was seen in a number of trials.

    Args:
        share: 0 to 1.
        count: trials, 1 or more.
        z: standard normal quantile; 1 leaves 16 % on either side, 1.96 leaves 2.5 %.

    Source: Wilson 1927, the score interval.
    Example: wilson(0.5, 1, 0.0) -> (0.5, 0.5)
    """
    spread = z * z / count
    middle = (share + spread / 2) / (1 + spread)
    half = z / (1 + spread) * math.sqrt(share * (1 - share) / count + spread / (4 * count))
    return middle - half, middle + half


def is_worn(utility: Utility, alpha: int, beta: float, z: float) -> bool:
    """Whether a record, used at least `alpha` times with a known end, helped in less than a share `beta` of them.

    Harm has to be evident, so the lower bound of the share that did not help is compared: a bare share would drop a
    good record after an unlucky start. Uses without a verdict count neither way.

    Example: is_worn(Utility(used=5, helped=0, harmed=5), 5, 0.5, 1.0) -> True
    """
    judged = utility.helped + utility.harmed
    return judged >= alpha and wilson(utility.harmed / judged, judged, z)[0] > 1 - beta
