"""`make verify-gpu` runs everything, fails if anything fails, and writes a report."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from minibert.commands import verify_gpu
from minibert.commands.verify_gpu import Part, PartResult, check_losses, format_report, list_parts, run_part
from minibert.training.log import METRICS_FILE


def write_losses(folder: Path, losses: list[float]) -> None:
    folder.mkdir()
    lines = [json.dumps({"kind": "train", "step": n, "loss": loss}) for n, loss in enumerate(losses)]
    (folder / METRICS_FILE).write_text("\n".join(lines), encoding="utf-8")


def test_every_part_is_there_and_names_the_device(tmp_path: Path):
    made = {part.name: part.command for part in list_parts("cuda:1", tmp_path, 30, [])}
    assert {"doctor", "tests", "training on the device", "training on the CPU"} <= set(made)
    for name in ("doctor", "tests", "training on the device"):
        assert made[name][made[name].index("--device") + 1] == "cuda:1"
    for command in made.values():
        assert command[1] == "-m" or Path(command[1]).is_file(), command


def test_a_quick_one_has_the_same_parts_but_measures_nothing_large(tmp_path: Path):
    kinds = [
        [part.name.split(" of ")[0] for part in list_parts("cuda", tmp_path, 30, [], quick)] for quick in (False, True)
    ]
    assert set(kinds[0]) == set(kinds[1])
    made = {part.name: part.command for part in list_parts("cuda", tmp_path, 30, [], True)}
    assert "--quick" in made["doctor"]
    (benchmark,) = (command for name, command in made.items() if name.startswith("benchmark"))
    assert benchmark[-2:] == ["--preset", "tiny"]


def test_losses_that_agree_pass_and_others_fail(tmp_path: Path):
    write_losses(tmp_path / "device", [5.0, 4.0])
    write_losses(tmp_path / "cpu", [5.0, 4.00001])
    assert check_losses(tmp_path)[0]
    (tmp_path / "other").mkdir()
    write_losses(tmp_path / "other" / "device", [5.0, 4.0])
    write_losses(tmp_path / "other" / "cpu", [5.0, 4.1])
    assert not check_losses(tmp_path / "other")[0]
    assert check_losses(tmp_path / "nothing") == (
        False,
        f"there is no {tmp_path / 'nothing' / 'device' / METRICS_FILE}",
    )


def test_a_command_that_fails_is_a_failure_in_the_report(capsys: pytest.CaptureFixture[str]):
    results = [
        run_part(Part("good", [sys.executable, "-c", "print('fine')"])),
        run_part(Part("bad", [sys.executable, "-c", "1/0"])),
    ]
    assert [result.passed for result in results] == [True, False]
    text = format_report("a device", results, (True, "close"))
    assert "| good | pass |" in text
    assert "| bad | FAIL |" in text
    assert "ZeroDivisionError" in text


@pytest.mark.parametrize(("passes", "status"), [(True, 0), (False, 1)])
def test_the_exit_status_tells_whether_all_passed(passes: bool, status: int, tmp_path: Path, monkeypatch):
    def pretended(part: Part) -> PartResult:
        if "training" in part.name:
            write_losses(tmp_path / "out" / ("device" if "device" in part.name else "cpu"), [2.0])
        return PartResult(part, passes or part.name != "tests", 1.0, "")

    monkeypatch.setattr(verify_gpu, "run_part", pretended)
    assert verify_gpu.main(["--device", "cpu", "--output", str(tmp_path / "out")]) == status
    assert (tmp_path / "out" / "report.md").is_file()


@pytest.mark.parametrize("name", ["pytest", "array_api_strict"])
def test_without_what_the_tests_need_it_fails_at_once(
    name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys
):
    monkeypatch.setitem(sys.modules, name, None)
    assert verify_gpu.main(["--device", "cpu", "--output", str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err
    assert f"the tests need {name}" in error
    assert "pip install -e '.[cuda12,test,plot]'" in error
    assert not (tmp_path / "out").exists()


def test_without_a_gpu_it_fails_at_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys):
    monkeypatch.setitem(sys.modules, "cupy", None)
    assert verify_gpu.main(["--output", str(tmp_path / "out")]) == 2
    assert "CuPy cannot be imported" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
