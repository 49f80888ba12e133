"""The policy protocol: frozen options, a score, a budget, and a plan made of shared parts."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import MISSING, dataclass, fields
from types import UnionType
from typing import Any, ClassVar, Literal, TypeVar, Union, cast, get_args, get_origin, get_type_hints

import torch
from torch import Tensor

from remnant.errors import ConfigError, UnsupportedPolicy, unknown
from remnant.kv.score import Reduce
from remnant.kv.select import protect, select, victims
from remnant.kv.view import Keep, KVView

__all__ = [
    "Layout",
    "Need",
    "Pages",
    "Policy",
    "Side",
    "Trigger",
    "check",
    "get_policy",
    "list_policies",
    "policy_class",
    "register_policy",
]

Need = Literal["queries", "all_queries", "attn", "rope", "tokens", "events", "layers"]
Layout = Literal["uniform", "ragged", "channels"]
Phase = Literal["prefill", "block", "decode"]


@dataclass(frozen=True)
class Trigger:
    """When a policy acts; decided from lengths alone, so a host never waits for the device.

    Attributes:
        kind: `prefill_end` (once the prompt is in), `block` (after every block of a blocked prefill as well),
            `step` (every decoded token), `every` (every n decoded tokens), `overflow` (stored >= budget + n,
            in any phase), `event` (only when told).
        n: tokens, for `every` and `overflow`.
    """

    kind: Literal["prefill_end", "block", "step", "every", "overflow", "event"]
    n: int = 0

    def due(self, phase: Phase, step: int, stored: int, budget: int) -> bool:
        """Whether to act now. `step` is the 1-based decode step, `stored` and `budget` are tokens per head."""
        if stored <= budget:
            return False
        if self.kind == "overflow":
            return stored >= budget + self.n
        if phase == "decode":
            return self.kind == "step" or (self.kind == "every" and step % self.n == 0)
        return self.kind == "block" or (self.kind == "prefill_end" and phase == "prefill")

    def __str__(self) -> str:
        """As `every(16)`."""
        return f"{self.kind}({self.n})" if self.n else self.kind


@dataclass(frozen=True)
class Side:
    """A per-slot tensor that a policy keeps beside the keys: `[B, H, S]`, permuted with them.

    Attributes:
        name: key in `KVView.side`.
        dtype: of the tensor.
        fill: value of new slots unless `Policy.append` gives one.
    """

    name: str
    dtype: torch.dtype
    fill: float = 0.0


@dataclass(frozen=True)
class Pages:
    """How a decoded token reads a store that is kept whole: some pages of it, chosen anew for every token.

    The budget of such a policy is what is read per step and KV head, always-read pages included. Prompts are read
    whole.

    Attributes:
        size: slots per page; page n holds the n-th `size` tokens of a row.
        summary: what stands for a page: `mean` key (scored by the group's mean query) or channel-wise `bounds` (by the
            largest possible logit).
        sinks: first pages that are always read.
        local: last pages that are always read, the open one counted.
        dense: first governed layers that are read whole.
    """

    size: int = 16
    summary: Literal["mean", "bounds"] = "bounds"
    sinks: int = 1
    local: int = 2
    dense: int = 1

    def shares(self, tokens: int) -> tuple[int, int, int]:
        """(first, last, chosen) pages that a budget of at least `size` tokens buys, in the order last, first, chosen.

        Example: Pages(16, sinks=1, local=2).shares(128) -> (1, 2, 5)
        """
        whole = tokens // self.size
        local = min(self.local, whole)
        sinks = min(self.sinks, whole - local)
        return sinks, local, whole - local - sinks


@dataclass(frozen=True)
class Policy:
    """Base of all policies. A subclass declares what it needs and implements `score`; the rest has defaults.

    A policy is pure: the same view gives the same plan. What must be remembered between calls is declared as `side`
    (per slot) or returned as `state` (per sequence) and lives in the cache, so that one policy object can serve any
    number of sequences at once.
    """

    name: ClassVar[str] = ""
    needs: ClassVar[frozenset[Need]] = frozenset()
    layout: ClassVar[Layout] = "uniform"
    source: ClassVar[str] = ""
    claim: ClassVar[str] = ""
    attn_reduce: ClassVar[Reduce] = "mean"
    sides: ClassVar[tuple[Side, ...]] = ()
    protects: ClassVar[str] = ""
    wants: ClassVar[str] = ""
    """What a cache cannot see and must be given; a host says so when it was not. Empty for most policies."""

    sinks: int = 0
    recent: int = 0

    def __post_init__(self) -> None:
        """Validate options; a subclass calls this first."""
        for option in ("sinks", "recent"):
            check(self, option, getattr(self, option) >= 0, "an integer of at least 0")

    @property
    def when(self) -> tuple[Trigger, ...]:
        """When the policy acts."""
        return (Trigger("prefill_end"),)

    @property
    def reads(self) -> Pages | None:
        """Which part of the store a decoded token reads; None is all of it."""
        return None

    @property
    def window(self) -> int:
        """Newest queries to be shown when `queries` is needed."""
        return 0

    @property
    def slack(self) -> int:
        """Tokens per head that may be stored above the budget between two decisions, once the prompt is in."""
        return max([t.n for t in self.when if t.kind in ("every", "overflow")], default=0)

    @property
    def bounded(self) -> bool:
        """Whether the cache stays bounded while decoding."""
        return any(t.kind in ("step", "every", "overflow") for t in self.when)

    @property
    def minimum(self) -> int:
        """Smallest budget that this policy can work with, in tokens per head."""
        return max(1, self.sinks + self.recent + (1 if self.sinks or self.recent else 0))

    @property
    def even(self) -> bool:
        """Whether all heads of a layer keep the same number of tokens; a host with one block table needs that."""
        return self.layout != "ragged"

    def due(self, phase: Phase, step: int, stored: int, budget: int) -> bool:
        """Whether any trigger fires; see `Trigger.due`."""
        return stored > budget and any(t.due(phase, step, stored, budget) for t in self.when)

    def append(self, view: KVView) -> Mapping[str, Tensor]:
        """Side state of new slots; `view` holds the new tokens only. Default: every side's `fill`."""
        return {}

    def observe(self, view: KVView) -> tuple[Mapping[str, Tensor], Mapping[str, Tensor]]:
        """New (side, state) after an attention; called before a decision whenever queries or a row are shown."""
        return {}, {}

    def score(self, view: KVView) -> Tensor:
        """`[B, H, S]` float32, higher is kept, before protection."""
        raise UnsupportedPolicy(f"policy {self.name!r} ranks nothing by itself", do="call plan()")

    def layer_share(self, seen: int, layer: int, layers: int, tokens: int) -> int:
        """Tokens per head of one layer, from lengths alone, so that a scheduler without tensors can ask as well.

        A host asks whenever a part of a prompt is in, and gives the answer to `due` and `plan`.

        Args:
            seen: tokens so far.
            layer: index among the governed layers.
            layers: number of these.
            tokens: the configured budget; the shares of all layers must not sum to more than `layers * tokens`.
        """
        return tokens

    def budget(self, view: KVView, tokens: int) -> Tensor | int:
        """Tokens kept per head of this layer, an int or `[B, H]` int64, given the configured tokens per head."""
        return tokens

    def layer_stat(self, view: KVView) -> Tensor:
        """`[B]` float32 statistic of a layer, for policies that need `layers`; collected before any layer evicts."""
        raise UnsupportedPolicy(f"policy {self.name!r} has no layer statistic")

    def layer_budgets(self, stats: Tensor, stored: int, tokens: int) -> list[int]:
        """Tokens per head of every layer from the statistics `[L, B]`; must not sum to more than `L * tokens`."""
        return [tokens] * stats.shape[0]

    def plan(self, view: KVView, tokens: int) -> Keep:
        """Decide what stays.

        Args:
            view: one layer.
            tokens: the budget of this layer per KV head, protected tokens included.
        """
        scores = protect(self.score(view), view, self.sinks, self.recent)
        return select(scores, self.budget(view, tokens), view)

    def evict(self, view: KVView, count: int) -> Tensor:
        """`[B, H, count]` slots to overwrite: the in-place twin of `plan` for policies with a plain score.

        A host uses it while decoding when `in_place` is True; it must drop exactly what `plan` would.
        """
        return victims(protect(self.score(view), view, self.sinks, self.recent), count, view)

    @property
    def in_place(self) -> bool:
        """Whether decode-time decisions are only "drop these slots": `plan` and `budget` are the inherited ones."""
        cls = type(self)
        return self.bounded and cls.plan is Policy.plan and cls.budget is Policy.budget

    def options(self) -> dict[str, Any]:
        """The options of this policy as plain data."""
        return {f.name: getattr(self, f.name) for f in fields(self) if f.init}


