"""The command `remnant train-gates`: load a model and data, train, write the gates and where they come from."""

from __future__ import annotations

import hashlib
import json
import platform
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from remnant.errors import ConfigError
from remnant.kv.gates import Gates
from remnant_hf.gate_data import opening, task_batches, text_batches
from remnant_hf.gate_student import new_gate
from remnant_hf.train_gates import Report, Settings, train_gates

__all__ = ["run"]


def run(
    model: str,
    data: str,
    budgets: Sequence[int],
    steps: int,
    out: Path | str,
    resume: bool = False,
    seed: int = 0,
    length: int = 512,
    rows: int = 4,
    hidden: int = 64,
    settings: Settings | None = None,
    report: Report | None = None,
) -> dict[str, Any]:
    """The command `remnant train-gates`: load, train, and write `out` and `out` with `.json` beside it.

    Args:
        model: `testbed`, or what `AutoModelForCausalLM.from_pretrained` takes.
        data: `testbed`, or a text file.
        budgets: tokens per KV head that the gates shall serve.
        steps: optimizer steps.
        out: file of the gates; checkpoints go to the folder `out` with `.run`, which is removed in the end.
        resume: go on from there.
        seed: of gates and batches.
        length: tokens per row.
        rows: rows per step.
        hidden: width of each gate's hidden layer.
        settings: how to train.
        report: called after every step.

    Returns:
        The provenance that was written.
    """
    if data == "testbed" and model != "testbed":
        raise ConfigError("data 'testbed' is made of the testbed's own tokens", do="give a text file: --data FILE")
    if data != "testbed" and not Path(data).is_file():
        raise ConfigError(f"data {data!r} does not exist", accepted="a text file, or testbed")
    target = Path(out)
    base, tokenizer = _load(model)
    if data == "testbed":
        batches = task_batches(length, rows, seed)
    else:
        text = Path(data).read_text(encoding="utf-8")
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        batches = text_batches(ids, length, rows, seed, opening(tokenizer))
    folder = target.with_name(target.name + ".run")
    gate = new_gate(base, hidden, seed)
    gates = train_gates(base, batches, gate, budgets, steps, settings, report, folder, resume, seed)
    import transformers

    record = {
        "script": "remnant train-gates",
        "model": model,
        "model_sha256": _sha256(base),
        "data": data,
        "length": length,
        "rows": rows,
        **gates.provenance,
        "device": torch.cuda.get_device_name() if base.device.type == "cuda" else f"cpu ({platform.machine()})",
        "threads": torch.get_num_threads(),
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "transformers": transformers.__version__,
        },
        "parameters": sum(t.numel() for t in gates.tensors().values()),
    }
    Gates(**gates.tensors(), key_dim=gates.key_dim, provenance=record).save(target)
    target.with_suffix(".json").write_text(json.dumps(record, indent=2) + "\n")
    (folder / "checkpoint.safetensors").unlink(missing_ok=True)
    folder.rmdir()
    return {**record, "out": str(target)}


def _sha256(model: Any) -> str:
    """Fingerprint of a model's parameters: gates serve the weights that they were trained on."""
    digest = hashlib.sha256()
    for name, p in sorted(model.named_parameters()):
        digest.update(name.encode())
        digest.update(p.detach().cpu().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _load(model: str) -> tuple[Any, Any]:
    if model == "testbed":
        from remnant.testbed.model import WEIGHTS_FILE, load

        if not WEIGHTS_FILE.is_file():
            raise ConfigError(f"{WEIGHTS_FILE} does not exist", do="train the testbed first: remnant testbed train")
        base, tokenizer = load()
    else:
        from transformers import AutoModelForCausalLM, AutoTokenizer

        try:
            base: Any = AutoModelForCausalLM.from_pretrained(model, dtype="auto")
            tokenizer = AutoTokenizer.from_pretrained(model)
        except (OSError, ValueError) as error:
            given = f"model {model!r} cannot be loaded: {str(error).splitlines()[0]}"
            raise ConfigError(given, accepted="testbed, or a checkpoint of transformers") from error
    return base.to("cuda" if torch.cuda.is_available() else "cpu"), tokenizer
