"""Train retention gates for any causal language model of transformers; the model itself stays as it is.

The student is the model with a cache whose layers fade their keys; the teacher is the same model without it.
"""

from __future__ import annotations

import hashlib
import json
import math
import platform
import time
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

from remnant.errors import ConfigError, UnsupportedPolicy
from remnant.kv.gate_training import Form, Share, capacity_loss, distillation, gated_attention
from remnant.kv.gates import Gates, GateShape, RetentionGate
from remnant_hf.bridge import install, tag

__all__ = ["GateBatch", "Settings", "new_gate", "run", "task_batches", "text_batches", "train_gates"]

IGNORE = -100


@dataclass(frozen=True)
class GateBatch:
    """What one step learns from.

    Attributes:
        ids: `[B, S]` int64 token ids, without padding.
        labels: `[B, S]` int64 next token of each position, `IGNORE` where there is none.
        weights: `[B, S]` float32, what each position counts; positions with 0 cost nothing.
    """

    ids: Tensor
    labels: Tensor
    weights: Tensor


Batches = Callable[[int], GateBatch]
"""Draws the batch of a step; the same step always gives the same batch, so that a run can be resumed."""
Report = Callable[[int, int, dict[str, float]], None]


@dataclass(frozen=True)
class Settings:
    """How to train.

    Args:
        lr: peak learning rate of AdamW, after a linear warm-up and before a cosine decay to zero.
        warmup: steps of the warm-up.
        capacity: weight of the capacity loss against the quality loss.
        form: of the gated attention, `additive` or `multiplicative`.
        share: as the policy will be used: `layer` holds the mean of a layer's heads to the budget, `head` every one.
        clip: largest norm of the gradient.
        save_every: steps between checkpoints.
    """

    lr: float = 1e-2
    warmup: int = 10
    capacity: float = 1.0
    form: Form = "additive"
    share: Share = "layer"
    clip: float = 1.0
    save_every: int = 25

    def __post_init__(self) -> None:
        """Refuse names that mean nothing."""
        for option, accepted in (("form", ("additive", "multiplicative")), ("share", ("layer", "head"))):
            if getattr(self, option) not in accepted:
                raise ConfigError(f"{option} {getattr(self, option)!r}", accepted=accepted)

    def lr_at(self, step: int, steps: int) -> float:
        """Learning rate of a step, counted from 0."""
        return self.lr * min(1.0, (step + 1) / self.warmup) * (0.5 + 0.5 * math.cos(math.pi * step / steps))


class GateLayer(DynamicLayer):
    """A layer of the student: it keeps everything, and lets the attention fade it."""

    def __init__(self, gate: RetentionGate, index: int, form: Form) -> None:
        """Serve the gate's layer `index`."""
        super().__init__()
        self.gate, self.index = gate, index
        self.form: Form = form
        self.log_beta: Tensor | None = None

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Keep the keys, and mark them so that the attention comes back here."""
        keys, values = super().update(key_states, value_states, *args, **kwargs)
        return tag(keys, self), values

    def attend(
        self, inner: Any, module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Any, **kwargs: Any
    ) -> tuple[Tensor, None]:
        """Gated attention instead of the model's own; `[B, S, N, Dv]`."""
        self.log_beta = log_beta = self.gate(self.index, key, value)
        mask = attention_mask if isinstance(attention_mask, Tensor) and attention_mask.dim() == 4 else None
        out = gated_attention(
            query,
            key,
            value,
            log_beta,
            scale=kwargs.get("scaling"),
            form=self.form,
            mask=mask,
            softcap=kwargs.get("softcap"),
            sinks=kwargs.get("s_aux"),
        )
        return out.transpose(1, 2).to(query.dtype), None


class GateCache(DynamicCache):
    """The student's cache: every full-attention layer of the model is a `GateLayer`."""

    def __init__(self, config: Any, gate: RetentionGate, form: Form = "additive") -> None:
        """Make one for a single forward pass."""
        super().__init__(config=config)
        self.gated: list[GateLayer] = []
        for i in _governed(self):
            self.gated.append(GateLayer(gate, len(self.gated), form))
            self.layers[i] = self.gated[-1]

    def log_betas(self) -> list[Tensor]:
        """`[B, H, S]` of every gated layer.

        Raises:
            UnsupportedPolicy: a layer's attention did not come through the bridge.
        """
        found = [layer.log_beta for layer in self.gated if layer.log_beta is not None]
        if len(found) < len(self.gated) or not found:
            missing = f"{len(self.gated) - len(found)} of {len(self.gated)} full-attention layers"
            raise UnsupportedPolicy(f"{missing} of this model do not use the attention interface of transformers")
        return found


def _governed(cache: DynamicCache) -> list[int]:
    """The layers that a policy governs: those with full attention."""
    return [i for i, layer in enumerate(cache.layers) if type(layer) is DynamicLayer]


