"""The reading side of eviction: block tables without the blocks that are gone, and the work that a step brings."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from remnant.kv import Policy
from remnant_vllm.rows import rows
from remnant_vllm.settings import Settings
from remnant_vllm.spec import RemnantSpec

__all__ = ["Job", "Shift"]


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
        gone: blocks that were gone before.
        going: blocks that are gone after it.
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

    Args:
        spec: of the group.
        kernel_blocks: kernel blocks per block of the manager: the table counts the former.
    """

    def __init__(self, spec: RemnantSpec, kernel_blocks: int = 1) -> None:
        """See the class."""
        self.spec, self.kernel_blocks = spec, kernel_blocks

    def __call__(self, common: Any) -> tuple[Any, list[Job]]:
        """(metadata to read by, jobs). Without eviction the metadata comes back as it is."""
        here = rows()
        count = min(len(here.ids), common.num_reqs)
        if not count:
            return common, []
        after = common.seq_lens[:count].tolist()
        starts = common.query_start_loc_cpu[: count + 1].tolist()
        gone, jobs = [0] * common.num_reqs, []
        for row in range(count):
            settings, prompt_len = here.settings[row], here.prompt_lens[row]
            if settings.budget is None:
                continue
            before = after[row] - (starts[row + 1] - starts[row])
            settings = self.spec.settings(prompt_len, settings)
            gone[row] = settings.gone(before, prompt_len, self.spec.block_size)
            going = settings.gone(after[row], prompt_len, self.spec.block_size)
            if going > gone[row] or watches(settings, before, prompt_len, self.spec.block_size):
                job = Job(row, here.ids[row], settings, prompt_len, before, after[row], gone[row], going, starts[row])
                jobs.append(job)
        return (self._shifted(common, gone) if any(gone) else common), jobs

    def _shifted(self, common: Any, gone: list[int]) -> Any:
        """Rows moved left by their gone blocks, lengths shortened by the tokens these held."""
        table = common.block_table_tensor
        by = torch.tensor(gone, dtype=torch.int64, device=table.device)
        at = torch.arange(table.shape[1], device=table.device) + (by * self.kernel_blocks).unsqueeze(1)
        lens = common.seq_lens - (by * self.spec.block_size).to(common.seq_lens.dtype)
        return common.replace(
            block_table_tensor=table.gather(1, at.clamp(max=table.shape[1] - 1)), seq_lens=lens.contiguous()
        )


def watches(settings: Settings, before: int, prompt_len: int, block_size: int) -> bool:
    """Whether a step without eviction still teaches the policy something that it needs later."""
    policy = settings.make()
    looks = bool(policy.needs - {"rope"}) or bool(policy.sides) or type(policy).observe is not Policy.observe
    if settings.mode == "stream":
        return looks
    return looks and before < prompt_len and settings.gone(prompt_len, prompt_len, block_size) > 0
