"""Topics of a conversation: windows, an embedding of each, clusters, and the windows that stand for a cluster.

Everything here is small and runs once per conversation on the CPU; nothing needs a model unless you bring one.
"""

from __future__ import annotations

import math
import re
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from remnant.errors import ConfigError, ShapeError

__all__ = [
    "Document",
    "Embedder",
    "Episodes",
    "LexicalEmbedder",
    "block_mask",
    "cluster",
    "key_sensitivity",
    "kmeans",
    "sensitivity_budgets",
    "windows",
]

Document = str | tuple[int, ...]
"""A piece of a conversation: text, or token ids."""
Vectors = NDArray[np.float32]
Embedder = Callable[[Sequence[Document]], Vectors]
"""Turns N documents into `[N, d]` vectors; they need not be normalised. Any sentence encoder can be wrapped so."""

_WORD = re.compile(r"\w+")
_SENTENCE = re.compile(r"(?<=[.!?])\s+")


@dataclass(frozen=True)
class LexicalEmbedder:
    """Hashed TF-IDF of words or token ids: needs no model, and is the same on every machine.

    Attributes:
        weights: `[d]` float32, inverse document frequency of each bucket, from `fit`.

    A word of every window tells nothing and weighs next to nothing; a word that no window holds weighs most, so that
    a question off all topics is far from each of them.
    """

    weights: Vectors

    @staticmethod
    def fit(documents: Sequence[Document], dim: int = 4096) -> LexicalEmbedder:
        """Count in how many documents each bucket occurs.

        Args:
            documents: texts or token ids.
            dim: buckets; two words in one bucket cannot be told apart.
        """
        counts = np.zeros(dim)
        for document in documents:
            counts[np.unique(_buckets(document, dim))] += 1
        return LexicalEmbedder(np.log((1 + len(documents)) / (0.5 + counts)).astype(np.float32))

    def __call__(self, documents: Sequence[Document]) -> Vectors:
        """`[N, d]` float32, L2-normalised; zeros for an empty document."""
        dim = len(self.weights)
        out = np.zeros((len(documents), dim), dtype=np.float32)
        for row, document in zip(out, documents, strict=True):
            found, counts = np.unique(_buckets(document, dim), return_counts=True)
            row[found] = (1 + np.log(counts)) * self.weights[found]
        return _normalised(out)


def _buckets(document: Document, dim: int) -> NDArray[np.int64]:
    """Bucket of every word or id; CRC and not `hash`, which differs between processes."""
    units = _WORD.findall(document.lower()) if isinstance(document, str) else [str(i) for i in document]
    return np.array([zlib.crc32(unit.encode()) % dim for unit in units], dtype=np.int64)


def _normalised(x: Vectors) -> Vectors:
    norm = np.linalg.norm(x, axis=-1, keepdims=True)
    return np.divide(x, norm, out=np.zeros_like(x), where=norm > 0)


def windows(turns: Sequence[str] | Sequence[Sequence[int]], size: int = 4, longest: int = 600) -> list[Document]:
    """Join utterances into windows, in order.

    Args:
        turns: texts or token ids, one per utterance. Texts of more than `longest` characters count by sentences.
        size: utterances per window; the last window may have fewer.
        longest: characters of a text that is one utterance.
    """
    if size < 1:
        raise ConfigError(f"conv_window={size}", accepted="an integer of at least 1")
    texts = [turn for turn in turns if isinstance(turn, str)]
    if len(texts) == len(turns):
        parts = [part for turn in texts for part in (_SENTENCE.split(turn) if len(turn) > longest else [turn])]
        return [" ".join(parts[i : i + size]) for i in range(0, len(parts), size)]
    if texts:
        raise ConfigError("texts and token ids in one conversation", accepted="one or the other")
    groups = [turns[i : i + size] for i in range(0, len(turns), size)]
    return [tuple(int(t) for turn in group for t in turn) for group in groups]


def kmeans(
    x: Vectors, k: int, seed: int = 42, n_init: int = 10, iterations: int = 100
) -> tuple[Vectors, NDArray[np.int64]]:
    """Lloyd's algorithm from `n_init` k-means++ starts; the start with the smallest error wins.

    Args:
        x: `[N, d]`, N >= 1.
        k: clusters wanted. Fewer come back when there are fewer distinct points; none comes back empty.
        seed: of the starts.
        n_init: starts.
        iterations: at most so many rounds per start.

    Returns:
        Means `[k', d]` and labels `[N]`, clusters numbered by their first member.
    """
    if len(x) == 0 or k < 1:
        raise ConfigError(f"{k} clusters of {len(x)} points", accepted="at least 1 of each")
    rng = np.random.default_rng(seed)
    k = min(k, len(np.unique(x, axis=0)))
    best = min((_lloyd(x, _start(x, k, rng), iterations) for _ in range(n_init)), key=lambda found: found[0])
    # Numbers follow the conversation, and clusters that lost their last member vanish.
    order: dict[int, int] = {}
    for label in best[1].tolist():
        order.setdefault(label, len(order))
    labels = np.array([order[label] for label in best[1].tolist()], dtype=np.int64)
    means = np.stack([x[labels == j].mean(0) for j in range(len(order))]).astype(np.float32)
    return means, labels


