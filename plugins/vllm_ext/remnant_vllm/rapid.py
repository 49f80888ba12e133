"""RAPID for vLLM: a second model drafts from the passages of the prompt that answer its question.

    vllm serve MODEL --speculative-config \
        '{"method": "custom_class", "model": "remnant_vllm.RapidDrafter", "num_speculative_tokens": 8}' \
        --additional-config '{"remnant": {"rapid": {"model": "DRAFTER", "tail": 128}}}'

Untilted: vLLM verifies the drafts as it verifies any, so tokens and distributions stay the target's. The tilts of
`remnant.speculative.rapid` need a loop of their own, which vLLM's interface for drafters does not offer.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from remnant.errors import ConfigError
from remnant_vllm.asked import drafting
from remnant_vllm.histories import Histories, History
from remnant_vllm.rapid_options import RapidOptions
from remnant_vllm.second import SecondModel

__all__ = ["RapidDrafter"]

_log = logging.getLogger("vllm.remnant")


@dataclass(eq=False)
class _Text:
    """One request in the second model.

    Attributes:
        prompt: what the target reads, `[n]` int32; None once it was shortened.
        tokens: what the second model reads: the short prompt and the answer so far; the answer alone until then.
        row: its cache; None where there is none.
        read: how many of the tokens are in that cache.
        guess: guessed tokens in the cache, behind those.
    """

    prompt: Any
    tokens: list[int] = field(default_factory=list[int])
    row: int | None = None
    read: int = 0
    guess: list[int] = field(default_factory=list[int])

    def extend(self, tokens: Any) -> None:
        """The answer goes on."""
        self.tokens += tokens.tolist()


class RapidDrafter:
    """Drafts by a second model that reads retrieved passages instead of the whole prompt.

    The second model runs by transformers inside the worker, all requests in one batch, each with a cache of its own;
    requests are told apart by their text. Drafts are the likeliest tokens. Options stand in `--additional-config`; see
    `RapidOptions`.

    Args:
        vllm_config: of the engine.

    Raises:
        ConfigError: an option is not accepted, or the second model has another vocabulary.
    """

    def __init__(self, vllm_config: Any) -> None:
        """See the class."""
        self.options = RapidOptions.parse(drafting(vllm_config, "rapid"))
        self.num_draft: int = vllm_config.speculative_config.num_speculative_tokens
        self.config = vllm_config
        self.max_model_len: int = vllm_config.model_config.max_model_len
        self._positions = self._checked()
        self._shorten = self.options.retrieval(self._tokenizer())
        self.second: SecondModel | None = None
        most = self.options.requests or min(16, vllm_config.scheduler_config.max_num_seqs)
        self._most = most
        tokens = most * self.max_model_len
        self.histories: Histories[_Text] = Histories(lambda prompt: _Text(prompt.copy()), most, tokens, self._gone)

    def load_model(self, *args: Any, **kwargs: Any) -> None:
        """Load the second model and its caches."""
        from transformers import AutoModelForCausalLM

        from remnant_vllm._compat.sampler import repair_sampling

        repair_sampling()
        model: Any = AutoModelForCausalLM.from_pretrained(
            self.options.model, dtype=self.config.model_config.dtype, attn_implementation="sdpa"
        )
        model = model.to(self.config.device_config.device).eval()
        room = self.options.room(self._positions, self.max_model_len)
        self.second = SecondModel(model, self._most, room)
        told = (self.options.model, room, self._most, self.second.nbytes / 2**30)
        _log.info("remnant: %s drafts from up to %d tokens for %d requests, %.2f GiB of cache", *told)

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
            Per row at most `num_speculative_tokens` token ids.
        """
        self.histories.begin()
        drafts: list[list[int]] = [[] for _ in sampled_token_ids]
        texts: dict[int, _Text] = {}
        limits: dict[int, int] = {}
        for row, new in enumerate(sampled_token_ids):
            length = int(num_tokens_no_spec[row])
            limit = min(self.num_draft, self.max_model_len - length - 1)  # the last token of a full text is sampled
            if not len(new) or limit < 1:
                continue
            found = self.histories.take(row, token_ids_cpu[row], length, len(new))
            room = self._room(found.index) if found is not None else 0
            if found is not None and room > 0:
                texts[row], limits[row] = found.index, min(limit, room)
        if texts:
            self._draft(texts, limits, drafts)
        return drafts

    def _draft(self, texts: dict[int, _Text], limits: dict[int, int], drafts: list[list[int]]) -> None:
        """Let all rows guess, one token each per pass, until each has enough or is unsure."""
        assert self.second is not None
        going = list(texts)
        fed = [self._unread(texts[row]) for row in going]
        while going:
            logits = self.second.feed([_row(texts[row]) for row in going], fed)
            chances, tokens = logits.softmax(-1).max(-1)
            still: list[int] = []
            for row, chance, token in zip(going, chances.tolist(), tokens.tolist(), strict=True):
                if chance < self.options.confidence:
                    continue
                drafts[row].append(token)
                if len(drafts[row]) < limits[row]:
                    still.append(row)
                    texts[row].guess.append(token)
            going, fed = still, [drafts[row][-1:] for row in still]

    def _room(self, text: _Text) -> int:
        """Tokens that may be drafted for a text; shortens its prompt and gives it a cache the first time."""
        assert self.second is not None
        if text.prompt is not None:
            self._begin(text)
        return 0 if text.row is None else self.second.context - len(text.tokens) + 1

    def _begin(self, text: _Text) -> None:
        assert self.second is not None
        short = self._shorten(torch.from_numpy(text.prompt).long())
        text.prompt = None
        if short.source == "whole" or len(short.ids) + len(text.tokens) > self.second.context:
            return
        text.row = self.second.take()
        text.tokens = [*short.ids.tolist(), *text.tokens]

    def _unread(self, text: _Text) -> list[int]:
        """What the second model has not read of a text, wrong guesses taken back; a long beginning is read here."""
        assert self.second is not None
        tokens, start = text.tokens, text.read
        for guess in text.guess:
            if start >= len(tokens) - 1 or guess != tokens[start]:
                break
            start += 1
        self.second.crop(_row(text), start)
        if len(tokens) - start > 2 * self.num_draft:
            self.second.read(_row(text), tokens[start:-1])
            start = len(tokens) - 1
        text.read, text.guess = len(tokens), []
        return tokens[start:]

    def _gone(self, history: History[_Text]) -> None:
        if self.second is not None and history.index.row is not None:
            self.second.give(history.index.row)

    def _checked(self) -> int:
        """Positions of the second model, whose vocabulary is compared before any weight is read."""
        from transformers import AutoConfig

        config: Any = AutoConfig.from_pretrained(self.options.model)
        config = config.get_text_config()
        target = self.config.model_config.get_vocab_size()
        if config.vocab_size != target:
            raise ConfigError(
                f"drafter {self.options.model} has a vocabulary of {config.vocab_size}, the target one of {target}",
                do="take a drafter with the target's tokenizer",
            )
        return int(getattr(config, "max_position_embeddings", 0) or self.max_model_len)

    def _tokenizer(self) -> Any:
        """The target's tokenizer, the drafter's compared with it; None in an engine without one."""
        model = self.config.model_config
        if model.skip_tokenizer_init:
            return None
        from transformers import AutoTokenizer

        target: Any = AutoTokenizer.from_pretrained(model.tokenizer, trust_remote_code=model.trust_remote_code)
        drafter: Any = AutoTokenizer.from_pretrained(self.options.model, trust_remote_code=model.trust_remote_code)
        if target.get_vocab() != drafter.get_vocab():
            raise ConfigError(
                f"the tokenizers of {self.options.model} and {model.tokenizer} differ",
                do="take a drafter with the target's tokenizer",
            )
        return target


def _row(text: _Text) -> int:
    assert text.row is not None
    return text.row
