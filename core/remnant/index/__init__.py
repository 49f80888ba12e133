"""Search over records: by words, by meaning, and by both. Loads no torch, and numpy only for vectors."""

from remnant.index.ann import AnnIndex
from remnant.index.choose import check_index, chosen, make_index
from remnant.index.dense import DenseScan
from remnant.index.found import Found, KeptIndex, VectorIndex
from remnant.index.hybrid import Scored, mix
from remnant.index.lsh import Hyperplanes, LshIndex
from remnant.index.rows import pack
from remnant.index.words import match_expression, rank, terms

__all__ = [
    "AnnIndex",
    "DenseScan",
    "Found",
    "Hyperplanes",
    "KeptIndex",
    "LshIndex",
    "Scored",
    "VectorIndex",
    "check_index",
    "chosen",
    "make_index",
    "match_expression",
    "mix",
    "pack",
    "rank",
    "terms",
]
