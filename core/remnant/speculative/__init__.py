"""Speculative decoding: a drafter guesses, the target checks, and the output stays the target's.

Example:
    accept_chain(torch.tensor([[1]]), torch.tensor([[[0.0, 1.0], [1.0, 0.0]]])) -> n [1], next [0], path_len [2]
"""

from typing import TYPE_CHECKING

from remnant.lazy import attach

if TYPE_CHECKING:
    from remnant.speculative.accept import (
        Accepted,
        Walk,
        accept_chain,
        accept_tree,
        draw,
        residual,
        residual_det,
        walk_tree,
    )
    from remnant.speculative.drafter import Draft, Drafter, get_drafter, list_drafters
    from remnant.speculative.drafters.lookup import Lookup
    from remnant.speculative.drafters.model import ModelDrafter
    from remnant.speculative.drafters.rapid import RagDrafter
    from remnant.speculative.drafters.tree import TreeDrafter
    from remnant.speculative.engine import Output, generate
    from remnant.speculative.memory_model import MemoryModel
    from remnant.speculative.output_store import OutputStore
    from remnant.speculative.planner import Plan, Refusal, plan
    from remnant.speculative.rag_context import RagContext
    from remnant.speculative.rapid import Audit, Tilt, tilt_geometric, tilt_kl, tilt_step
    from remnant.speculative.sampling import Sampler
    from remnant.speculative.stats import SpecStats, block_efficiency, mbsu, speedup
    from remnant.speculative.target import Target
    from remnant.speculative.tree import Tree
    from remnant.speculative.vocab import VocabMap, choose_k, trim_head

# No submodule may carry the name of an export: importing it would put the module in the export's place.
_MODULES = {
    "accept": "Accepted Walk accept_chain accept_tree draw residual residual_det walk_tree",
    "drafter": "Draft Drafter get_drafter list_drafters",
    "drafters.lookup": "Lookup",
    "drafters.model": "ModelDrafter",
    "drafters.rapid": "RagDrafter",
    "drafters.tree": "TreeDrafter",
    "engine": "Output generate",
    "memory_model": "MemoryModel",
    "output_store": "OutputStore",
    "planner": "Plan Refusal plan",
    "rag_context": "RagContext",
    "rapid": "Audit Tilt tilt_geometric tilt_kl tilt_step",
    "sampling": "Sampler",
    "stats": "SpecStats block_efficiency mbsu speedup",
    "target": "Target",
    "tree": "Tree",
    "vocab": "VocabMap choose_k trim_head",
}

__all__ = [
    "Accepted",
    "Audit",
    "Draft",
    "Drafter",
    "Lookup",
    "MemoryModel",
    "ModelDrafter",
    "Output",
    "OutputStore",
    "Plan",
    "RagContext",
    "RagDrafter",
    "Refusal",
    "Sampler",
    "SpecStats",
    "Target",
    "Tilt",
    "Tree",
    "TreeDrafter",
    "VocabMap",
    "Walk",
    "accept_chain",
    "accept_tree",
    "block_efficiency",
    "choose_k",
    "draw",
    "generate",
    "get_drafter",
    "list_drafters",
    "mbsu",
    "plan",
    "residual",
    "residual_det",
    "speedup",
    "tilt_geometric",
    "tilt_kl",
    "tilt_step",
    "trim_head",
    "walk_tree",
]

__getattr__, __dir__ = attach(
    __name__,
    {name: f"remnant.speculative.{module}" for module, names in _MODULES.items() for name in names.split()},
    extra="torch",
)
