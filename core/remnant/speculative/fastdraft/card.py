"""The folder that comes out: a checkpoint that hosts load, and a card that says what it is worth and whence."""

from __future__ import annotations

import hashlib
import platform
from pathlib import Path
from typing import Any

import torch

from remnant.speculative.fastdraft.checkpoint import write_json
from remnant.speculative.fastdraft.hf import hf

__all__ = ["card_text", "fingerprint", "versions", "write_draft"]


def fingerprint(model: Any) -> str:
    """sha256 over names and bytes of all parameters."""
    digest = hashlib.sha256()
    for name, p in sorted(model.named_parameters()):
        digest.update(name.encode())
        digest.update(p.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def versions() -> dict[str, str]:
    """Of what the result depends on."""
    from remnant import __version__

    return {
        "remnant": __version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": hf().__version__,
    }


def write_draft(folder: Path, model: Any, tokenizer: Any, card: dict[str, Any]) -> None:
    """Write weights, config, tokenizer and card.

    Args:
        folder: made if it is not there.
        model: the drafter.
        tokenizer: the target's.
        card: what `run` returns.
    """
    folder.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    write_json(folder / "fastdraft.json", card)
    (folder / "README.md").write_text(card_text(card), encoding="utf-8")


def card_text(card: dict[str, Any]) -> str:
    """The card as markdown, with the metadata block that model hubs read."""
    shape, plan = card["shape"], card["plan"]
    layers = "1 layer" if shape["depth"] == 1 else f"{shape['depth']} layers"
    lines = [
        "---",
        "library_name: transformers",
        "pipeline_tag: text-generation",
        "tags: [speculative-decoding, draft-model, fastdraft]",
        "---",
        f"# A drafter for {card['target']}",
        "",
        f"{card['parameters']:,} parameters ({card['parameters'] / card['target_parameters']:.1%} of the target): "
        f"{layers}, {shape['width']} wide, {shape['block']} blocks, the target's vocabulary.",
        "It proposes tokens; the target checks every one, so its text is the target's own.",
        "",
        "```python",
        "target.generate(**inputs, assistant_model=AutoModelForCausalLM.from_pretrained(FOLDER))",
        "```",
        "```sh",
        "vllm serve TARGET --speculative-config "
        f'\'{{"method": "draft_model", "model": "FOLDER", "num_speculative_tokens": {card["num_draft"]}}}\'',
        "```",
        "",
        f"## Measured on held-out prompts, {card['num_draft']} drafted tokens per block",
        "",
        "AR: accepted over drafted tokens. tau: tokens per pass of the target, and in brackets as the acceptance of "
        "single tokens predicts it. MBSU: speed-up if time goes with the bytes of the weights.",
        "",
        "| domain | decoding | AR before | AR | tau | MBSU |",
        "|---|---|---|---|---|---|",
        *_rows(card["before"], card["after"]),
        "",
        "## Training",
        "",
        f"{plan['pretrain_steps']} steps on the corpus, {plan['more_steps']} on further text, then "
        f"{plan['align_steps']} on {card['samples']['rows']} completions by the target "
        f"({card['samples']['tokens']:,} tokens; loss {card['settings']['loss']}). "
        '"Before" is before these completions.',
        "",
        f"Seed {card['settings']['seed']}; {card['device']}, {card['threads']} threads, {card['seconds']:.0f} s; "
        + ", ".join(f"{name} {version}" for name, version in card["versions"].items())
        + f". Data {card['data_sha256'][:12]}, target {card['target_sha256'][:12]}. All figures: `fastdraft.json`.",
        "",
        "Source: FastDraft (Zafrir et al. 2024, arXiv 2411.11055).",
    ]
    return "\n".join(lines) + "\n"


def _rows(before: dict[str, Any], after: dict[str, Any]) -> list[str]:
    rows: list[str] = []
    for mode in (name for name in after if name == "greedy" or name.startswith("T=")):
        for domain, now in after[mode].items():
            then = before.get(mode, {}).get(domain, {}).get("acceptance")
            rows.append(
                f"| {domain} | {mode} | {'' if then is None else f'{then:.3f}'} | {now['acceptance']:.3f} "
                f"| {now['block_efficiency']:.2f} ({now['block_efficiency_predicted']:.2f}) | {now['mbsu']:.2f} |"
            )
    return rows
