"""Every measured figure as tables: what benchmarks/README.md shows."""

import re
from collections.abc import Mapping, Sequence

from benchmarks.bars import find_bar, reached, verdict
from benchmarks.cells import BRACKETS, EMPTY, figure, grouped, markdown, measured_on, number, \
    over_seeds

FINE_TUNINGS = ("text-classification", "token-classification", "question-answering")
SIDE_BY_SIDE = ("fill-mask in bulk", "online", "fine-tuning, ", "evaluation speed", "batch",
                "start", "time to metric, ", "fast formats")


def is_side_by_side(row: Mapping) -> bool:
    return row["task"].startswith(SIDE_BY_SIDE)


def quality(rows: Sequence[Mapping]) -> str:
    """One line per metric of every model; the mean over seeds where there are several."""
    rows = [row for row in rows if not is_side_by_side(row)]
    if not rows:
        return EMPTY
    return markdown(["task", "data", "split", "metric", "value", "rows", "seeds"], [
        [*name, over_seeds(same), f"{same[0]['rows']:,}", str(len(same))]
        for name, same in grouped(rows).items()]) + f"\n{BRACKETS}\n" + \
        measured_on(rows)


def compared(row: Mapping) -> tuple[str, ...] | None:
    """Our side, the other, and the figure, where a row is a ratio."""
    found = re.fullmatch(r"(ours.*?) over (.+): (.+)", row["metric"])
    return found and found.groups()


def comparisons(rows: Sequence[Mapping]) -> str:
    """One line per ratio, with the two figures that it compares, and its bar."""
    lines = []
    known = {(row["task"], row["data"], row["metric"]): row for row in rows}
    for row in rows:
        if not (names := compared(row)):
            continue
        ours, theirs, what = names

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


def real_text(rows: Sequence[Mapping]) -> str:
    """What bf16 and int8 change on real text, and what follows for int8."""
    return absolute(rows, ("fast formats on real text",),
                    "What the fast number formats cost on real text (95 % bootstrap intervals). "
                    + int8(rows))


def int8(rows: Sequence[Mapping]) -> str:
    """What the figures say of int8: whether it earns a place in the helpers."""
    judged = [(row, bar) for row in rows if row["metric"].startswith(("int8: ", "ours, int8 over "))
              and "random weights" not in row["data"] and (bar := find_bar(row))]
    missed = [f"{row['metric']}, {number(row['value'])} (bar: {number(bar.least)})"
              for row, bar in judged if not reached(row["value"], bar)]
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
        + real_text(rows)
        + absolute(rows, ("fill-mask in bulk, GPU", "batch, volume"), "Absolute figures:")
        + start(rows) + conditions(rows) + measured_on(rows))
