"""Batch: rows per second end to end and memory, files in and files out.

`cli/score_batch.py` against the pipeline over a stream of `datasets` that writes the same
columns (pipeline_batch.py), each in fresh processes, their start included.
"""

import csv
import sys
import tempfile
from pathlib import Path

import numpy as np
import pandas as pd

from benchmarks import harness
from benchmarks.harness import Line, Measured
from helpers import batch, checkpoints

OURS, THEIRS = "ours, {} process{}", "pipeline over a stream, batches of 8"


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


def theirs(source: Path, output: Path, folder: Path) -> list[str]:
    return [sys.executable, "-m", "benchmarks.pipeline_batch", str(source), str(output),
            str(folder)]


def predictions(output: Path) -> pd.DataFrame:
    """All predictions below a folder, by file, row and rank."""
    parts = [pd.read_csv(path, keep_default_na=False) for path in
             sorted((output / "predictions").rglob("*.csv"))]
    return pd.concat(parts).sort_values(["file", "row", "mask", "rank"], ignore_index=True)


def run(folder: Path | None = None, rows: int = 1200, rounds: int = 2,
        workers=(1, 2)) -> list[Measured]:
    """Rows per second from the start of the process to its end, and peak memory."""
    folder = folder or checkpoints.find("embedded")
    with tempfile.TemporaryDirectory(prefix="batch-") as place:
        source = Path(place, "input")
        source.mkdir()
        write_files(source, rows, files=4)
        names = [OURS.format(count, "" if count == 1 else "es") for count in workers] + [THEIRS]
        seconds: dict[str, list] = {name: [] for name in names}
        memory: dict[str, list] = {name: [] for name in names}
        tables = {}
        for number in range(rounds):
            for name in names if number % 2 == 0 else names[::-1]:
                output = Path(place, f"output-{names.index(name)}-{number}")
                command = theirs(source, output, folder) if name == THEIRS else \
                    ours(source, output, folder, workers[names.index(name)])
                spent, peak, _ = harness.run_command(command)
                seconds[name].append(spent)
                memory[name].append(peak)
                tables[name] = predictions(output)
        expected = tables[THEIRS]
        lines = harness.speeds(rows, "rows", seconds)
        for name in names[:-1]:
            found = tables[name]
            if not found[["file", "row", "mask", "rank"]].equals(
                    expected[["file", "row", "mask", "rank"]]):
                raise RuntimeError(f"batch: {name} and the pipeline answered different rows")
            lines += [harness.ratio(seconds, name, THEIRS, "rows/s"),
                      Line(f"{name}: largest difference of a score",
                           float(np.abs(found["score"] - expected["score"]).max())),
                      Line(f"{name}: same words",
                           float((found["token"] == expected["token"]).mean()))]
        lines += [Line.of(f"{name}: peak memory, MB", values) for name, values in memory.items()]
        return [Measured("batch", "csv files of embedded sentences, embedded checkpoint", rows,
                         lines, folder)]


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