@contextmanager
def _frozen(model: Any) -> Generator[None, None, None]:
    """The model in eval mode and without gradients of its own; as it was afterwards."""
    parameters = list(model.parameters())
    flags, training = [p.requires_grad for p in parameters], model.training
    model.eval().requires_grad_(False)
    try:
        yield
    finally:
        model.train(training)
        for p, flag in zip(parameters, flags, strict=True):
            p.requires_grad_(flag)


@torch.no_grad()
def new_gate(model: Any, hidden: int = 64, seed: int = 0, bias: float = 10.0) -> RetentionGate:
    """An untrained gate that fits a model; its shape is read from what two tokens leave in a cache.

    Raises:
        UnsupportedPolicy: the model has no full-attention layer, or its layers differ in shape.
    """
    cache = DynamicCache(config=model.config)
    with _frozen(model):
        model(input_ids=torch.zeros(1, 2, dtype=torch.int64, device=model.device), past_key_values=cache)
    layers: list[Any] = [cache.layers[i] for i in _governed(cache)]
    shapes = {(x.keys.shape[1], x.keys.shape[-1], x.values.shape[-1]) for x in layers}
    if len(shapes) != 1:
        found = ", ".join(map(str, sorted(shapes))) or "no full-attention layers"
        raise UnsupportedPolicy(f"gates need layers of one shape (heads, key, value); the model has {found}")
    heads, key_dim, value_dim = shapes.pop()
    return RetentionGate(GateShape(len(layers), heads, key_dim, value_dim, hidden), bias, seed).to(model.device)


def _losses(
    model: Any, gate: RetentionGate, batch: GateBatch, budgets: Sequence[int], settings: Settings
) -> tuple[Tensor, dict[str, float]]:
    ids = batch.ids.to(model.device)
    chosen = (batch.weights > 0).to(model.device)
    with torch.no_grad():
        teacher = model(input_ids=ids, use_cache=False).logits[chosen]
    cache = GateCache(model.config, gate, settings.form)
    student = model(input_ids=ids, past_key_values=cache, use_cache=True).logits[chosen]
    labels, weights = batch.labels.to(model.device)[chosen], batch.weights.to(model.device)[chosen]
    kl, ce = distillation(student, teacher, labels, weights)
    capacity = torch.stack([capacity_loss(x, budgets, settings.share) for x in cache.log_betas()]).mean()
    loss = kl + ce + settings.capacity * capacity
    values = {"loss": loss, "kl": kl, "cross_entropy": ce, "capacity": capacity}
    return loss, {name: value.item() for name, value in values.items()}


class _Checkpoint:
    """Gate, optimizer and step in one safetensors file, replaced in one move."""

    def __init__(self, folder: Path, plan: dict[str, Any]) -> None:
        self.path, self.plan = folder / "checkpoint.safetensors", json.dumps(plan, sort_keys=True)

    def save(self, gate: RetentionGate, optimizer: torch.optim.Optimizer, step: int, spent: float) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        tensors = {f"gate.{n}": p.detach() for n, p in gate.named_parameters()}
        for name, p in gate.named_parameters():
            tensors |= {f"{key}.{name}": optimizer.state[p][key] for key in ("exp_avg", "exp_avg_sq")}
        tensors |= {"step": torch.tensor(step), "seconds": torch.tensor(spent, dtype=torch.float64)}
        unfinished = self.path.with_suffix(".tmp")
        save_file({n: t.contiguous().cpu() for n, t in tensors.items()}, unfinished, metadata={"plan": self.plan})
        unfinished.replace(self.path)

    def load(self, gate: RetentionGate, optimizer: torch.optim.Optimizer) -> tuple[int, float]:
        if not self.path.exists():
            return 0, 0.0
        from safetensors import safe_open

        with safe_open(str(self.path), "pt") as file:
            plan = file.metadata()["plan"]
        if plan != self.plan:
            do = "use the same options, or another folder"
            raise ConfigError(f"the checkpoint in {str(self.path.parent)!r} is of another run: {plan}", do=do)
        saved = load_file(self.path)
        step = int(saved["step"])
        with torch.no_grad():
            for name, p in gate.named_parameters():
                p.copy_(saved[f"gate.{name}"])
                moments = {key: saved[f"{key}.{name}"].to(p.device) for key in ("exp_avg", "exp_avg_sq")}
                optimizer.state[p] = {"step": torch.tensor(float(step)), **moments}
        return step, float(saved["seconds"])