def check(policy: Policy, option: str, ok: bool, accepted: str) -> None:
    """Raise a `ConfigError` naming the option, what was given and what is accepted, unless `ok`."""
    if not ok:
        raise ConfigError(f"{policy.name}: {option}={getattr(policy, option)!r}", accepted=accepted)


P = TypeVar("P", bound=Policy)
_BUILTIN: dict[str, type[Policy]] = {}


def register_policy(name: str) -> Callable[[type[P]], type[P]]:
    """Class decorator: make a frozen dataclass available under `name`.

    The module must live in `remnant.kv.policies`; other packages return their classes from the `remnant_policies` hook.
    """

    def add(cls: type[P]) -> type[P]:
        cls.name = name
        _BUILTIN[name] = cls
        return cls

    return add


def builtin_policies() -> tuple[type[Policy], ...]:
    """The policies of this package, by name."""
    return tuple(_BUILTIN[name] for name in sorted(_BUILTIN))


def _all() -> dict[str, type[Policy]]:
    from remnant.plugins import collect

    found: dict[str, type[Policy]] = {}
    for _, cls in collect("remnant_policies"):
        found.setdefault(cls.name, cls)
    return found


def list_policies() -> list[str]:
    """Names of all policies, built in and from plugins, sorted."""
    return sorted(_all())


