"""Commit and undo: decisions that were put off, tokens taken back, and positions that go by name."""

from __future__ import annotations

import torch
from torch import Tensor

from remnant.errors import ConfigError, UnsupportedPolicy
from remnant_hf._deciding import Deciding
from remnant_hf.store import SlotStore

__all__ = ["Undoing"]

_FOREVER = 2**31 - 1


class Undoing(Deciding):
    """The part of `RemnantLayer` that puts off and takes back."""

    def _settle(self) -> None:
        """Finish what the last pass left open before new tokens arrive."""
        if self.waiting:
            self._missed()
        if self.stash and not self.record_past:
            self._replay()

    def _missed(self) -> None:
        """`update` happened and attention did not come by: serve policies that need no attention, refuse the rest."""
        count, self.waiting = self.waiting, 0
        if self.policy.needs:
            raise UnsupportedPolicy(
                f"layer {self.index} stored keys but its attention never passed the bridge, so policy "
                f"{self.policy.name!r} cannot see {', '.join(sorted(self.policy.needs))}",
                accepted="attention classes that use transformers' AttentionInterface",
                do="use streaming, window, random, knorm or keydiff for this model",
            )
        self._act(self._advance(count))

    def commit(self) -> None:
        """Take the decision that `prefilling` put off."""
        if self.stash:
            self._replay()
        else:
            self._decide("prefill")

    def activate_past_recording(self) -> None:
        """Evict nothing until the next `crop`.

        Raises:
            UnsupportedPolicy: the policy follows the text as it is written, and drafts are not yet text.
        """
        if "events" in self.policy.needs:
            raise UnsupportedPolicy(
                f"assisted generation with policy {self.policy.name!r}, which prunes by the text as it is written",
                accepted="policies that evict by attention, keys or age",
                do="generate without assistant_model and prompt_lookup_num_tokens",
            )
        self.record_past = True

    def crop(self, tokens_to_remove: int) -> None:
        """Drop the newest tokens, then commit what was put off.

        Args:
            tokens_to_remove: minus the number of tokens to drop. A positive number is the length to keep.

        Raises:
            ConfigError: tokens were evicted since, so the earlier state is gone.
        """
        remove = -tokens_to_remove if tokens_to_remove <= 0 else max(self.seen - tokens_to_remove, 0)
        if remove > self.tail:
            raise ConfigError(
                f"crop of {remove} tokens, but only {self.tail} arrived since the last eviction",
                do="call activate_past_recording() before the tokens that may be undone",
            )
        if remove:
            self.store.drop_newest(remove)
            self.seen -= remove
            self.tail -= remove
            self._trim_stash(remove)
        self._replay()

    def _trim_stash(self, remove: int) -> None:
        while remove and self.stash:
            q, count, seen = self.stash.pop()
            left = count - remove
            if left > 0:
                self.stash.append((q[:, :, :left], left, seen - remove))
            remove = max(-left, 0)

    def _replay(self) -> None:
        """Do for the stashed queries what would have been done had their tokens come one by one."""
        stash, self.stash = self.stash, []
        for q, count, seen in stash:
            if seen == count:
                self.step = 0
                self._remember(q, count, True)
                self._observe(None, count)
                self._decide("prefill")
            else:
                self._replay_decode(q, count)

    def _replay_decode(self, q: Tensor, count: int) -> None:
        acts = False
        seen = self.seen
        for i in range(count):
            self.seen = seen - count + i + 1
            self.step += 1
            self.decoded += 1
            self._remember(q[:, :, i : i + 1], 1, False)
            if self.observes or "attn" in self.policy.needs:
                self._observe_past(q[:, :, i : i + 1], count - i - 1)
            stored = self._stored() - (count - i - 1)
            acts = acts or self._due("decode", self.decoded, stored, self.tokens)
        self.seen = seen
        if acts:
            self._evict("decode")
        self.row = None

    def tokens_until_eviction(self) -> int:
        """Tokens that may be appended before the policy acts; drafts must not reach past it."""
        distance = _FOREVER
        for trigger in self.policy.when:
            room = max(self.tokens - self._stored(), 0)
            if trigger.kind == "step":
                distance = min(distance, room)
            elif trigger.kind == "every":
                distance = min(distance, max(room, trigger.n - self.decoded % trigger.n - 1))
            elif trigger.kind == "overflow":
                distance = min(distance, max(self.tokens + trigger.n - self._stored() - 1, 0))
        return distance

    def drop_positions(self, drop: Tensor) -> None:
        """Evict by true position: `drop` `[B, seen]` bool marks what goes. Rows may differ in how much they lose."""
        if not isinstance(self.store, SlotStore):
            raise UnsupportedPolicy(f"dropping spans from the layout of policy {self.policy.name!r}")
        pos = self.store.get("pos")
        gone = drop[:, None].expand(-1, pos.shape[1], -1).gather(2, pos)
        left = (~gone).sum(-1)
        width = int(left.max())
        if bool((left != width).any()):
            # Shorter rows keep some dropped slots as holes at the front, so that all rows stay one rectangle.
            if not self.padded:
                self._mark(torch.ones(pos.shape[0], 1, dtype=torch.bool, device=self.device))
            self.store.get("valid")[gone] = False
            self.holes = True
        order = torch.where(gone, pos - _FOREVER, pos).argsort(-1)[..., pos.shape[2] - width :]
        self.store.gather(order)
        self.indexes, self.tail = [], 0
        self.ledger.note(self.order, self.store.allocated())

    def truncate(self, length: int) -> None:
        """Drop every token at position `length` or later and set the seen length; uniform slots only."""
        if not isinstance(self.store, SlotStore):
            raise UnsupportedPolicy(f"truncating the layout of policy {self.policy.name!r}")
        pos = self.store.get("pos")
        left = (pos < length).sum(-1)
        width = int(left.flatten()[0])
        if bool((left != width).any()):
            raise UnsupportedPolicy("truncating rows or heads that kept different tokens")
        self.store.gather(torch.where(pos < length, pos, _FOREVER).argsort(-1)[..., :width])
        self.seen, self.tail, self.waiting, self.indexes = length, 0, 0, []
        if self.gaps_after is not None and length < self.gaps_after.shape[1]:
            self.gaps_after = self.gaps_after[:, :length] - self.gaps_after[:, length : length + 1]
            self.gaps_after = self.gaps_after if length else None
