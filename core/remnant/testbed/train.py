"""Train the testbed model. Every step draws its batch from (seed, step), so a resumed run equals an unbroken one."""

from __future__ import annotations

import json
import platform
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file  # pyright: ignore[reportUnknownVariableType]
from torch import Tensor

from remnant.errors import ConfigError
from remnant.testbed.batches import IGNORE, Batch, Stage, make_batch
from remnant.testbed.tasks import Filler
from remnant.testbed.text import load_corpus
from remnant.testbed.tokenizer import Alphabet, load_tokenizer

__all__ = ["PRESETS", "Preset", "train"]


@dataclass(frozen=True)
class Preset:
    """A schedule. Short and repetitive comes before long: copying is learned in minutes there.

    Attributes:
        stages: in order.
        knots: (step, factor on `lr`), joined by straight lines.
        lr: peak learning rate.
        clip: largest norm of a gradient.
        weight_decay: of matrices.
    """

    stages: tuple[Stage, ...]
    knots: tuple[tuple[int, float], ...]
    lr: float = 3e-3
    clip: float = 1.0
    weight_decay: float = 0.05

    @property
    def steps(self) -> int:
        """Optimizer steps of all stages."""
        return sum(stage[0] for stage in self.stages)

    def stage_at(self, step: int) -> Stage:
        """The stage that a step belongs to."""
        for stage in self.stages:
            if step < stage.steps:
                return stage
            step -= stage.steps
        return self.stages[-1]

    def lr_at(self, step: int) -> float:
        """Learning rate of a step."""
        steps, factors = zip(*self.knots, strict=True)
        return self.lr * float(np.interp(step, steps, factors))


_WARMUP = ((0, 0.01), (99, 1.0))
PRESETS = {
    "quick": Preset(
        (Stage(500, 20, 2048, 1.0), Stage(300, 32, 2048, 1.0), Stage(200, 64, 4096, 0.5)),
        (*_WARMUP, (700, 1.0), (1000, 0.1)),
    ),
    "full": Preset(
        (
            Stage(600, 20, 2048, 1.0),
            Stage(300, 32, 2048, 1.0),
            Stage(400, 64, 4096, 0.6),
            Stage(500, 128, 4096, 0.35),
            Stage(400, 256, 4096, 0.25),
            Stage(140, 512, 8192, 0.15),
            Stage(520, 1024, 8192, 0.1),
            Stage(40, 2048, 8192, 0.1),
            Stage(140, 1024, 8192, passkey=0.5),
            # Keys of several tokens want sharper attention than single facts: one more rise, on many of them at once.
            Stage(260, 1024, 4096, drill=0.6),
        ),
        (*_WARMUP, (2100, 1.0), (2910, 0.1), (3040, 0.1), (3041, 0.35), (3300, 0.03)),
    ),
}


def _stream(documents: tuple[str, ...], eos: int) -> np.ndarray[Any, np.dtype[np.int64]]:
    tokenizer = load_tokenizer()
    out: list[int] = []
    for encoding in tokenizer.encode_batch(list(documents), add_special_tokens=False):
        out += [*encoding.ids, eos]
    return np.array(out, dtype=np.int64)


def _tensor(ids: np.ndarray[Any, np.dtype[np.int64]], device: torch.device) -> Tensor:
    return torch.from_numpy(ids).to(device)  # pyright: ignore[reportUnknownMemberType]


def _step(model: Any, batch: Batch, device: torch.device) -> tuple[Tensor, dict[str, float]]:
    """Loss and metrics of a batch: each kind of label is averaged over itself, then the kinds are added."""
    ids = _tensor(batch.ids, device)
    kinds = {name: _tensor(getattr(batch, name), device) for name in ("text", "copy", "recall")}
    hidden = model.model(input_ids=ids, use_cache=False).last_hidden_state
    wanted = torch.stack([labels != IGNORE for labels in kinds.values()]).any(0)
    # The vocabulary projection is a third of the work, so it is done only where a label stands.
    logits = model.lm_head(hidden[wanted])
    guess = logits.argmax(-1)
    total = logits.sum() * 0.0
    metrics: dict[str, float] = {}
    for name, labels in kinds.items():
        labels = labels[wanted]
        chosen = labels != IGNORE
        if bool(chosen.any()):
            loss = F.cross_entropy(logits[chosen].float(), labels[chosen])
            total = total + loss
            metrics[name] = loss.item()
            metrics[f"{name}_accuracy"] = (guess[chosen] == labels[chosen]).float().mean().item()
    return total, metrics


