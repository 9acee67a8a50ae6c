"""Options: declared once, and the same on the command line, in --help and in the documentation."""

from __future__ import annotations

import re
import subprocess
import sys
from dataclasses import dataclass, field
from importlib import import_module

import pytest

from minibert.commands.parser import Parser, add_option, add_settings, given_settings, options_table
from minibert.errors import TrainingError
from minibert.finetuning.finetune import FineTuning
from minibert.kernels import CHOICES
from minibert.options import DEVICE_NAME, KERNELS, Option, at_least, check_options, option, options_of
from minibert.training.settings import Settings

COMMANDS = ("train", "evaluate", "finetune", "classify", "embed", "fill_mask")


@dataclass(frozen=True)
class Baking:
    """A settings class with every kind of option."""

    cakes: int = option(2, "number of cakes, 50% of them round", metavar="N", check=at_least(1), group="the oven")
    heat: float | None = option(None, "temperature in degrees", metavar="T", default_text="what the cake needs")
    fruits: tuple[str, ...] = option(("apple", "plum"), "fruits to put on it", metavar="FRUIT", group="the oven")
    sugar: bool = option(False, "sweeten it", group="the oven")
    shape: str = option("round", "shape of the cake", choices=("round", "square"), group="the oven")

    def __post_init__(self) -> None:
        check_options(self)


def parser_of(settings: type) -> Parser:
    parser = Parser(prog="bake.py")
    add_settings(parser, settings)
    return parser


def parser_of_command(name: str) -> Parser:
    return import_module(f"minibert.commands.{name}").build_parser()


# --- one declaration ------------------------------------------------------------------------------------------


def test_a_declared_field_is_an_ordinary_field_of_a_dataclass():
    assert Baking(cakes=3) == Baking(3, None, ("apple", "plum"), False, "round")


def test_the_command_line_stores_values_of_the_declared_types():
    words = ["--cakes", "3", "--heat", "180", "--fruits", "kiwi", "fig", "--sugar", "--shape", "square"]
    given = given_settings(parser_of(Baking).parse_args(words), Baking)
    assert Baking(**given) == Baking(3, 180.0, ("kiwi", "fig"), True, "square")
    assert isinstance(given["heat"], float)


def test_settings_that_are_not_given_are_left_to_the_settings_class():
    assert given_settings(parser_of(Baking).parse_args(["--cakes", "4"]), Baking) == {"cakes": 4}
    assert not given_settings(parser_of(Settings).parse_args([]), Settings)


@pytest.mark.parametrize(
    ("words", "values", "message"),
    [
        (["--cakes", "0"], {"cakes": 0}, "--cakes must be at least 1, not 0"),
        (["--shape", "flat"], {"shape": "flat"}, "--shape must be one of round, square, not 'flat'"),
    ],
)
def test_a_value_is_refused_in_the_same_words_by_the_class_and_the_command_line(words, values, message):
    with pytest.raises(TrainingError, match=f"^{message}$"):
        Baking(**values)
    with pytest.raises(TrainingError, match=f"^{message}$"):
        parser_of(Baking).parse_args(words)


def test_help_tells_meaning_values_and_default():
    text = re.sub(r"\s+", " ", parser_of(Baking).format_help())
    for words in (
        "--heat T temperature in degrees (default: what the cake needs)",
        "the oven: --cakes N number of cakes, 50% of them round (default: 2) "
        "--fruits FRUIT [FRUIT ...] fruits to put on it (default: apple plum)",
        "--sugar sweeten it --shape {round,square} shape of the cake (default: round)",
    ):
        assert words in text


def test_a_field_that_declares_no_option_is_a_mistake():
    @dataclass
    class Forgetful:
        cakes: int = field(default=2)

    with pytest.raises(KeyError):
        options_of(Forgetful)


def test_the_kernels_to_choose_from_are_those_of_the_model():
    assert KERNELS.choices == CHOICES


