"""The longer run of the distillation notebook: the same cells on a corpus, rows for results.json.

    python -m benchmarks.distillation --corpus DIR [--steps 5000]

DIR is a folder of parquet, csv or jsonl files with the columns title, text; articles are held out
by a hash of their title.
"""

import argparse
import json
from pathlib import Path

from benchmarks import results
from helpers import checkpoints, runner

NOTEBOOK = runner.NOTEBOOKS / "knowledge-distillation.ipynb"


def rows(metrics: dict, device: str) -> list[dict]:
    """Rows of the results file from the notebook's metrics.json.

    Raises ValueError where it was not made on a corpus.
    """
    given, found = metrics["parameters"], metrics["metrics"]
    if given["dataset"] == "embedded":
        raise ValueError("these metrics come from the texts that ship with the project; "
                         "run the notebook with dataset set to a corpus")
    options = " ".join(f"--{name} {given[name]}" for name in ("steps", "batch_size", "seed"))
    shared = {"task": "knowledge-distillation", "data": "held-out articles",
              "seed": given["seed"], "seconds": metrics["seconds"], "device": device,
              "checkpoint": checkpoints.find(given["teacher"]),
              "command": f"python -m benchmarks.distillation --corpus DIR {options}"}
    split = f"student of {given['layers']} layers, {given['steps']} steps"
    made = [results.row(**shared, split=split, rows=int(found["masked tokens"]),
                        metric=f"top-1 accuracy, {name}", value=found[f"accuracy, {name}"],
                        low=found[f"low, {name}"], high=found[f"high, {name}"])
            for name in (key.removeprefix("accuracy, ") for key in found
                         if key.startswith("accuracy, "))]
    return made + [results.row(**shared, split=split, rows=8, value=found["speed"],
                               metric="speed of the student's encoder, times the teacher's")]


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.distillation", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--corpus", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=5000, help="updates of each of five students")
    parser.add_argument("--batch_size", type=int, default=8)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--results", type=Path, default=results.FILE)
    parser.add_argument("--output_dir", type=Path,
                        default=runner.PROJECT / "runs" / "knowledge-distillation-corpus")
    options = parser.parse_args(arguments)
    given = {"dataset": str(options.corpus.resolve()), "steps": options.steps,
             "batch_size": options.batch_size, "seed": options.seed,
             "output_dir": str(options.output_dir.resolve())}
    failed = runner.execute(NOTEBOOK, runner.settings(NOTEBOOK, given), options.output_dir)
    if failed:
        raise SystemExit(f"{NOTEBOOK.name}: {failed}")
    metrics = json.loads((options.output_dir / "metrics.json").read_text(encoding="utf-8"))
    results.add(rows(metrics, checkpoints.pick_device()), options.results)
    print(metrics["headline"])


if __name__ == "__main__":
    main()
