"""Write the results of a benchmark as tables in Markdown, and draw them as a chart."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from benchmarks.comparison import OURS, OURS_BFLOAT16, SAME_LOSS

Result = dict[str, Any]


def table(header: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Return a table in Markdown."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(str(cell) for cell in line) + " |" for line in lines)


def spread(ratios: Sequence[float]) -> str:
    """Return the median of some ratios, and the lowest and the highest."""
    return f"{statistics.median(ratios):.2f}x ({min(ratios):.2f} to {max(ratios):.2f})"


def lowest_first(numbers: Sequence[float], form: str = "{:.2f}x") -> str:
    """Return the lowest of some numbers, and in brackets the median and the highest."""
    lowest, median, highest = map(form.format, (min(numbers), statistics.median(numbers), max(numbers)))
    return f"{lowest} ({median}, {highest})"


def ratios_to(reference: str, party: str, result: Result, kind: str = "ratios") -> list[float]:
    """Return a party's time divided by that of a reference party, within each round.

    Args:
        reference: the name of the reference party.
        party: the name of the party.
        result: the figures of one size; their ratios are ratios to Mini-BERT in float32.
        kind: "ratios" for time, "processor_ratios" for processor time.
    """
    parties = result["parties"]
    return [one / other for one, other in zip(parties[party][kind], parties[reference][kind], strict=True)]


def steps_table(results: Sequence[Result]) -> str:
    """Return the time of a step for every size and party, the ratios to Mini-BERT's, and the throughput.

    The ratios to Mini-BERT in bfloat16 are there if it was measured.
    """
    with_bfloat16 = any(OURS_BFLOAT16 in result["parties"] for result in results)

    def ratio(reference: str, party: str, result: Result, kind: str) -> str:
        if party == reference or reference not in result["parties"]:
            return ""
        return lowest_first(ratios_to(reference, party, result, kind))

    rows = []
    for result in results:
        for party, figures in result["parties"].items():
            cells = [result["name"], party, f"{1e3 * figures['seconds']:.0f}"]
            cells += [ratio(OURS, party, result, kind) for kind in ("ratios", "processor_ratios")]
            if with_bfloat16:
                cells.append(ratio(OURS_BFLOAT16, party, result, "ratios"))
            rows.append((*cells, f"{figures['tokens_per_second']:,.0f}", f"{figures['gflops']:.0f}"))
    ours = "Mini-BERT's in float32" if with_bfloat16 else "Mini-BERT's"
    header = ["size", "party", "ms per step", f"time / {ours}: lowest (median, highest)", f"processor time / {ours}"]
    if with_bfloat16:
        header.append("time / Mini-BERT's in bfloat16")
    return table((*header, "tokens/s", "GFLOP/s"), rows)


def losses_table(results: Sequence[Result]) -> str:
    """Return how far the losses in bfloat16 were from those in float32, which no other difference explains."""
    rows = [
        (result["name"], party, SAME_LOSS[party], f"{figures['loss_difference']:.2g}")
        for result in results
        for party, figures in result["parties"].items()
        if "loss_difference" in figures
    ]
    return table(("size", "party", "compared with", "largest difference of the loss of a step, nats"), rows)


def memory_table(results: Sequence[Result]) -> str:
    """Return the peak memory of every size and party, with the memory of the party's libraries and without it."""
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
                    "" if party == OURS else f"{our_work / work:.2f}" if work > 0 else "too small",
                )
            )
    header = (
        "size",
        "party",
        "peak MB",
        "libraries alone, MB",
        "Mini-BERT's peak / this peak",
        "the same without the libraries",
    )
    return table(header, rows)


def products_table(results: Sequence[Result]) -> str:
    """Return the share of Mini-BERT's step that its matrix products alone would take in NumPy.

    The share is given twice: at the speed that NumPy reached with the matrices of the step, and at the speed of the
    fastest product of the run.
    """
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
        "share at the speed of the step's own matrices",
        "GFLOP/s",
        "share at the speed of the fastest product",
        "GFLOP/s",
    )
    return table(header, rows)


def operations_table(result: Result, party: str = OURS) -> str:
    """Return the time of every operation in Mini-BERT's step; operations below 0.4% are added up in one row.

    Args:
        result: the figures of one size.
        party: Mini-BERT in float32 or in bfloat16.
    """
    operations = result["parties"][party]["operations"]
    whole = sum(operations.values())
    rows = [(name, f"{1e3 * s:.1f}", f"{s / whole:.0%}") for name, s in operations.items() if s > 0.004 * whole]
    small = [s for s in operations.values() if s <= 0.004 * whole]
    rows.append((f"{len(small)} smaller ones", f"{1e3 * sum(small):.1f}", f"{sum(small) / whole:.0%}"))
    precision = "" if party == OURS else ", bfloat16"
    return table((f"operation of {result['name']}{precision}", "ms", "share"), rows)


