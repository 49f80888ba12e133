"""Setting the router's limits from measurements: reliable length, passages, abstention."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

from remnant.errors import ConfigError

T = TypeVar("T")


@dataclass(frozen=True)
class Trial:
    """How often a reader was right under one condition.

    Args:
        right: questions answered rightly.
        asked: questions asked, at least 1.

    Raises:
        ConfigError: not 0 <= right <= asked, or nothing was asked.
    """

    right: int
    asked: int

    def __post_init__(self) -> None:
        """Refuse impossible counts."""
        if not 0 <= self.right <= self.asked or self.asked < 1:
            raise ConfigError(f"{self.right} right of {self.asked}", accepted="0 <= right <= asked, asked at least 1")

    @property
    def accuracy(self) -> float:
        """Fraction answered rightly."""
        return self.right / self.asked

    @property
    def error(self) -> float:
        """Standard error of the accuracy, a fraction."""
        return math.sqrt(self.accuracy * (1 - self.accuracy) / self.asked)

    def interval(self, z: float = 1.96) -> tuple[float, float]:
        """Wilson's interval of the accuracy; 95 % by default.

        Example: Trial(8, 10).interval() -> (0.490, 0.943) (about)
        """
        n, p = self.asked, self.accuracy
        middle = (p + z * z / (2 * n)) / (1 + z * z / n)
        half = z / (1 + z * z / n) * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
        return max(0.0, middle - half), min(1.0, middle + half)


def reliable_length(trials: Mapping[int, Trial], reference: int, drop: float = 0.05) -> int:
    """The longest prompt at which a reader is nearly as good as at a short one.

    Args:
        trials: length (tokens or conversations) -> how it did there.
        reference: the short length compared with; ConvoMem's is 10 conversations.
        drop: fraction that the accuracy may fall.

    Returns:
        The last length before accuracy first falls by more than `drop`, in the unit of `trials`. A later rise does
        not count: lengths in between cannot be trusted.

    Raises:
        ConfigError: the reference was not measured.
    """
    if reference not in trials:
        raise ConfigError(f"reference length {reference}", accepted=[str(n) for n in sorted(trials)])
    best, floor = reference, trials[reference].accuracy - drop - 1e-9
    for length in sorted(n for n in trials if n > reference):
        if trials[length].accuracy < floor:
            break
        best = length
    return best


def best_k(trials: Mapping[int, Trial], least: int = 200) -> int:
    """The smallest number of passages within one standard error of the best.

    Args:
        trials: k -> how the reader did with k passages.
        least: questions each needs.

    Raises:
        ConfigError: nothing was measured, or on too few questions.

    Source: Jin et al. 2025, Long-Context LLMs Meet RAG: accuracy against k is an inverted U. The rule is ours.
    """
    if not trials or min(trial.asked for trial in trials.values()) < least:
        raise ConfigError(f"{len(trials)} values of k", accepted=f"at least one, each on {least} questions or more")
    top = max(trials.values(), key=lambda trial: trial.accuracy)
    return min(k for k, trial in trials.items() if trial.accuracy >= top.accuracy - top.error)


def abstention_gate(best_scores: Iterable[float], recall: float = 0.95) -> float:
    """The best score below which a search found nothing worth answering from.

    Args:
        best_scores: the best fused score of each answerable question.
        recall: fraction of them that must pass.

    Returns:
        The highest threshold that lets at least `recall` of them pass (`score >= threshold`).

    Raises:
        ConfigError: no scores, or recall is not in (0, 1].
    """
    scores = sorted(best_scores, reverse=True)
    if not scores or not 0 < recall <= 1:
        raise ConfigError(f"{len(scores)} scores, recall {recall}", accepted="1 score or more, 0 < recall <= 1")
    return scores[math.ceil(recall * len(scores) - 1e-9) - 1]


@dataclass(frozen=True)
class Abstentions:
    """What abstaining cost and spared.

    Args:
        right: answered or abstained as it should.
        false_abstain: abstained, though there was an answer.
        false_answer: answered, though there was none.
        asked: all questions, wrong answers to answerable ones included.
    """

    right: int
    false_abstain: int
    false_answer: int
    asked: int

    def score(self, weight: float = 1.0) -> float:
        """Accuracy less `weight` times the fraction of false answers; the number to maximise."""
        return (self.right - weight * self.false_answer) / max(1, self.asked)


def drop_weak(ranked: Sequence[tuple[T, float]], tau: float = 0.5) -> list[tuple[T, float]]:
    """Drop passages that are far behind the best: wrong ones that look right mislead a reader most.

    Args:
        ranked: (passage, fused score), best first; of any scale.
        tau: fraction of the best score, after scaling all to 0-1, that a passage needs.

    Returns:
        Those that stay, in order; the best always does, and all do where the scores are equal.

    Raises:
        ConfigError: tau is not between 0 and 1.
    """
    if not 0 <= tau <= 1:
        raise ConfigError(f"tau {tau}", accepted="0 <= tau <= 1")
    if not ranked:
        return []
    low, high = min(s for _, s in ranked), max(s for _, s in ranked)
    return [(item, s) for item, s in ranked if high == low or (s - low) >= tau * (high - low)]
