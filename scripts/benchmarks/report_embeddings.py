"""Write the results of the benchmarks of sentence embeddings as tables in Markdown, and draw them as a chart."""

from __future__ import annotations

from pathlib import Path

from benchmarks.comparison import OURS, Result
from benchmarks.report import lowest_first, table

_COLOURS = {"float32": "C0", "bfloat16": "C1", "float16": "C3", "int8": "C2"}


def throughput_table(result: Result) -> str:
    """Return for every party its texts per second, its time over Mini-BERT's in the same precision, and its cosine."""
    rows = []
    for party, figures in result["parties"].items():
        ours = party.startswith(OURS)
        rows.append(
            (
                party,
                figures["precision"],
                _speed(result["texts"], figures["round_seconds"]),
                "" if ours else _ratios(figures["ratios"]),
                "" if ours else _ratios(figures["processor_ratios"]),
                f"{figures['lowest_cosine']:.6f}",
                figures["batch_tokens"] or "",
            )
        )
    header = (
        "party",
        "precision",
        "texts/s: lowest (median, highest)",
        "time / Mini-BERT's in the same precision: lowest (median, highest)",
        "processor time / Mini-BERT's",
        "lowest cosine to float32",
        "tokens in a batch",
    )
    return table(header, rows)


def _speed(texts: int, seconds: list[float]) -> str:
    speeds = [texts / s for s in seconds]
    return lowest_first(speeds, "{:.0f}") if len(speeds) > 1 else f"{speeds[0]:.0f}"


def _ratios(ratios: list[float]) -> str:
    """Return the ratios as text; a party's precision may be missing in Mini-BERT, and old records lack some ratios."""
    return lowest_first(ratios) if ratios else "not measured"


def start_table(result: Result) -> str:
    """Return the time and processor time of one sentence from a cold start, and the size of every party's packages."""
    rows = [
        (
            party,
            f"{figures['seconds']:.2f}",
            "" if party == OURS else _ratios(figures["ratios"]),
            f"{figures['processor']:.2f}" if "processor" in figures else "not measured",
            "" if party == OURS else _ratios(figures["processor_ratios"]),
            f"{figures['installed_bytes'] / 1e6:,.0f}" if "installed_bytes" in figures else "not measured",
        )
        for party, figures in result["parties"].items()
    ]
    header = (
        "party",
        "seconds",
        "time / Mini-BERT's: lowest (median, highest)",
        "processor seconds",
        "processor time / Mini-BERT's",
        "installed, MB",
    )
    return table(header, rows)


def throughput_chart(result: Result, path: Path) -> None:
    """Draw the texts per second of every party: bars of the medians, lines from the lowest to the highest.

    A colour stands for a precision; Mini-BERT's bars are hatched, and the lowest cosine stands beside each bar.

    Raises:
        ImportError: Matplotlib is not installed.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    parties = sorted(result["parties"].items(), key=lambda item: -item[1]["seconds"])  # the fastest on top
    figure = Figure(figsize=(8, 0.6 + 0.4 * len(parties)), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    labelled: set[str] = set()
    for place, (party, figures) in enumerate(parties):
        precision, speed = figures["precision"], result["texts"] / figures["seconds"]
        speeds = [result["texts"] / seconds for seconds in figures["round_seconds"]]
        axes.barh(
            place,
            speed,
            color=_COLOURS[precision],
            hatch="//" if party.startswith(OURS) else None,
            edgecolor="white",
            label=None if precision in labelled else precision,
            xerr=[[speed - min(speeds)], [max(speeds) - speed]],
        )
        labelled.add(precision)
        axes.text(max(speeds), place, f"  cosine {figures['lowest_cosine']:.4f}", va="center", fontsize=7)
    axes.set_yticks(range(len(parties)), [party for party, _ in parties], fontsize=8)
    axes.margins(x=0.2)
    axes.set_xlim(left=0)
    threads = "one thread" if result["threads"] == 1 else f"{result['threads']} threads"
    axes.set_xlabel(f"texts per second, {result['model']}, {threads}")
    axes.legend(fontsize=8, loc="lower right")
    figure.savefig(path)
