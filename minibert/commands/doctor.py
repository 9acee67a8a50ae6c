"""The command behind `scripts/doctor.py`: check that a machine is ready for training, and show what was found."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from rich.console import Console
from rich.table import Table

from backends.cuda.diagnosis import Finding
from minibert.commands.device_checks import check_alive, check_device
from minibert.commands.parser import Parser, add_option
from minibert.commands.process import FAILURE, SUCCESS, run_command
from minibert.options import DEVICE


def build_parser() -> Parser:
    """Return the parser of the command line."""
    parser = Parser(prog="doctor.py", description="Check that this machine is ready for training.")
    add_option(parser, DEVICE)
    parser.add_argument(
        "--quick", action="store_true", help="measure speed on tiny arrays only; its figures mean nothing"
    )
    parser.add_argument(
        "--alive",
        action="store_true",
        help="only check that driver and device answer; takes no GPU memory, so it may run beside a training",
    )
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit status: 0 if all checks passed, 1 if not, 2 for an unknown device."""
    return run_command(lambda: _doctor(arguments))


def _doctor(arguments: Sequence[str] | None) -> int:
    options = build_parser().parse_args(arguments)
    findings = check_alive(options.device) if options.alive else check_device(options.device, quick=options.quick)
    return SUCCESS if show_findings(Console(), options.device, findings) else FAILURE


def show_findings(console: Console, device: str, findings: Iterable[Finding]) -> bool:
    """Print a table of all findings, and below it a remedy for each check that failed.

    Returns:
        True if all checks passed.
    """
    table = Table(title=f"Mini-BERT doctor: {device}", title_justify="left")
    for column in ("", "check", "found"):
        table.add_column(column, overflow="fold")
    failed = []
    for finding in findings:
        table.add_row("pass" if finding.passed else "FAIL", finding.name, finding.detail)
        if not finding.passed:
            failed.append(finding)
    console.print(table)
    for finding in failed:
        console.print(f"FAIL {finding.name}: {finding.remedy}", soft_wrap=True, markup=False)
    console.print("all checks passed" if not failed else f"{len(failed)} check(s) failed")
    return not failed
