"""Train small BERTs on the default corpus, with several seeds, and record their curves for docs/pretraining.md.

    python scripts/reference_curves.py                      # trains 7 runs; writes docs/pretraining.json and .png
    python scripts/reference_curves.py --picture-only       # draws the picture again, from the record

Every run is `scripts/train.py` with the options that the record names. With another Python, the default corpus differs.
"""

from __future__ import annotations

import json
import platform
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

from minibert.commands.parser import Parser  # noqa: E402
from minibert.training.log import METRICS_FILE, read_history  # noqa: E402

RECORD, PICTURE = ROOT / "docs" / "pretraining.json", ROOT / "docs" / "pretraining.png"
SEEDS = (0, 1, 2, 3)
VARIANTS = {  # name -> what is wrong with it, as options
    "default": "",
    "learning rate / 20": "--learning-rate 1e-4",
    "learning rate x 10": "--learning-rate 2e-2",
    "initial weights of BERT-base": "--initializer-range 0.02",
}


def train(options: str, seed: int, steps: int, threads: int, cache: Path) -> dict[str, Any]:
    """Run `scripts/train.py`, and return the evaluations of the run and its unigram baseline."""
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder) / "run"
        words = f"--steps {steps} --seed {seed} --threads {threads} --evaluate-every {steps // 20} {options}".split()
        command = [sys.executable, str(ROOT / "scripts" / "train.py"), "--output", str(output), *words]
        subprocess.run([*command, "--cache-dir", str(cache)], check=True, stdout=subprocess.DEVNULL)
        history = read_history(output / METRICS_FILE)
    evaluations = [entry for entry in history if entry["kind"] == "evaluation"]
    return {
        "steps": [entry["step"] for entry in evaluations],
        "losses": [round(entry["loss"], 4) for entry in evaluations],
        "baseline": round(evaluations[-1]["unigram_loss"], 4),
    }


def record(steps: int, threads: int) -> dict[str, Any]:
    """Train all runs: every seed of the default, and one seed of each variant."""
    runs: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as cache:
        for name, options in VARIANTS.items():
            for seed in SEEDS if name == "default" else SEEDS[:1]:
                runs.append({"name": name, "seed": seed, "options": options})
                runs[-1] |= train(options, seed, steps, threads, Path(cache))
                print(f"{name}, seed {seed}: {runs[-1]['losses'][-1]:.3f} nats", flush=True)
    return {"python": platform.python_version(), "steps": steps, "runs": runs}


def draw(found: dict[str, Any]) -> None:
    """Draw the band of the seeds, and the variants as lines."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(8, 4), layout="constrained")
    default = [run for run in found["runs"] if run["name"] == "default"]
    columns = list(zip(*(run["losses"] for run in default), strict=True))
    axes.fill_between(default[0]["steps"], [min(c) for c in columns], [max(c) for c in columns], alpha=0.4)
    axes.plot(default[0]["steps"], [sum(c) / len(c) for c in columns], label=f"default, {len(default)} seeds")
    for run in found["runs"]:
        if run["name"] != "default":
            axes.plot(run["steps"], run["losses"], "--", label=f"{run['name']} ({run['options']})")
    axes.axhline(default[0]["baseline"], color="black", linestyle=":", label="unigram baseline")
    axes.set_xlabel("step")
    axes.set_ylabel("evaluation loss (nats)")
    axes.legend()
    figure.savefig(PICTURE, dpi=100)


def main() -> None:
    """Train and record, or only draw."""
    parser = Parser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=2000, metavar="N", help="steps of each run (default: 2000)")
    parser.add_argument("--threads", type=int, default=1, metavar="N", help="threads of each run (default: 1)")
    parser.add_argument("--picture-only", action="store_true", help="train nothing; draw the record again")
    given = parser.parse_args()
    if not given.picture_only:
        RECORD.write_text(json.dumps(record(given.steps, given.threads), indent=1) + "\n", encoding="utf-8")
    draw(json.loads(RECORD.read_text(encoding="utf-8")))


if __name__ == "__main__":
    main()
