"""KV memory: a policy looks at a `KVView` and answers with a `Keep`; a host carries it out."""

from remnant.kv.pace import paced
from remnant.kv.policy import Pages, Policy, Side, Trigger, get_policy, list_policies, policy_class, register_policy
from remnant.kv.select import protect, select, select_flat
from remnant.kv.view import Budget, Keep, KVView, Merge, Rope

__all__ = [
    "Budget",
    "KVView",
    "Keep",
    "Merge",
    "Pages",
    "Policy",
    "Rope",
    "Side",
    "Trigger",
    "get_policy",
    "list_policies",
    "paced",
    "policy_class",
    "protect",
    "register_policy",
    "select",
    "select_flat",
]
