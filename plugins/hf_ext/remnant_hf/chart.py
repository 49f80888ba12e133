"""Draw what a cache kept."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from remnant.errors import ConfigError
from remnant.lazy import needs

__all__ = ["kept_chart"]

_COLUMNS = 512


def kept_chart(
    cache: Any,
    path: str | Path,
    marks: Sequence[tuple[int, int]] = (),
    row: int = 0,
    title: str = "",
) -> Path:
    """Draw the kept positions of every layer and head as one PNG.

    Args:
        cache: a `RemnantCache` that has read something.
        path: file to write.
        marks: spans `(start, end)` of positions to point at, for example where the answer stands.
        row: sequence of the batch.
        title: text above the chart; default the policy and what it holds.

    Returns:
        The path.

    Raises:
        ConfigError: the cache is empty, or no layer of it is under a policy.
    """
    with needs("plot", wanted_by="remnant_hf.chart"):
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    layers = [layer.index for layer in cache.governed if layer.seen]
    if not layers:
        raise ConfigError("a cache that holds nothing to draw", accepted="a cache that has read a prompt")
    seen = int(cache.get_seq_length())
    kept = [(layer, cache.kept_positions(layer)[row]) for layer in layers]
    picture = torch.stack([_share(head, seen) for _, heads in kept for head in heads.cpu()])
    # No pyplot: a library must not touch the caller's figures or backend.
    figure = Figure(figsize=(10, 1.6 + 0.22 * len(picture)), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    axes.imshow(
        picture.numpy(), aspect="auto", interpolation="nearest", cmap="Blues", vmin=0, vmax=1,
        extent=(0, seen, len(picture) - 0.5, -0.5),
    )  # fmt: skip
    heads = kept[0][1].shape[0]
    for i in range(1, len(kept)):
        axes.axhline(i * heads - 0.5, color="white", linewidth=2)
    axes.set_yticks([(i + 0.5) * heads - 0.5 for i in range(len(kept))], [f"layer {layer}" for layer in layers])
    _point(axes, marks, seen)
    axes.set_xlim(0, seen)
    axes.set_xlabel("position in the text, in tokens; a row per KV head; dark = kept")
    stored = sum(int((heads >= 0).sum()) for _, heads in kept) / len(picture)
    axes.set_title(title or f"{cache.policy.name}: {stored:.0f} of {seen} tokens per head are kept", pad=14)
    figure.savefig(str(path), dpi=120)
    return Path(path)


def _share(positions: torch.Tensor, seen: int) -> torch.Tensor:
    """`[columns]` which fraction of the positions under each column is kept; at most 512 columns."""
    columns = min(_COLUMNS, seen)
    real = positions[positions >= 0]
    bins = torch.zeros(columns).index_add_(0, real * columns // seen, torch.ones(len(real)))
    width = torch.zeros(columns).index_add_(0, torch.arange(seen) * columns // seen, torch.ones(seen))
    return bins / width


def _point(axes: Any, marks: Sequence[tuple[int, int]], seen: int) -> None:
    """A triangle above the chart and thin lines around each span."""
    for start, end in marks:
        axes.annotate(
            "▼", ((start + end) / 2, 1.0), xycoords=("data", "axes fraction"), ha="center", va="bottom",
            color="tab:red", annotation_clip=False,
        )  # fmt: skip
        least = max(end - start, seen / 400)
        axes.axvspan((start + end - least) / 2, (start + end + least) / 2, color="tab:red", alpha=0.25, linewidth=0)
