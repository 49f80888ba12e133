"""The testbed's drafter: an eighth of its size, trained by `remnant fastdraft testbed`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file  # pyright: ignore[reportUnknownVariableType]

from remnant.speculative.fastdraft.shape import Shape, draft_config
from remnant.testbed.model import load, testbed_config

__all__ = ["DRAFT_FILE", "draft_provenance", "export_draft", "load_draft"]

DRAFT_FILE = Path(__file__).with_name("draft.safetensors")


def draft_provenance() -> dict[str, Any]:
    """The card of the run that made it: shape, settings, what was measured, versions."""
    record: dict[str, Any] = json.loads(DRAFT_FILE.with_name("draft.json").read_text(encoding="utf-8"))
    return record


def load_draft(dtype: torch.dtype = torch.float32, device: str = "cpu", attn_implementation: str = "sdpa") -> Any:
    """Load the trained drafter; offline, from the wheel. Its tokenizer is the testbed's.

    Returns:
        A `LlamaForCausalLM` in eval mode, of the testbed's vocabulary.

    Example: model.generate(**inputs, assistant_model=load_draft())
    """
    from transformers import LlamaForCausalLM

    config = draft_config(testbed_config(), Shape(**draft_provenance()["shape"]))
    config._attn_implementation = attn_implementation
    model: Any = LlamaForCausalLM(config)
    model.load_state_dict({name: tensor.float() for name, tensor in load_file(DRAFT_FILE).items()}, strict=False)
    model.tie_weights()
    return model.to(device=device, dtype=dtype).eval()


def export_draft(folder: Path) -> Path:
    """Write drafter and tokenizer as an ordinary checkpoint folder, for `--speculative-config` of a server.

    Returns:
        The folder, created if it was not there; files of the same names are replaced.
    """
    folder.mkdir(parents=True, exist_ok=True)
    load_draft().save_pretrained(folder)
    load()[1].save_pretrained(folder)
    return folder
