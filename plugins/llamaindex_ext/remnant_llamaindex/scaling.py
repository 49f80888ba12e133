"""MaTTS with LlamaIndex's agents: several runs at one task on one state of memory, the best answer, one lesson."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

from llama_index.core.agent.workflow.workflow_events import AgentOutput

from remnant.memory import Rollout, Scaled, Usage, amatts
from remnant.memory.rollouts import Selector
from remnant_llamaindex.memory import RemnantMemory


async def matts(
    memory: RemnantMemory,
    agent: Any,
    task: str,
    n: int = 4,
    *,
    mode: Literal["parallel", "sequential"] = "parallel",
    selector: Selector[AgentOutput] | None = None,
    usage: Callable[[AgentOutput], Usage] = lambda _: Usage(),
    **options: Any,
) -> Scaled[AgentOutput]:
    """Run a task several times and keep the best answer.

    Each rollout of a parallel group is a conversation of its own; in a sequential group they are turns of one, each of
    which checks and mends the one before.

    Args:
        memory: learns from the group; its own conversation is left alone.
        agent: an agent or an `AgentWorkflow` of LlamaIndex; its runs share nothing but memory.
        task: what is asked.
        n: rollouts, 1 to 64.
        mode: `parallel` or `sequential`.
        selector: chooses among the attempts that did not raise, by place; see `remnant.memory.matts`.
        usage: what an output's model calls cost.
        options: passed to `agent.run`.

    Raises:
        ConfigError: n, mode or the selector's choice is not possible.
        RolloutsFailed: every rollout raised; it keeps the attempts.
    """
    together = memory.session() if mode == "sequential" else None

    async def run(rollout: Rollout) -> AgentOutput:
        session = together or memory.session()
        session.for_rollout(task, rollout)
        return await session.track(agent.run(user_msg=rollout.prompt, memory=session, **options))

    return await amatts(memory.core, task, run, n, mode=mode, selector=selector, text=_text, usage=usage)


def _text(output: AgentOutput) -> str:
    return output.response.content or ""
