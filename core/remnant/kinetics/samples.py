"""How many problems at least one of k samples solves, estimated from more samples than k."""

from __future__ import annotations

from math import comb

from remnant.errors import ConfigError

__all__ = ["coverage"]


def coverage(n: int, c: int, k: int) -> float:
    """Coverage@k of one problem, without bias.

    Args:
        n: samples that were drawn.
        c: those that were right, `0 <= c <= n`.
        k: samples that may be drawn, `1 <= k <= n`.

    Returns:
        Fraction of the k-subsets of the samples that hold a right one.

    Raises:
        ConfigError: a count is out of range; beyond n samples nothing is known without bias.

    Source: Chen et al. 2021, arXiv 2107.03374, eq. 1. Exact in integers up to the one division.
    Example: coverage(4, 1, 2) -> 0.5
    """
    if any(isinstance(value, bool) or not isinstance(value, int) for value in (n, c, k)):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise ConfigError(f"n={n!r}, c={c!r}, k={k!r}", accepted="whole numbers")
    if n < 1 or not 0 <= c <= n or not 1 <= k <= n:
        raise ConfigError(f"n={n}, c={c}, k={k}", accepted="0 <= c <= n and 1 <= k <= n")
    whole = comb(n, k)
    return (whole - comb(n - c, k)) / whole
