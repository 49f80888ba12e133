"""What a planner answers: a plan, or how many bytes are missing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, NoReturn

from remnant.errors import ConfigError
from remnant.speculative.calibration import Node

__all__ = ["Candidate", "Plan", "Refusal"]


@dataclass(frozen=True)
class Candidate:
    """One way to decode.

    Attributes:
        batch: rows.
        n: nodes verified per row and pass, the root included; 1 is plain decoding without a drafter.
        depth: levels below the root.
        top_k: most nodes of one level.
        tau: expected tokens per row and pass.
        seconds: of a block, drafting and verifying.
        total: bytes.
    """

    batch: int
    n: int
    depth: int
    top_k: int
    tau: float
    seconds: float
    total: int

    @property
    def speed(self) -> float:
        """Expected tokens per second, all rows together."""
        return self.batch * self.tau / self.seconds


@dataclass(frozen=True)
class Plan:
    """What fits and pays.

    Attributes:
        n: nodes verified per row and pass, the root included; below 2 nothing is drafted.
        depth: levels below the root; of a chain, the tokens of a draft.
        top_k: most nodes of one level; 1 is a chain.
        L_max: tokens per row at most, prompt and answer.
        kv_length: tokens per row that the target's cache holds at most: `L_max`, or less where it evicts.
        batch: rows at once.
        nodes: of the tree, by the ranks on the way to them, best first.
        tau: expected tokens per row and pass.
        speed: expected tokens per second, all rows together, at the length that was asked for.
        plain_speed: the same without drafting, at the same batch.
        bytes: parts by name, as `MemoryModel.bytes` gives them.
        budget: bytes that were given.
        lazy_logits: whether the plan counts on a head that is computed only where the walk comes by; what runs under
            the plan then does so, or refuses to begin.
        longest: tokens per row that would fit with this n, up to what the model was made for.
        offload: bytes of keys and values of the asked length that have no place: the oldest turns, to be evicted or
            kept elsewhere.
        bound: bytes from which on drafting reaches all but a fraction of its best speed.
    """

    n: int
    depth: int
    top_k: int
    L_max: int
    kv_length: int
    batch: int
    nodes: tuple[Node, ...]
    tau: float
    speed: float
    plain_speed: float
    bytes: dict[str, int] = field(hash=False)
    budget: int
    lazy_logits: bool
    longest: int
    offload: int
    bound: int

    @property
    def speculate(self) -> bool:
        """Whether anything is drafted."""
        return self.n >= 2

    @property
    def total(self) -> int:
        """Bytes held at most."""
        return self.bytes["total"]

    @property
    def gamma(self) -> int:
        """Tokens of a chain that a drafter may propose under this plan."""
        return self.depth if self.speculate else 0

    @property
    def speedup(self) -> float:
        """Expected speed over that of plain decoding."""
        return self.speed / self.plain_speed

    def admit(self, lengths: Sequence[int], new_tokens: int = 1) -> None:
        """Refuse, before anything is computed, a batch that would outgrow the plan.

        Args:
            lengths: tokens per row of the prompts.
            new_tokens: that each row writes at least.

        Raises:
            ConfigError: too many rows, or a row that would get too long.
        """
        if len(lengths) > self.batch:
            raise ConfigError(
                f"{len(lengths)} rows under a plan for {self.batch}",
                accepted=f"up to {self.batch}",
                do="plan with that batch, or run the rows in turns",
            )
        longest = max(lengths, default=0) + new_tokens
        if longest > self.L_max:
            raise ConfigError(
                f"a row of up to {longest} tokens under a plan for {self.L_max}: {longest - self.L_max} too many",
                accepted=f"prompt and answer of up to {self.L_max} tokens",
                do="plan with a longer context, write less, or drop old turns (remnant.speculative.turns)",
            )

    def kv_blocks(self, block_size: int = 16) -> int:
        """Blocks of a paged cache for all rows, with the slots for tokens that are not accepted yet."""
        return self.batch * -(-(self.kv_length + self.n) // block_size)

    def to_dict(self) -> dict[str, Any]:
        """As data."""
        derived = {"gamma": self.gamma, "speculate": self.speculate, "speedup": self.speedup, "total": self.total}
        return {**asdict(self), **derived, "kv_blocks": self.kv_blocks()}


@dataclass(frozen=True)
class Refusal:
    """Nothing fits.

    Attributes:
        missing_bytes: what the budget lacks: with exactly that much more a plan is made.
        needed_bytes: what is needed at least.
        budget: bytes that were given.
        bytes: the parts of what is needed, by name.
        bound: bytes from which on drafting reaches all but a fraction of its best speed.
    """

    missing_bytes: int
    needed_bytes: int
    budget: int
    bytes: dict[str, int] = field(hash=False)
    bound: int

    @property
    def n(self) -> int:
        """None: an engine that is given a refusal for a plan must not begin.

        Raises:
            ConfigError: always; says how many bytes are missing.
        """
        self.throw()

    @property
    def depth(self) -> int:
        """As `n`."""
        self.throw()

    @property
    def L_max(self) -> int:
        """As `n`."""
        self.throw()

    def admit(self, lengths: Sequence[int], new_tokens: int = 1) -> NoReturn:
        """As `n`."""
        self.throw()

    def error(self) -> ConfigError:
        """The refusal as an error, for hosts that must not begin."""
        return ConfigError(
            f"a budget of {self.budget} bytes, {self.missing_bytes} are missing",
            accepted=f"{self.needed_bytes} bytes or more",
            do="give more memory, fewer rows, a shorter context, or a budget of the KV cache (kv_budget)",
        )

    def throw(self) -> NoReturn:
        """Raise `error`."""
        raise self.error()

    def to_dict(self) -> dict[str, Any]:
        """As data."""
        return asdict(self)
