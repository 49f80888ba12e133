"""One bounded cache per topic of a long conversation; each question goes to the cache of its topic."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor

from remnant.errors import ConfigError
from remnant.kv.episodes import (
    Document,
    Embedder,
    Episodes,
    block_mask,
    cluster,
    key_sensitivity,
    sensitivity_budgets,
    windows,
)
from remnant.kv.policies.epicache import EpiCache
from remnant.progress import Progress, silent
from remnant_hf._feed import blocks, feed, forward, remember
from remnant_hf._text import decode, encode
from remnant_hf.cache import RemnantCache

__all__ = ["EpisodicCache"]

Conversation = Sequence[str] | Sequence[Sequence[int]] | Sequence[int] | Tensor


@dataclass
class EpisodicCache:
    """The caches of all episodes; make it with `build`.

    Attributes:
        episodes: topics, centroids and patched prompts.
        caches: one per episode, never changed by a question.
        ids: the whole conversation as token ids, for a fallback cache.
        fallback: policy of the cache for questions off all topics, made when first needed; None takes the largest
            episode instead.
    """

    model: Any
    tokenizer: Any
    episodes: Episodes
    caches: list[RemnantCache]
    ids: list[int]
    budget: int
    block: int
    fallback: str | None = "keydiff"
    _spare: RemnantCache | None = field(default=None, repr=False)

    @classmethod
    def build(
        cls,
        model: Any,
        tokenizer: Any,
        turns_or_ids: Conversation,
        episodes: int = 4,
        *,
        budget: int,
        block: int = 2048,
        embedder: Embedder | None = None,
        layer_power: float = 0.0,
        conv_window: int = 4,
        medoids: int = 4,
        utterance: int = 64,
        instruction: str = "",
        system: str = "",
        sinks: int = 4,
        allocation: Literal["flat", "uniform"] = "flat",
        off_topic: float = 0.0,
        fallback: str | None = "keydiff",
        seed: int = 42,
        device: str | torch.device | None = None,
        progress: Progress = silent,
    ) -> EpisodicCache:
        """Sort a conversation into episodes and read it once for each, a block at a time.

        After every block the instruction and the patched prompt of the episode are forwarded behind it without being
        stored; what they attend to stays. No more than `budget + block` tokens per head, and the patched prompt during
        its forward pass, are held at any time.

        Args:
            model: a causal language model of transformers.
            tokenizer: of the model; may be None when everything is token ids.
            turns_or_ids: utterances as text or as ids, or the ids of the whole conversation.
            episodes: topics looked for; fewer come back when there are fewer distinct windows.
            budget: tokens per KV head and episode, on average over the layers.
            block: tokens per forward pass.
            embedder: default lexical, without a model.
            layer_power: 0 gives all layers the same budget; 1.1 to 1.3 favours layers that mind eviction.
            conv_window: utterances per window.
            medoids: windows per patched prompt.
            utterance: tokens per utterance where the ids of a whole conversation were given.
            instruction: text put before each patched prompt.
            system: text put before the conversation.
            sinks: first tokens that always stay; count the system prompt in if it must.
            allocation: `flat` shares a layer's budget over its heads, `uniform` gives each head the same.
            off_topic: a question whose cosine to every centroid is at most this goes to the fallback.
            fallback: see the class.
            seed: of the clustering.
            device: where caches wait that are not in use; default the model's.
            progress: called after every block.

        Source: Kim et al. 2025, arXiv 2509.17396. Differs: see `remnant.kv.policies.epicache`.
        """
        turns = _turns(turns_or_ids, utterance)
        ids = _ids(tokenizer, turns, system)
        if not ids:
            raise ConfigError("an empty conversation", accepted="at least one token")
        found = cluster(windows(turns, conv_window), episodes, medoids, embedder, seed, off_topic=off_topic)
        per_layer = _layer_budgets(model, ids, budget, layer_power) if layer_power else None
        # Patched prompts always observe, so the policy's own window needs no room.
        policy = EpiCache(sinks=sinks, window=1, allocation=allocation, per_layer=per_layer)
        lead = encode(tokenizer, instruction) if instruction else []
        caches: list[RemnantCache] = []
        for i, prompt in enumerate(found.prompts):
            probe = lead + (encode(tokenizer, prompt) if isinstance(prompt, str) else list(prompt))
            cache = RemnantCache(model.config, policy, budget=budget)
            _read(model, ids, probe, cache, block, progress, f"episode {i + 1} of {len(found)}")
            caches.append(cache)
        made = cls(model, tokenizer, found, caches, ids, budget, block, fallback)
        return made if device is None else made.to(device)

    def __len__(self) -> int:
        """Number of episodes."""
        return len(self.caches)

    def to(self, device: str | torch.device) -> EpisodicCache:
        """Let the stored caches wait elsewhere, for example on the CPU; `select` brings a copy back."""
        for cache in [*self.caches, *([self._spare] if self._spare is not None else [])]:
            _move(cache, torch.device(device))
        return self

    def nearest(self, question: str | Sequence[int]) -> int | None:
        """The episode of a question, or None when it is on none of the topics."""
        return self.episodes.nearest(self._document(question))

    def select(self, question: str | Sequence[int]) -> RemnantCache:
        """A copy of the cache of a question's episode, on the model's device, ready for `generate`."""
        episode = self.nearest(question)
        if episode is not None:
            return self._copy(self.caches[episode])
        if self.fallback is None:
            return self._copy(self.caches[int(torch.tensor(self.episodes.labels).bincount().argmax())])
        if self._spare is None:
            self._spare = RemnantCache(self.model.config, self.fallback, budget=self.budget, prefill_block=self.block)
            feed(self.model, self._tensor(self.ids), self._spare, self.block)
        return self._copy(self._spare)

    def ask(self, question: str | Sequence[int], max_new_tokens: int = 50) -> str | list[int]:
        """Answer a question greedily; the stored caches stay as they are, bit by bit.

        Returns:
            Text for a question in text, ids for a question in ids.
        """
        cache = self.select(question)
        asked = encode(self.tokenizer, question) if isinstance(question, str) else [int(t) for t in question]
        new = self._tensor(asked)
        mask = torch.ones(1, int(cache.get_seq_length()) + len(asked), dtype=torch.long, device=new.device)
        out = self.model.generate(
            new, attention_mask=mask, past_key_values=cache, max_new_tokens=max_new_tokens, do_sample=False
        )
        answer = out[0, len(asked) :].tolist()
        return decode(self.tokenizer, answer) if isinstance(question, str) else answer

    def _document(self, question: str | Sequence[int]) -> Document:
        """The question in the form that the windows had: text or ids."""
        text = isinstance(self.episodes.prompts[0], str)
        if isinstance(question, str):
            return question if text else tuple(encode(self.tokenizer, question))
        return decode(self.tokenizer, question) if text else tuple(int(t) for t in question)

    def _copy(self, cache: RemnantCache) -> RemnantCache:
        copied = copy.deepcopy(cache)
        _move(copied, self.model.device)
        return copied

    def _tensor(self, ids: Sequence[int]) -> Tensor:
        return torch.tensor([list(ids)], device=self.model.device)


def _move(cache: RemnantCache, device: torch.device) -> None:
    """Move what the governed layers hold, side state and all."""
    for layer in cache.governed:
        layer.to(device)


def _turns(given: Conversation, utterance: int) -> list[Any]:
    """Utterances as texts or as lists of ids."""
    if isinstance(given, str):
        return [given]
    items: list[Any] = given.flatten().tolist() if isinstance(given, Tensor) else list(given)
    if items and not isinstance(items[0], str) and not isinstance(items[0], Sequence):
        ids = [int(i) for i in items]
        return [ids[i : i + utterance] for i in range(0, len(ids), utterance)]
    return items


def _ids(tokenizer: Any, turns: list[Any], system: str) -> list[int]:
    """The conversation as one stream; texts are joined by line ends, with the model's first token if it has one."""
    first = [i for i in [getattr(tokenizer, "bos_token_id", None)] if i is not None]
    if turns and isinstance(turns[0], str):
        return first + encode(tokenizer, "\n".join([system, *turns] if system else turns))
    lead = first + encode(tokenizer, system) if system else []
    return lead + [int(t) for turn in turns for t in turn]


