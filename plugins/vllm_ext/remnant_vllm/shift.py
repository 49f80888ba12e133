"""The reading side of eviction: block tables without the blocks that are gone, and the work that a step brings."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from remnant.kv import Policy
from remnant_vllm.rows import rows
from remnant_vllm.settings import Settings
from remnant_vllm.spec import RemnantSpec

__all__ = ["Job", "Shift", "watches"]


@dataclass(frozen=True)
class Job:
    """What a layer has to do for one row after its attention.

    Attributes:
        row: in the batch; the block table at this row is already shifted by `gone`.
        request: id.
        settings: of this request and layer.
        prompt_len: tokens of the prompt.
        before: tokens computed before this step.
        after: tokens computed after it.
        gone: tokens whose blocks were gone before.
        going: tokens whose blocks are gone after it.
        first: the row's first query in the batch.
    """

    row: int
    request: str
    settings: Settings
    prompt_len: int
    before: int
    after: int
    gone: int
    going: int
    first: int

    @property
    def end(self) -> int:
        """Tokens that a decision sees: a resumed request brings some that came after its prompt was compressed."""
        return min(self.prompt_len, self.after) if self.settings.mode == "prompt" else self.after


class Shift:
    """Turns the metadata of a step into what attention may read; one per KV cache group.

    Tables are written into buffers of its own, so that their addresses never change.

    Args:
        spec: of the group as the builder sees it: its block size is the kernel's, and the table counts such blocks.
        layer: name of a layer of the group, by which the block size of the pool is found.
    """

    def __init__(self, spec: RemnantSpec, layer: str) -> None:
        """See the class."""
        self.spec, self.layer = spec, layer
        self.table: torch.Tensor | None = None
        self.lens: torch.Tensor | None = None

    def __call__(self, common: Any) -> tuple[Any, list[Job]]:
        """(metadata to read by, jobs). Without eviction the metadata comes back as it is."""
        here = rows()
        count = min(len(here.ids), common.num_reqs)
        if not count:
            return common, []
        size = here.block_sizes.get(self.layer, self.spec.block_size)
        after = _on_host(common)[:count].tolist()
        starts = common.query_start_loc_cpu[: count + 1].tolist()
        gone, jobs = [0] * common.num_reqs, []
        for row in range(count):
            settings, prompt_len = here.settings[row], here.prompt_lens[row]
            if settings.budget is None:
                continue
            before = after[row] - (starts[row + 1] - starts[row])
            settings = self.spec.settings(prompt_len, settings)
            gone[row] = settings.gone(before, prompt_len, size) * size
            going = settings.gone(after[row], prompt_len, size) * size
            if going > gone[row] or _learns(settings, before, prompt_len, size):
                job = Job(row, here.ids[row], settings, prompt_len, before, after[row], gone[row], going, starts[row])
                jobs.append(job)
        return (self._shifted(common, gone) if any(gone) else common), jobs

    def _shifted(self, common: Any, gone: list[int]) -> Any:
        """Rows moved left by their gone blocks, lengths shortened by the tokens these held."""
        table, lens = common.block_table_tensor, common.seq_lens
        count, width = table.shape
        if self.table is None or self.table.shape[0] < count or self.table.shape[1] != width:
            self.table, self.lens = torch.empty_like(table), torch.empty_like(lens)
        assert self.lens is not None
        by = torch.tensor(gone, dtype=torch.int64).to(table.device, non_blocking=True)
        at = torch.arange(width, device=table.device) + (by // self.spec.block_size).unsqueeze(1)
        moved = torch.gather(table, 1, at.clamp(max=width - 1), out=self.table[:count])
        left = torch.sub(lens, by.to(lens.dtype), out=self.lens[:count])
        return common.replace(block_table_tensor=moved, seq_lens=left)


def _on_host(common: Any) -> torch.Tensor:
    """Lengths after the step without waiting for a device; exact for every row that is not an unsettled draft."""
    if common.seq_lens.device.type == "cpu" or common.seq_lens_cpu_upper_bound is None:
        return common.seq_lens
    return common.seq_lens_cpu_upper_bound


def watches(policy: Policy) -> bool:
    """Whether a policy learns something from steps without eviction."""
    return bool(policy.needs - {"rope"}) or bool(policy.sides) or type(policy).observe is not Policy.observe


def _learns(settings: Settings, before: int, prompt_len: int, block_size: int) -> bool:
    """Whether a step without eviction teaches the policy something that it needs later."""
    if not watches(settings.make()):
        return False
    if settings.mode == "stream":
        return True
    return before < prompt_len and settings.gone(prompt_len, prompt_len, block_size) > 0
