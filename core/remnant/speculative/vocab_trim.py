"""`trim_vocab`: from a drafter and a text to a smaller drafter, with a report of what that costs and gains."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from remnant.errors import ConfigError
from remnant.progress import Progress, silent
from remnant.serving.checkpoint import find_config
from remnant.speculative.vocab_chain import Chain, measure_chain
from remnant.speculative.vocab_checkpoint import Checkpoint, read_checkpoint, target_bytes
from remnant.speculative.vocab_counts import Tokens, count_tokens, windows
from remnant.speculative.vocab_measure import Forward, between, expected_overlap, measure
from remnant.speculative.vocab_mixture import Domain, keep_for
from remnant.speculative.vocab_report import write_report
from remnant.speculative.vocab_settings import HELD_OUT_EVERY, WINDOW, Source, Trim
from remnant.speculative.vocab_specials import special_ids
from remnant.speculative.vocab_table import Work, believe, best_k, grid_of, report_of, row_of
from remnant.speculative.vocab_write import check_out, final_map, replacing, write_trimmed

__all__ = ["check_trim", "trim_vocab"]


def check_trim(model: str | Path, out: Path, trim: Trim, target: str | Path | None = None) -> tuple[Checkpoint, int]:
    """Refuse what cannot work, before any text or weight is read.

    Args:
        model: the drafter's folder, or the id of a downloaded one.
        out: where the smaller one goes.
        trim: how to trim.
        target: the target's folder or id; None when it is not known.

    Returns:
        The drafter, and the bytes of the target (0 when not known).

    Raises:
        ConfigError: see `read_checkpoint` and `check_out`; k outside what the head has; k left open without a target
            to weigh it against; a drafter that reads more than its target.
    """
    checkpoint = read_checkpoint(model)
    check_out(out, checkpoint.folder, trim.force)
    if trim.k is not None and not 1 <= trim.k <= checkpoint.rows:
        had = f"{checkpoint.rows} rows of {checkpoint.folder.name}"
        raise ConfigError(f"k {trim.k}", accepted=f"1 to the {had}", do="" if trim.k < 1 else "keep fewer")
    if target is None:
        if trim.k is None:
            raise ConfigError(
                "k auto without a target", do="give --target, whose step the drafter's is weighed against"
            )
        return checkpoint, 0
    size = target_bytes(target, checkpoint.vocab_size, checkpoint.element)
    step = checkpoint.cost().step(checkpoint.rows)
    if step > size:
        raise ConfigError(f"a drafter that reads {step} bytes a step, a target of {size}", accepted="a smaller drafter")
    return checkpoint, size


def trim_vocab(
    model: str | Path,
    sources: Sequence[Source],
    out: Path | str,
    trim: Trim | None = None,
    target: str | Path | None = None,
    forwards: tuple[Forward, Forward] | None = None,
    progress: Progress = silent,
    chain: Chain | None = None,
) -> dict[str, Any]:
    """Write a drafter that proposes only k tokens; the target, and with it the output, stays as it is.

    Args:
        model: an EAGLE-3 drafter or a causal language model, trimmed before or not.
        sources: texts of target ids, best those that the target wrote.
        out: folder of the new checkpoint.
        trim: how to trim.
        target: the target's folder or id, for costs.
        forwards: `(target, drafter)` as functions, to measure acceptance; None predicts it from a lower bound.
        progress: reports.
        chain: a drafter that is fed by itself, as a function: how far its drafts get is measured as well, and counts
            in place of the formula for drafts that are accepted independently.

    Returns:
        The report, as it also lies in the folder.

    Raises:
        ConfigError: see `check_trim`; texts without tokens; floors or special tokens that need more than k.

    Source: Goel et al. 2025 (VocabTrim), arXiv 2506.22694. Differs: the set may be chosen by expected acceptance, or
        for several kinds of text with a floor each; figures are of sets chosen without the text they are measured on.
    """
    trim, out = trim or Trim(), Path(out)
    checkpoint, size = check_trim(model, out, trim, target)
    if trim.objective == "acceptance" and forwards is None:
        raise ConfigError("objective acceptance without both models", do="give --target")
    if not sources:
        raise ConfigError("no text to choose tokens by", accepted="at least one")
    folders = [checkpoint.folder, *([find_config(str(target)).parent] if target is not None else [])]
    special = [i for folder in folders for i in special_ids(folder, checkpoint.vocab_size)]
    work = _prepare(checkpoint, sources, trim, size, forwards, special, progress)
    grid = grid_of(work)
    if forwards is not None and trim.held_out:
        _measure(work, forwards, chain, grid, progress)
    believe(work)
    table = [row_of(work, k) for k in grid]
    k = trim.k if trim.k is not None else best_k(table)
    kept = keep_for(work.domains, k, work.always)
    report = report_of(work, kept, table, out, sources)
    with replacing(out, checkpoint.folder, trim.force) as folder:
        progress(0, 1, "writing")
        write_trimmed(checkpoint, kept, folder, report["metadata"])
        read_checkpoint(folder)  # what was written is what hosts will accept
        write_report(report, folder, trim.chart)
    progress(1, 1, "written")
    return report


def _prepare(
    checkpoint: Checkpoint,
    sources: Sequence[Source],
    trim: Trim,
    target: int,
    forwards: tuple[Forward, Forward] | None,
    special: Sequence[int],
    progress: Progress,
) -> Work:
    always, size = _rows(checkpoint, [*special, *trim.always]), checkpoint.vocab_size
    held: list[Tokens] = []
    kinds: list[tuple[list[Domain], ...]] = []
    counts: list[Tensor] = []
    for source in sources:
        parts = list(windows(source.texts, WINDOW))
        learn = [part for i, part in enumerate(parts) if (i + 1) % HELD_OUT_EVERY]
        held += [part for i, part in enumerate(parts) if not (i + 1) % HELD_OUT_EVERY]
        counts.append(count_tokens(parts, size))
        count = _local(checkpoint, counts[-1])
        if trim.objective == "acceptance" and forwards is not None:
            read = _first(learn, trim.learn)
            bounds = expected_overlap(*forwards, read, trim.temperature, progress)
            domain = Domain(source.name, _local(checkpoint, between(*bounds, count_tokens(learn, size))), source.floor)
            kinds.append(([domain], [domain]))
        else:
            seen = _local(checkpoint, count_tokens(learn, size))
            enough = seen if int(seen.sum()) else count
            kinds.append(([Domain(source.name, count, source.floor)], [Domain(source.name, enough, source.floor)]))
    domains, learned = ([domain for kind in kinds for domain in kind[i]] for i in (0, 1))
    held_counts = count_tokens(held, size)
    return Work(checkpoint, trim, always, checkpoint.cost(target), domains, learned, held, counts, held_counts)


def _rows(checkpoint: Checkpoint, ids: Sequence[int]) -> list[int]:
    """Rows of the head of target ids; one that an earlier trimming dropped has none."""
    outside = [i for i in ids if not 0 <= i < checkpoint.vocab_size]
    if outside:
        raise ConfigError(f"always-kept id {outside[0]}", accepted=f"0 to {checkpoint.vocab_size - 1}")
    found = ids if checkpoint.kept is None else [checkpoint.kept.to_draft(i) for i in ids]
    return sorted({i for i in found if i >= 0})


def _local(checkpoint: Checkpoint, scores: Tensor) -> Tensor:
    """Scores `[V]` of target ids as scores of rows."""
    return scores if checkpoint.kept is None else scores[checkpoint.kept.keep]


def _first(parts: Sequence[Tokens], tokens: int) -> list[Tokens]:
    """Windows from the whole of a text, evenly, of so many tokens together."""
    total = sum(len(part.ids) for part in parts)
    step = max(1, -(-total // tokens))
    return list(parts)[::step]


def _measure(
    work: Work, forwards: tuple[Forward, Forward], chain: Chain | None, grid: Sequence[int], progress: Progress
) -> None:
    read, trim = _first(work.held, work.trim.held_out), work.trim
    if not any(len(tokens.ids) > 1 for tokens in read):
        return  # too short a text to hold anything out
    maps = [final_map(work.checkpoint, keep_for(work.learned, k, work.always)) for k in grid]
    whole, work.positions, found = measure(*forwards, read, maps, trim.temperature, progress)
    work.whole, work.known = whole, "measured"
    work.measured = {row.k: row for row in found}
    if chain is not None:
        steps = measure_chain(forwards[0], chain, read, maps, trim.num_draft, trim.temperature, progress)
        work.steps = dict(zip(grid, steps, strict=False))
