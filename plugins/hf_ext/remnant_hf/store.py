"""Where a layer's keys and values lie: slots, ragged heads, pruned channels, or everything with a mask (simulation).

A store holds named tensors with one entry per slot. `dense` shows it to a policy, `apply` carries out the policy's
plan, and `read` (in `_reading.py`) picks the attention that fits. Appending never copies what is already stored, except
when a buffer is full; then it grows by an eighth.
"""

from __future__ import annotations

from remnant_hf._channels import ChannelStore
from remnant_hf._dense import Dense, Store
from remnant_hf._ragged import RaggedStore
from remnant_hf._simulated import SimulatedStore
from remnant_hf._slots import SlotStore

__all__ = ["ChannelStore", "Dense", "RaggedStore", "SimulatedStore", "SlotStore", "Store"]
