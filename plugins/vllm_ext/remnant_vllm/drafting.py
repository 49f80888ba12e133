"""What the user asked of the lookup drafter, checked once and before anything is loaded."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, cast

from remnant.errors import ConfigError, unknown
from remnant.speculative.match import MatchOptions
from remnant.speculative.output_store import OutputStore, StoreOptions
from remnant_vllm.asked import KEY

__all__ = ["LookupOptions"]


@dataclass(frozen=True)
class LookupOptions:
    """The part of `--additional-config` under `remnant`, `lookup`.

    Attributes:
        min_match: tokens that must have occurred before, just so, for a draft to be made.
        min_share: no draft where less than this fraction of it is expected to be accepted.
        max_draft: tokens per draft; None is `num_speculative_tokens`, which it cannot exceed.
        max_tokens: of all requests together whose texts are indexed, at about 320 bytes each; requests beyond that are
            served without drafts.
        shared_tokens: of past answers of all requests, which are drafted from where a request's own text has nothing;
            0, the default, shares nothing. vLLM does not tell a drafter whose request it is, so this is for servers
            with one tenant: whoever is faster than expected may have asked for what another was answered.
    """

    min_match: int = MatchOptions.min_match
    min_share: float = MatchOptions.min_share
    max_draft: int | None = None
    max_tokens: int = 1 << 20
    shared_tokens: int = 0

    @staticmethod
    def parse(given: object, num_draft: int) -> LookupOptions:
        """Check what was given.

        Args:
            given: None, or a mapping of options.
            num_draft: `num_speculative_tokens` of the engine.

        Raises:
            ConfigError: not a mapping, an unknown option, or a value out of range.
        """
        where = f"additional_config[{KEY!r}]['lookup']"
        names = [field.name for field in fields(LookupOptions)]
        if given is None:
            given = {}
        if not isinstance(given, Mapping):
            raise ConfigError(f"{where} is {type(given).__name__}", accepted=f"a mapping of {', '.join(names)}")
        keys = dict(cast("Mapping[str, Any]", given))
        for key in keys:
            if key not in names:
                raise unknown(f"option in {where}:", key, names)
        options = LookupOptions(**keys)
        options._check(where, num_draft)
        return options

    def _check(self, where: str, num_draft: int) -> None:
        if self.max_draft is not None:
            _whole(f"{where}: max_draft", self.max_draft, 1, num_draft, "num_speculative_tokens")
        _whole(f"{where}: max_tokens", self.max_tokens, 1024, None, "")
        if self.shared_tokens != 0:
            _whole(f"{where}: shared_tokens", self.shared_tokens, 1024, None, "")
        _whole(f"{where}: min_match", self.min_match, 1, None, "")
        share: object = self.min_share
        if isinstance(share, bool) or not isinstance(share, (int, float)) or not 0 <= share <= 1:
            raise ConfigError(f"{where}: min_share={share!r}", accepted="a fraction from 0 to 1")

    def store(self) -> OutputStore | None:
        """Where past answers are kept; None where nothing is shared."""
        if not self.shared_tokens:
            return None
        least = max(StoreOptions.min_match, self.min_match)
        depth = max(StoreOptions.depth, least)
        size = self.shared_tokens
        return OutputStore(StoreOptions(max_tokens=size, max_scope_tokens=size, min_match=least, depth=depth))

    def match(self) -> MatchOptions:
        """How an index of these options finds matches."""
        longer = max(MatchOptions.long_match, self.min_match + 1)
        return MatchOptions(
            min_match=self.min_match,
            min_share=self.min_share,
            long_match=longer,
            depth=max(MatchOptions.depth, longer),
        )


def _whole(what: str, value: object, least: int, most: int | None, name: str) -> None:
    fits = isinstance(value, int) and not isinstance(value, bool) and value >= least and (most is None or value <= most)
    if not fits:
        upper = "" if most is None else f" and at most {most}, the engine's {name}"
        raise ConfigError(f"{what}={value!r}", accepted=f"an integer of at least {least}{upper}")
