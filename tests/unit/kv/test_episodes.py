"""Windows, embeddings, clusters and layer budgets."""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from remnant.errors import ConfigError, ShapeError
from remnant.kv.episodes import (
    LexicalEmbedder,
    block_mask,
    cluster,
    key_sensitivity,
    kmeans,
    sensitivity_budgets,
    windows,
)

TALK = [
    "We bake bread with yeast and flour.",
    "The oven bakes the bread dough.",
    "The orbit of the planet is an ellipse.",
    "A telescope shows the planet and its moons in orbit.",
    "Knead the dough, then let the yeast rise.",
    "Astronomers point the telescope at moons.",
]


def test_windows_of_texts_ids_and_long_turns():
    assert windows(["a", "b", "c"], 2) == ["a b", "c"]
    assert windows([[1, 2], [3], [4]], 2) == [(1, 2, 3), (4,)]
    assert windows(["One. Two! Three?", "x"], 2, longest=5) == ["One. Two!", "Three? x"]
    assert windows([], 2) == []
    with pytest.raises(ConfigError):
        windows(["a"], 0)
    with pytest.raises(ConfigError):
        windows(["a", [1]], 1)  # type: ignore[list-item]


def test_lexical_embedder_is_normalised_and_knows_common_words():
    embed = LexicalEmbedder.fit(TALK)
    x = embed(TALK)
    assert x.dtype == np.float32
    assert np.linalg.norm(x, axis=1) == pytest.approx(np.ones(len(TALK)), abs=1e-5)
    cosine = x @ x.T
    assert cosine[0, 1] > cosine[0, 2]
    assert cosine[2, 3] > cosine[2, 1]
    assert (embed([""]) == 0).all()
    assert (embed([(5, 6)]) == embed([(6, 5)])).all()


def test_topics_are_found_and_prompts_are_chronological():
    found = cluster(TALK, episodes=2, medoids=2)
    assert found.labels.tolist() == [0, 0, 1, 1, 0, 1]
    assert len(found) == 2
    for picked, prompt in zip(found.medoids, found.prompts, strict=True):
        assert list(picked) == sorted(picked)
        assert prompt == "\n".join(TALK[i] for i in picked)
    assert found.nearest("Which flour for bread?") == 0
    assert found.nearest("telescope") == 1
    assert found.nearest("zzz qqq") is None


def test_off_topic_threshold_sends_a_weak_match_away():
    question = "bread dough or submarines, sonar, torpedoes, periscopes, hulls"
    assert cluster(TALK, 2).nearest(question) == 0
    assert cluster(TALK, 2, off_topic=0.5).nearest(question) is None


def test_ids_cluster_too_and_prompts_are_ids():
    found = cluster([(1, 2, 3), (7, 8, 9), (1, 3, 2), (9, 8, 7)], episodes=2, medoids=1)
    assert found.labels.tolist() == [0, 1, 0, 1]
    assert found.prompts == ((1, 2, 3), (7, 8, 9))


def test_fewer_windows_than_episodes():
    found = cluster(["a b", "c d"], episodes=4)
    assert len(found) == 2
    assert len(cluster(["same", "same", "same"], episodes=3)) == 1
    with pytest.raises(ConfigError):
        cluster([], 2)


def test_extended_moves_the_centroid_to_the_mean_and_leaves_the_first_alone():
    table = {"x": [1.0, 0.0], "y": [0.0, 1.0], "z": [0.6, 0.8]}
    found = cluster(
        ["x", "y"], episodes=2, embedder=lambda docs: np.array([table[str(d)] for d in docs], dtype=np.float32)
    )
    more = found.extended(["z"])
    assert more.labels.tolist() == [0, 1, 1]
    assert found.labels.tolist() == [0, 1]
    mean = np.array([0.3, 0.9])
    assert more.centroids[1] == pytest.approx(mean / np.linalg.norm(mean), abs=1e-6)
    assert more.prompts == found.prompts
    assert found.extended([]) is found


