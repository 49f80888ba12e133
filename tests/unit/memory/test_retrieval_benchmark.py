"""The retrieval benchmark on made-up data: it reads the quirks of the labels, measures through `Memory`, and skips."""

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from remnant.memory import HashEmbedder

FILE = Path(__file__).parents[3] / "benchmarks" / "retrieval.py"
pytestmark = pytest.mark.skipif(not FILE.exists(), reason="benchmarks/ is not here")


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    spec = importlib.util.spec_from_file_location("benchmark_retrieval", FILE)
    assert spec is not None
    assert spec.loader is not None
    module: Any = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, spec.name, module)
    spec.loader.exec_module(module)
    module._minilm = HashEmbedder
    module.SAMPLES = 50
    return module


@pytest.fixture
def data(tmp_path: Path) -> Path:
    said = ["Which instrument do you play?", "The oboe.", "Do you cook?", "Only soup."]
    turns = [
        {"speaker": "Ann" if at % 2 else "Bob", "dia_id": f"D1:{at + 1}", "text": text} for at, text in enumerate(said)
    ]
    asked = [
        {"question": "Which instrument is played?", "evidence": ["D1:1; D01:2"], "category": 1},
        {"question": "What does Ann cook?", "evidence": ["D", "D1:4"], "category": 4},
        {"question": "Broken?", "evidence": ["D:11:26", "D9:9"], "category": 2},
        {"question": "Never said?", "evidence": ["D1:1"], "category": 5},
    ]
    talk = {"session_1": turns, "session_1_date_time": "1:56 pm on 8 May, 2023", "speaker_a": "Ann"}
    (tmp_path / "data" / "locomo").mkdir(parents=True)
    path = tmp_path / "data" / "locomo" / "locomo5.json"
    path.write_text(json.dumps([{"conversation": talk, "qa": asked}] * 3))
    return tmp_path / "data"


def test_without_data_nothing_is_measured(bench: Any, monkeypatch: pytest.MonkeyPatch, capsys: Any, tmp_path: Path):
    monkeypatch.delenv("REMNANT_EVAL_DATA", raising=False)
    assert bench.main(["--out", str(tmp_path / "rows.jsonl")]) == 0
    assert "REMNANT_EVAL_DATA" in capsys.readouterr().out
    assert not (tmp_path / "rows.jsonl").exists()


def test_labels_with_quirks(bench: Any, data: Path):
    corpora = list(bench.locomo(data))
    assert [q.evidence for q in corpora[0].questions] == [{"D1:1", "D1:2"}, {"D1:4"}]
    assert [corpus.questions[0].split for corpus in corpora] == ["tune", "tune", "judge"]
    assert corpora[0].records[1].content == "Ann: The oboe."
    assert corpora[0].records[1].valid_from == 1683554160.0


def test_recall_is_the_share_of_evidence(bench: Any, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    pytest.importorskip("matplotlib")
    monkeypatch.setenv("REMNANT_EVAL_DATA", str(data))
    out, plot = tmp_path / "rows.jsonl", tmp_path / "plot.png"
    assert bench.main(["--sets", "locomo", "consolidation", "--out", str(out), "--plot", str(plot)]) == 0
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    chosen = {(r["way"], r["split"], r["category"]): r for r in rows if "split" in r}
    plain, wide = chosen["words", "all", "multi-hop"], chosen["words, widened", "all", "multi-hop"]
    assert (plain["recall@10"], wide["recall@10"]) == ([0.5] * 3, [1.0] * 3)
    assert wide["recall@10 gain"] == [0.5] * 3
    assert wide["against"] == "words"
    assert chosen["hybrid", "judge", "all"]["questions"] == 2
    assert {"command", "git", "machine", "embedder"} <= rows[0].keys()
    merged = {r["way"]: r for r in rows if r["set"] == "consolidation"}
    assert merged["every third again"]["left"] == merged["as they are"]["left"] == 12
    assert plot.stat().st_size > 1000


def test_intervals_hold_the_mean(bench: Any):
    mean, low, high = bench.interval([0.0, 1.0, 1.0, 0.0])
    assert mean == 0.5
    assert 0.0 <= low < 0.5 < high <= 1.0
    assert bench.interval([1.0, 1.0]) == [1.0, 1.0, 1.0]
