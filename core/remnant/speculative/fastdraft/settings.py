"""Everything a user chooses of a run, checked before anything is loaded."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from remnant.errors import ConfigError, unknown
from remnant.speculative.fastdraft.losses import LOSSES

__all__ = ["Settings"]

_EMBEDDINGS = ("target", "random")


@dataclass(frozen=True)
class Settings:
    """A run of FastDraft.

    Args:
        target: `testbed`, or what `from_pretrained` takes.
        budget: parameters of the drafter; below 1: as a fraction of the target's.
        corpus: text files (not for the testbed, which brings its own).
        more: text files for continued pretraining.
        prompts: file of prompts; None cuts them from the corpus.
        start: folder of a drafter to begin with, instead of searching a shape and pretraining.
        embedding: `target` begins with the target's embedding, projected to the drafter's width; `random` without.
        width: fixes the shape, with `depth`.
        depth: fixes the shape, with `width`.
        minutes: for the whole run; steps and samples that are not given follow from it and are kept in `plan.json`.
        pretrain_steps: optimizer steps on the corpus; None: from `minutes`.
        more_steps: on `more`; None: half of `pretrain_steps`.
        align_steps: on the target's completions; None: from `minutes`.
        samples: completions by the target; None: from `minutes`.
        new: most tokens of a completion.
        loss: of the alignment, one of `LOSSES`.
        top: tokens of the target that a divergence counts one by one; 0 is all.
        on_policy: fraction of the rows whose completion the drafter writes itself.
        num_draft: tokens per block, for search and measurement.
        rows: rows per step.
        length: most tokens per row.
        lr: peak learning rate of pretraining; None: by width.
        align_lr: of the alignment; None: half of `lr`.
        pilots: shapes that are tried with a short training; 0 goes by time alone.
        pilot_steps: of that training.
        measured: held-out prompts (for the testbed: per domain).
        seed: of everything.
        device: of torch; None: a GPU if there is one.
        save_every: steps between checkpoints.
    """

    target: str
    budget: float = 0.125
    corpus: tuple[Path, ...] = ()
    more: tuple[Path, ...] = ()
    prompts: Path | None = None
    start: Path | None = None
    embedding: str = "target"
    width: int | None = None
    depth: int | None = None
    minutes: float = 20.0
    pretrain_steps: int | None = None
    more_steps: int | None = None
    align_steps: int | None = None
    samples: int | None = None
    new: int = 64
    loss: str = "ce"
    top: int = 0
    on_policy: float = 0.0
    num_draft: int = 3
    rows: int = 32
    length: int = 128
    lr: float | None = None
    align_lr: float | None = None
    pilots: int = 3
    pilot_steps: int = 150
    measured: int = 12
    seed: int = 0
    device: str | None = None
    save_every: int = 200

    def __post_init__(self) -> None:
        """Refuse what cannot be meant."""
        if self.loss not in LOSSES:
            raise unknown("loss", self.loss, LOSSES)
        if self.embedding not in _EMBEDDINGS:
            raise unknown("embedding", self.embedding, _EMBEDDINGS)
        if self.target != "testbed" and not self.corpus:
            raise ConfigError(f"no corpus for {self.target!r}", do="give text files: --corpus FILE")
        if self.target == "testbed" and (self.corpus or self.more or self.prompts):
            raise ConfigError("files for the testbed, which brings its own text and tasks", accepted="no files")
        if (self.width is None) != (self.depth is None):
            raise ConfigError("one of width and depth", accepted="both, or none")
        if self.on_policy and self.loss == "ce":
            raise ConfigError(
                f"on_policy {self.on_policy} with loss 'ce'",
                accepted="losses that ask the target: " + ", ".join(LOSSES[1:]),
                do="what the drafter writes itself is no example to follow",
            )
        self._check_numbers()

    def _check_numbers(self) -> None:
        least = {
            "pretrain_steps": 0, "more_steps": 0, "align_steps": 0, "samples": 1, "new": 2, "top": 0, "num_draft": 1,
            "rows": 1, "length": 32, "pilots": 0, "pilot_steps": 1, "measured": 1, "width": 16, "depth": 1,
            "save_every": 1,
        }  # fmt: skip
        for name, bound in least.items():
            value = getattr(self, name)
            if value is not None and value < bound:
                raise ConfigError(f"{name} {value}", accepted=f"at least {bound}")
        for name in ("budget", "minutes", "lr", "align_lr"):
            value = getattr(self, name)
            if value is not None and not 0 < value < math.inf:
                raise ConfigError(f"{name} {value}", accepted="above 0, and finite")
        if not 0 <= self.on_policy <= 1:
            raise ConfigError(f"on_policy {self.on_policy}", accepted="0 to 1")

    def parameters(self, target: int) -> int:
        """The budget in parameters.

        Args:
            target: parameters of the target.

        Raises:
            ConfigError: the drafter would not be smaller than its target.
        """
        budget = int(self.budget * target) if self.budget < 1 else int(self.budget)
        if budget >= target:
            raise ConfigError(
                f"a drafter of {budget} parameters for a target of {target}",
                accepted="a drafter smaller than its target",
                do="lower the budget: drafting pays when a draft step is much cheaper than the target's",
            )
        return budget

    def to_dict(self) -> dict[str, Any]:
        """As data; paths as text."""
        plain = asdict(self)
        for name in ("prompts", "start"):
            plain[name] = None if plain[name] is None else str(plain[name])
        for name in ("corpus", "more"):
            plain[name] = [str(file) for file in plain[name]]
        return plain
