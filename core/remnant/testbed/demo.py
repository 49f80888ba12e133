"""`remnant demo`: one question, answered from caches of different policies, by `generate` itself."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from remnant.errors import ConfigError
from remnant.progress import Progress, silent
from remnant.testbed.evaluate import budget_tokens, versions, with_defaults
from remnant.testbed.examples import make_examples
from remnant.testbed.tasks import Example

__all__ = ["run"]

_LENGTH, _EXAMPLES, _SEED = 1024, 6, 77
_COMPARED = ("full", "snapkv", "keydiff", "streaming")
_SCENES = {
    "passkey-early": "the question stands at the end of the text, before the cache is compressed",
    "passkey-late": "the question comes in a second turn, after the cache was compressed",
}


@dataclass(frozen=True)
class _Ask:
    """A text, a question that continues it, and the answer; where in the text the answer stands."""

    context: Tensor
    question: Tensor
    answer: list[int]
    mark: tuple[int, int]
    early: bool


def run(
    model: str | None = None,
    prompt_file: Path | None = None,
    question: str | None = None,
    policy: str = "snapkv",
    budget: int | Fraction | None = None,
    out: str | Path = "remnant-demo.png",
    progress: Progress = silent,
) -> dict[str, Any]:
    """Show a policy at work.

    Args:
        model: a checkpoint of transformers; None is the testbed with passkeys of its own.
        prompt_file: a text to ask about, with `model`.
        question: what to ask about it, with `model`.
        policy: to be shown beside the full cache.
        budget: tokens per KV head or a fraction of the text; default a tenth.
        out: chart of what the policy kept, a PNG.
        progress: called after every answer.

    Returns:
        `rows` with answers, bytes and speed; `chart`; what was asked; versions.
    """
    wanted = Fraction(1, 10) if budget is None else budget
    if model is not None:
        return _own(model, prompt_file, question, policy, wanted, Path(out), progress)
    if prompt_file is not None or question is not None:
        raise ConfigError("a prompt file or a question for the testbed, which knows only its own tasks",
                          accepted="both together with --model PATH")  # fmt: skip
    return _testbed(policy, wanted, Path(out), progress)


# ---- on the testbed


def _testbed(policy: str, budget: int | Fraction, out: Path, progress: Progress) -> dict[str, Any]:
    from remnant.testbed.model import load
    from remnant_hf.chart import kept_chart

    model, tokenizer = load()
    tokens = budget_tokens(budget, _LENGTH)
    names = list(dict.fromkeys((*_COMPARED, policy)))
    rows: list[dict[str, Any]] = []
    total, chart = len(_SCENES) * len(names), out
    asks = {scene: [_ask(scene, e) for e in make_examples(scene, _LENGTH, _EXAMPLES, _SEED)] for scene in _SCENES}
    for scene, questions in asks.items():
        for name in names:
            row, cache = _row(model, tokenizer, scene, questions, name, tokens)
            rows.append(row)
            progress(len(rows), total, f"{scene}, {name}")
            if name == policy and scene == "passkey-early":
                chart = kept_chart(cache, out, [questions[0].mark])
    first = asks["passkey-early"][0]
    return {
        "model": "testbed",
        "policy": policy,
        "length": _LENGTH,
        "budget_tokens": tokens,
        "text": _excerpt(tokenizer, first),
        "question": tokenizer.decode(first.question),
        "scenes": dict(_SCENES),
        "rows": rows,
        "chart": str(chart),
        **versions(model),
    }


def _ask(scene: str, example: Example) -> _Ask:
    """The stream up to the first token of the answer; where the same digits stand in the context."""
    first = example.answers[0][0]
    answer = [token for _, token in example.answers]
    context, ids = torch.tensor(example.context), example.context.tolist()
    found = next(i for i in range(len(ids)) if ids[i : i + len(answer)] == answer)
    question = torch.tensor(example.probe[: first + 1])
    return _Ask(context, question, answer, (found - 2, found + len(answer)), scene == "passkey-early")


def _excerpt(tokenizer: Any, ask: _Ask, around: int = 24) -> str:
    start, end = ask.mark
    text = str(tokenizer.decode(ask.context[max(0, start - around) : end + around]))
    return "... " + " ".join(text.split()) + " ..."


def _row(
    model: Any, tokenizer: Any, scene: str, questions: Sequence[_Ask], policy: str, tokens: int
) -> tuple[dict[str, Any], Any]:
    """One line of the table, and the cache of the first question."""
    right, seconds, said = 0, 0.0, ""
    caches: list[Any] = []
    for ask in questions:
        began = time.perf_counter()
        answer, cache = _answer(model, ask, policy, tokens)
        seconds += time.perf_counter() - began
        right += answer == ask.answer
        said = said or tokenizer.decode(answer)
        caches.append(cache)
    stats = caches[0].stats()
    row = {
        "scene": scene,
        "policy": policy,
        "answer": said,
        "expected": tokenizer.decode(questions[0].answer),
        "right": right,
        "of": len(questions),
        "bytes": stats.bytes,
        "peak_bytes": stats.peak_bytes,
        "bytes_full": _full(model, stats.seen),
        "seconds_per_answer": seconds / len(questions),
        "tokens_per_second": sum(c.stats().seen for c in caches) / seconds,
    }
    return row, caches[0]


def _full(model: Any, tokens: int) -> int:
    from remnant.testbed.drive import full_bytes

    return full_bytes(model, tokens)


def _answer(model: Any, ask: _Ask, policy: str, tokens: int) -> tuple[list[int], Any]:
    """Generate the answer with a fresh cache; a late question is a second turn over the same cache."""
    from remnant_hf import RemnantCache
    from remnant_hf._feed import feed
    from remnant_hf._hooks import hooks

    cache = RemnantCache(model.config, policy, budget=tokens, **with_defaults("", policy, {}))
    prompt = torch.cat([ask.context, ask.question])[None]
    if not ask.early:
        feed(model, ask.context[None], cache)
    extra = dict(hooks(cache)) if "tokens" in cache.policy.needs and "events" not in cache.policy.needs else {}
    out = model.generate(
        prompt,
        attention_mask=torch.ones_like(prompt),
        past_key_values=cache,
        max_new_tokens=len(ask.answer),
        do_sample=False,
        **extra,
    )
    return out[0, prompt.shape[1] :].tolist(), cache


# ---- on a model and a file of the user's own


def _own(
    path: str,
    prompt_file: Path | None,
    question: str | None,
    policy: str,
    budget: int | Fraction,
    out: Path,
    progress: Progress,
    new_tokens: int = 64,
) -> dict[str, Any]:
    import transformers

    from remnant_hf.chart import kept_chart

    if prompt_file is None or not question:
        raise ConfigError("a model without a text and a question", accepted="--prompt-file FILE --question TEXT")
    try:
        # As Any: the library's own annotations are incomplete.
        classes: Any = transformers
        tokenizer = classes.AutoTokenizer.from_pretrained(path)
        model = classes.AutoModelForCausalLM.from_pretrained(path).eval()
    except (OSError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise ConfigError(f"model {path!r} cannot be loaded ({reason})", accepted="a checkpoint folder") from error
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = model.to(device)
    ids = _encode(tokenizer, prompt_file.read_text(encoding="utf-8"), question).to(device)
    tokens = budget_tokens(budget, ids.shape[1])
    rows: list[dict[str, Any]] = []
    chart = out
    for name in dict.fromkeys(("full", policy)):
        row, cache = _generate(model, tokenizer, ids, name, tokens, new_tokens)
        rows.append(row)
        progress(len(rows), 2, name)
        if name == policy:
            chart = kept_chart(cache, out)
    return {
        "model": path,
        "policy": policy,
        "length": ids.shape[1],
        "budget_tokens": tokens,
        "text": str(prompt_file),
        "question": question,
        "rows": rows,
        "chart": str(chart),
        **versions(model),
    }


def _encode(tokenizer: Any, text: str, question: str) -> Tensor:
    """`[1, S]` ids of the text and the question behind it, in the model's chat format where it has one."""
    content = f"{text.rstrip()}\n\n{question}"
    if getattr(tokenizer, "chat_template", None):
        turn = [{"role": "user", "content": content}]
        content = tokenizer.apply_chat_template(turn, tokenize=False, add_generation_prompt=True)
        return tokenizer(content, return_tensors="pt", add_special_tokens=False).input_ids
    return tokenizer(content + "\n", return_tensors="pt").input_ids


