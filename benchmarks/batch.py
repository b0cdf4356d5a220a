"""Batch: rows per second end to end and memory, files in and files out.

`cli/score_batch.py` against the pipeline over a stream of `datasets` that writes the same
columns (pipeline_batch.py), each in fresh processes, their start included.
"""

import csv
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pandas as pd

from benchmarks import bulk, harness
from benchmarks.harness import Line, Measured
from helpers import batch, checkpoints

OURS, THEIRS = "ours, {} process{}", "pipeline over a stream, batches of {}"
TRIAL = 96  # sentences on which the pipeline's best batch size is found


def write_files(folder: Path, rows: int, files: int) -> None:
    """Files of masked sentences; the last may hold a few rows more."""
    texts = harness.sentences(rows)
    for number in range(files):
        begin, end = (rows * i // files for i in (number, number + 1))
        with open(folder / f"part-{number}.csv", "w", newline="", encoding="utf-8") as out:
            writer = csv.writer(out)
            writer.writerow([batch.COLUMN])
            writer.writerows([text] for text in texts[begin:end])


def ours(source: Path, output: Path, folder: Path, workers: int) -> list[str]:
    return [sys.executable, str(checkpoints.PROJECT / "cli" / "score_batch.py"), str(source),
            str(output), "--checkpoint", str(folder), "--device", "cpu", "--workers", str(workers)]


def theirs(source: Path, output: Path, folder: Path, size: int) -> list[str]:
    return [sys.executable, "-m", "benchmarks.pipeline_batch", str(source), str(output),
            str(folder), str(size)]


def best_size(folder: Path, texts: list[str]) -> int:
    """The batch size that serves the pipeline best, by two rounds on some of the texts."""
    pipe = bulk.load_pipeline(folder)
    sides = {str(size): lambda size=size: list(pipe((text for text in texts), batch_size=size,
                                                    top_k=5))
             for size in bulk.BATCH_SIZES}
    seconds = harness.alternate(sides, 2)
    return int(harness.quickest(seconds, list(sides)))


def predictions(output: Path) -> pd.DataFrame:
    """All predictions below a folder, by file, row and rank."""
    parts = [pd.read_csv(path, keep_default_na=False) for path in
             sorted((output / "predictions").rglob("*.csv"))]
    return pd.concat(parts).sort_values(["file", "row", "mask", "rank"], ignore_index=True)


def run(model: str = "embedded", rows: int = 3000, rounds: int = 2,
        workers=(1, 2)) -> list[Measured]:
    """Rows per second from the start of the process to its end, and peak memory."""
    with ExitStack() as stack:
        folder = stack.enter_context(harness.checkpoint(model))
        place = stack.enter_context(tempfile.TemporaryDirectory(prefix="batch-"))
        size = best_size(folder, harness.sentences(min(rows, TRIAL)))
        pipeline = THEIRS.format(size)
        source = Path(place, "input")
        source.mkdir()
        write_files(source, rows, files=4)
        names = [OURS.format(count, "" if count == 1 else "es") for count in workers]
        names.append(pipeline)
        seconds: dict[str, list] = {name: [] for name in names}
        memory: dict[str, list] = {name: [] for name in names}
        tables = {}
        for number in range(rounds):
            for name in names if number % 2 == 0 else names[::-1]:
                output = Path(place, f"output-{names.index(name)}-{number}")
                command = theirs(source, output, folder, size) if name == pipeline else \
                    ours(source, output, folder, workers[names.index(name)])
                spent, peak, _ = harness.run_command(command)
                seconds[name].append(spent)
                memory[name].append(peak)
                tables[name] = predictions(output)
        expected = tables[pipeline]
        lines = harness.speeds(rows, "rows", seconds)
        for name in names[:-1]:
            found = tables[name]
            if not found[["file", "row", "mask", "rank"]].equals(
                    expected[["file", "row", "mask", "rank"]]):
                raise RuntimeError(f"batch: {name} and the pipeline answered different rows")
            lines += [harness.ratio(seconds, name, pipeline, "rows/s"),
                      Line(f"{name}: largest difference of a score",
                           float(np.abs(found["score"] - expected["score"]).max())),
                      Line(f"{name}: same words",
                           float((found["token"] == expected["token"]).mean()))]
        lines += harness.conditions(memory)
        return [Measured("batch", f"csv files of embedded sentences, {harness.about(model)}", rows,
                         lines, folder if model == "embedded" else None)]


def volume(folder: Path | None = None, sizes=(10_000, 100_000)) -> list[Measured]:
    """Seconds and peak memory of one process on files of 10,000 and 100,000 rows."""
    folder = folder or checkpoints.find("embedded")
    lines = []
    with tempfile.TemporaryDirectory(prefix="batch-") as place:
        for rows in sizes:
            source = Path(place, f"input-{rows}")
            source.mkdir()
            write_files(source, rows, files=1)
            command = ours(source, Path(place, f"out-{rows}"), folder, 1)
            spent, peak, _ = harness.run_command(command)
            lines += [Line(f"{rows:,} rows: rows/s", rows / spent),
                      Line(f"{rows:,} rows: seconds", spent),
                      Line(f"{rows:,} rows: peak memory, MB", peak)]
    return [Measured("batch, volume", "one csv file, embedded checkpoint, one process",
                     max(sizes), lines, folder)]
