"""The comparison with other memories: turns, time limits and questions, without the others."""

import sys
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("numpy", reason="needs the extra vectors")
BENCHMARKS = Path(__file__).parents[3] / "benchmarks"


@pytest.fixture
def worker(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import agent_peers_worker  # pyright: ignore[reportMissingImports]

    return agent_peers_worker


class Slow:
    def __init__(self, seconds: float, held: list[str]) -> None:
        self.seconds, self.held = seconds, held

    def add(self, texts: list[str]) -> None:
        import time

        time.sleep(self.seconds * len(texts))
        self.held += texts

    def best(self, question: str) -> str:
        (found,) = [text for text in self.held if text.startswith(question.rpartition(" ")[0])]
        return found


class Broken(Slow):
    def best(self, question: str) -> str:
        raise KeyError("gone")


def test_all_get_the_same_and_who_is_too_slow_or_fails_is_left_out(worker: Any):
    texts = [f"a{i} b{i} c d e f g h i n{i}" for i in range(200)]
    made = {"remnant": Slow(0, []), "slow": Slow(0.002, []), "broken": Broken(0, []), "quick": Slow(0, [])}
    turns = worker.Turns(made, seconds=0.1)
    asked = worker._questions(texts, 5)
    rows = {row["provider"]: row for row in worker._at(turns, texts, asked, iter(f"x{i} y" for i in range(99)))}
    assert rows["slow"]["skipped"] == "more than 0.1 s"
    assert "gone" in rows["broken"]["skipped"]
    for name in ("remnant", "quick"):
        assert (rows[name]["right"], rows[name]["queries"]) == (1.0, 5 - worker.WARM)
        assert made[name].held == [*texts, *(f"x{i} y" for i in range(5))]


def test_a_question_points_at_its_text_by_words_and_by_vector(worker: Any):
    from memory_lib import TableEmbedder  # pyright: ignore[reportMissingImports]

    texts = [f"a{i} b{i} c d e f g h i n{i}" for i in range(50)]
    asked = worker._questions(texts, 5)
    embedder = TableEmbedder(texts, asked, lists=True)
    for question, text in asked.items():
        assert question.startswith(" ".join(text.split()[:8]))
        (vector,) = embedder.embed([question])
        assert isinstance(vector, list)
        scores = embedder.rows[:50] @ vector
        assert texts[int(scores.argmax())] == text
        assert sorted(scores)[-2] < 0.5 < max(scores)


def test_remnant_answers_in_the_comparison(worker: Any, tmp_path: Path):
    from memory_lib import TableEmbedder  # pyright: ignore[reportMissingImports]

    texts = [f"a{i} b{i} c d e f g h i n{i}" for i in range(40)]
    asked = worker._questions(texts, 4)
    provider = worker.Remnant(tmp_path, TableEmbedder(texts, asked, lists=True))
    provider.add(texts)
    assert {question: provider.best(question) for question in asked} == asked
    provider._memory.close()


def test_without_the_peers_it_says_how_to_get_them(worker: Any, monkeypatch: pytest.MonkeyPatch, capsys: Any):
    import agent_peers  # pyright: ignore[reportMissingImports]
    import memory_env  # pyright: ignore[reportMissingImports]

    monkeypatch.setattr(memory_env, "ENV", Path(sys.prefix) / "nowhere")
    assert agent_peers.main([]) == 2
    assert "--peers build" in capsys.readouterr().err
    assert memory_env.QUIET["MEM0_TELEMETRY"] == "False"
