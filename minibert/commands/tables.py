"""Print tables in a terminal: the figures of an evaluation, the results of a run, and examples."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text

from minibert.inference.examples import Example
from minibert.training.display import duration
from minibert.training.evaluation import Evaluation
from minibert.training.run import Outcome


def evaluation_rows(evaluation: Evaluation) -> list[tuple[str, str]]:
    """Return the figures of an evaluation as rows of (name, value with unit)."""
    rows = [
        ("evaluation loss", f"{evaluation.loss:.3f} nats"),
        ("unigram baseline", f"{evaluation.unigram_loss:.3f} nats"),
        ("difference", evaluation.compared_with_unigram()),
        ("perplexity", f"{evaluation.perplexity:,.1f}"),
        ("accuracy", f"{evaluation.accuracy:.1%} of {evaluation.predictions:,} masked tokens"),
    ]
    if evaluation.next_sentence_accuracy is not None:
        rows.append(("next-sentence loss", f"{evaluation.next_sentence_loss:.3f} nats"))
        rows.append(("next-sentence accuracy", f"{evaluation.next_sentence_accuracy:.1%} (guessing: 50%)"))
    return rows


def show_evaluation(console: Console, evaluation: Evaluation, title: str) -> None:
    """Print the figures of an evaluation."""
    _show_rows(console, evaluation_rows(evaluation), title)


def show_results(console: Console, outcome: Outcome) -> None:
    """Print the results of a finished run."""
    assert outcome.evaluation is not None
    rows = evaluation_rows(outcome.evaluation)
    rows.append(("training", f"{outcome.step:,} steps in {duration(outcome.elapsed)}"))
    if outcome.tokens_per_second:
        rows.append(("speed", f"{outcome.tokens_per_second:,.0f} tokens/s"))
    if outcome.peak_memory is not None:
        rows.append(("peak memory", f"{outcome.peak_memory / 1e6:,.0f} MB"))
    _show_rows(console, rows, "Results")
    if outcome.warning is not None:
        console.print(Text(f"warning: {outcome.warning}"), soft_wrap=True)


def _show_rows(console: Console, rows: Sequence[tuple[str, str]], title: str) -> None:
    table = Table(title=title, title_justify="left", show_header=False)
    table.add_column(no_wrap=True)
    table.add_column(no_wrap=True)
    for name, value in rows:
        table.add_row(name, value)
    console.print(table)


def show_examples(console: Console, examples: Sequence[Example]) -> None:
    """Print sentences with a hidden word, the word, and the model's candidates for it."""
    if not examples:
        return
    table = Table(title="Held-out sentences with one word hidden", title_justify="left")
    table.add_column("sentence")
    table.add_column("hidden word")
    table.add_column("the model's candidates")
    for example in examples:
        candidates = "  ".join(f"{each.token} {each.probability:.0%}" for each in example.candidates)
        table.add_row(Text(example.text), Text(example.answer), Text(candidates))
    console.print(table)
