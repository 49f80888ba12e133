"""The baselines are proper distributions, and right by hand."""

import numpy as np

from remnant.testbed.ngram import NGram

IDS = np.array([0, 1, 2, 0, 1, 2, 0, 1, 3, 4, 0, 1, 2, 2, 4])
VOCAB = 6


def test_probabilities_sum_to_one_after_any_history():
    model = NGram.fit(IDS, VOCAB)
    every = np.arange(VOCAB)
    for history in ([0, 1], [1, 2], [5, 5], [3, 0], [4, 5]):
        p = model.trigram(np.tile(history, (VOCAB, 1)), every)
        assert np.isclose(p.sum(), 1.0)
        assert (p > 0).all()
    assert np.isclose(model.unigram(every).sum(), 1.0)


def test_what_was_seen_is_likely():
    model = NGram.fit(IDS, VOCAB)
    p = model.trigram(np.tile([0, 1], (VOCAB, 1)), np.arange(VOCAB))
    assert p.argmax() == 2
    # Two of four continuations of "0 1" occur once each or thrice; the discount is 1/(1+2*...) of the counts.
    assert p[2] > p[3] > p[5]


def test_unigram_by_hand():
    model = NGram.fit(IDS, VOCAB)
    assert model.unigram(np.array([0, 5])).tolist() == [5 / 21, 1 / 21]
