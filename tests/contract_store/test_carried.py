"""The whole of `Memory` on every store: each strategy, and a memory carried from one store to another."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from remnant.memory import Add, Forget, HashEmbedder, Merge, Provenance, Record, Update
from remnant.plugins import collect

STRATEGIES = sorted({item.name for _, item in collect("remnant_strategies")})


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_every_strategy(strategy: str, backend: Any):
    memory = backend.memory(strategy, embedder=HashEmbedder())
    ids = memory.add(["Ada takes her tea without milk.", Record("Ask before deleting.", trigger="deleting files")])
    assert memory.recall("how does Ada take tea?", k=1)[0].id == ids[0]
    assert "tea" in memory.render(memory.recall("Ada's tea", k=1))
    episodes = [memory.open_episode(f"count the files {n}") for n in range(2)]
    for episode, verdict in zip(episodes, ("success", "failure"), strict=True):
        memory.observe(episode.id, {"role": "user", "content": "count the files"})
        memory.observe(episode.id, {"role": "assistant", "content": "There are four."})
        memory.recall("count", episode=episode.id)
        memory.close_episode(episode.id, verdict)
    assert memory.flush(20)
    assert {state for _, state, _, _ in memory.store.jobs(memory.scope)} == {"done"}
    memory.feedback(episodes[1].id, success=True)
    assert memory.flush(20)
    number = memory.store.latest(memory.scope)
    memory.forget(ids[0])
    assert ids[0] not in {hit.id for hit in memory.recall("Ada tea", k=50)}
    assert memory.store.latest(memory.scope) == number


def _meanings(memory: Any) -> dict[str, Any]:
    statuses = ("active", "archived", "quarantined")
    return {record.id: record.meaning() for record in memory.records(statuses=statuses)}


def test_a_memory_is_carried_to_a_server_and_back(tmp_path: Path, new_schema: Any):
    from remnant.memory import Memory

    with Memory.open(tmp_path / "a.db", scope="a", embedder=HashEmbedder()) as file:
        ids = file.add(["one \0 odd", Record("two 😀", payload={"x": [1, "é"]}, place="p/q", keywords=("k",)), "three"])
        file.apply(
            [Update(ids[0], {"content": "one again"}), Add(Record("web", trust="web", kind="strategy"))], "r", "a"
        )
        file.apply([Merge((ids[1], ids[2]), Record("both", provenance=(Provenance("person", "p"),)))], "r", "a")
        file.apply([Forget(file.add("gone")[0])], "r", "a")
        there = _meanings(file)
        assert len(there) == file.export(tmp_path / "one.jsonl") == 5
    with Memory.open(**new_schema(), scope="b", embedder=HashEmbedder()) as server:
        assert sorted(server.import_(tmp_path / "one.jsonl").added) == sorted(there)
        assert _meanings(server) == there
        assert server.import_(tmp_path / "one.jsonl").added == ()
        assert server.recall("both", k=1)[0].text == "both"
        assert server.export(tmp_path / "two.jsonl") == 5
    with Memory.open(tmp_path / "b.db", scope="c") as back:
        back.import_(tmp_path / "two.jsonl")
        assert _meanings(back) == there


def test_the_same_hits_from_every_store(tmp_path: Path, new_schema: Any):
    """Words and meaning rank alike; the stemmers agree on these words."""
    from remnant.memory import Memory

    texts = [
        f"{a} {b} number {n}"
        for n, (a, b) in enumerate((x, y) for x in ("green", "black", "white") for y in ("tea", "milk"))
    ]
    found: list[Any] = []
    places: list[dict[str, Any]] = [{"path_or_url": tmp_path / "a.db"}, new_schema()]
    for where in places:
        with Memory.open(**where, scope="a", embedder=HashEmbedder(), strict=True) as memory:
            memory.add(texts)
            found.append(
                [[hit.text for hit in memory.recall(q, k=3)] for q in ("green tea", "white", "number 3", "teas")]
            )
    assert found[0] == found[1]
