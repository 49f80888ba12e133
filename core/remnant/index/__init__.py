"""Search over records: by words, by meaning, and by both. Loads no torch, and numpy only for vectors."""

from remnant.index.dense import DenseScan
from remnant.index.found import Found, VectorIndex
from remnant.index.hybrid import Scored, mix
from remnant.index.lsh import Hyperplanes, LshIndex
from remnant.index.rows import pack
from remnant.index.words import match_expression, rank, terms

__all__ = [
    "DenseScan",
    "Found",
    "Hyperplanes",
    "LshIndex",
    "Scored",
    "VectorIndex",
    "match_expression",
    "mix",
    "pack",
    "rank",
    "terms",
]