# --- every command --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--device", "tpu"], f"--device must be {DEVICE_NAME.wanted}, not 'tpu'"),
        (["--device", "cuda:x"], f"--device must be {DEVICE_NAME.wanted}, not 'cuda:x'"),
        (["--kernels", "fast"], "--kernels must be one of auto, reference, not 'fast'"),
        (["--dtype", "float16"], "--dtype must be one of float32, float64, not 'float16'"),
    ],
)
def test_a_wrong_device_dtype_or_kernels_is_the_same_line_in_every_command(command, words, message, capsys):
    if words[0] == "--dtype" and command not in ("train", "evaluate"):
        assert "--dtype" not in parser_of_command(command).format_help()
        return
    assert import_module(f"minibert.commands.{command}").main(words) == 2
    assert capsys.readouterr().err == f"error: {message}\n"


@pytest.mark.parametrize("command", COMMANDS)
def test_device_kernels_and_threads_are_the_same_in_every_command(command):
    rows = options_table(parser_of_command(command)).splitlines()
    for name in ("--device", "--kernels", "--threads"):
        (row,) = [row for row in rows if row.startswith(f"| `{name} ")]
        assert row in options_table(parser_of_command("train"))


@pytest.mark.parametrize("command", ["classify", "embed", "fill_mask"])
def test_help_comes_before_an_array_library_is_loaded(command):
    code = (
        f"import sys; sys.argv = ['x', '--help']; from minibert.commands.{command} import main\n"
        "try:\n    main()\nfinally:\n"
        "    print(sorted({'numpy', 'scipy', 'tokenizers', 'rich', 'minibert.model'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


# --- the table for the documentation --------------------------------------------------------------------------


def test_the_table_has_a_row_for_every_option():
    parser = Parser(prog="bake.py")
    parser.add_argument("cook", metavar="COOK")
    parser.add_argument("--book", required=True, metavar="FILE", help="file|folder of <recipes>")
    add_settings(parser, Baking)
    add_option(parser, Option("eggs", int, 3, "number of eggs, see --cakes", metavar="N"))
    assert options_table(parser).splitlines() == [
        "| option | default | meaning |",
        "| --- | --- | --- |",
        "| `COOK` | required |  |",
        "| `--book FILE` | required | file\\|folder of \\<recipes> |",
        "| `--heat T` | what the cake needs | temperature in degrees |",
        "| `--eggs N` | 3 | number of eggs, see `--cakes` |",
        "| **the oven** |  |  |",
        "| `--cakes N` | 2 | number of cakes, 50% of them round |",
        "| `--fruits FRUIT ...` | apple plum | fruits to put on it |",
        "| `--sugar` |  | sweeten it |",
        "| `--shape {round,square}` | round | shape of the cake |",
    ]


@pytest.mark.parametrize("command", COMMANDS)
def test_every_option_of_every_command_has_a_meaning_and_a_default(command, monkeypatch):
    monkeypatch.setenv("COLUMNS", "40")
    narrow = options_table(parser_of_command(command))
    monkeypatch.setenv("COLUMNS", "200")
    assert options_table(parser_of_command(command)) == narrow
    without_value = {
        f"`--{name}`" for name in ("cased", "whole-word-masking", "resume", "json", "no-normalize", "skip-damaged")
    }
    optional_words = {"`--text TEXT`", "`--text-pair TEXT`"}  # nothing stands in their place
    for row in narrow.splitlines()[2:]:
        name, default, meaning = re.fullmatch(r"\| (.*?) \| (.*?) \| (.*) \|", row).groups()
        if not name.startswith("**"):
            assert meaning
            assert default or name in without_value | optional_words, f"{name} has no default in its help text"


def test_the_defaults_of_fine_tuning_are_those_of_its_class():
    table = options_table(parser_of_command("finetune"))
    assert f"| `--epochs N` | {FineTuning().epochs} |" in table
    assert "| `--learning-rate R` | 5e-5 |" in table