def _distances(x: Vectors, means: Vectors) -> Vectors:
    """Squared distances `[N, k]`."""
    return np.maximum((x * x).sum(-1)[:, None] - 2 * np.dot(x, np.transpose(means)) + (means * means).sum(-1), 0)


def _start(x: Vectors, k: int, rng: np.random.Generator) -> Vectors:
    chosen = [int(rng.integers(len(x)))]
    for _ in range(k - 1):
        near = _distances(x, x[chosen]).min(1).astype(np.float64)
        near[chosen] = 0.0
        total = near.sum()
        chosen.append(int(rng.choice(len(x), p=near / total)) if total > 0 else int(rng.integers(len(x))))
    return x[chosen]


def _lloyd(x: Vectors, means: Vectors, iterations: int) -> tuple[float, NDArray[np.int64]]:
    labels = np.full(len(x), -1, dtype=np.int64)
    for _ in range(iterations):
        d = _distances(x, means)
        new = d.argmin(1)
        own = d[np.arange(len(x)), new]
        for empty in np.flatnonzero(np.bincount(new, minlength=len(means)) == 0):
            # A cluster without members takes the point that fits worst among clusters that can spare one.
            spare = np.bincount(new, minlength=len(means))[new] > 1
            worst = int(np.where(spare, own, -1.0).argmax())
            new[worst], own[worst] = empty, 0.0
        if (new == labels).all():
            break
        labels = new
        means = np.stack([x[labels == j].mean(0) for j in range(len(means))]).astype(np.float32)
    return float(((x - means[labels]) ** 2).sum()), labels


@dataclass(frozen=True)
class Episodes:
    """A conversation sorted by topic.

    Attributes:
        centroids: `[E, d]` float32, normalised.
        prompts: for each episode its patched prompt: the windows nearest to the centroid, in their original order.
        labels: `[N]` int64, episode of each window.
        medoids: for each episode the windows that its prompt is made of.
        embedder: what made the vectors, used again for questions.
        off_topic: a question whose cosine to every centroid is at most this belongs to no episode.
    """

    centroids: Vectors
    prompts: tuple[Document, ...]
    labels: NDArray[np.int64]
    medoids: tuple[tuple[int, ...], ...]
    embedder: Embedder
    off_topic: float = 0.0

    def __len__(self) -> int:
        """Number of episodes; at most as many as were asked for."""
        return len(self.prompts)

    def similarity(self, documents: Sequence[Document]) -> Vectors:
        """Cosine of documents to episodes, `[N, E]`."""
        vectors = _normalised(np.asarray(self.embedder(documents), dtype=np.float32))
        return np.dot(vectors, np.transpose(self.centroids))

    def nearest(self, question: Document) -> int | None:
        """The episode to ask, or None when the question is on none of the topics."""
        cosine = self.similarity([question])[0]
        best = int(cosine.argmax())
        return best if cosine[best] > self.off_topic else None

    def extended(self, documents: Sequence[Document]) -> Episodes:
        """The same episodes after further windows: each joins its nearest, whose centroid moves to the running mean.

        Prompts stay as they were, since caches have been made with them.
        """
        if not documents:
            return self
        vectors = _normalised(np.asarray(self.embedder(documents), dtype=np.float32))
        centroids: Vectors = np.array(self.centroids)
        counts = np.bincount(self.labels, minlength=len(self))
        new = np.zeros(len(vectors), dtype=np.int64)
        for i, vector in enumerate(vectors):
            j = new[i] = int(np.argmax(np.dot(centroids, vector)))
            counts[j] += 1
            centroids[j] = _normalised(centroids[j] + (vector - centroids[j]) / counts[j])
        return replace(self, centroids=centroids, labels=np.concatenate([self.labels, new]))


