"""The argument parser of every command, and the options that several commands share."""

from __future__ import annotations

import argparse
from typing import NoReturn

from backends import BackendError
from backends.cpu.threads import set_threads
from minibert.commands.process import BAD_INPUT


class Parser(argparse.ArgumentParser):
    """An argument parser whose errors are one line, like all others."""

    def error(self, message: str) -> NoReturn:
        """Ends the program with status 2."""
        self.exit(BAD_INPUT, f"error: {message} (--help lists all options)\n")


class _SetThreads(argparse.Action):
    """Sets the number of threads while the command line is read, before anything computes."""

    def __call__(
        self, parser: argparse.ArgumentParser, namespace: argparse.Namespace, values: object, option: str | None = None
    ) -> None:
        try:
            set_threads(int(str(values)))
        except (ValueError, BackendError) as error:
            parser.error(f"{option}: {error}")


def add_threads(parser: argparse.ArgumentParser | argparse._ArgumentGroup) -> None:
    """Adds the option `--threads`."""
    parser.add_argument(
        "--threads",
        action=_SetThreads,
        metavar="N",
        dest=argparse.SUPPRESS,
        help="how many cores to compute with on a CPU (default: all); the same number gives the same bits",
    )
