"""What the testbed writes, many answers at once: texts for counting, for training drafters and for measuring them."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

import torch

from remnant.speculative.vocab_counts import Tokens


def prompts_of(tokenizer: Any, texts: Sequence[str], length: int, each: int = 1) -> torch.Tensor:
    """`[N, 1 + length]`: a beginning and the next tokens of every text that has them.

    Args:
        tokenizer: of the testbed.
        texts: documents; each gives up to `each` prompts, one after the other.
        length: tokens of a prompt.
        each: prompts of a text at most.
    """
    rows: list[list[int]] = []
    for text in texts:
        ids = tokenizer(text[: 16 * length * each], add_special_tokens=False).input_ids
        rows += [ids[i * length : (i + 1) * length] for i in range(min(each, len(ids) // length))]
    return torch.tensor([[tokenizer.bos_token_id, *row] for row in rows])


def write(
    model: Any, prompts: torch.Tensor, new: int, temperature: float, generator: torch.Generator, batch: int = 64
) -> torch.Tensor:
    """`[N, P]` prompts -> `[N, P + new]`: with answers of the model, beyond an end as well.

    Args:
        model: causal.
        prompts: of one length.
        new: tokens per answer.
        temperature: 0 is greedy.
        generator: draws.
        batch: answers at once.
    """
    done: list[torch.Tensor] = []
    for part in prompts.split(batch):
        ids, cache, text = part, None, [part]
        with torch.no_grad():
            for _ in range(new):
                out = model(input_ids=ids, past_key_values=cache, use_cache=True)
                cache, z = out.past_key_values, out.logits[:, -1]
                p = torch.softmax(z / temperature, -1) if temperature else z
                ids = torch.multinomial(p, 1, generator=generator) if temperature else p.argmax(-1, keepdim=True)
                text.append(ids)
        done.append(torch.cat(text, 1))
        print(f"\rwritten {sum(map(len, done))} of {len(prompts)}", end="", file=sys.stderr)
    print(file=sys.stderr)
    return torch.cat(done)


def answers(rows: torch.Tensor, prompt: int, end: int) -> list[Tokens]:
    """Texts of which the answers count, cut after their end.

    Args:
        rows: `[N, P + new]`, as `write` gives them.
        prompt: P.
        end: id that ends an answer.
    """
    found: list[Tokens] = []
    for row in rows:
        ends = (row[prompt:] == end).nonzero()
        row = row[: prompt + 1 + int(ends[0])] if len(ends) else row
        found.append(Tokens(row, torch.arange(len(row)) >= prompt))
    return found