def cluster(
    documents: Sequence[Document],
    episodes: int = 4,
    medoids: int = 4,
    embedder: Embedder | None = None,
    seed: int = 42,
    n_init: int = 10,
    off_topic: float = 0.0,
) -> Episodes:
    """Sort windows into episodes.

    Args:
        documents: windows in order, all texts or all token ids; see `windows`.
        episodes: clusters wanted; fewer come back when there are fewer distinct windows.
        medoids: windows per patched prompt.
        embedder: default `LexicalEmbedder.fit(documents)`.
        seed: of k-means.
        n_init: starts of k-means.
        off_topic: see `Episodes`.

    Source: Kim et al. 2025, arXiv 2509.17396. Differs: the default embedder needs no model; the patched prompt of an
    episode with fewer windows than `medoids` is all of them.
    """
    if not documents or episodes < 1 or medoids < 1:
        raise ConfigError(
            f"{len(documents)} windows, episodes={episodes}, medoids={medoids}", accepted="at least 1 of each"
        )
    embed = embedder or LexicalEmbedder.fit(documents)
    vectors = _normalised(np.asarray(embed(documents), dtype=np.float32))
    if vectors.ndim != 2 or len(vectors) != len(documents):
        raise ShapeError(f"the embedder gave {list(vectors.shape)}", accepted=f"[{len(documents)}, d]")
    means, labels = kmeans(vectors, episodes, seed, n_init)
    centroids = _normalised(means)
    chosen: list[tuple[int, ...]] = []
    for j in range(len(centroids)):
        members = np.flatnonzero(labels == j)
        ranked = members[np.argsort(-(vectors[members] @ centroids[j]), kind="stable")]
        chosen.append(tuple(sorted(int(i) for i in ranked[:medoids])))
    prompts = tuple(_join([documents[i] for i in picked]) for picked in chosen)
    return Episodes(centroids, prompts, labels, tuple(chosen), embed, off_topic)


def _join(parts: Sequence[Document]) -> Document:
    texts = [part for part in parts if isinstance(part, str)]
    if texts:
        return "\n".join(texts)
    return tuple(int(token) for part in parts for token in part)


def block_mask(length: int, window: int = 4096, sinks: int = 128, overlap: float = 0.5) -> Tensor:
    """What each token may see when a text is read in overlapping blocks: `[length, length]` bool, True is visible.

    Args:
        length: tokens.
        window: tokens that a block sees at most, itself included.
        sinks: first tokens, seen by everyone.
        overlap: fraction of the window that a block shares with the one before.
    """
    fresh = 1 - Fraction(str(overlap))
    stride = max(1, int(window * fresh))
    i = torch.arange(length)
    begin = (i // stride + 1) * stride - window
    seen = (i[None, :] >= begin[:, None]) | (i[None, :] < sinks)
    return seen & (i[None, :] <= i[:, None])


def key_sensitivity(keys_full: Tensor, keys_blocked: Tensor, window: int = 100) -> float:
    """How little a layer's keys change when the text is read in blocks: near 1 for a layer that does not mind.

    Args:
        keys_full: `[..., S, D]` keys of one layer under full causal attention.
        keys_blocked: the same under a `block_mask`.
        window: tokens that are flattened into one vector; a shorter rest is left out unless it is all there is.

    Returns:
        Mean cosine over heads and windows.
    """
    if keys_full.shape != keys_blocked.shape:
        raise ShapeError(f"keys {list(keys_full.shape)} and {list(keys_blocked.shape)}", accepted="equal shapes")
    s, d = keys_full.shape[-2:]
    width = min(window, s)
    whole = s - s % width
    a, b = (k[..., :whole, :].float().reshape(-1, width * d) for k in (keys_full, keys_blocked))
    return float(torch.nn.functional.cosine_similarity(a, b, dim=-1).mean())


def sensitivity_budgets(scores: Sequence[float], total: int, power: float, floor_share: float = 0.25) -> list[int]:
    """Split a total over layers: a layer whose keys change more gets more.

    Args:
        scores: `key_sensitivity` of each layer.
        total: tokens over all layers, at least one per layer.
        power: 0 is uniform; larger favours sensitive layers more.
        floor_share: every layer gets at least this fraction of the average.

    Returns:
        Tokens per layer; they sum to `total`, or to the largest multiple of the layers when all are equal.

    Source: Kim et al. 2025, arXiv 2509.17396. Differs: the original clamps to the floor after it has spent everything,
    so its sum is 2-5 % too large; here what the floor takes is taken from the others.
    """
    n = len(scores)
    if n == 0 or total < n:
        raise ConfigError(f"{total} tokens over {n} layers", accepted="at least 1 token per layer")
    if power < 0 or not 0 <= floor_share <= 1:
        raise ConfigError(f"power={power}, floor_share={floor_share}", accepted="power >= 0, a share between 0 and 1")
    low, high = min(scores), max(scores)
    weights = [1.0 if high == low else (1 - (s - low) / (high - low)) ** power for s in scores]
    if len(set(weights)) == 1:
        return [total // n] * n
    floor = max(1, int(floor_share * (total // n)))
    free, shares = set(range(n)), [float(floor)] * n
    while free:
        # Layers under the floor are fixed there; the rest is shared out again until nobody is under it.
        rest, mass = total - floor * (n - len(free)), sum(weights[i] for i in free)
        under = {i for i in free if weights[i] * rest < floor * mass}
        if not under:
            shares = [weights[i] * rest / mass if i in free else shares[i] for i in range(n)]
            break
        free -= under
    out = [math.floor(share) for share in shares]
    by_rest = sorted(range(n), key=lambda i: (out[i] - shares[i], i))
    for i in by_rest[: total - sum(out)]:
        out[i] += 1
    return out
