"""An EAGLE-3 drafter beside its target: both as functions of a text, which the target reads once for the two."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from remnant.errors import ConfigError
from remnant.speculative.eagle3 import Eagle3

__all__ = ["Eagle3Pair"]


class Eagle3Pair:
    """A target of transformers and an EAGLE-3 drafter, teacher-forced: what each says of every token of a text.

    Args:
        target: a causal language model of transformers.
        head: the drafter, on the same device.
        begin: ids that stand before every text, such as a beginning; no logits are given for them.

    Raises:
        ConfigError: a target with another width or vocabulary, or without the states that the drafter reads.

    Example: pair = Eagle3Pair(target, load_eagle3("drafter")); measure(pair.target, pair.draft, texts, maps)
    """

    def __init__(self, target: Any, head: Eagle3, begin: Sequence[int] = ()) -> None:
        """See the class."""
        config, shape = target.config.get_text_config(), head.shape
        self.layers = shape.layers_of(int(config.num_hidden_layers))
        if len(self.layers) != head.states:
            given = f"a drafter of {head.states} states, states {list(self.layers)} of the target"
            do = "name as many in eagle_aux_hidden_state_layer_ids"
            raise ConfigError(given, accepted="one for each", do=do)
        wide = target.get_input_embeddings().weight.shape[1] if head.embed_tokens is None else shape.hidden
        found = (int(config.hidden_size), int(config.vocab_size), int(wide))
        if found != (shape.target_hidden, shape.vocab, shape.hidden):
            given = f"a target of {found[0]} channels, {found[1]} tokens, embeddings of {found[2]}"
            accepted = f"{shape.target_hidden}, {shape.vocab}, {shape.hidden}, as the drafter was made for"
            raise ConfigError(given, accepted=accepted)
        self._target, self.head = target, head
        self._begin = torch.tensor([list(begin)], dtype=torch.int64)
        self._read: tuple[Tensor, Tensor, Tensor] | None = None

    def target(self, ids: Tensor) -> Tensor:
        """`[1, T]` ids -> `[1, T, V]` logits of the token after each, of the target."""
        return self._states(ids)[0][:, self._begin.shape[1] :]

    def draft(self, ids: Tensor) -> Tensor:
        """The same of the drafter's first draft; of the very first token nothing: minus infinity throughout."""
        return self.chain(ids, 1)[0]

    def chain(self, ids: Tensor, steps: int) -> list[Tensor]:
        """The same of each of a chain's drafts; see `Eagle3.forward`."""
        whole = self._whole(ids)
        states = self._states(ids)[1]
        embed = self.head.embed_tokens or self._target.get_input_embeddings()
        with torch.no_grad():
            embeds = embed(whole).to(self.head.fc.weight.dtype)
            return [x[:, self._begin.shape[1] :] for x in self.head(embeds, states.to(embeds.dtype), steps)]

    def _whole(self, ids: Tensor) -> Tensor:
        return torch.cat([self._begin.expand(len(ids), -1), ids.cpu()], 1).to(self._target.device)

    def _states(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        """Logits and states of the target; those of the last text are kept, since two functions ask for them."""
        if self._read is None or self._read[0] is not ids:
            with torch.no_grad():
                out = self._target(input_ids=self._whole(ids), output_hidden_states=True, use_cache=False)
            self._read = (ids, out.logits, torch.cat([out.hidden_states[i] for i in self.layers], -1))
        return self._read[1], self._read[2]
