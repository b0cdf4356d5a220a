"""What a figure is to reach, and whether it does."""

import re
from collections.abc import Mapping
from typing import NamedTuple

from benchmarks.cells import number


class Bar(NamedTuple):
    """What a figure is to reach: `least`, or at most `most`; `why` is said where it does not.

    With `by_spread` the run's own spread decides: no slower, no worse, as far as it can tell.
    """

    task: str
    metric: str
    least: float | None = None
    most: float | None = None
    why: str = ""
    by_spread: bool = False


PRODUCTS = "three quarters of our time are products, at the processor's own rate"
REST = "the products get quicker; softmax, norms, rounding and spelling the words do not"
UPDATE = "the update of all weights takes as long whatever the padding"
RATE = "(samples/s|seconds to .*)"
# Task and metric are patterns of the whole name; the first that fits counts.
BARS = (
    Bar("fill-mask in bulk", "ours, fp32 over pipeline.*", 2.2, why=PRODUCTS),
    Bar("fill-mask in bulk", "ours, bf16 over pipeline.*", 4.5, why=REST),
    Bar("fill-mask in bulk", "ours, int8 over pipeline.*", 8,
        why="bf16 is quicker and nearer, so int8 earns no place; what was tried: "
            "benchmarks/int8.py"),
    Bar("online", "ours, 1 clients over pipeline.*: p50, ms", 2,
        why="HTTP and JSON take as long on both sides"),
    Bar("online", "ours, 8 clients over mlflow.*: requests/s", 4,
        why="one worker takes one request after the other"),
    Bar("online", "ours, 2 workers, 8 clients over mlflow.*: requests/s", 4,
        why="the clients take their share of the same two cores"),
    Bar("online", "ours: failed requests", most=0),
    Bar("(fine-tuning|time to metric), text-classification", f"ours.* over run_.*: {RATE}", 3,
        why=UPDATE),
    Bar("(fine-tuning|time to metric), token-classification", f"ours.* over .*: {RATE}", 1.2,
        why=UPDATE),
    Bar("(fine-tuning|time to metric), question-answering", f"ours.* over run_.*: {RATE}", 1.8,
        why="windows of long contexts leave less padding to save"),
    Bar("evaluation speed", "ours.* over pipeline, one at a time.*", 6, why=PRODUCTS),
    Bar("evaluation speed", "ours.* over pipeline, batches.*", 2, why=PRODUCTS),
    Bar("batch", "ours, 1 process over .*", 3,
        why="the start of Python and torch is a part of both sides"),
    Bar("start", "ours over pipeline.*", 1,
        why="nearly all of it is the import of the same torch and transformers", by_spread=True),
    Bar("time to metric, .*", "ours.* less .*", 0,
        why="more than one standard error of so few seeds below", by_spread=True),
    Bar("fast formats on real text", "bf16: same first word.*", 0.99, why=""),
    Bar("fast formats on real text", "int8: same first word.*", 0.98,
        why="rounding moves words that are nearly as likely"),
    Bar("fast formats on real text", "int8: accuracy@1 less fp32's", -0.005, why=""),
    Bar(".*", "ours, (fp32|1 process|2 processes): largest difference of a score", most=1e-5,
        why="the pipeline's softmax in float32 is off by as much; against double precision ours "
            "is within 2e-6"),
    Bar(".*", "ours, (fp32|1 process|2 processes): same .*", 1,
        why="candidates with the same score change places"),
)


def find_bar(row: Mapping) -> Bar | None:
    """The bar of this figure, if it has one."""
    return next((bar for bar in BARS if re.fullmatch(bar.task, row["task"])
                 and re.fullmatch(bar.metric, row["metric"])), None)


def reached(value: float, bar: Bar) -> bool:
    """Whether a value reaches the bar."""
    return value <= bar.most if bar.least is None else value >= bar.least


def verdict(row: Mapping) -> list[str]:
    """Two cells: the bar, and whether it is reached, within the spread alone, or why not."""
    bar = find_bar(row)
    if bar is None:
        return ["", ""]
    shown = f"at most {number(bar.most)}" if bar.least is None else number(bar.least)
    if reached(row["value"], bar):
        return [shown, "reached"]
    if bar.by_spread and row["high"] is not None and reached(row["high"], bar):
        return [shown, "reached within the spread"]
    return [shown, f"missed: {bar.why}" if bar.why else "missed"]
