"""How tables write what was measured."""

import re
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from benchmarks import results
from helpers import checkpoints

OURS = "distilbert-mini-uncased"
EMPTY = "Not measured yet.\n"
BRACKETS = "In brackets: the 95 % bootstrap interval; with several seeds, the lowest and the " \
    "highest of them."


def number(value: float) -> str:
    """A figure with three digits that count."""
    if value == 0 or abs(value) >= 99.95:
        return f"{value:,.0f}"
    return f"{value:#.3g}".rstrip(".") if abs(value) >= 0.001 else f"{value:.0e}"


def figure(row: Mapping) -> str:
    """A value with its interval, where it has one."""
    if row["low"] is None or row["low"] == row["high"]:
        return number(row["value"])
    return f"{number(row['value'])} ({number(row['low'])} to {number(row['high'])})"


def markdown(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "".join(f"| {' | '.join(cell.replace('|', '/') for cell in line)} |\n"
                   for line in lines)


def grouped(rows: Sequence[Mapping]) -> dict[tuple, list[Mapping]]:
    """The rows of all seeds together, by task, data, split and metric, in the rows' order."""
    found: dict[tuple, list[Mapping]] = {}
    for row in rows:
        found.setdefault(tuple(row[name] for name in ("task", "data", "split", "metric")),
                         []).append(row)
    return found


def over_seeds(rows: Sequence[Mapping]) -> str:
    """One row with its interval, or the mean of several seeds with the lowest and the highest."""
    if len(rows) == 1:
        return figure(rows[0])
    values = [row["value"] for row in rows]
    return f"{number(np.mean(values))} ({number(min(values))} to {number(max(values))})"


def measured_on(rows: Sequence[Mapping]) -> str:
    """The last paragraph of a table: every machine that its rows name, with its days."""
    days: dict[str, set[str]] = {}
    for row in rows:
        machine, day = re.fullmatch(r"(.*?)(?:; (\d{4}-\d\d-\d\d))?", row["hardware"]).groups()
        days.setdefault(machine, set()).update([day] if day else [])
    named = [f"{machine}; {', '.join(sorted(found))}" if found else machine
             for machine, found in sorted(days.items())]
    older = len(of_older_weights(rows))
    return f"\nMeasured on {' and on '.join(named)}." + (
        f" {older:,} of these {len(rows):,} figures were measured with the first version of "
        f"{OURS}; its card says how the two differ." if older else "") + "\n"


def of_older_weights(rows: Iterable[Mapping]) -> list[Mapping]:
    """The rows about the embedded checkpoint that were measured with other weights than it has."""
    now = {None, results.sha256(checkpoints.EMBEDDED)}
    fitted = ((row, re.search(r"\((.+), \d+ training rows\)$", row["data"])) for row in rows)
    return [row for row, of in fitted
            if (of is None or of[1] == OURS) and row["checkpoint_sha256"] not in now]
