"""The tables of README and card, generated from benchmarks/results.json between two markers.

    python -m benchmarks.table

rewrites what stands between `<!-- table:NAME -->` and `<!-- /table -->` in FILES.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import NamedTuple

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
# What others report for DistilBERT, to stand beside our figures: (task, data, split, metric,
# value, model, source). Only figures that we can name a source for.
CARD = "model card of bhadresh-savani/distilbert-base-uncased-emotion"
PAPER = "Sanh et al. 2019, table 2"
PUBLISHED = [
    ("text-classification", "dair-ai/emotion", "not stated", "accuracy", 0.938,
     "distilbert-base-uncased", CARD),
    ("text-classification", "dair-ai/emotion", "not stated", "F1, average not stated", 0.9379,
     "distilbert-base-uncased", CARD),
    ("question-answering", "rajpurkar/squad", "validation", "exact_match", 77.7,
     "DistilBERT", PAPER),
    ("question-answering", "rajpurkar/squad", "validation", "f1", 85.8, "DistilBERT", PAPER),
    ("question-answering", "rajpurkar/squad", "validation", "exact_match", 79.1,
     "DistilBERT, distilled once more while fine-tuned", PAPER),
    ("question-answering", "rajpurkar/squad", "validation", "f1", 86.9,
     "DistilBERT, distilled once more while fine-tuned", PAPER),
]


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


def finetuning(rows: Sequence[Mapping]) -> str:
    """What we measured, and below it what others published for DistilBERT."""
    lines = [[task, data, split, metric, number(value), model, source]
             for task, data, split, metric, value, model, source in PUBLISHED]
    return quality([row for row in rows if row["task"] in FINE_TUNINGS]) + \
        "\nPublished by others for DistilBERT with 66 million parameters, **not measured here**:" \
        "\n\n" + markdown(
            ["task", "data", "split", "metric", "value", "model", "source"], lines)


def hardware(rows: Sequence[Mapping]) -> str:
    return " and on ".join(sorted({row["hardware"] for row in rows}))


class Bar(NamedTuple):
    """What a figure is to reach: `least`, or at most `most`; `why` is said where it does not."""

    task: str
    metric: str
    least: float | None = None
    most: float | None = None
    why: str = ""


PRODUCTS = "both sides do the encoder's products in the same kernels; the rest alone can be saved"
REST = "the products get quicker; softmax, norms, rounding and spelling the words do not"
UPDATE = "the update of all weights takes as long whatever the padding"
# Task and metric are patterns of the whole name; the first that fits counts.
BARS = (
    Bar("fill-mask in bulk", "ours, fp32 over pipeline.*", 2.2, why=PRODUCTS),
    Bar("fill-mask in bulk", "ours, bf16 over pipeline.*", 4.5, why=REST),
    Bar("fill-mask in bulk", "ours, int8 over pipeline.*", 8,
        why=f"{REST}; what was tried: benchmarks/int8.py"),
    Bar("online", "ours, 1 clients over pipeline.*: p50, ms", 2,
        why="HTTP and JSON take as long on both sides"),
    Bar("online", "ours, 8 clients over mlflow.*: requests/s", 4,
        why="mlflow answers less: the first word alone, without its score"),
    Bar("online", "ours: failed requests", most=0),
    Bar("fine-tuning, text-classification", "ours.* over run_.*", 3, why=UPDATE),
    Bar("fine-tuning, token-classification", "ours.* over .*", 1.2, why=UPDATE),
    Bar("fine-tuning, question-answering", "ours.* over run_.*", 1.8,
        why="windows of long contexts leave less padding to save"),
    Bar("evaluation speed", "ours.* over pipeline, one at a time.*", 6, why=PRODUCTS),
    Bar("evaluation speed", "ours.* over pipeline, batches.*", 2, why=PRODUCTS),
    Bar("batch", "ours, 1 process over .*", 3,
        why="the start of Python and torch is a part of both sides"),
    Bar("start", "ours over pipeline.*", 1,
        why="nearly all of it is the import of the same torch and transformers"),
    Bar("time to metric, .*", "ours.* less .*", 0, why="more than one standard error below"),
    Bar("fast formats on real text", "bf16: same first word.*", 0.99, why=""),
    Bar("fast formats on real text", "int8: same first word.*", 0.98,
        why="rounding moves words that are nearly as likely"),
    Bar("fast formats on real text", "int8: accuracy@1 less fp32's", -0.005, why=""),
    Bar(".*", "ours, (fp32|1 process|2 processes): largest difference of a score", most=1e-5),
    Bar(".*", "ours, (fp32|1 process|2 processes): same .*", 1,
        why="candidates with the same score change places"),
)
# Where a run's own spread decides: no slower, no worse, as far as it can tell.
BY_SPREAD = ("start", "time to metric, ")


def find_bar(row: Mapping) -> Bar | None:
    """The bar of this figure, if it has one."""
    return next((bar for bar in BARS if re.fullmatch(bar.task, row["task"])
                 and re.fullmatch(bar.metric, row["metric"])), None)


def reached(row: Mapping, bar: Bar) -> bool:
    """Whether the value reaches the bar; of BY_SPREAD, whether its upper end does."""
    if bar.most is not None:
        return row["value"] <= bar.most
    by_spread = row["task"].startswith(BY_SPREAD) and row["high"] is not None
    return row["high" if by_spread else "value"] >= bar.least


def verdict(row: Mapping) -> list[str]:
    """Two cells: the bar, and whether it is reached or why not."""
    bar = find_bar(row)
    if bar is None:
        return ["", ""]
    shown = f"at most {number(bar.most)}" if bar.least is None else number(bar.least)
    missed = f"missed: {bar.why}" if bar.why else "missed"
    return [shown, "reached" if reached(row, bar) else missed]


def comparisons(rows: Sequence[Mapping]) -> str:
    """One line per ratio, with the two figures that it compares, and its bar."""
    lines = []
    known = {(row["task"], row["data"], row["metric"]): row for row in rows}
    for row in rows:
        found = re.fullmatch(r"(ours.*?) over (.+): (.+)", row["metric"])
        if not found:
            continue
        ours, theirs, what = found.groups()

        def side(name):
            value = known.get((row["task"], row["data"], f"{name}: {what}"))
            return number(value["value"]) if value else ""

        share = known.get((row["task"], row["data"], f"{ours}: share of that rate"))
        lines.append([row["task"], row["data"], ours, theirs, what, side(ours), side(theirs),
                      figure(row), *verdict(row), f"{share['value']:.0%}" if share else ""])
    return markdown(["work", "on", "ours", "against", "figure", "ours", "theirs",
                     "times better", "bar", "reached",
                     "share of the machine's matrix-multiply rate"], lines)


def online(rows: Sequence[Mapping]) -> str:
    """Latencies of every server at every number of clients."""
    names = ("p50, ms", "p95, ms", "p99, ms", "requests/s")
    found: dict[tuple, dict] = {}
    for row in rows:
        side, _, metric = row["metric"].partition(": ")
        if row["task"] == "online" and metric in names and " over " not in side:
            clients = int(side.split(", ")[1].split()[0])
            found.setdefault((row["data"], clients, side), {})[metric] = figure(row)
    lines = [[data, side, *(figures.get(name, "") for name in names)]
             for (data, _, side), figures in sorted(found.items(), key=lambda one: one[0])]
    return "\nServers under load; percentiles are of all rounds together:\n\n" + markdown(
        ["on", "server", *names], lines) if lines else ""


def same_answers(rows: Sequence[Mapping]) -> str:
    """Whether both sides computed the same, and whether any request failed."""
    told = re.compile(r".+: (largest difference of a score|same .*|failed requests)")
    lines = [[row["task"], row["data"], row["metric"], figure(row), *verdict(row)]
             for row in rows if told.fullmatch(row["metric"])
             and row["task"] != "fast formats on real text"]
    return "\nBoth sides computed the same:\n\n" + markdown(
        ["work", "on", "figure", "value", "bar", "reached"], lines) if lines else ""


def conditions(rows: Sequence[Mapping]) -> str:
    """Peak memory of each side, and the machine's own rate while they ran; a line each row."""
    found: dict[tuple, tuple[list, list]] = {}
    for row in rows:
        memory = re.fullmatch(r"(.+): peak memory, MB", row["metric"])
        rate = re.fullmatch(r"matrix-multiply rate, (.+), GFLOP/s", row["metric"])
        if memory or rate:
            cells = found.setdefault((row["task"], row["data"]), ([], []))
            cells[0 if memory else 1].append(f"{(memory or rate)[1]}: {number(row['value'])}")
    lines = [[*name, *("; ".join(cell) for cell in cells)] for name, cells in found.items()]
    title = "Peak memory, and the machine's matrix-multiply rate in the same run:"
    return f"\n{title}\n\n" + markdown(
        ["work", "on", "peak memory, MB", "rate, GFLOP/s"], lines) if lines else ""