def scatter_table(scatter: dict[str, Any]) -> str:
    """Return the time of each way to add rows into a table."""
    rows = [
        (name, f"{1e3 * figures['seconds']:.2f}", "" if name == "scatter_add" else spread(figures["ratios"]))
        for name, figures in scatter.items()
    ]
    return table(("(4096, 256) into (8192, 256)", "ms", "time / scatter_add's"), rows)


def crowded_table(results: Sequence[Result]) -> str:
    """Return the time of a step with one thread and with many while every core is busy, and the ratio of the two."""
    rows = [
        (
            result["name"],
            f"{result['threads']}, {result['layer']}",
            f"{1e3 * result['seconds_of_one']:.0f}",
            f"{1e3 * result['seconds']:.0f}",
            spread(result["ratios"]),
        )
        for result in results
    ]
    return table(
        ("size", "threads, layer", "ms with one thread", "ms with all threads", "all threads / one thread"), rows
    )


def scaling_table(series: dict[str, list[Result]]) -> str:
    """Return how time and memory grow with one quantity at a time."""
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
    header = (
        "quantity",
        "value",
        "ms per step",
        "value / first value",
        "time / first time",
        "ms per added unit",
        "peak MB",
    )
    return table(header, rows)


def pretraining_table(result: Result) -> str:
    """Return the time of a whole pretraining for every party, its final loss, and the ratio to Mini-BERT's time."""
    rows = [
        (
            party,
            f"{figures['seconds']:.0f}",
            f"{figures['processor_seconds']:.0f}",
            f"{figures['seconds_before_training']:.1f}",
            f"{figures['loss']:.3f}",
            "" if party == OURS else f"{min(figures['ratios']):.2f}x",
            "" if party == OURS else spread(figures["ratios"]),
        )
        for party, figures in result["parties"].items()
    ]
    header = (
        result["name"],
        "seconds",
        "processor seconds",
        "seconds before the first step",
        "evaluation loss, nats",
        "lowest time / Mini-BERT's",
        "median (lowest to highest)",
    )
    return table(header, rows)


def pretraining_notes(result: Result) -> str:
    """Return a list that says for every party which times its ratio compares."""
    lines = []
    for party, figures in result["parties"].items():
        if party == OURS:
            continue
        difference = figures["loss_difference"]
        side = "above" if difference > 0 else "below"
        if figures["same_loss"]:
            times = f"within {result['tolerance']} nats, so the whole processes are compared"
        else:
            times = "so the times to the higher of the two losses are compared"
        lines.append(f"- `{party}` ended {abs(difference):.3f} nats {side} `{OURS}`, {times}.")
    return "\n".join(lines)


def pretraining_chart(result: Result, path: Path) -> None:
    """Draw the evaluation loss of every party over the time since the start of its process, a line for each run.

    Raises:
        ImportError: Matplotlib is not installed.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 4), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    for number, (party, figures) in enumerate(result["parties"].items()):
        for run in figures["runs"]:
            label = party if run is figures["runs"][0] else None
            axes.plot(*zip(*run["curve"], strict=True), color=f"C{number}", marker=".", linewidth=1, label=label)
    axes.set_xlabel("seconds since the start of the process")
    axes.set_ylabel("evaluation loss, nats")
    axes.legend(fontsize=8)
    figure.savefig(path)


def chart(results: Sequence[Result], path: Path) -> None:
    """Draw the step time of every party, divided by Mini-BERT's: a group of bars per size.

    The bars are medians of the rounds; lines reach from the lowest to the highest ratio.

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
        ratios = [result["parties"][party]["ratios"] for result in results if party in result["parties"]]
        heights = [statistics.median(numbers) for numbers in ratios]
        down = [height - min(numbers) for height, numbers in zip(heights, ratios, strict=True)]
        up = [max(numbers) - height for height, numbers in zip(heights, ratios, strict=True)]
        axes.bar(places, heights, width, label=party, yerr=[down, up], error_kw={"linewidth": 0.7})
    axes.set_xticks([i + 0.4 - width / 2 for i in range(len(results))], [result["name"] for result in results])
    axes.tick_params(axis="x", labelsize=7)
    axes.axhline(1.0, color="black", linewidth=0.5)
    axes.set_ylabel("time of a training step / Mini-BERT's in float32")
    axes.legend(fontsize=8)
    figure.savefig(path)
