"""Options, declared once for the settings class, the command line, `--help` and the documentation.

A settings class is a frozen dataclass. `option` declares its fields, `check_options` checks their values:

    @dataclass(frozen=True)
    class Settings:
        batch_size: int = option(8, "sequences in an optimizer step", metavar="B", check=at_least(1))

        def __post_init__(self) -> None:
            check_options(self)

`minibert/commands/parser.py` turns the same declarations into arguments of the command line: `batch_size` becomes
`--batch-size B`. Options that belong to no settings class, such as `DEVICE`, are written as an `Option`.

This module is imported before a command reads its arguments, so it must load fast: it imports no array library, and
`Option` is a named tuple, as a dataclass takes longer to define.
"""

from __future__ import annotations

import dataclasses
import math
import operator
import re
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, get_args, get_origin, get_type_hints

from minibert.errors import TrainingError, brief

_OPTION = "option"  # the key of an Option in the metadata of a dataclass field


class Check(NamedTuple):
    """A condition that the value of an option must meet.

    Attributes:
        wanted: the accepted values in words, which complete the sentence "--batch-size must be ...".
        holds: takes a value; returns True if it is accepted.
    """

    wanted: str
    holds: Callable[[Any], bool]


def at_least(minimum: int) -> Check:
    """Accept numbers from `minimum` up."""
    return Check(f"at least {minimum}", lambda value: value >= minimum)


def one_of(choices: Sequence[str]) -> Check:
    """Accept the words in `choices`."""
    return Check(f"one of {', '.join(choices)}", lambda value: value in choices)


POSITIVE = Check("above 0 and finite", lambda value: 0.0 < value < math.inf)
NOT_NEGATIVE = Check("at least 0 and finite", lambda value: 0.0 <= value < math.inf)
BELOW_ONE = Check("at least 0 and below 1", lambda value: 0.0 <= value < 1.0)
SEED = Check("from 0 to 2**64 - 1", lambda value: 0 <= value < 2**64)
DEVICE_NAME = Check(
    "cpu, cuda or cuda:N with N the number of the GPU, or torch, torch:cuda, torch:cuda:N, torch:mps or torch:xpu",
    lambda value: re.fullmatch(r"cpu|cuda(:\d+)?|torch(:(cpu|mps|xpu|cuda(:\d+)?))?", value) is not None,
)


class Option(NamedTuple):
    """One option of a command.

    Attributes:
        name: the name in Python, such as "batch_size"; `flag(name)` is the name on the command line.
        kind: the type of a value: int, float, str or Path; bool for an option that takes no value and is off by
            default.
        default: the value of an option that is not given.
        meaning: what the option does, with the unit of its value.
        metavar: the word that stands for the value in `--help`; not needed if there are choices.
        choices: the accepted values, if they are a few words.
        check: the condition that a value must meet.
        default_text: the default in words, where `default` does not say it (as when it depends on other options).
        group: the heading under which `--help` lists the option; empty for no heading of its own.
        may_change: True if a resumed run may get another value.
        several: True if the option takes one or more values; they are stored as a tuple.
    """

    name: str
    kind: Callable[[str], Any]
    default: Any
    meaning: str
    metavar: str = ""
    choices: Sequence[str] = ()
    check: Check | None = None
    default_text: str = ""
    group: str = ""
    may_change: bool = False
    several: bool = False

    def check_value(self, value: Any) -> None:
        """Check a value; None always passes, as it stands for the default.

        Raises:
            TrainingError: the value is not accepted; the message names the option and what it accepts.
        """
        check = one_of(self.choices) if self.choices else self.check
        if value is not None and check is not None and not check.holds(value):
            raise TrainingError(f"{flag(self.name)} must be {check.wanted}, not {brief(value)}")

    def help_text(self) -> str:
        """Return the meaning and, in parentheses, the default."""
        default = self.default_text
        if not default and self.default is not None and self.kind is not bool:
            default = shown(self.default)
        return f"{self.meaning} (default: {default})" if default else self.meaning

    def field(self, **changes: Any) -> Any:
        """Return a dataclass field with this declaration, some attributes changed."""
        declared = self._replace(**changes)
        return dataclasses.field(default=declared.default, metadata={_OPTION: declared})


