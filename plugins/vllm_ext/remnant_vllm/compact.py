"""The worker's side of eviction: remember what the policy needs, ask it, and move the survivors together.

Survivors of the logical slots `[gone, end)` are packed into `[going, end)`; what comes before is empty then
and its blocks go back to the pool. Nothing that is written later has to know.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from remnant.errors import ConfigError, UnsupportedPolicy
from remnant.kv import Keep, KVView, Policy, Rope
from remnant.kv.score import group_columns
from remnant_vllm.codec import Codec
from remnant_vllm.shift import Job, watches

__all__ = ["Compactor", "Place", "Track"]


@dataclass(frozen=True)
class Place:
    """What does not change about a layer.

    Attributes:
        order: index among the governed layers.
        layers: number of governed layers.
        scaling: factor on q.k.
        softcap: of the logits, or None.
        sinks: `[Hq]` extra logits, or None.
        rope: how keys are rotated, for policies that need it.
    """

    order: int
    layers: int
    scaling: float
    softcap: float | None = None
    sinks: Tensor | None = None
    rope: Rope | None = None


@dataclass
class Track:
    """What one layer remembers about one request between steps.

    Attributes:
        seen: tokens that went through.
        gone: tokens whose blocks are gone.
        positions: `[H, S]` true positions of the stored slots; None while they are `0 .. seen`.
        queries: `[1, Hq, w, D]` newest queries, or None.
        side: per-slot tensors of the policy, `[1, H, S]`.
        state: per-sequence tensors of the policy.
        step: decoded tokens since the prompt.
    """

    seen: int = 0
    gone: int = 0
    positions: Tensor | None = None
    queries: Tensor | None = None
    side: dict[str, Tensor] = field(default_factory=dict[str, Tensor])
    state: dict[str, Tensor] = field(default_factory=dict[str, Tensor])
    step: int = 0


class Compactor:
    """Carries out the jobs of one layer.

    Args:
        codec: reads and writes its cache.
        place: the layer.
    """

    def __init__(self, codec: Codec, place: Place) -> None:
        """See the class."""
        self.codec, self.place = codec, place
        self.tracks: dict[str, Track] = {}

    def forget(self, alive: frozenset[str]) -> None:
        """Drop what is remembered about requests that are over."""
        for request in [name for name in self.tracks if name not in alive]:
            del self.tracks[request]

    def __call__(
        self, job: Job, layer: Any, query: Tensor, key: Tensor, value: Tensor, cache: Tensor, table: Tensor, out: Tensor
    ) -> None:
        """Do one job, after the attention of the step.

        Args:
            job: what to do.
            layer: the attention layer; its cache layout may depend on it.
            query: `[T, Hq, D]` of the whole batch, after RoPE.
            key: `[T, H, D]`.
            value: `[T, H, Dv]`.
            cache: the paged cache.
            table: `[n]` block ids of the row, gone ones left out.
            out: `[T, Hq, Dv]`, where attention has written; corrected for tokens behind a prompt that is compressed
                in the same step.
        """
        policy = job.settings.make()
        track = self._track(job, watches(policy))
        rows = slice(job.first, job.first + job.end - job.before)
        size = cache.shape[2]
        stored = job.end - job.gone
        whole: tuple[Tensor, Tensor] | None = None
        if policy.sides or self._observes(policy, job) or job.going > job.gone:
            blocks = table[: -(-stored // size)].long()
            k, v = self.codec.read(layer, cache, blocks, stored)
            whole = k.unsqueeze(0), v.unsqueeze(0)
        self._append(job, track, policy, whole)
        fresh = query[rows].transpose(0, 1).unsqueeze(0)
        prefill = job.before < job.prompt_len
        track.step = 0 if prefill else track.step + 1
        self._remember(track, policy, fresh, prefill)
        row = None
        if whole is not None:
            row = self._row(job, track, policy, fresh, whole, prefill)
            self._observe(job, track, policy, fresh, whole, row)
        if job.going > job.gone:
            assert whole is not None
            self._evict(job, track, policy, layer, cache, table, whole, row)
            track.gone = job.going
        if job.after > job.end:
            self._read_again(job, layer, query, cache, table, out)
        if job.settings.mode == "prompt" and job.after >= job.prompt_len:
            del self.tracks[job.request]

    def _track(self, job: Job, watched: bool) -> Track:
        """What is known about a request; anew when it starts, starts again, or has its first tokens from elsewhere."""
        track = self.tracks.get(job.request)
        # A policy that looks at nothing has no job between two evictions: its tokens came one behind the other.
        follows = track is not None and (track.seen == job.before or (not watched and track.seen < job.before))
        if track is not None and follows and track.gone == job.gone:
            return track
        if job.gone:
            raise ConfigError(
                f"request {job.request}: layer {self.place.order} has lost track at token {job.before}",
                do="this is a fault of remnant; please report it with the flags in use",
            )
        track = self.tracks[job.request] = Track()
        return track

    def _observes(self, policy: Policy, job: Job) -> bool:
        """Whether the policy looks at this pass, and not only when it decides."""
        if type(policy).observe is Policy.observe:
            return False
        return job.before >= job.prompt_len or "all_queries" in policy.needs

    def _append(self, job: Job, track: Track, policy: Policy, whole: tuple[Tensor, Tensor] | None) -> None:
        """Positions and side state of the tokens that are new, which after a prefix hit are more than this step's."""
        old, track.seen = track.seen, job.end
        count = job.end - old
        if track.positions is not None:
            heads = track.positions.shape[0]
            new = torch.arange(old, job.end, device=track.positions.device).expand(heads, count)
            track.positions = torch.cat([track.positions, new], 1)
        if not policy.sides:
            return
        assert whole is not None
        k, v = (x[:, :, x.shape[2] - count :] for x in whole)
        at = torch.arange(old, job.end, device=k.device).expand(1, k.shape[1], count)
        view = KVView(k, v, at, job.end, self.place.order, self.place.layers, state=track.state, step=track.step)
        given = policy.append(view)
        for side in policy.sides:
            fill = torch.full((1, k.shape[1], count), side.fill, dtype=side.dtype, device=k.device)
            new = given.get(side.name, fill)
            track.side[side.name] = torch.cat([track.side[side.name], new], 2) if side.name in track.side else new

    def _remember(self, track: Track, policy: Policy, fresh: Tensor, prefill: bool) -> None:
        """Keep the queries that the policy wants to see at its next decision, however the prompt was cut."""
        needs = policy.needs
        if not needs & {"queries", "all_queries"} or ("queries" not in needs and not prefill):
            return
        both = fresh if track.queries is None else torch.cat([track.queries, fresh], 2)
        if "all_queries" in needs and type(policy).observe is Policy.observe:
            track.queries = both.clone() if both is fresh else both
        else:
            track.queries = both[:, :, -max(policy.window, 1) :].clone()

    def _view(
        self, track: Track, whole: tuple[Tensor, Tensor], queries: Tensor | None, row: Tensor | None = None
    ) -> KVView:
        k, v = whole
        at = track.positions
        if at is None:
            at = torch.arange(track.seen, device=k.device).expand(k.shape[1], track.seen)
        here = self.place
        return KVView(
            k, v, at.unsqueeze(0), track.seen, here.order, here.layers, None, queries, row, track.side, track.state,
            track.step, here.scaling, here.softcap, here.sinks, here.rope,
        )  # fmt: skip

    def _row(
        self, job: Job, track: Track, policy: Policy, fresh: Tensor, whole: tuple[Tensor, Tensor], prefill: bool
    ) -> Tensor | None:
        """`[1, H, S]` attention of the decoded token, which the kernel does not give away."""
        if "attn" not in policy.needs or prefill:
            return None
        return group_columns(self._view(track, whole, fresh[:, :, -1:]), policy.attn_reduce)

    def _observe(
        self, job: Job, track: Track, policy: Policy, fresh: Tensor, whole: tuple[Tensor, Tensor], row: Tensor | None
    ) -> None:
        if not self._observes(policy, job):
            return
        queries = fresh if "all_queries" in policy.needs and row is None else track.queries
        side, state = policy.observe(self._view(track, whole, queries, row))
        track.side.update(side)
        track.state.update(state)

    def _evict(
        self,
        job: Job,
        track: Track,
        policy: Policy,
        layer: Any,
        cache: Tensor,
        table: Tensor,
        whole: tuple[Tensor, Tensor],
        row: Tensor | None,
    ) -> None:
        """Ask the policy and pack the survivors behind the blocks that go."""
        size = cache.shape[2]
        stored = whole[0].shape[2]
        left = stored - (job.going - job.gone)
        view = self._view(track, whole, track.queries, row)
        keep = policy.plan(view, left)
        _check(policy, keep, left)
        index = keep.indices[0]
        self.codec.pack(layer, cache, table[: -(-stored // size)], index, stored - left, whole)
        if job.settings.mode == "prompt":
            return  # this was the only decision, and nothing is remembered behind it
        track.positions = view.positions[0].gather(1, index)
        track.side = {
            name: keep.side[name] if name in keep.side else x.gather(2, keep.indices) for name, x in track.side.items()
        }
        track.state.update(keep.state)
        if "all_queries" in policy.needs:
            track.queries = None

    def _read_again(self, job: Job, layer: Any, query: Tensor, cache: Tensor, table: Tensor, out: Tensor) -> None:
        """Attention of the tokens behind the prompt, over the survivors, as it was before the request was preempted.

        The kernel let them see the whole prompt, because that was still there when the step began.
        """
        size = cache.shape[2]
        shift = (job.going - job.gone) // size
        count = job.after - job.going
        blocks = table[shift : shift + -(-count // size)].long()
        k, v = (x.float() for x in self.codec.read(layer, cache, blocks, count))
        new = job.after - job.end
        rows = slice(job.first + job.end - job.before, job.first + job.after - job.before)
        q = query[rows].float()
        group = q.shape[1] // k.shape[0]
        k, v = (x.repeat_interleave(group, 0) for x in (k, v))
        x = torch.einsum("nhd,hsd->hns", q, k) * self.place.scaling
        if self.place.softcap:
            x = self.place.softcap * torch.tanh(x / self.place.softcap)
        ahead = torch.ones(new, count, dtype=torch.bool, device=x.device).triu(count - new + 1)
        x = x.masked_fill(ahead, float("-inf"))
        if self.place.sinks is not None:
            extra = self.place.sinks.float().view(-1, 1, 1).expand(-1, new, 1)
            p = torch.cat([x, extra], -1).softmax(-1)[..., :-1]
        else:
            p = x.softmax(-1)
        result = torch.einsum("hns,hsd->nhd", p, v)
        out.view(out.shape[0], q.shape[1], -1)[rows] = result.to(out.dtype)


def _check(policy: Policy, keep: Keep, left: int) -> None:
    """A plan that vLLM's blocks cannot hold is refused, never bent."""
    if keep.merge is not None or keep.channels is not None or keep.lengths is not None:
        raise UnsupportedPolicy(
            f"policy {policy.name!r} asks for merging, channels or ragged heads", accepted="plans that choose tokens"
        )
    if keep.indices.shape[-1] != left:
        raise UnsupportedPolicy(
            f"policy {policy.name!r} keeps {keep.indices.shape[-1]} tokens where {left} were asked for",
            accepted="policies that fill their budget",
        )