def _generate(
    model: Any, tokenizer: Any, ids: Tensor, policy: str, tokens: int, new_tokens: int
) -> tuple[dict[str, Any], Any]:
    from remnant_hf import RemnantCache
    from remnant_hf._hooks import hooks

    cache = RemnantCache(model.config, policy, budget=tokens)
    extra = dict(hooks(cache, tokenizer)) if {"tokens", "events"} & cache.policy.needs else {}
    began = time.perf_counter()
    out = model.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        past_key_values=cache,
        max_new_tokens=new_tokens,
        do_sample=False,
        **extra,
    )
    seconds = time.perf_counter() - began
    stats = cache.stats()
    row = {
        "policy": policy,
        "answer": str(tokenizer.decode(out[0, ids.shape[1] :], skip_special_tokens=True)).strip(),
        "bytes": stats.bytes,
        "peak_bytes": stats.peak_bytes,
        "bytes_full": _unevicted(stats),
        "seconds": seconds,
        "tokens_per_second": stats.seen / seconds,
    }
    return row, cache


def _unevicted(stats: Any) -> int:
    """Bytes that the cache would hold had nothing been evicted, from its own layers."""
    total = 0
    for layer in stats.layers:
        stored = sum(n for row in layer.stored for n in row)
        slots = layer.seen * sum(len(row) for row in layer.stored)
        total += round(layer.bytes * slots / stored) if stored else layer.bytes
    return total
