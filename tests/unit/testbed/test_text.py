"""The real text and its split."""

from remnant.testbed.text import load_corpus, load_held_out


def test_held_out_alone_is_the_held_out_part_of_the_whole():
    assert load_held_out() == load_corpus().held_out


def test_splits_share_no_document():
    corpus = load_corpus()
    assert not set(corpus.train) & set(corpus.held_out)
    assert 0.03 < len(corpus.held_out) / (len(corpus.train) + len(corpus.held_out)) < 0.2


def test_it_is_english():
    text = " ".join(load_held_out()).lower()
    assert text.count(" the ") > 500
    assert len(load_corpus().sha256) == 64
