"""Search over records: by words, by meaning, and by both. Loads no torch, and numpy only for vectors."""

from remnant.index.dense import DenseScan, Found, pack
from remnant.index.hybrid import Scored, mix
from remnant.index.words import match_expression, rank, terms

__all__ = ["DenseScan", "Found", "Scored", "match_expression", "mix", "pack", "rank", "terms"]