def option(
    default: Any,
    meaning: str,
    *,
    metavar: str = "",
    choices: Sequence[str] = (),
    check: Check | None = None,
    default_text: str = "",
    group: str = "",
    may_change: bool = False,
) -> Any:
    """Declare a field of a settings class; see `Option` for the arguments.

    The field's own name and type annotation give the name and type of the option. As with `dataclasses.field`, the
    result has the type Any, so that type checkers go by the annotation.
    """
    declared = Option(
        name="",
        kind=str,
        default=default,
        meaning=meaning,
        metavar=metavar,
        choices=choices,
        check=check,
        default_text=default_text,
        group=group,
        may_change=may_change,
    )
    return declared.field()


def options_of(settings: type) -> dict[str, Option]:
    """Return the options that a settings class declares, by name and in their order.

    Raises:
        KeyError: a field was not declared by `option` or `Option.field`.
    """
    types = get_type_hints(settings)
    options = {}
    for field in dataclasses.fields(settings):
        hint = types[field.name]  # such as int, int | None or tuple[str, ...]
        kinds = [each for each in get_args(hint) if each not in (type(None), Ellipsis)] or [hint]
        options[field.name] = field.metadata[_OPTION]._replace(
            name=field.name, kind=kinds[0], several=get_origin(hint) is tuple
        )
    return options


def check_options(settings: Any) -> None:
    """Check the value of every option of a settings object; make all whole numbers Python integers.

    Raises:
        TrainingError: a value is not accepted; the message names the option and what it accepts.
    """
    for name, declared in options_of(type(settings)).items():
        value = getattr(settings, name)
        if declared.kind is int and value is not None:
            try:
                value = operator.index(value)  # NumPy's integers are neither JSON nor free of overflow
            except TypeError:
                raise TrainingError(f"{flag(name)} must be a whole number, not {brief(value)}") from None
            object.__setattr__(settings, name, value)
        declared.check_value(value)


def flag(name: str) -> str:
    """Return the name of an option on the command line: "--batch-size" for "batch_size"."""
    return "--" + name.replace("_", "-")


def shown(value: Any) -> str:
    """Return a value as one would type it on the command line."""
    text = " ".join(value) if isinstance(value, tuple) else str(value)
    return text.replace("e-0", "e-") if isinstance(value, float) else text  # 5e-5, which Python prints as 5e-05


COMPUTATION = "the computation"
"""The heading of the options that say how to compute. All commands share these."""

DEVICE = Option(
    "device",
    str,
    "cpu",
    "device to compute on; cpu: NumPy; cuda: CuPy, N is the number of the GPU; torch: PyTorch on the CPU, or on "
    "another of its devices, such as torch:mps",
    metavar="{cpu,cuda,cuda:N,torch,torch:DEVICE}",
    check=DEVICE_NAME,
    group=COMPUTATION,
)
KERNELS = Option(
    "kernels",
    str,
    "auto",
    "auto: use faster versions of single operations where the device has them; reference: use the definitions only",
    choices=("auto", "reference"),
    group=COMPUTATION,
)
PRECISION = Option(
    "precision",
    str,
    "float32",
    "what matrix products round their operands to; float32: not rounded; bfloat16: 8 bits instead of 24, faster on "
    "processors with the instructions, slow elsewhere; auto: bfloat16 where it is fast, otherwise float32",
    choices=("float32", "bfloat16", "auto"),
    group=COMPUTATION,
)
INFERENCE_PRECISION = PRECISION._replace(
    meaning="what matrix products round their operands to; float32: not rounded; bfloat16: 8 bits instead of 24; int8: "
    "in linear layers, whole numbers of 8 bits times a scale for each row, the fastest and the least exact; both are "
    "faster on processors with the instructions, slow elsewhere; auto: bfloat16 where it is fast, otherwise float32",
    choices=("float32", "bfloat16", "int8", "auto"),
)
"""The precision for commands that do not train."""
DTYPE = Option(
    "dtype",
    str,
    "float32",
    "floating-point type of the parameters and of the computation",
    choices=("float32", "float64"),
    group=COMPUTATION,
)
