"""Short prompts out of long ones: chunks, search, order, and both ends untouched."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

torch = pytest.importorskip("torch", reason="needs the extra 'torch'")
pytest.importorskip("numpy", reason="needs the extra 'torch'")

from remnant.errors import ConfigError  # noqa: E402
from remnant.speculative.rag_chunks import split  # noqa: E402
from remnant.speculative.rag_context import RagContext, check_ending  # noqa: E402
from remnant.speculative.rag_search import Passage, asked_of, distinct, in_order, scores  # noqa: E402

few = settings(max_examples=60, deadline=None)


class Letters:
    """One token per character."""

    def encode(self, text, *, add_special_tokens=False):
        return [ord(c) for c in text]

    def decode(self, token_ids):
        return "".join(map(chr, token_ids))


class Pieces:
    """Words that begin with the blank of SentencePiece, which decoding a single token drops."""

    words = ("\u2581The", "\u2581end", ".", "\u2581It", "\u2581goes", "\u2581on")

    def encode(self, text, *, add_special_tokens=False):
        return [self.words.index("\u2581" + word) for word in text.split()]

    def decode(self, token_ids):
        return "".join(self.words[i] for i in token_ids).replace("\u2581", " ").lstrip()

    def convert_ids_to_tokens(self, token):
        return self.words[token]


class Topics:
    """One axis per topic word."""

    model_id = "topics"

    def embed(self, texts, *, kind):
        return [[0.01 + text.count(word) for word in ("cat", "car", "sky")] for text in texts]


def ids(text):
    return torch.tensor(Letters().encode(text))


def text(prompt):
    return Letters().decode(prompt.ids.tolist())


DOCUMENT = "Alice owns a cat.\n\nThe red car is old.\n\nBlue sky over the hill.\n\nNobody saw a dog.\n\n"
QUESTION = "Q: what colour is the car? A:"


def context(**options):
    return RagContext(Letters(), **{"tail": len(QUESTION), "chunk": 24, "k": 1, **options})


# Chunks.


def test_a_document_is_cut_where_it_pauses():
    words = ["One two.\n\n", "Three ", "four. ", "Five ", "six ", "seven"]
    assert split(words, 6) == [(0, 6)]
    assert split(words, 5) == [(0, 1), (1, 6)], "at the paragraph"
    assert split(words, 4) == [(0, 1), (1, 3), (3, 6)], "then at the sentence"
    assert split(words, 2) == [(0, 1), (1, 3), (3, 5), (5, 6)], "then between words"
    assert split([""] * 5, 2) == [(0, 2), (2, 4), (4, 5)], "without any pause, anywhere"
    assert split([], 3) == []


def test_a_separator_may_span_tokens():
    assert split(["a", "\n", "\n", "b", "c"], 3) == [(0, 3), (3, 5)]
    assert split(["a", "。", "b", "c"], 3) == [(0, 2), (2, 4)]


@few
@given(st.lists(st.sampled_from(["a", "b ", ". ", "\n", "\n\n", "", "x, ", "。"]), max_size=60), st.integers(1, 9))
def test_chunks_are_the_document(atoms, size):
    spans = split(atoms, size)
    assert [i for a, b in spans for i in range(a, b)] == list(range(len(atoms)))
    assert all(0 < b - a <= size for a, b in spans)
    if 0 < len(atoms) <= size:
        assert spans == [(0, len(atoms))]


# Search.


def test_words_are_counted_as_a_share_of_the_best():
    alike = scores("the red car", ["a red car", "a car", "nothing"])
    assert alike[0] == 1.0
    assert 0 < alike[1] < 1.0
    assert alike[2] == 0.0
    assert scores("anything", []) == []


def test_meaning_is_a_cosine_and_both_are_mixed():
    texts = ["cat", "car car", "sky cat"]
    exact = scores("car", texts, "exact", Topics())
    assert exact[1] == pytest.approx(1.0, abs=1e-3)
    assert exact[0] < 0.1
    mixed = scores("car", texts, None, Topics())
    assert mixed[1] == pytest.approx(1.0)
    assert max(mixed[0], mixed[2]) < 0.5


def test_an_index_that_cannot_work_is_refused_at_once():
    with pytest.raises(ConfigError, match="without an embedder"):
        RagContext(index="exact")
    with pytest.raises(ConfigError, match="unknown index"):
        RagContext(index="wrods")


def test_repetitions_count_once():
    assert distinct(["a b", "c", "a  b ", "c"]) == [0, 1]


# Retrievers of other frameworks.


class Document:
    def __init__(self, page_content, **metadata):
        self.page_content, self.metadata = page_content, metadata


class Node:
    def __init__(self, text, start):
        self.text, self.start_char_idx, self.metadata = text, start, {}

    def get_content(self):
        return self.text


class WithScore:
    def __init__(self, node, score):
        self.node, self.score = node, score


class Chain:
    def invoke(self, question):
        return [Document("second", start_index=9), Document("first", start_index=2)]


class Old:
    def get_relevant_documents(self, question):
        return [Document(question)]


class Engine:
    def retrieve(self, question):
        return [WithScore(Node("far", 40), 0.9), WithScore(Node("near", 4), 0.2)]


def test_every_kind_of_retriever_gives_passages():
    assert [(p.text, p.start) for p in asked_of(Chain())("q")] == [("second", 9), ("first", 2)]
    assert [p.text for p in asked_of(Old())("what")] == ["what"]
    assert [(p.text, p.score, p.start) for p in asked_of(Engine())("q")] == [("far", 0.9, 40), ("near", 0.2, 4)]
    assert asked_of(lambda q: ["a", Passage("b")])("q") == [Passage("a"), Passage("b")]


def test_what_is_no_retriever_or_gives_no_text_is_refused():
    with pytest.raises(ConfigError, match="retriever int"):
        RagContext(Letters(), retriever=3)
    with pytest.raises(ConfigError, match="a list of passages"):
        asked_of(lambda q: "text")("q")
    with pytest.raises(ConfigError, match="a passage of int"):
        asked_of(lambda q: [3])("q")


def test_passages_go_back_to_the_order_of_the_document():
    found = [Passage("hill"), Passage("cat"), Passage("unknown"), Passage("car")]
    assert [p.text for p in in_order(found, DOCUMENT)] == ["cat", "car", "hill", "unknown"]
    two = [Passage("b2", start=5, source="b"), Passage("a1", start=9, source="a"), Passage("b1", start=1, source="b")]
    assert [p.text for p in in_order(two, "")] == ["b1", "b2", "a1"]


# Prompts.


def test_the_best_chunk_stands_before_the_question():
    short = context()(ids(DOCUMENT + QUESTION))
    assert text(short) == "The red car is old.\n\n\n\n" + QUESTION
    assert short.source == "passages"
    assert short.scores == (1.0,)
    assert short.tail == len(QUESTION)


def test_several_chunks_keep_their_order_and_the_floor():
    asked = DOCUMENT + "Q: hill sky cat. A:"
    short = context(k=2, tail=len("Q: hill sky cat. A:"), floor=0.1)(ids(asked))
    assert text(short).index("cat") < text(short).index("hill"), "the better one is the later one"
    only = context(k=2, tail=len("Q: hill sky cat. A:"), floor=0.9)(ids(asked))
    assert "Alice" not in text(only)


def test_a_repeated_chunk_is_read_once():
    short = context(k=2)(ids("The red car is old.\n\n" * 3 + DOCUMENT + QUESTION))
    assert text(short).count("red car") == 1


def test_the_beginning_stays():
    short = context(head=9)(ids("[system] " + DOCUMENT + QUESTION))
    assert text(short).startswith("[system] The red car")


def test_the_tail_may_be_found_by_a_marker():
    marked = RagContext(Letters(), marker="Q:", chunk=24, k=1)(ids("Q: old?\n\n" + DOCUMENT + QUESTION))
    assert text(marked).endswith("\n\n" + QUESTION)
    assert marked.tail == len(QUESTION)
    with pytest.raises(ConfigError, match="marker 'Z:' does not occur"):
        RagContext(Letters(), marker="Z:")(ids(DOCUMENT))


def test_nothing_found_leaves_both_ends_of_the_document():
    odd = "zzz?"
    short = RagContext(Letters(), tail=len(odd), chunk=5, k=2)(ids(DOCUMENT + odd))
    assert short.source == "truncated"
    assert short.scores == ()
    assert text(short) == DOCUMENT[:5] + DOCUMENT[-5:] + odd


def test_a_prompt_that_would_not_be_shorter_is_left_whole():
    whole = ids("A red car.\n\n" + QUESTION)
    for options in ({"k": 9, "chunk": 400}, {"tail": 4000}, {"head": 30}):
        short = context(**options)(whole)
        assert short.source == "whole"
        assert torch.equal(short.ids, whole)


def test_without_a_tokenizer_the_ids_are_the_words():
    long = torch.tensor([7] * 20 + [50, 51, 52] + [8] * 20 + [50, 51])
    short = RagContext(None, tail=2, chunk=5, k=1)(long)
    assert short.source == "passages"
    assert short.ids.tolist() == [50, 51, 52, 8, 8, 50, 51]
    with pytest.raises(ConfigError, match="about text"):
        RagContext(None, marker="Q")


def test_a_retriever_is_asked_with_the_question_and_its_floor_holds():
    asked = []

    def find(question):
        asked.append(question)
        return [Passage("Blue sky", 0.9), Passage("Alice owns", None), Passage("Nobody", 0.1), Passage("Blue  sky")]

    short = RagContext(Letters(), tail=len(QUESTION), retriever=find, joiner="|")(ids(DOCUMENT + QUESTION))
    assert asked == [QUESTION]
    assert text(short) == "Alice owns|Blue sky|" + QUESTION
    assert short.scores == (0.9,)


def test_a_sentence_is_seen_where_single_tokens_lose_their_blank():
    the, end, dot, it, goes, on = range(6)
    long = torch.tensor([the, end, dot, it, goes, on, goes])
    short = RagContext(Pieces(), tail=1, chunk=3, k=1, joiner="")(long)
    assert short.ids.tolist() == [it, goes, on, goes], "cut behind the sentence, not after three tokens by chance"
    atoms = ["The", " end", ".", " It", " goes"]
    assert split(atoms, 4) == [(0, 3), (3, 5)]


def test_both_prompts_must_end_alike():
    assert check_ending(torch.tensor([1, 2, 3, 4]), torch.tensor([9, 3, 4]), 2) == 2
    with pytest.raises(ConfigError, match="share their last 1 tokens; accepted: at least 2"):
        check_ending(torch.tensor([1, 2, 3, 4]), torch.tensor([9, 2, 4]), 2)
    assert check_ending(torch.tensor([1, 2, 3]), torch.tensor([3]), 2) == 1, "a short prompt shares all of itself"


@pytest.mark.parametrize("options", [{"tail": 0}, {"head": -1}, {"chunk": 0}, {"k": 0}])
def test_numbers_out_of_range_are_refused(options):
    with pytest.raises(ConfigError, match="accepted: head 0 or more"):
        RagContext(Letters(), **options)


@few
@given(
    st.text(alphabet="abc .\n", min_size=1, max_size=120), st.integers(1, 30), st.integers(0, 10), st.integers(1, 20)
)
def test_both_ends_are_always_those_of_the_long_prompt(prompt, tail, head, chunk):
    long = ids(prompt)
    short = RagContext(Letters(), tail=tail, head=head, chunk=chunk, k=2)(long)
    assert len(short.ids) <= len(long)
    assert check_ending(long, short.ids, short.tail) >= short.tail
    assert short.ids[:head].tolist() == long[:head].tolist()
    assert (short.source == "whole") == (len(short.ids) == len(long))
