"""Results as tables in Markdown, and as a chart."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from benchmarks.comparison import OURS

Result = dict[str, Any]


def table(header: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A table in Markdown."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(str(cell) for cell in line) + " |" for line in lines)


def spread(ratios: Sequence[float]) -> str:
    """Median, and lowest to highest."""
    return f"{statistics.median(ratios):.2f}x ({min(ratios):.2f} to {max(ratios):.2f})"


def steps_table(results: Sequence[Result]) -> str:
    """Every size and party: time and ratio, throughput."""
    rows = [
        (
            result["name"],
            party,
            f"{1e3 * figures['seconds']:.0f}",
            "" if party == OURS else spread(figures["ratios"]),
            "" if party == OURS else spread(figures["processor_ratios"]),
            f"{figures['tokens_per_second']:,.0f}",
            f"{figures['gflops']:.0f}",
        )
        for result in results
        for party, figures in result["parties"].items()
    ]
    return table(
        ("size", "party", "ms a step", "its time / ours", "processor time, likewise", "tokens/s", "GFLOP/s"), rows
    )


def memory_table(results: Sequence[Result]) -> str:
    """Every size and party: peak memory, what its libraries alone take, and what is left for the work."""
    rows = []
    for result in results:
        ours = result["parties"][OURS]
        for party, figures in result["parties"].items():
            work, our_work = (f["peak_bytes"] - f["floor_bytes"] for f in (figures, ours))
            rows.append(
                (
                    result["name"],
                    party,
                    f"{figures['peak_bytes'] / 1e6:.0f}",
                    f"{figures['floor_bytes'] / 1e6:.0f}",
                    "" if party == OURS else f"{ours['peak_bytes'] / figures['peak_bytes']:.2f}",
                    "" if party == OURS else f"{our_work / work:.2f}",
                )
            )
    return table(("size", "party", "peak MB", "libraries alone", "our peak / its", "without the libraries"), rows)


def products_table(results: Sequence[Result]) -> str:
    """How much of Mini-BERT's step the matrix products alone would take, at the sgemm speed of the same run."""
    rows = [
        (
            result["name"],
            f"{result['product_share']:.0%}",
            f"{result['sgemm_gflops']['step']:.0f}",
            f"{result['product_share'] * result['sgemm_gflops']['step'] / result['sgemm_gflops']['best']:.0%}",
            f"{result['sgemm_gflops']['best']:.0f}",
        )
        for result in results
    ]
    header = (
        "size",
        "at the speed of the step's own matrices",
        "GFLOP/s",
        "at that of the fastest product of the run",
        "GFLOP/s",
    )
    return table(header, rows)


def operations_table(result: Result) -> str:
    """Where Mini-BERT's step goes."""
    operations, whole = result["operations"], sum(result["operations"].values())
    rows = [(name, f"{1e3 * s:.1f}", f"{s / whole:.0%}") for name, s in operations.items() if s > 0.004 * whole]
    small = [s for s in operations.values() if s <= 0.004 * whole]
    rows.append((f"{len(small)} smaller ones", f"{1e3 * sum(small):.1f}", f"{sum(small) / whole:.0%}"))
    return table((f"operation of {result['name']}", "ms", "share"), rows)


def scatter_table(scatter: dict[str, Any]) -> str:
    """The ways of scatter-add."""
    rows = [
        (name, f"{1e3 * figures['seconds']:.2f}", "" if name == "scatter_add" else spread(figures["ratios"]))
        for name, figures in scatter.items()
    ]
    return table(("(4096, 256) into (8192, 256)", "ms", "its time / ours"), rows)


def scaling_table(series: dict[str, list[Result]]) -> str:
    """How time and memory grow with one quantity at a time; 1.00 where time per unit stays the same."""
    rows = []
    for quantity, results in series.items():
        first = results[0]
        for result in results:
            factor = result["value"] / first["value"]
            grown = result["seconds"] / first["seconds"]
            marginal = ""
            if result is not first:
                marginal = f"{1e3 * (result['seconds'] - first['seconds']) / (result['value'] - first['value']):.3g}"
            rows.append(
                (
                    quantity,
                    result["value"],
                    f"{1e3 * result['seconds']:.0f}",
                    f"{factor:.2f}",
                    f"{grown:.2f}",
                    marginal,
                    f"{result['peak_bytes'] / 1e6:.0f}",
                )
            )
    return table(("growing", "value", "ms a step", "grown by", "time grown by", "ms per unit more", "peak MB"), rows)


def chart(results: Sequence[Result], path: Path) -> None:
    """Bars: how many times as long as Mini-BERT's step every party's takes, a group per size; medians of the rounds.

    Raises:
        ImportError: Matplotlib is not installed.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    parties = list(dict.fromkeys(party for result in results for party in result["parties"]))
    figure = Figure(figsize=(8, 4), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    width = 0.8 / len(parties)
    for number, party in enumerate(parties):
        places = [i + number * width for i, result in enumerate(results) if party in result["parties"]]
        heights = [
            statistics.median(result["parties"][party]["ratios"]) for result in results if party in result["parties"]
        ]
        axes.bar(places, heights, width, label=party)
    axes.set_xticks([i + 0.4 - width / 2 for i in range(len(results))], [result["name"] for result in results])
    axes.tick_params(axis="x", labelsize=7)
    axes.axhline(1.0, color="black", linewidth=0.5)
    axes.set_ylabel("time of a training step / Mini-BERT's")
    axes.legend(fontsize=8)
    figure.savefig(path)
