"""`make verify-gpu` runs every part within its limit, whatever happens to the others, and loses nothing when killed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from backends.cpu.backend import NumpyBackend
from minibert.commands import gpu_measurements, verify_gpu
from minibert.commands.verify_gpu import ROOT, TESTS, Part, PartResult, format_page, list_parts, run_part, verify

PYTHON = sys.executable


def part(name: str, code: str, limit: float = 60.0) -> Part:
    return Part(name, [PYTHON, "-c", code], limit)


def test_every_part_is_there_and_names_the_device():
    parts = {part.name: part.command for part in list_parts("cuda:1")}
    for name in ("facts", "doctor", "tests", "step times in float32", "step times in TF32", "kernels, by CUDA events"):
        assert parts[name][parts[name].index("--device") + 1] == "cuda:1"
    for command in parts.values():
        scripts = [word for word in command if word.endswith(".py")]
        assert all((ROOT / script).is_file() for script in scripts), command
    assert set(TESTS) <= set(parts["tests"])


def test_float32_and_tf32_differ_by_the_environment_alone():
    parts = {part.name: part for part in list_parts("cuda")}
    float32, tf32 = parts["step times in float32"], parts["step times in TF32"]
    assert float32.command == tf32.command
    assert (float32.environment, tf32.environment) == ({"CUPY_TF32": "0"}, {"CUPY_TF32": "1"})


def test_a_quick_verification_has_the_same_parts_at_tiny_sizes():
    usual, quick = list_parts("cuda"), list_parts("cuda", quick=True)
    assert [part.name for part in usual] == [part.name for part in quick]
    assert sum("--quick" in part.command for part in quick) >= 6
    assert not any("--quick" in part.command for part in usual)


@pytest.mark.parametrize(
    ("code", "outcome", "finding"),
    [
        ("print('noise'); print('=> 3 ms'); print('=> 4 ms'); print('noise')", "pass", ["3 ms", "4 ms"]),
        ("print('noise'); print('4 passed')", "pass", ["4 passed"]),
        ("print('=> 3 ms'); 1/0", "FAIL", ["3 ms", "ZeroDivisionError: division by zero"]),
        ("import os; os.abort()", "FAIL", []),
        ("print('no sanitizer'); raise SystemExit(77)", "not run", ["no sanitizer"]),
    ],
    ids=["findings", "no findings", "an error", "a crash", "cannot run"],
)
def test_a_part_tells_what_it_found_or_why_not(code: str, outcome: str, finding: list[str], tmp_path: Path, capsys):
    result = run_part(part("a part", code), tmp_path / "log.txt", 60.0)
    assert (result.outcome, result.findings()) == (outcome, finding)
    assert result.failed == (outcome == "FAIL")
    assert (tmp_path / "log.txt").read_text(encoding="utf-8") == result.output
    assert all(f"{found}" in format_page("a GPU", [result]) for found in finding)


def test_a_part_that_hangs_is_ended_with_all_that_it_started(tmp_path: Path):
    code = (
        "import subprocess, sys, time\n"
        "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'])\n"
        "print(child.pid, flush=True)\n"
        "time.sleep(600)"
    )
    result = run_part(part("hangs", code), tmp_path / "log.txt", 5.0)
    assert result.outcome == "FAIL (out of time)"
    assert "its limit" in result.findings()[-1]
    assert not alive(int(result.output.split()[0]))


def alive(pid: int) -> bool:
    """True if a process runs; False if there is none, or if it only waits for its parent to take note of its end."""
    for _ in range(100):
        try:
            state = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rsplit(")", 1)[1].split()[0]
        except FileNotFoundError:
            return False
        if state in "ZX":
            return False
        time.sleep(0.05)
    return True


def test_a_failure_does_not_stop_the_others_and_the_report_grows_with_every_part(tmp_path: Path):
    show_report = f"print(open({str(tmp_path / 'report.md')!r}, encoding='utf-8').read())"
    parts = [part("first", "1/0"), part("second", show_report), part("third", "print('=> fine')")]
    assert not verify("cpu", parts, tmp_path, 10.0)
    seen_by_the_second = (tmp_path / "02-second.txt").read_text(encoding="utf-8")
    assert "| first | FAIL |" in seen_by_the_second
    assert "| second | running | 0 s | its output is in 02-second.txt |" in seen_by_the_second
    report = (tmp_path / "report.md").read_text(encoding="utf-8")
    assert "| second | pass |" in report
    assert "| third | pass |" in report
    assert "ZeroDivisionError" in report
    assert verify("cpu", parts[2:], tmp_path, 10.0)


def test_the_limits_grow_and_shrink_with_the_minutes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    limits = []

    def note(part: Part, log: Path, limit: float, site: Path | None) -> PartResult:
        limits.append(limit)
        return PartResult(part, "pass", 0.0, "")

    monkeypatch.setattr(verify_gpu, "run_part", note)
    parts = [part("short", "", limit=50.0), part("long", "", limit=6000.0)]
    verify("cpu", parts, tmp_path, 20.0)
    assert limits == [100.0, pytest.approx(1200.0, abs=60.0)]  # no part may take longer than all together


def test_when_the_minutes_are_over_the_rest_is_not_run(tmp_path: Path):
    parts = [part("slow", "import time; time.sleep(600)", limit=600.0), part("late", "print('never')")]
    assert not verify("cpu", parts, tmp_path, 0.02)
    report = (tmp_path / "report.md").read_text(encoding="utf-8")
    assert "| slow | FAIL (out of time) |" in report
    assert "| late | not run | 0 s | the 0.02 minutes were over |" in report


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_killed_at_any_moment_the_report_holds_what_was_done(how: signal.Signals, tmp_path: Path):
    code = (
        "import signal, sys\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"  # a shell's background job inherits to ignore it
        "from minibert.commands import verify_gpu\n"
        "from minibert.commands.verify_gpu import Part\n"
        "sleep = 'import os, time; print(os.getpid(), flush=True); time.sleep(600)'\n"
        "parts = [Part('first', [sys.executable, '-c', 'print(\"=> 5 ms\")'], 60),\n"
        "         Part('second', [sys.executable, '-c', sleep], 600)]\n"
        "verify_gpu.list_parts = lambda *_: parts\n"
        f"sys.exit(verify_gpu.main(['--device', 'cpu', '--output', {str(tmp_path / 'out')!r}]))"
    )
    command = [PYTHON, "-c", code]
    log = tmp_path / "out" / "02-second.txt"
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        while not (log.exists() and log.read_text(encoding="utf-8").endswith("\n")):
            assert process.poll() is None
            time.sleep(0.05)
        process.send_signal(how)
        process.wait()
    report = (tmp_path / "out" / "report.md").read_text(encoding="utf-8")
    assert "| first | pass |" in report
    assert "5 ms" in report
    assert "| second | running |" in report
    pid = int(log.read_text(encoding="utf-8"))
    if how == signal.SIGKILL:  # nobody was left to end the part
        os.kill(pid, signal.SIGKILL)
    else:
        assert not alive(pid)


def test_modules_may_come_from_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """On a machine without network, where nothing of the project is installed."""
    (tmp_path / "array_api_somewhere.py").write_text("print('=> found')", encoding="utf-8")
    monkeypatch.delenv("PYTHONPATH", raising=False)
    result = run_part(part("import", "import array_api_somewhere, minibert"), tmp_path / "log.txt", 60.0, site=tmp_path)
    assert result.findings() == ["found"]


def test_the_script_needs_no_installed_project(tmp_path: Path):
    """It finds its own folder: -P and another working folder leave it nothing else."""
    (tmp_path / "site").mkdir()
    script = str(ROOT / "scripts" / "verify_gpu.py")
    command = [PYTHON, "-P", script, "--site", str(tmp_path / "site"), "--device", "cpu", "--minutes", "0"]
    run = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (run.returncode, run.stderr) == (2, "error: --minutes must be above 0, not 0.0\n")
    missing = subprocess.run([*command, "--site", "nowhere"], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert missing.returncode == 2


@pytest.mark.parametrize(("passes", "status"), [(True, 0), (False, 1)])
def test_the_exit_status_tells_whether_all_passed(passes: bool, status: int, tmp_path: Path, monkeypatch):
    def pretended(part: Part, *_: object) -> PartResult:
        return PartResult(part, "pass" if passes or part.name != "tests" else "FAIL", 1.0, "")

    monkeypatch.setattr(verify_gpu, "run_part", pretended)
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    assert verify_gpu.main(["--device", "cpu", "--output", str(tmp_path / "out")]) == status
    assert (tmp_path / "out" / "report.md").is_file()


@pytest.mark.parametrize("name", ["pytest", "array_api_strict", "array_api_compat"])
def test_without_what_the_parts_need_it_fails_at_once(
    name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys
):
    monkeypatch.setitem(sys.modules, name, None)
    assert verify_gpu.main(["--device", "cpu", "--output", str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err
    assert f"the tests need {name}" in error
    assert "pip install -e '.[cuda12,test,plot]'" in error
    assert "--site" in error
    assert not (tmp_path / "out").exists()


def test_without_a_gpu_it_fails_at_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys):
    monkeypatch.setitem(sys.modules, "cupy", None)
    assert verify_gpu.main(["--output", str(tmp_path / "out")]) == 2
    assert "CuPy cannot be imported" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("measured", ["facts", "losses", "step"])
def test_a_measurement_marks_what_the_page_shows(measured: str, device: str, capsys: pytest.CaptureFixture[str]):
    assert gpu_measurements.main([measured, "--device", device, "--quick"]) == 0
    assert "=> " in capsys.readouterr().out


def test_other_losses_than_the_cpus_fail(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    monkeypatch.setattr(gpu_measurements, "LOSS_TOLERANCE", -1.0)
    monkeypatch.setattr(NumpyBackend, "tf32", False, raising=False)
    assert gpu_measurements.main(["losses", "--device", "cpu", "--quick"]) == 1


def test_only_cuda_has_kernels_to_time(capsys: pytest.CaptureFixture[str]):
    assert gpu_measurements.main(["kernels", "--device", "cpu"]) == verify_gpu.NOT_RUN