def _optimizer(model: torch.nn.Module, preset: Preset) -> torch.optim.AdamW:
    matrices = [p for p in model.parameters() if p.dim() > 1]
    vectors = [p for p in model.parameters() if p.dim() <= 1]
    groups = [{"params": matrices, "weight_decay": preset.weight_decay}, {"params": vectors, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=preset.lr, betas=(0.9, 0.98))


class Checkpoint:
    """Model and optimizer as two safetensors files and a JSON line; written to a temporary name, then moved."""

    def __init__(self, folder: Path) -> None:
        """Use `folder`, which is made on the first save."""
        self.folder = folder

    def save(self, model: Any, optimizer: torch.optim.AdamW, step: int, spent: float) -> None:
        """Write the state after `step` steps and `spent` seconds."""
        self.folder.mkdir(parents=True, exist_ok=True)
        state = {
            f"{name}.{key}": optimizer.state[p][key]
            for name, p in model.named_parameters()
            for key in ("exp_avg", "exp_avg_sq")
        }
        weights = {n: p.detach().contiguous() for n, p in model.named_parameters()}
        for name, tensors in (("model", weights), ("optimizer", state)):
            save_file(tensors, self.folder / f"{name}.tmp")
            (self.folder / f"{name}.tmp").replace(self.folder / f"{name}-{step}.safetensors")
        (self.folder / "state.tmp").write_text(json.dumps({"step": step, "seconds": spent}))
        (self.folder / "state.tmp").replace(self.folder / "state.json")
        for old in self.folder.glob("*-*.safetensors"):
            if not old.stem.endswith(f"-{step}"):
                old.unlink()

    def load(self, model: Any, optimizer: torch.optim.AdamW) -> tuple[int, float]:
        """Restore the last saved state; (0, 0.0) when there is none."""
        mark = self.folder / "state.json"
        if not mark.exists():
            return 0, 0.0
        state = json.loads(mark.read_text())
        step = int(state["step"])
        model.load_state_dict(load_file(self.folder / f"model-{step}.safetensors"), strict=False)
        moments = load_file(self.folder / f"optimizer-{step}.safetensors")
        for name, p in model.named_parameters():
            slot = {key: moments[f"{name}.{key}"].to(p.device) for key in ("exp_avg", "exp_avg_sq")}
            optimizer.state[p] = {"step": torch.tensor(float(step)), **slot}
        return step, float(state["seconds"])


Report = Callable[[int, int, dict[str, float]], None]


def train(
    preset: str = "full",
    out: Path | str = "testbed-run",
    device: str | None = None,
    resume: bool = True,
    seed: int = 0,
    report: Report | None = None,
    save_every: int = 100,
) -> dict[str, Any]:
    """Train the model from scratch, or go on where an earlier run of the same preset stopped.

    Args:
        preset: "quick" (minutes; learns to copy within 64 tokens, and scores next to nothing at 1,024) or "full" (the
            shipped weights).
        out: folder for checkpoints and, at the end, `model.safetensors` and `provenance.json`.
        device: a torch device; a GPU is used when there is one.
        resume: continue from `out` if it holds a checkpoint.
        seed: of the initial weights and of every batch.
        report: called as `report(step, steps, metrics)` after every step.
        save_every: steps between checkpoints.

    Returns:
        The provenance record that was written.

    Raises:
        ConfigError: the preset is unknown.
    """
    if preset not in PRESETS:
        raise ConfigError(f"Unknown preset {preset!r}. Accepted: {', '.join(sorted(PRESETS))}.")
    plan = PRESETS[preset]
    from remnant.testbed.model import new_model

    target = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    torch.manual_seed(seed)  # pyright: ignore[reportUnknownMemberType]
    model = new_model().to(target).train()
    optimizer = _optimizer(model, plan)
    checkpoint = Checkpoint(Path(out))
    start, spent = checkpoint.load(model, optimizer) if resume else (0, 0.0)
    tokenizer = load_tokenizer()
    alphabet = Alphabet.of(tokenizer)
    filler = Filler(_stream(load_corpus().train, alphabet.eos))
    began = time.monotonic() - spent
    for step in range(start, plan.steps):
        stage = plan.stage_at(step)
        length = stage.length
        rng = np.random.default_rng([seed, step])
        batch = make_batch(rng, alphabet, filler, tokenizer.get_vocab_size(), stage)
        for group in optimizer.param_groups:
            group["lr"] = plan.lr_at(step)
        with torch.autocast(target.type, torch.bfloat16, enabled=target.type == "cuda"):
            loss, metrics = _step(model, batch, target)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()  # pyright: ignore[reportUnknownMemberType]
        torch.nn.utils.clip_grad_norm_(model.parameters(), plan.clip)
        optimizer.step()  # pyright: ignore[reportUnknownMemberType]
        if report is not None:
            report(step + 1, plan.steps, {**metrics, "length": length, "seconds": time.monotonic() - began})
        if (step + 1) % save_every == 0 or step + 1 == plan.steps:
            checkpoint.save(model, optimizer, step + 1, time.monotonic() - began)
    return _finish(model, plan, preset, seed, Path(out), target, time.monotonic() - began)


def _finish(
    model: Any, plan: Preset, name: str, seed: int, out: Path, device: torch.device, seconds: float
) -> dict[str, Any]:
    import transformers

    weights = {n: p.detach().to("cpu", torch.float32).contiguous() for n, p in model.named_parameters()}
    save_file(weights, out / "model.safetensors")
    record = {
        "script": "remnant testbed train",
        "preset": name,
        "schedule": asdict(plan),
        "seed": seed,
        "steps": plan.steps,
        "seconds": round(seconds),
        "device": torch.cuda.get_device_name() if device.type == "cuda" else f"cpu ({platform.machine()})",
        "threads": torch.get_num_threads(),
        "data_sha256": load_corpus().sha256,
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "transformers": transformers.__version__,
        },
        "parameters": sum(p.numel() for p in model.parameters()),
    }
    (out / "provenance.json").write_text(json.dumps(record, indent=2) + "\n")
    return record
