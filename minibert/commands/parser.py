"""The argument parser of every command, the options that commands share, and the table of a command's options.

Options are declared in `minibert/options.py` and in the settings classes. This module adds them to a parser.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn

from backends import BackendError
from backends.cpu.threads import set_threads
from minibert.commands.process import BAD_INPUT
from minibert.errors import brief
from minibert.options import (
    COMPUTATION,
    DEVICE,
    DTYPE,
    INFERENCE_PRECISION,
    KERNELS,
    PRECISION,
    Option,
    flag,
    options_of,
)

Arguments = argparse.ArgumentParser | argparse._ArgumentGroup  # what has the method add_argument


class Parser(argparse.ArgumentParser):
    """An argument parser whose error messages are one line, as those of the commands are."""

    def error(self, message: str) -> NoReturn:
        """Print the message on standard error and end the program with status 2."""
        self.exit(BAD_INPUT, f"error: {brief(message, 1000, quoted=False)} (--help lists all options)\n")


class _StoreChecked(argparse.Action):
    """Store the value of an option after checking it as the option's declaration says."""

    def __init__(self, *arguments: Any, option: Option, **keywords: Any) -> None:
        super().__init__(*arguments, **keywords)
        self._option = option

    def __call__(
        self, parser: argparse.ArgumentParser, namespace: argparse.Namespace, values: Any, flag: str | None = None
    ) -> None:
        value = tuple(values) if self._option.several else values
        self._option.check_value(value)
        setattr(namespace, self.dest, value)


class _SetThreads(argparse.Action):
    """Set the number of threads while the command line is read, before anything computes."""

    def __call__(
        self, parser: argparse.ArgumentParser, namespace: argparse.Namespace, values: object, flag: str | None = None
    ) -> None:
        try:
            set_threads(int(str(values)))
        except (ValueError, BackendError) as error:
            parser.error(f"{flag}: {error}")


def add_option(parser: Arguments, option: Option, *, keep_absent: bool = False) -> None:
    """Add one declared option.

    A value that the option does not accept ends the parsing with a `TrainingError`, which is the same in all commands.

    Args:
        parser: the parser, or one of its groups.
        option: the declaration.
        keep_absent: leave an option that was not given out of the result, instead of storing its default.
    """
    keywords: dict[str, Any] = {
        "default": argparse.SUPPRESS if keep_absent else option.default,
        "help": option.help_text().replace("%", "%%"),  # argparse formats help texts with %
    }
    if option.kind is bool:
        parser.add_argument(flag(option.name), action="store_true", **keywords)
        return
    parser.add_argument(
        flag(option.name),
        action=_StoreChecked,
        option=option,
        type=option.kind,
        metavar=f"{{{','.join(option.choices)}}}" if option.choices else option.metavar,
        nargs="+" if option.several else None,
        **keywords,
    )


def add_settings(parser: argparse.ArgumentParser, settings: type) -> dict[str, argparse._ArgumentGroup]:
    """Add the options that a settings class declares; those not given stay out of the result, see `given_settings`.

    Returns:
        The groups that were made, by title.
    """
    groups: dict[str, argparse._ArgumentGroup] = {}
    for option in options_of(settings).values():
        if option.group and option.group not in groups:
            groups[option.group] = parser.add_argument_group(option.group)
        add_option(groups.get(option.group, parser), option, keep_absent=True)
    return groups


def given_settings(parsed: argparse.Namespace, settings: type) -> dict[str, Any]:
    """Return the values of a settings class that were given on the command line, by name."""
    return {name: getattr(parsed, name) for name in options_of(settings) if name in parsed}


def add_compute_options(parser: argparse.ArgumentParser, *, trains: bool = False, dtype: bool = False) -> None:
    """Add the options that say how to compute: `--device`, `--kernels`, `--precision` and `--threads`.

    Args:
        parser: the parser of the command.
        trains: True for a command that computes gradients: there are none in the precision "int8".
        dtype: add `--dtype`, too.
    """
    group = parser.add_argument_group(COMPUTATION)
    precision = PRECISION if trains else INFERENCE_PRECISION
    for option in (DEVICE, KERNELS, precision, *((DTYPE,) if dtype else ())):
        add_option(group, option)
    add_threads(group)


def add_threads(parser: Arguments) -> None:
    """Add the option `--threads`."""
    parser.add_argument(
        "--threads",
        action=_SetThreads,
        metavar="N",
        dest=argparse.SUPPRESS,
        help="number of threads to compute with on a CPU; the results have the same bits for any number (default: one "
        "a core, within the CPU quota of a container)",
    )


def add_model(
    parser: Arguments,
    meaning: str = "folder of the model: an --output of scripts/train.py, or any BERT in Hugging Face's format",
) -> None:
    """Add the option `--model`, which must be given."""
    parser.add_argument("--model", type=Path, required=True, metavar="DIR", help=meaning)


def options_table(parser: argparse.ArgumentParser) -> str:
    """Return all options of a command as a Markdown table with the columns option, default and meaning.

    The order is that of `--help`. The width of the terminal does not matter.
    """
    rows = [("option", "default", "meaning"), ("---", "---", "---"), *_option_rows(parser)]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def _option_rows(parser: argparse.ArgumentParser) -> Iterator[tuple[str, str, str]]:
    """Yield the cells (option, default, meaning) in Markdown; the title of a group is a row of its own."""
    for group in parser._action_groups:
        actions = [action for action in group._group_actions if not isinstance(action, argparse._HelpAction)]
        if actions and group not in (parser._positionals, parser._optionals):
            yield f"**{group.title}**", "", ""
        for action in actions:
            text = (action.help or "").replace("%%", "%")
            meaning, default = re.fullmatch(r"(.*?)(?: \(default: (.*)\))?", text).groups()  # type: ignore[union-attr]
            yield f"`{_usage(action)}`", _escaped(default or ("required" if action.required else "")), _escaped(meaning)


def _usage(action: argparse.Action) -> str:
    """Return an option or a positional argument as one types it, such as "--corpus TEXT ..."."""
    words = list(action.option_strings)
    if action.nargs != 0:
        words.append(str(action.metavar or action.dest))
    if action.nargs in ("+", "*"):
        words.append("...")
    return " ".join(words)


def _escaped(text: str) -> str:
    """Return a text as Markdown shows it unchanged, options as code."""
    escaped = re.sub(r"([|<*\[_])", r"\\\1", text)
    return re.sub(r"(?<!\w)(--[a-z-]+)", r"`\1`", escaped)  # some renderers turn -- into a dash
