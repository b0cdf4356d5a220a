"""Run the benchmarks: `make bench`, or `make bench ROW=name DATA=folder`.

    python -m benchmarks [--list] [--row NAME ...] [--data FOLDER]

Without --row all that run on embedded data, in about 20 minutes on two cores. Rows that need
real data or much longer run by name; FOLDER holds data sets as the Hub lays them out. Each
finished row is written to benchmarks/results.json, and the README's tables are made anew.
"""

import argparse
import os
import sys
import time
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import NamedTuple

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # the same for every side


class Row(NamedTuple):
    """One benchmark: module.function(**options); `always` if `make bench` runs it unasked."""

    function: str
    options: dict
    minutes: float
    says: str
    always: bool = True
    needs_data: bool = False


BASE = "the same for distilbert-base-uncased's shape"
TASKS = {"emotion": "text-classification", "entities": "token-classification",
         "questions": "question-answering"}
ROWS = {
    "bulk-embedded": Row("bulk.run", {"model": "embedded"}, 2, "fill-mask in bulk"),
    "bulk-base": Row("bulk.run", {"model": "base", "texts": 60, "rounds": 4}, 2, BASE),
    "online-embedded": Row("online.run", {"model": "embedded"}, 1.5, "four servers under load"),
    "online-base": Row("online.run", {"model": "base"}, 2.5, BASE),
    **{f"fine-tuning-{name}": Row("training_speed.run", {"task": task, **sizes}, minutes,
                                  f"one epoch on {name}")
       for (name, task), sizes, minutes in zip(TASKS.items(), (
           {"rows": 256}, {"rows": 256}, {"rows": 24, "batch_size": 8, "rounds": 3}), (1, 1, 2))},
    "evaluation-embedded": Row("evaluating.run", {"model": "embedded"}, 1, "masked words"),
    "evaluation-base": Row("evaluating.run", {"model": "base", "words": 40}, 1, BASE),
    "batch": Row("batch.run", {}, 2.5, "files to files, end to end"),
    "start": Row("start.run", {}, 1.5, "cold starts, stage by stage"),
    **{f"fine-tuning-{name}-base": Row("training_speed.run", {"task": task, "model": "base",
                                                              "rounds": 2, **sizes}, minutes,
                                       BASE, False)
       for (name, task), sizes, minutes in zip(TASKS.items(), (
           {"rows": 64}, {"rows": 64}, {"rows": 24, "batch_size": 8}), (3, 1.5, 6))},
    "batch-base": Row("batch.run", {"model": "base", "rows": 1000, "rounds": 2}, 5, BASE, False),
    "start-base": Row("start.run", {"model": "base", "rounds": 2}, 1.5, BASE, False),
    "agreement": Row("agreement.run", {}, 5, "bf16 and int8 on real imdb", False, True),
    **{f"to-metric-{name}": Row("training_speed.to_metric", {"task": task, **sizes}, minutes,
                                f"seconds and metric on {training}", False, True)
       for (name, task), training, sizes, minutes in zip(
           TASKS.items(), ("dair-ai/emotion", "lhoestq/conll2003", "rajpurkar/squad"),
           # at 2e-4 one run of three in bf16 learned nothing from so few messages
           ({"rows": 2000, "epochs": 2.0, "batch_size": 8, "learning_rate": 1e-4},
            {"rows": 1500, "epochs": 3.0, "batch_size": 16, "held_rows": 500},
            {"rows": 800, "epochs": 2.0, "batch_size": 8, "held_rows": 300, "looks": 4}),
           (25, 8, 50))},
    "batch-volume": Row("batch.volume", {}, 10, "10,000 and 100,000 rows", False),
    "gpu": Row("bulk.on_gpu", {}, 2, "tokens/s on a CUDA device", False),
}


def measure(name: str, data: Path | None = None, **smaller) -> list:
    """Run one row and return what it measured; `smaller` overrides its sizes."""
    row = ROWS[name]
    module, function = row.function.split(".")
    work: Callable = getattr(import_module(f"benchmarks.{module}"), function)
    arguments = [data] if row.needs_data else []
    return work(*arguments, **{**row.options, **smaller})


def save(name: str, measured: list, seconds: float, file: Path) -> None:
    """Write the row's results in place of what it measured before."""
    from benchmarks import harness, results

    new = [row for one in measured
           for row in harness.to_results(name, one, seconds, ROWS[name].needs_data)]
    results.add(new, file, instead_of={row["command"] for row in new})


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--row", nargs="+", choices=ROWS, metavar="NAME", help="only these")
    parser.add_argument("--data", type=Path, help="folder of real data sets")
    parser.add_argument("--list", action="store_true", help="show the rows")
    parser.add_argument("--results", type=Path, help="another results file; leaves the README")
    options = parser.parse_args(arguments)
    if options.list:
        for name, row in ROWS.items():
            note = "" if row.always else ", by name" + (", needs --data" if row.needs_data else "")
            print(f"{name:27} about {row.minutes:g} min{note}: {row.says}")
        return 0
    names = options.row or [name for name, row in ROWS.items() if row.always]
    if needing := [name for name in names if ROWS[name].needs_data and not options.data]:
        parser.error(f"--data: {', '.join(needing)} needs real data; give the folder that holds it")
    if options.data and not options.data.is_dir():
        parser.error(f"--data: there is no folder {options.data}")

    from transformers import logging

    from benchmarks import cells, results, table

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    file, failed = options.results or results.FILE, []
    for name in names:
        print(f"{name}: about {ROWS[name].minutes:g} minutes", flush=True)
        began = time.monotonic()
        try:
            measured = measure(name, options.data.resolve() if options.data else None)
        except Exception as error:  # one row that fails does not lose the others
            print(f"  failed: {error}", file=sys.stderr, flush=True)
            failed.append(name)
            continue
        seconds = time.monotonic() - began
        save(name, measured, seconds, file)
        for one in measured:
            for line in one.lines:
                print(f"  {line.metric}: {cells.figure(line._asdict())}")
        print(f"  {seconds:.0f} s", flush=True)
    if not options.results:
        table.write()
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
