"""A drafter for vLLM that has no weights: what followed the last time the newest tokens occurred.

    vllm serve MODEL --speculative-config \
        '{"method": "custom_class", "model": "remnant_vllm.LookupDrafter", "num_speculative_tokens": 4}'
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

from remnant.errors import ConfigError
from remnant.speculative.suffix import SuffixIndex
from remnant_vllm.asked import drafting
from remnant_vllm.drafting import LookupOptions
from remnant_vllm.histories import Histories, History

__all__ = ["LookupDrafter"]

_log = logging.getLogger("vllm.remnant")
_SCOPE = "server"
"""The only tenant that there can be; see `LookupOptions.shared_tokens`."""


class LookupDrafter:
    """Guesses by the request's own text; vLLM checks every guess, so tokens and distributions stay the target's.

    One object serves all requests of a worker. A prompt is indexed once, and every step costs what its new tokens cost,
    whatever the length of the text. Options stand in `--additional-config '{"remnant": {"lookup": {...}}}'`; see
    `LookupOptions`.

    Args:
        vllm_config: of the engine.

    Raises:
        ConfigError: an option is not accepted.
    """

    def __init__(self, vllm_config: Any) -> None:
        """See the class."""
        num_draft = vllm_config.speculative_config.num_speculative_tokens
        self.options = LookupOptions.parse(drafting(vllm_config, "lookup"), num_draft)
        self.num_draft = self.options.max_draft or num_draft
        self.max_model_len: int = vllm_config.model_config.max_model_len
        self.vocab_size: int = vllm_config.model_config.get_vocab_size()
        self.store = self.options.store()
        match = self.options.match()
        # As many again as can run at once: those that were preempted and will come back.
        most = 2 * vllm_config.scheduler_config.max_num_seqs
        self.histories: Histories[SuffixIndex] = Histories(
            lambda prompt: SuffixIndex(prompt, match), most, self.options.max_tokens, left=self._left
        )
        shared = f"; past answers are shared, {self.options.shared_tokens} tokens" if self.store is not None else ""
        told = (self.num_draft, match.min_match, shared)
        _log.info("remnant: drafts of up to %d tokens by lookup, matches of at least %d%s", *told)

    def load_model(self, *args: Any, **kwargs: Any) -> None:
        """No weights are loaded; in this process, sampling is seen to."""
        from remnant_vllm._compat.sampler import repair_sampling

        repair_sampling()

    def propose(
        self,
        sampled_token_ids: Sequence[Sequence[int]],
        num_tokens_no_spec: Any,
        token_ids_cpu: Any,
        slot_mappings: Any = None,
    ) -> list[list[int]]:
        """Guess how every row goes on.

        Args:
            sampled_token_ids: per row, the tokens that this step added; none while its prompt is being read.
            num_tokens_no_spec: `[rows or more]`, length of each row's text, these included.
            token_ids_cpu: `[rows or more, max_model_len]` int32, the texts.
            slot_mappings: not needed.

        Returns:
            Per row at most `num_draft` token ids; none where no guess is worth checking.
        """
        self.histories.begin()
        rows = min(len(token_ids_cpu), len(num_tokens_no_spec), len(sampled_token_ids))
        drafts: list[list[int]] = [[] for _ in sampled_token_ids]
        for row, length in enumerate(num_tokens_no_spec[:rows].tolist()):
            new = len(sampled_token_ids[row])
            if new:
                drafts[row] = self._guess(row, token_ids_cpu[row], length, new)
        return drafts

    def _guess(self, row: int, text: Any, length: int, new: int) -> list[int]:
        limit = self.max_model_len - length - 1  # the last token of a full text is sampled, not drafted
        if limit < 1 or not 0 < length <= len(text):
            return []
        limit = min(limit, self.num_draft)
        try:
            found = self.histories.take(row, text, length, new)
        except ConfigError:  # placeholders stand where tokens should
            return []
        draft = found.index.propose(limit) if found is not None else []
        if not draft and self.store is not None:
            draft = self.store.propose(_SCOPE, text[max(0, length - self.store.options.depth) : length], limit)
        if draft and max(draft) >= self.vocab_size:
            draft = draft[: next(i for i, token in enumerate(draft) if token >= self.vocab_size)]
        return draft

    def _left(self, history: History[SuffixIndex]) -> None:
        if self.store is not None:
            self.store.add(_SCOPE, history.index.tokens[history.prompt :])