def test_an_embedder_of_the_wrong_shape_is_refused():
    with pytest.raises(ShapeError):
        cluster(["a", "b"], embedder=lambda docs: np.zeros(3, dtype=np.float32))


@given(
    n=st.integers(1, 20),
    k=st.integers(1, 8),
    seed=st.integers(0, 1000),
    distinct=st.integers(1, 5),
)
def test_kmeans_has_no_empty_cluster_and_is_repeatable(n, k, seed, distinct):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(distinct, 3)).astype(np.float32)[rng.integers(0, distinct, size=n)]
    means, labels = kmeans(x, k, seed=seed, n_init=2)
    assert len(means) <= min(k, len(np.unique(x, axis=0)))
    assert sorted(set(labels.tolist())) == list(range(len(means)))
    for j, mean in enumerate(means):
        assert mean == pytest.approx(x[labels == j].mean(0), abs=1e-5)
    again = kmeans(x, k, seed=seed, n_init=2)
    assert (again[1] == labels).all()


def test_kmeans_finds_separated_groups():
    x = np.array([[0, 0], [5, 5], [0, 0.1], [5, 5.1], [9, 0]], dtype=np.float32)
    means, labels = kmeans(x, 3)
    assert labels.tolist() == [0, 1, 0, 1, 2]
    assert means[2].tolist() == [9.0, 0.0]


def test_block_mask_by_hand():
    mask = block_mask(8, window=4, sinks=1, overlap=0.5)
    seen = [[j for j in range(8) if mask[i, j]] for i in range(8)]
    assert seen == [[0], [0, 1], [0, 1, 2], [0, 1, 2, 3], [0, 2, 3, 4], [0, 2, 3, 4, 5], [0, 4, 5, 6], [0, 4, 5, 6, 7]]


def test_key_sensitivity_by_hand():
    a = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 0.0], [1.0, 0.0]]).view(1, 1, 4, 2)
    b = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.0, 1.0], [0.0, 1.0]]).view(1, 1, 4, 2)
    assert key_sensitivity(a, a) == pytest.approx(1.0)
    assert key_sensitivity(a, b, window=2) == pytest.approx(0.5)
    assert key_sensitivity(a, b, window=100) == pytest.approx(0.5)
    assert key_sensitivity(a, b, window=3) == pytest.approx(2 / 3)  # the fourth token is left out
    with pytest.raises(ShapeError):
        key_sensitivity(a, b[..., :2, :])


def test_sensitivity_budgets_by_hand():
    assert sensitivity_budgets([0.5, 0.5, 0.5], 10, 1.1) == [3, 3, 3]
    assert sensitivity_budgets([0.9, 0.1, 0.5], 30, 0.0) == [10, 10, 10]
    assert sensitivity_budgets([0.0, 0.5, 1.0], 300, 1.0, floor_share=0.0) == [199, 100, 1]
    assert sensitivity_budgets([0.0, 0.5, 1.0], 300, 1.0) == [183, 92, 25]
    assert sensitivity_budgets([0.0, 1.0], 2, 3.0) == [1, 1]
    with pytest.raises(ConfigError):
        sensitivity_budgets([0.1, 0.2], 1, 1.0)


@given(
    scores=st.lists(st.floats(-1, 1), min_size=1, max_size=40),
    per=st.integers(1, 500),
    extra=st.integers(0, 39),
    power=st.sampled_from([0.0, 0.5, 1.1, 1.3, 5.0]),
)
def test_sensitivity_budgets_never_overshoot(scores, per, extra, power):
    total = per * len(scores) + extra % len(scores)
    out = sensitivity_budgets(scores, total, power)
    assert total - len(scores) < sum(out) <= total
    assert min(out) >= max(1, per // 4)
    order = sorted(range(len(scores)), key=lambda i: scores[i])
    assert all(out[a] + 1 >= out[b] for a, b in itertools.pairwise(order))
