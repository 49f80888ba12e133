"""The lookup drafter over batches whose rows move; no vLLM is needed for that."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np

from remnant_vllm.drafter import LookupDrafter
from remnant_vllm.histories import Histories

VOCAB, LONGEST = 64, 256


def make(**options: int) -> LookupDrafter:
    """As an engine of four rows makes it."""
    return LookupDrafter(
        SimpleNamespace(
            speculative_config=SimpleNamespace(num_speculative_tokens=4),
            additional_config={"remnant": {"lookup": options}},
            model_config=SimpleNamespace(max_model_len=LONGEST, get_vocab_size=lambda: VOCAB),
            scheduler_config=SimpleNamespace(max_num_seqs=4),
        )
    )


class Batch:
    """What vLLM hands over: texts in the rows of a buffer, in a process that nobody else looks into."""

    def __init__(self, rows: int, width: int = LONGEST) -> None:
        self.text, self.lengths = np.zeros((rows, width), np.int32), np.zeros(rows, np.int32)

    def put(self, row: int, tokens: list[int]) -> None:
        self.text[row, : len(tokens)] = tokens
        self.lengths[row] = len(tokens)

    def add(self, row: int, *tokens: int) -> list[int]:
        n = self.lengths[row]
        self.text[row, n : n + len(tokens)] = tokens
        self.lengths[row] += len(tokens)
        return list(tokens)

    def swap(self, a: int, b: int) -> None:
        for each in (self.text, self.lengths):
            each[[a, b]] = each[[b, a]]


def cycle(period: int, length: int, first: int = 1) -> list[int]:
    return [first + i % period for i in range(length)]


def test_drafts_follow_their_text_through_rows() -> None:
    """Rows are swapped, left and entered again; every text is indexed once, and every draft is its own."""
    drafter, batch = make(), Batch(3)
    batch.put(0, cycle(5, 40))
    batch.put(1, cycle(7, 40, 20))
    batch.put(2, cycle(3, 41, 50))
    assert drafter.propose([[batch.text[row, batch.lengths[row] - 1]] for row in range(3)], batch.lengths, batch.text)
    batch.swap(0, 2)
    new = [batch.add(0, 52), batch.add(1, 25), batch.add(2, 1, 2)]
    assert drafter.propose(new, batch.lengths, batch.text) == [[50, 51, 52, 50], [26, 20, 21, 22], [3, 4, 5, 1]]
    gone = batch.text[1].copy(), int(batch.lengths[1])
    batch.put(1, cycle(4, 30, 10))
    new = [batch.add(0, 50), batch.add(1, 12), batch.add(2, 3)]
    assert drafter.propose(new, batch.lengths, batch.text) == [[51, 52, 50, 51], [13, 10, 11, 12], [4, 5, 1, 2]]
    batch.text[0], batch.lengths[0] = gone  # comes back in another row; what stood there has ended
    new = [batch.add(0, 26), [], batch.add(2, 4)]
    assert drafter.propose(new, batch.lengths, batch.text) == [[20, 21, 22, 23], [], [5, 1, 2, 3]]
    assert drafter.histories.built == 4


def test_equal_texts_side_by_side() -> None:
    """Samples of one prompt are alike at first and go apart later."""
    drafter, batch = make(), Batch(3)
    for row in range(3):
        batch.put(row, cycle(6, 30))
    for step in range(4):
        new = [batch.add(row, 1 + (30 + step) % 6) for row in range(3)]
        drafts = drafter.propose(new, batch.lengths, batch.text)
        assert drafts == [[1 + (31 + step + i) % 6 for i in range(4)]] * 3
    new = [batch.add(row, 1 + (33 + 11 * row) % 6, 40 + row) for row in range(3)]
    drafter.propose(new, batch.lengths, batch.text)
    assert len(drafter.histories) == drafter.histories.built == 3


def test_odd_rows_are_left_alone() -> None:
    """Rows that are still read, empty, beyond the buffer, full, or hold placeholders; nothing is raised."""
    drafter, batch = make(), Batch(6)
    for row in range(6):
        batch.put(row, cycle(5, 40))
    batch.lengths[1] = 0
    batch.text[2, 10] = -1
    batch.put(3, cycle(5, LONGEST - 1))
    batch.lengths[4] = LONGEST + 7
    batch.put(5, cycle(5, LONGEST - 3))
    drafts = drafter.propose([[], [1], [5], [1], [1], [3], [9], [9, 9]], batch.lengths, batch.text)
    assert drafts[:5] == [[]] * 5
    assert len(drafts[5]) == 2, "two more tokens and the one that is sampled fill the text"
    assert drafts[6:] == [[], []]
    assert drafter.propose([], batch.lengths, batch.text) == []
    batch.put(0, [VOCAB + 3, 1, 2] * 12)
    assert drafter.propose([[2]], batch.lengths, batch.text) == [[]], "no token that the target does not have"


def test_memory_is_bounded() -> None:
    """Texts that have left make room for new ones, those in the batch do not; who finds none goes without drafts."""

    class Kept(list[int]):
        pass

    gone: list[int] = []
    histories = Histories(lambda tokens: Kept(tokens.tolist()), 3, 100, lambda h: gone.append(h.length))
    texts = [np.array(cycle(5, 30, 10 * i), np.int32) for i in range(5)]
    histories.begin()
    assert [histories.take(i, texts[i], 30, 1) is not None for i in range(5)] == [True, True, True, False, False]
    assert histories.tokens == 90
    histories.begin()
    grown = np.append(texts[0], np.int32(10)).astype(np.int32)
    found = histories.take(0, grown, 31, 1)
    assert found is not None
    assert list(found.index) == grown.tolist()
    assert histories.take(3, texts[3], 30, 1) is None, "the others may only have been left out of this step"
    histories.begin()
    assert histories.take(3, texts[3], 30, 1) is not None
    assert gone == [30]
    assert (len(histories), histories.tokens) == (3, 91)
    long = np.append(grown, np.zeros(80, np.int32)).astype(np.int32)
    assert histories.take(0, long, 111, 80) is None, "it has outgrown what there is"
    assert histories.tokens == 30


def test_past_answers_are_shared_only_on_request() -> None:
    """What another request was answered is drafted once that one has ended; by default never."""
    for options, wanted in (({}, []), ({"shared_tokens": 4096}, [36, 37, 38, 39])):
        drafter, batch = make(**options), Batch(2)
        batch.put(0, cycle(3, 12))
        drafter.propose([[batch.text[0, 11]]], batch.lengths, batch.text)
        for token in range(30, 45):
            drafter.propose([batch.add(0, token)], batch.lengths, batch.text)
        batch.put(1, [7, 30, 31, 32, 33, 34, 35])
        assert drafter.propose([[], [35]], batch.lengths, batch.text) == [[], []], "the other may still go on"
        batch.put(0, [9, 8, 30, 31, 32, 33, 34, 35])
        assert drafter.propose([[35], []], batch.lengths, batch.text) == [wanted, []]