def train_gates(
    model: Any,
    batches: Batches,
    gates: RetentionGate | Gates | None,
    budgets: int | Sequence[int],
    steps: int,
    settings: Settings | None = None,
    report: Report | None = None,
    folder: Path | str | None = None,
    resume: bool = False,
    seed: int = 0,
    stop_after: int | None = None,
) -> Gates:
    """Train gates so that the model says the same with a small cache.

    Args:
        model: a causal language model of transformers; frozen here, and untouched afterwards.
        batches: draws the batch of a step.
        gates: where to start; None for new ones.
        budgets: cache sizes that the gates shall serve, in tokens per KV head; several make one gate for all.
        steps: optimizer steps in all.
        settings: how to train.
        report: called as `report(step, steps, losses)` after every step.
        folder: for checkpoints; None writes none.
        resume: go on from the checkpoint in `folder`, if there is one.
        seed: of new gates.
        stop_after: leave after this many steps of the schedule, with a checkpoint.

    Returns:
        The gates, with how they were trained as provenance.

    Raises:
        ConfigError: no steps, no budget, or a checkpoint of another run.
        UnsupportedPolicy: the model's attention cannot be reached.

    Source: TRIM-KV, training. Differs: additive gates, several budgets at once; the paper's optimizer settings are
    not public, so they are ours.
    """
    sizes = [budgets] if isinstance(budgets, int) else list(budgets)
    if steps < 1 or not sizes or min(sizes) < 1:
        raise ConfigError(f"steps {steps}, budgets {sizes}", accepted="at least one step and budgets of at least 1")
    settings = settings or Settings()
    install()
    gate = (
        gates if isinstance(gates, RetentionGate) else RetentionGate.of(gates) if gates else new_gate(model, seed=seed)
    )
    gate.to(model.device)
    about = {"steps": steps, "budgets": sizes, "seed": seed, "settings": asdict(settings), "gate": vars(gate.shape)}
    optimizer = torch.optim.AdamW(gate.parameters(), lr=settings.lr, betas=(0.9, 0.98), weight_decay=0.0)
    checkpoint = _Checkpoint(Path(folder), about) if folder is not None else None
    start, spent = checkpoint.load(gate, optimizer) if checkpoint and resume else (0, 0.0)
    began, last = time.monotonic() - spent, {}
    end = min(steps, stop_after or steps)
    with _frozen(model):
        for step in range(start, end):
            for group in optimizer.param_groups:
                group["lr"] = settings.lr_at(step, steps)
            loss, last = _losses(model, gate, batches(step), sizes, settings)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(gate.parameters(), settings.clip)
            optimizer.step()
            if report is not None:
                report(step + 1, steps, last)
            if checkpoint and ((step + 1) % settings.save_every == 0 or step + 1 == end):
                checkpoint.save(gate, optimizer, step + 1, time.monotonic() - began)
    return gate.export({**about, "seconds": round(time.monotonic() - began), "last": last})


def text_batches(ids: Sequence[int], length: int, rows: int, seed: int = 0) -> Batches:
    """Random windows of a token stream; every position counts the same.

    Raises:
        ConfigError: the stream is shorter than one window.
    """
    stream = torch.tensor(ids, dtype=torch.int64)
    if len(stream) <= length:
        raise ConfigError(f"the data hold {len(stream)} tokens", accepted=f"more than the length, {length}")

    def draw(step: int) -> GateBatch:
        rng = np.random.default_rng([seed, step])
        starts = rng.integers(0, len(stream) - length, size=rows)
        pieces = torch.stack([stream[a : a + length + 1] for a in starts])
        return GateBatch(pieces[:, :-1].contiguous(), pieces[:, 1:].contiguous(), torch.ones(rows, length))

    return draw


def task_batches(length: int = 512, rows: int = 4, seed: int = 0, answers: float = 3.0) -> Batches:
    """Streams of the testbed's tasks and text, as its weights were trained on; lengths alternate with half of `length`.

    Args:
        length: tokens per row, at least 96.
        rows: rows per batch at full length; twice as many at half of it.
        seed: of every batch; far from the seeds of the weights' own training.
        answers: what all answers of a batch weigh together, against all of its text.
    """
    from remnant.testbed.batches import Stage, make_batch
    from remnant.testbed.tasks import Filler
    from remnant.testbed.text import load_corpus
    from remnant.testbed.tokenizer import Alphabet, load_tokenizer

    tokenizer = load_tokenizer()
    alphabet = Alphabet.of(tokenizer)
    encoded = tokenizer.encode_batch(list(load_corpus().train), add_special_tokens=False)
    stream = np.concatenate([np.array([*e.ids, alphabet.eos], dtype=np.int64) for e in encoded])
    filler, vocab = Filler(stream), tokenizer.get_vocab_size()

    def draw(step: int) -> GateBatch:
        rng = np.random.default_rng([seed, 7, step])
        stage = Stage(1, length if step % 2 == 0 else length // 2, length * rows)
        batch = make_batch(rng, alphabet, filler, vocab, stage)
        text, recall = torch.from_numpy(batch.text), torch.from_numpy(batch.recall)
        asked, written = recall != IGNORE, text != IGNORE
        weights = asked * (answers / max(int(asked.sum()), 1)) + written * (1.0 / max(int(written.sum()), 1))
        return GateBatch(torch.from_numpy(batch.ids), torch.where(asked, recall, text), weights)

    return draw


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
        batches = text_batches(tokenizer(text, add_special_tokens=False)["input_ids"], length, rows, seed)
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
