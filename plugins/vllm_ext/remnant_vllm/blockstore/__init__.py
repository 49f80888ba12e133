"""A store of blocks by content: bytes under a hash, in memory and in a folder, both bounded; no torch, no vLLM.

A key says what a block means (`keys.Chain`), a fingerprint says how its bytes are laid out (`fingerprint`). Files hold
raw bytes with a header and a checksum. The checksum finds damage, not malice: whoever can write the folder can write a
block that passes, so the folder deserves the protection of the model's weights. Blocks can tell what a prompt said, so
folders and files are made readable for their owner only.
"""

from remnant_vllm.blockstore.disk import Disk
from remnant_vllm.blockstore.fingerprint import fingerprint, stamp
from remnant_vllm.blockstore.host import Host
from remnant_vllm.blockstore.keys import Chain
from remnant_vllm.blockstore.options import StoreOptions
from remnant_vllm.blockstore.stats import COUNTERS, GAUGES, Counts
from remnant_vllm.blockstore.store import BlockStore, Leased

__all__ = [
    "COUNTERS",
    "GAUGES",
    "BlockStore",
    "Chain",
    "Counts",
    "Disk",
    "Host",
    "Leased",
    "StoreOptions",
    "fingerprint",
    "stamp",
]