def _read(
    model: Any, ids: list[int], probe: list[int], cache: RemnantCache, block: int, progress: Progress, text: str
) -> None:
    """Feed a conversation block by block; after each, the patched prompt looks back and the rest is dropped."""
    device = model.device
    look = torch.tensor([probe], device=device)
    with torch.no_grad():
        for start, end in blocks(len(ids), block):
            part = torch.tensor([ids[start:end]], device=device)
            remember(cache, part, start)
            with cache.prefilling():
                forward(model, part, cache)
                with cache.probe():
                    forward(model, look, cache)
            progress(end, len(ids), text)
    cache.tokens = torch.tensor([ids], device=device)


def _layer_budgets(model: Any, ids: list[int], budget: int, power: float, longest: int = 8192) -> tuple[int, ...]:
    """Tokens per layer from how much its keys change when the conversation's beginning is read in blocks."""
    from transformers import DynamicCache
    from transformers.cache_utils import DynamicLayer

    text = torch.tensor([ids[:longest]], device=model.device)
    n = text.shape[1]
    window = min(4096, max(2, n // 2))
    mask = block_mask(n, window, min(128, window // 8)).to(text.device)
    hidden = torch.zeros(1, 1, n, n, dtype=model.dtype, device=text.device)
    hidden = hidden.masked_fill(~mask, torch.finfo(model.dtype).min)
    keys: list[list[Tensor]] = []
    for extra in ({}, {"attention_mask": hidden}):
        cache = DynamicCache(config=model.config)
        with torch.no_grad():
            forward(model, text, cache, **extra)
        keys.append([layer.keys for layer in cache.layers if type(layer) is DynamicLayer and layer.keys is not None])
    scores = [key_sensitivity(full, blocked) for full, blocked in zip(*keys, strict=True)]
    return tuple(sensitivity_budgets(scores, budget * len(scores), power))
