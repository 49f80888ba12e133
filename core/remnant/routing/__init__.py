"""Whether to read the whole history, blocks of it, or what retrieval finds. Needs no torch.

`ContextRouter` decides, `assemble` puts together what was decided, `Responder` answers with it. What each mode costs
and how much of the evidence it shows is measured by `remnant bench routing`: on single LoCoMo conversations the whole
history holds all of it at 19,400 tokens a question, the newest ten sessions with 20 passages 80 %, passages alone 66 %.
"""

from remnant.routing.answer import Answered, Responder, read_passages
from remnant.routing.assemble import Assembled, Unit, assemble, joined, wanted
from remnant.routing.calibrate import Abstentions, Trial, abstention_gate, best_k, drop_weak, reliable_length
from remnant.routing.classify import classify
from remnant.routing.collapse import collapse
from remnant.routing.cost import break_even, estimate
from remnant.routing.decision import Cost, Mode, Option, Order, RouteDecision
from remnant.routing.extract import Answer, BlockReader, Item
from remnant.routing.history import Conversation, blocks, history_key, read_history
from remnant.routing.reorder import chronological, reorder
from remnant.routing.request import Budgets, Cache, Index, Model, QueryType, Request, count_tokens
from remnant.routing.router import ContextRouter, should_escalate
from remnant.routing.settings import Settings

__all__ = [
    "Abstentions",
    "Answer",
    "Answered",
    "Assembled",
    "BlockReader",
    "Budgets",
    "Cache",
    "ContextRouter",
    "Conversation",
    "Cost",
    "Index",
    "Item",
    "Mode",
    "Model",
    "Option",
    "Order",
    "QueryType",
    "Request",
    "Responder",
    "RouteDecision",
    "Settings",
    "Trial",
    "Unit",
    "abstention_gate",
    "assemble",
    "best_k",
    "blocks",
    "break_even",
    "chronological",
    "classify",
    "collapse",
    "count_tokens",
    "drop_weak",
    "estimate",
    "history_key",
    "joined",
    "read_history",
    "read_passages",
    "reliable_length",
    "reorder",
    "should_escalate",
    "wanted",
]