def start(rows: Sequence[Mapping]) -> str:
    """Where a cold start's time goes, stage by stage."""
    lines = [[row["data"], row["metric"].removesuffix(", s"), figure(row)] for row in rows
             if row["task"] == "start" and row["metric"].endswith(", s")
             and " over " not in row["metric"]]
    return "\nWhere a cold start's time goes:\n\n" + markdown(
        ["on", "stage", "seconds"], lines) if lines else ""


def absolute(rows: Sequence[Mapping], tasks: Sequence[str], title: str) -> str:
    """Figures that stand for themselves, with their bars where one of them has one."""
    rows = [row for row in rows if row["task"].startswith(tuple(tasks))
            and not re.match("ours.* over ", row["metric"])]
    several = len({row["task"] for row in rows}) > 1
    bars = any(find_bar(row) for row in rows)
    lines = [[*([row["task"]] if several else []), row["data"], row["metric"], figure(row),
              *(verdict(row) if bars else [])] for row in rows]
    head = [*(["work"] if several else []), "on", "metric", "value",
            *(["bar", "reached"] if bars else [])]
    return f"\n{title}\n\n" + markdown(head, lines) if lines else ""


def int8(rows: Sequence[Mapping]) -> str:
    """What the figures say of int8: whether it earns a place in the helpers."""
    judged = [(row, bar) for row in rows if row["metric"].startswith(("int8: ", "ours, int8 over "))
              and "random weights" not in row["data"] and (bar := find_bar(row))]
    missed = [f"{row['metric']}, {number(row['value'])} (bar: {number(bar.least)})"
              for row, bar in judged if not reached(row, bar)]
    if missed:
        return f"int8 is left out of the helpers; it misses {'; '.join(missed)}."
    return "int8 reaches every bar that was measured." if judged else "int8 is not judged here."


def speed(rows: Sequence[Mapping]) -> str:
    """Everything that was measured side by side, and on what."""
    rows = [row for row in rows if is_side_by_side(row)]
    if not rows:
        return EMPTY
    return (
        "Both sides take turns in one run; a ratio is the median over the rounds, in brackets the "
        "lowest and the\nhighest. The matrix-multiply rate is the processor's own, by torch, in "
        "the same run and number format.\nRandom weights suffice for speed.\n\n"
        + comparisons(rows) + online(rows) + same_answers(rows)
        + absolute(rows, ("time to metric, ",),
                   "Fine-tuning on real data until a common metric: the mean over the seeds, in "
                   "brackets one standard error\nto either side:")
        + absolute(rows, ("fast formats on real text",),
                   "What the fast number formats cost on real text (95 % bootstrap intervals). "
                   + int8(rows))
        + absolute(rows, ("fill-mask in bulk, GPU", "batch, volume"), "Absolute figures:")
        + start(rows) + conditions(rows) + f"\nMeasured on {hardware(rows)}.\n")


TABLES = {
    "checkpoint": lambda rows: quality([row for row in rows if not is_side_by_side(row)
                                        and row["task"] not in FINE_TUNINGS]),
    "finetuning": finetuning,
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
