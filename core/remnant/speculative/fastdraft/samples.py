"""What the target says: its completions of the prompts, drawn in batches, kept as files, made into training rows."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from safetensors.torch import load_file, save_file  # pyright: ignore[reportUnknownVariableType]
from torch import Tensor

from remnant.errors import ConfigError
from remnant.progress import Progress, silent
from remnant.speculative.fastdraft.data import IGNORE, Ids, Prompt
from remnant.speculative.fastdraft.hf import hf
from remnant.speculative.fastdraft.losses import mask_padding

__all__ = ["TEMPERATURES", "Samples", "complete", "draw", "make_samples", "temper"]

TEMPERATURES = (0.0, 0.6, 0.8, 1.0)
"""Those that completions are drawn at, in turns; 0 is greedy."""


def temper(logits: Tensor, temperature: Tensor | float, real: int) -> Tensor:
    """Probabilities at a temperature, one-hot at 0, with padding ids masked.

    Args:
        logits: `[..., V]`.
        temperature: a number, or one per row `[...]`.
        real: ids below it exist.

    Returns:
        `[..., V]` float32.
    """
    z = mask_padding(logits.float(), real)
    t = torch.as_tensor(temperature, dtype=z.dtype, device=z.device).expand(z.shape[:-1]).unsqueeze(-1)
    greedy = torch.zeros_like(z).scatter_(-1, z.argmax(-1, keepdim=True), 1.0)
    return torch.where(t > 0, (z / t.clamp(min=1e-6)).softmax(-1), greedy)


def draw(p: Tensor, generator: torch.Generator | None) -> Tensor:
    """One token per row `[B]` from `[B, V]`; a generator on the CPU serves every device."""
    return torch.multinomial(p.cpu(), 1, generator=generator).squeeze(-1).to(p.device)


@torch.inference_mode()
def complete(
    model: Any,
    prompts: Sequence[Sequence[int]],
    temperatures: Tensor,
    new: int,
    ends: Tensor,
    real: int,
    generator: torch.Generator | None,
) -> list[list[int]]:
    """Continue prompts, each at a temperature of its own, in one batch.

    Args:
        model: a causal language model of transformers.
        prompts: B lists of ids of any lengths above 0.
        temperatures: `[B]`; 0 is greedy.
        new: most tokens to add.
        ends: `[n]` ids that end a text; the one that did is part of the completion.
        real: ids below it exist; others are never drawn.
        generator: the source of chance.

    Returns:
        B completions. One that has `new` tokens and no end was cut off.
    """
    device = next(model.parameters()).device
    longest = max(map(len, prompts))
    ids = torch.zeros(len(prompts), longest, dtype=torch.int64)
    mask = torch.zeros_like(ids)
    for row, prompt in enumerate(prompts):  # padded on the left, so that all rows go on at one place
        ids[row, longest - len(prompt) :] = torch.tensor(prompt)
        mask[row, longest - len(prompt) :] = 1
    ids, mask, ends = ids.to(device), mask.to(device), ends.to(device)
    temperatures = temperatures.to(device)
    cache = hf().DynamicCache(config=model.config)
    out: list[Tensor] = []
    open_rows = torch.ones(len(prompts), dtype=torch.bool, device=device)
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    for _ in range(new):
        found = model(input_ids=ids, attention_mask=mask, position_ids=positions, past_key_values=cache,
                      use_cache=True, logits_to_keep=1)  # fmt: skip
        token = draw(temper(found.logits[:, -1], temperatures, real), generator)
        out.append(torch.where(open_rows, token, IGNORE))
        open_rows &= ~torch.isin(token, ends)
        if not bool(open_rows.any()):
            break
        ids, positions = token.unsqueeze(-1), positions[:, -1:] + 1
        mask = torch.cat([mask, torch.ones_like(ids)], -1)
    table: list[list[int]] = cast(Any, torch.stack(out, -1)).tolist()
    return [[token for token in row if token != IGNORE] for row in table]


@dataclass(frozen=True)
class Samples:
    """Completions as training rows: prompt and completion, and which of it is learned.

    Args:
        ids: `[N, T]` int64, rows filled up with 0 at the end.
        start: `[N]` first token of the completion.
        stop: `[N]` end (exclusive) of what is learned.
        size: `[N]` end (exclusive) of the row's tokens.
    """

    ids: Ids
    start: Ids
    stop: Ids
    size: Ids

    def __len__(self) -> int:
        """Rows."""
        return len(self.ids)

    @property
    def tokens(self) -> int:
        """Tokens that are learned."""
        return int((self.stop - self.start).sum())

    def rows(self, rng: np.random.Generator, n: int, length: int) -> tuple[Ids, Ids]:
        """A batch as in `data.Rows`: only tokens of completions are labels.

        Rows are drawn without one coming twice in a batch, and cut at the batch's longest; a row longer than `length`
        loses the beginning of its prompt.
        """
        chosen = rng.choice(len(self), size=min(n, len(self)), replace=False)
        longest = min(length, int(self.size[chosen].max()))
        ids = np.zeros((len(chosen), longest), dtype=np.int64)
        labels = np.full((len(chosen), longest), IGNORE, dtype=np.int64)
        for row, at in enumerate(chosen):
            skip = max(0, int(self.size[at]) - longest)
            tokens = self.ids[at, skip : int(self.size[at])]
            ids[row, : len(tokens)] = tokens
            first, last = max(int(self.start[at]) - skip, 1), int(self.stop[at]) - skip
            labels[row, first - 1 : last - 1] = tokens[first:last]
        return ids, labels


def rows_of(
    prompts: Sequence[Sequence[int]], completions: Sequence[Sequence[int]], ends: Sequence[int], drop_tail: float
) -> Samples:
    """Make training rows; equal rows count once.

    A completion that was cut off never shows how it would have ended. Its last part is not learned, so that the
    drafter does not take the place where all of them were cut for a place where texts go on.

    Args:
        prompts: N lists of ids.
        completions: N lists of ids.
        ends: ids that end a text.
        drop_tail: fraction of a completion that was cut off, not learned, counted from its end.
    """
    seen: dict[tuple[int, ...], tuple[int, int]] = {}
    for prompt, completion in zip(prompts, completions, strict=True):
        whole = bool(completion) and completion[-1] in ends
        learned = len(completion) if whole else len(completion) - int(np.ceil(drop_tail * len(completion)))
        if learned > 0:
            seen.setdefault((*prompt, *completion), (len(prompt), len(prompt) + learned))
    if not seen:
        raise ConfigError("the target's completions are empty", do="allow more new tokens, or give other prompts")
    ids = np.zeros((len(seen), max(map(len, seen))), dtype=np.int64)
    for row, tokens in enumerate(seen):
        ids[row, : len(tokens)] = tokens
    start, stop = (np.array(column, dtype=np.int64) for column in zip(*seen.values(), strict=True))
    return Samples(ids, start, stop, np.array([len(t) for t in seen], dtype=np.int64))


def make_samples(
    model: Any,
    prompts: Sequence[Prompt],
    folder: Path,
    new: int,
    ends: Tensor,
    real: int,
    seed: int,
    temperatures: Sequence[float] = TEMPERATURES,
    batch: int = 64,
    drop_tail: float = 0.125,
    progress: Progress = silent,
) -> Samples:
    """Let the target complete every prompt once; batches that lie in `folder` are not drawn again.

    Args:
        model: the target.
        prompts: what to complete. Each gets one of the temperatures, in turns.
        folder: for one file per batch.
        new: most tokens of a completion.
        ends: `[n]` ids that end a text.
        real: ids that exist.
        seed: of the draws; every batch has a generator of its own.
        temperatures: 0 is greedy.
        batch: prompts at once.
        drop_tail: see `rows_of`.
        progress: called after every batch.
    """
    folder.mkdir(parents=True, exist_ok=True)
    # Prompts of like length share a batch; the order of temperatures is that of the prompts as given.
    order = sorted(range(len(prompts)), key=lambda i: (len(prompts[i].ids), i))
    asked: list[Sequence[int]] = []
    said: list[list[int]] = []
    total = -(-len(order) // batch)
    for at in range(total):
        chosen = order[at * batch : (at + 1) * batch]
        asked += [prompts[i].ids for i in chosen]
        file = folder / f"batch-{at:05}.safetensors"
        if not file.is_file():
            heat = torch.tensor([temperatures[i % len(temperatures)] for i in chosen])
            generator = torch.Generator().manual_seed(seed * 1_000_003 + at)
            answers = complete(model, [prompts[i].ids for i in chosen], heat, new, ends, real, generator)
            _save(file, answers)
        said += _load(file)
        progress(at + 1, total, "the target answers")
    return rows_of(asked, said, cast(Any, ends).tolist(), drop_tail)


def _save(file: Path, answers: Sequence[Sequence[int]]) -> None:
    flat = torch.tensor([token for answer in answers for token in answer], dtype=torch.int32)
    tensors = {"tokens": flat, "lengths": torch.tensor([len(answer) for answer in answers], dtype=torch.int32)}
    part = file.with_suffix(".tmp")
    save_file(tensors, part)
    part.replace(file)  # a file that is there is whole


def _load(file: Path) -> Iterator[list[int]]:
    found: dict[str, Any] = dict(load_file(file))
    for piece in found["tokens"].split(found["lengths"].tolist()):
        yield piece.tolist()
