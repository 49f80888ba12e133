"""What trimming does to acceptance: both models read the same text, and their distributions are laid side by side."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from remnant.errors import ConfigError, ShapeError
from remnant.progress import Progress, silent
from remnant.speculative.vocab_counts import Tokens
from remnant.speculative.vocab_map import VocabMap

__all__ = [
    "Forward",
    "Measured",
    "acceptance",
    "between",
    "drafted",
    "expected_overlap",
    "measure",
    "overlaps",
    "written_by",
]

Forward = Callable[[Tensor], Tensor]
"""`[1, T]` token ids -> `[1, T, V]` logits of the token after each; minus infinity where a token is never proposed.

A row of nothing else says that the drafter does not draft there; it is not compared."""

_ROWS = 64  # positions at once: a position of a large vocabulary is half a megabyte


@dataclass(frozen=True)
class Measured:
    """Means over the positions of a text.

    Args:
        k: tokens kept.
        acceptance: probability that a token drafted from the trimmed drafter is accepted.
        bound: what is guaranteed: the whole drafter's acceptance less the smaller of what p and q put outside.
        coverage: what the target puts on the kept tokens.
    """

    k: int
    acceptance: float
    bound: float
    coverage: float


def acceptance(p: Tensor, q: Tensor) -> Tensor:
    """Probability that a token drawn from q is accepted by p: `[..., V]` twice -> `[...]`."""
    return torch.minimum(p, q).sum(-1)


def expected_overlap(
    target: Forward, draft: Forward, texts: Iterable[Tokens], temperature: float = 1.0, progress: Progress = silent
) -> tuple[Tensor, Tensor]:
    """How much acceptance each token can bring: `g(x) = E[min(p(x), q(x))]` and `E[p(x)]`.

    A drafter trimmed to S accepts at least the sum of g over S, since renormalising only raises q, and at most the sum
    of E[p]. Both are sums over tokens, so the k largest values give the best bound; counts are a proxy of the second.

    Args:
        target: reads a text and gives logits.
        draft: the same of the drafter, untrimmed.
        texts: what both read.
        temperature: of both; 0 is greedy.
        progress: called with tokens read.

    Returns:
        `(g, mass)`: `[V]` float64 each.

    Raises:
        ConfigError: nothing to compare.
        ShapeError: two vocabularies.
    """
    total, positions = None, 0
    for p, zq in _pairs(target, draft, texts, temperature, progress):
        overlap = torch.minimum(p, _softmax(zq, temperature))
        part = torch.stack([x.sum(0, dtype=torch.float64).cpu() for x in (overlap, p)])
        total, positions = part if total is None else total + part, positions + len(p)
    if total is None:
        raise ConfigError("no position to compare the models at", do="give more tokens")
    return total[0] / positions, total[1] / positions


def between(overlap: Tensor, mass: Tensor, counts: Tensor) -> Tensor:
    """Merit of a token: halfway between what it brings at least and at most.

    The lower bound alone loses to counts where a small k leaves the drafter little, so that renormalising is strong.

    Args:
        overlap: `[V]`, `g` of `expected_overlap`.
        mass: `[V]`, its `E[p]`.
        counts: `[V]` of the same text; they order the tokens that bring nothing.

    Returns:
        `[V]` float64.
    """
    return (overlap + mass) / 2 + 1e-6 * counts / counts.sum().clamp(min=1)


def measure(
    target: Forward,
    draft: Forward,
    texts: Iterable[Tokens],
    maps: Sequence[VocabMap],
    temperature: float = 1.0,
    progress: Progress = silent,
) -> tuple[float, int, list[Measured]]:
    """Acceptance of a drafter with and without trimming, on text that neither set was chosen by.

    Returns:
        `(whole, positions, trimmed)`: acceptance of the untrimmed drafter, positions that were compared, and a row per
        map.
    """
    sums, whole, positions = torch.zeros(len(maps), 3, dtype=torch.float64), 0.0, 0
    for p, zq in _pairs(target, draft, texts, temperature, progress):
        full = acceptance(p, _softmax(zq, temperature))
        whole, positions = whole + float(full.sum(dtype=torch.float64)), positions + len(p)
        for row, kept in zip(sums, maps, strict=True):
            row += torch.stack([x.sum(dtype=torch.float64).cpu() for x in _trimmed(p, zq, full, kept, temperature)])
    if not positions:
        raise ConfigError("no position to compare the models at", do="give more tokens")
    means = sums / positions
    found = [Measured(kept.k, *map(float, row)) for kept, row in zip(maps, means, strict=True)]
    return whole / positions, positions, found


def overlaps(z: Tensor, zq: Tensor, maps: Sequence[VocabMap], temperature: float) -> Tensor:
    """Acceptance `[maps, T]` of a trimmed drafter at every place."""
    found: list[Tensor] = []
    for start in range(0, len(z), _ROWS):
        p, part = _softmax(z[start : start + _ROWS], temperature), zq[start : start + _ROWS].to(z.device)
        found.append(torch.stack([_accepted(p, part, kept, temperature).cpu() for kept in maps]))
    return torch.cat(found, 1).double()


def _accepted(p: Tensor, zq: Tensor, kept: VocabMap, temperature: float) -> Tensor:
    index = kept.index(p.device)
    return acceptance(p.index_select(-1, index), _proposed(zq.index_select(-1, index), temperature))


def _proposed(zq: Tensor, temperature: float) -> Tensor:
    """A drafter that can propose no kept token at all proposes nothing, so nothing is accepted."""
    return torch.where(drafted(zq)[:, None], _softmax(zq, temperature), 0.0)


def drafted(zq: Tensor) -> Tensor:
    """Where anything is proposed: `[T, V]` -> `[T]`."""
    return zq.amax(-1) > -torch.inf


def _trimmed(p: Tensor, zq: Tensor, full: Tensor, kept: VocabMap, temperature: float) -> tuple[Tensor, Tensor, Tensor]:
    """(acceptance, bound, coverage) `[T]` each."""
    index = kept.index(p.device)
    held = p.index_select(-1, index).sum(-1)
    held_q = _softmax(zq, temperature).index_select(-1, index).sum(-1)
    return _accepted(p, zq, kept, temperature), full - torch.minimum(1 - held, 1 - held_q), held


def _pairs(
    target: Forward, draft: Forward, texts: Iterable[Tokens], temperature: float, progress: Progress
) -> Iterator[tuple[Tensor, Tensor]]:
    """The target's distribution and the drafter's logits, `[T, V]` each, where the next token counts and is drafted."""
    texts = list(texts)
    done, total = 0, sum(len(tokens.ids) for tokens in texts)
    for tokens in texts:
        done += len(tokens.ids)
        if len(tokens.ids) < 2:
            continue
        ids = tokens.ids[None]
        with torch.no_grad():
            z, zq = target(ids)[0, :-1], draft(ids)[0, :-1]
        if z.shape != zq.shape:
            given = f"a target over {z.shape[-1]} tokens, a drafter over {zq.shape[-1]}"
            raise ShapeError(given, accepted="one vocabulary")
        if tokens.counted is not None:
            rows = tokens.counted[1:].to(z.device)
            z, zq = z[rows], zq[rows.to(zq.device)]
        rows = drafted(zq)
        z, zq = z[rows.to(z.device)], zq[rows]
        for start in range(0, len(z), _ROWS):
            part = slice(start, start + _ROWS)
            yield _softmax(z[part], temperature), zq[part].to(z.device)
        progress(done, total, "comparing the models")


def _softmax(z: Tensor, temperature: float) -> Tensor:
    if temperature == 0:
        return torch.zeros_like(z, dtype=torch.float32).scatter_(-1, z.argmax(-1, keepdim=True), 1.0)
    return torch.softmax(z.float() / temperature, -1)


def written_by(
    model: Any,
    prompts: Iterable[Tokens],
    max_new: int,
    temperature: float = 0.0,
    generator: torch.Generator | None = None,
    progress: Progress = silent,
) -> Iterator[Tokens]:
    """What a model writes after prompts: the best text to choose a drafter's tokens by.

    Args:
        model: a causal language model of transformers.
        prompts: each is answered on its own.
        max_new: tokens per answer at most; one that ends earlier keeps its end.
        temperature: 0 is greedy.
        generator: draws, where the temperature is not 0.
        progress: called with answers done.

    Returns:
        Prompt and answer, of which the answer counts.
    """
    held = [tokens for tokens in prompts if len(tokens.ids)]
    ends = _ends(model)
    for done, tokens in enumerate(held, 1):
        ids: Tensor = tokens.ids[None].to(model.device)
        cache, written = None, list[Tensor]()
        with torch.no_grad():
            while len(written) < max_new:
                out = model(input_ids=ids, past_key_values=cache, use_cache=True)
                cache, p = out.past_key_values, _softmax(out.logits[0, -1:], temperature)
                ids = p.argmax(-1)[None] if temperature == 0 else torch.multinomial(p, 1, generator=generator)
                written.append(ids[0].cpu())
                if int(ids) in ends:
                    break
        whole = torch.cat([tokens.ids, *written])
        progress(done, len(held), "the target writes")
        yield Tokens(whole, torch.arange(len(whole)) >= len(tokens.ids))


def _ends(model: Any) -> set[int]:
    given: Any = getattr(model.generation_config, "eos_token_id", None)
    if given is None:
        return set()
    return {given} if isinstance(given, int) else set(given)
