"""The tables of README and card, generated from benchmarks/results.json between two markers.

    python -m benchmarks.table

rewrites what stands between `<!-- table:NAME -->` and `<!-- /table -->` in FILES.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from itertools import groupby
from pathlib import Path

import numpy as np

from benchmarks import results
from helpers.checkpoints import PROJECT

README = PROJECT / "README.md"
FILES = (README, PROJECT / "samples/checkpoints/distilbert-mini-uncased/README.md")
BLOCK = re.compile(r"(<!-- table:([\w-]+) -->\n).*?(<!-- /table -->)", re.DOTALL)
FINE_TUNINGS = ("text-classification", "token-classification", "question-answering")
SIDE_BY_SIDE = ("fill-mask in bulk", "online", "fine-tuning, ", "evaluation speed", "batch",
                "start", "time to metric, ", "fast formats")
EMPTY = "Not measured yet.\n"


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


def is_side_by_side(row: Mapping) -> bool:
    return row["task"].startswith(SIDE_BY_SIDE)


def quality(rows: Sequence[Mapping]) -> str:
    """One line per metric; the mean over seeds, with their range, where there are several."""
    def key(row):
        return row["task"], row["data"], row["split"], row["metric"]

    lines = []
    for (task, data, split, metric), same in groupby(sorted(rows, key=key), key):
        same = list(same)
        values = [row["value"] for row in same]
        shown = figure(same[0]) if len(same) == 1 else \
            f"{number(np.mean(values))} ({number(min(values))} to {number(max(values))})"
        lines.append([task, data, split, metric, shown, f"{same[0]['rows']:,}", str(len(same))])
    if not lines:
        return EMPTY
    return markdown(["task", "data", "split", "metric", "value", "rows", "seeds"], lines) + \
        "\nIn brackets: the 95 % bootstrap interval; with several seeds, the lowest and the " \
        f"highest of them.\n\nMeasured on {hardware(rows)}.\n"


def hardware(rows: Sequence[Mapping]) -> str:
    return " and on ".join(sorted({row["hardware"] for row in rows}))


def comparisons(rows: Sequence[Mapping]) -> str:
    """One line per ratio, with the two speeds that it compares."""
    lines = []
    known = {(row["task"], row["data"], row["metric"]): row for row in rows}
    for row in rows:
        found = re.fullmatch(r"(.+?) over (.+): (.+)", row["metric"])
        if not found:
            continue
        ours, theirs, what = found.groups()

        def side(name):
            value = known.get((row["task"], row["data"], f"{name}: {what}"))
            return number(value["value"]) if value else ""

        share = known.get((row["task"], row["data"], f"{ours}: share of that rate"))
        lines.append([row["task"], row["data"], ours, theirs, what, side(ours), side(theirs),
                      figure(row), f"{share['value']:.0%}" if share else ""])
    return markdown(["work", "on", "ours", "against", "figure", "ours", "theirs",
                     "times better", "share of the machine's matrix-multiply rate"], lines)


def start(rows: Sequence[Mapping]) -> str:
    """Where a cold start's time goes, stage by stage."""
    lines = [[row["metric"].removesuffix(", s"), figure(row)] for row in rows
             if row["task"] == "start" and row["metric"].endswith(", s")
             and " over " not in row["metric"]]
    return "\nWhere a cold start's time goes:\n\n" + markdown(["stage", "seconds"], lines) \
        if lines else ""


def absolute(rows: Sequence[Mapping], tasks: Sequence[str], title: str) -> str:
    """Figures that stand for themselves."""
    lines = [[row["data"], row["metric"], figure(row)] for row in rows if row["task"] in tasks]
    return f"\n{title}\n\n" + markdown(["on", "metric", "value"], lines) if lines else ""


def speed(rows: Sequence[Mapping]) -> str:
    """Everything that was measured side by side, and on what."""
    rows = [row for row in rows if is_side_by_side(row)]
    if not rows:
        return EMPTY
    return (
        "Both sides take turns in one run; a ratio is the median over the rounds, in brackets the "
        "lowest and the\nhighest. The matrix-multiply rate is the processor's own, by torch, in "
        "the same run and number format.\nRandom weights suffice for speed.\n\n"
        + comparisons(rows)
        + absolute(rows, ("fast formats on real text",),
                   "What the fast number formats cost on real text (95 % bootstrap intervals). "
                   "int8 is measured here alone and\nleft out of the helpers: its bar is the same "
                   "first word on 98 % of real text:")
        + absolute(rows, ("fill-mask in bulk, GPU", "batch, volume"), "Absolute figures:")
        + start(rows) + f"\nMeasured on {hardware(rows)}.\n")


TABLES = {
    "checkpoint": lambda rows: quality([row for row in rows if not is_side_by_side(row)
                                        and row["task"] not in FINE_TUNINGS]),
    "finetuning": lambda rows: quality([row for row in rows if row["task"] in FINE_TUNINGS]),
    "speed": speed,
}


def render(text: str, rows: Sequence[Mapping]) -> str:
    """The text with every table made anew; raises ValueError for a marker of no table."""
    def block(found: re.Match) -> str:
        if found[2] not in TABLES:
            raise ValueError(f"<!-- table:{found[2]} -->: no such table; "
                             f"there are {', '.join(TABLES)}")
        return f"{found[1]}\n{TABLES[found[2]](rows)}\n{found[3]}"
    return BLOCK.sub(block, text)


def write(files: Iterable[Path] = FILES, file: Path = results.FILE) -> None:
    """Rewrite the tables of README and card."""
    for page in files:
        text = page.read_text(encoding="utf-8")
        new = render(text, results.load(file))
        if new != text:
            page.write_text(new, encoding="utf-8")


if __name__ == "__main__":
    write()