def policy_class(name: str) -> type[Policy]:
    """The class registered under a name.

    Raises:
        ConfigError: there is none; names the accepted ones.
    """
    known = _all()
    if name not in known:
        raise unknown("policy", str(name), known)
    return known[name]


def get_policy(name: str, **options: Any) -> Policy:
    """Make a policy by name.

    Args:
        name: one of `list_policies()`.
        options: fields of the policy, for example `window=32`; each is validated.

    Raises:
        ConfigError: an unknown name or option (the accepted ones are named), or a value out of range.

    Example: get_policy("snapkv", window=32, kernel=5, pooling="avg", reduce="mean")
    """
    cls = policy_class(name)
    accepted = {f.name: f for f in fields(cls) if f.init}
    for option in options:
        if option not in accepted:
            raise unknown(f"option of policy {name!r}:", option, accepted)
    for option, value in options.items():
        _check_type(cls, option, value, accepted[option].default)
    return cls(**options)


def _check_type(cls: type[Policy], option: str, value: Any, default: Any) -> None:
    """Refuse a value of another plain type than the default's; an int is a float, a bool is not an int."""
    policy = cls.name
    if default is MISSING or not isinstance(default, bool | int | float | str):
        hint = get_type_hints(cls)[option]
        if not _fits(value, hint):
            raise ConfigError(f"{policy}: {option}={value!r}", accepted=str(hint).replace("NoneType", "None"))
        return
    kind = type(default)
    wanted = (int, float) if kind is float else kind
    if isinstance(value, wanted) and (kind is bool or not isinstance(value, bool)):
        return
    raise ConfigError(f"{policy}: {option}={value!r}", accepted=f"a {kind.__name__}, for example {default!r}")


def _fits(value: Any, hint: Any) -> bool:
    """Whether a value is what an annotation says: unions, tuples of one type, literals and classes."""
    inside = get_args(hint)
    if get_origin(hint) in (Union, UnionType):
        return any(_fits(value, one) for one in inside)
    if get_origin(hint) is tuple:
        return isinstance(value, tuple) and all(_fits(x, inside[0]) for x in cast("tuple[Any, ...]", value))
    if get_origin(hint) is Literal:
        return value in inside
    if isinstance(value, bool) or hint is bool:
        return hint in (bool, Any) and isinstance(value, bool)
    return hint is Any or isinstance(value, (int, float) if hint is float else hint)
