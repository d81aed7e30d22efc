"""The plots of the report."""

from itertools import pairwise
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np

from memcodec.bench.comparison import BOUND, LIMITS

_OURS, _OTHER, _LIMIT, _SECOND = "#1f5fa8", "#9aa3ad", "#d9dee3", "#c8553d"
_FINE = 10  # positions that are averaged into one point, beyond the first ten


def draw(found: dict[str, Any], folder: Path) -> None:
    """Write the three PNG files."""
    for name, plot in (("bytes", _bytes), ("rate-distortion", _curve), ("positions", _positions)):
        figure, axes = plt.subplots(figsize=(7, 3.8), layout="constrained")
        axes.spines[["top", "right"]].set_visible(False)
        plot(axes, found)
        figure.savefig(folder / f"{name}.png", dpi=110, metadata={"Software": None})
        plt.close(figure)


def _bytes(axes: Any, found: dict[str, Any]) -> None:
    total: dict[str, float] = {}
    for row in found["rows"]:
        total[row.codec] = total.get(row.codec, 0) + row.file_bytes
    names = sorted(total, key=lambda name: total[name])[::-1]
    colors = [_LIMIT if name in LIMITS else _OURS if name.startswith("memcodec") else _OTHER for name in names]
    bars = axes.barh(
        [f"({name})" if name in LIMITS else name for name in names], [total[n] for n in names], color=colors
    )
    axes.bar_label(bars, labels=[f"{total[name]:,.0f}" for name in names], padding=3, fontsize=8)
    axes.margins(x=0.12)
    axes.tick_params(labelsize=8)
    size = sum(text["bytes"] for text in found["texts"])
    axes.set_xlabel(f"bytes of the {len(found['texts'])} files together, of {size:,} (model not counted)")


def _curve(axes: Any, found: dict[str, Any]) -> None:
    curve = found["curve"]
    rates = [point["memory"] for point in curve]
    axes.plot(rates, [point["total"] for point in curve], "o-", color=_OURS, label="memory and corrections")
    axes.plot(rates, [point["corrections"] for point in curve], "o-", color=_SECOND, label="corrections")
    axes.plot(rates, rates, ":", color=_OTHER, label="memory")
    sample = found["texts"][0]["name"]
    bound = next(row for row in found["rows"] if row.text == sample and row.codec == BOUND)
    ideal = 8 * bound.file_bytes / bound.result["tokens"]
    axes.axhline(ideal, color=_OTHER, linewidth=1, linestyle="--", label="bound")
    axes.set_xlabel("bits of memory per token")
    axes.set_ylabel(f"bits per token ({sample})")
    axes.set_ylim(bottom=0)
    axes.legend(frameon=False, fontsize=9)


def _positions(axes: Any, found: dict[str, Any]) -> None:
    bits, count = position_bits(found)
    edges = [*range(10), *range(10, len(bits), _FINE), len(bits)]
    spans = [(a, b) for a, b in pairwise(edges) if count[a:b].sum()]
    middles = [(a + b - 1) / 2 for a, b in spans]
    axes.plot(middles, [bits[a:b].sum() / count[a:b].sum() for a, b in spans], "o-", markersize=3, color=_OURS)
    axes.set_xlabel("position in the chunk, tokens")
    axes.set_ylabel("bits per token under the model")
    axes.set_ylim(bottom=0)


def position_bits(found: dict[str, Any]) -> tuple[np.ndarray, np.ndarray]:
    """The sum of bits and the number of tokens at each position of a chunk, over all texts."""
    bounds = [row.result for row in found["rows"] if row.codec == BOUND]
    bits = np.array([result["position_bits"] for result in bounds]).sum(axis=0)
    return bits, np.array([result["position_count"] for result in bounds]).sum(axis=0)
