"""The tables of the READMEs and the card, made from benchmarks/results.json.

    python -m benchmarks.table

rewrites what stands between `<!-- table:NAME -->` and `<!-- /table -->` in FILES. The tables
here are the short ones; `benchmarks.details` has every figure.
"""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence

from benchmarks import details, results
from benchmarks.bars import find_bar, verdict
from benchmarks.cells import BRACKETS, EMPTY, OURS, figure, grouped, markdown, measured_on, \
    number, over_seeds
from helpers.checkpoints import PROJECT

FILES = (PROJECT / "README.md", PROJECT / "benchmarks/README.md",
         PROJECT / "samples/checkpoints/distilbert-mini-uncased/README.md")
BLOCK = re.compile(r"(<!-- table:([\w-]+) -->\n).*?(<!-- /table -->)", re.DOTALL)
ENCODER, BASELINE = "all-MiniLM-L6-v2", "the most frequent words"
# What others report for DistilBERT of 66 million parameters: (data, split, metric, value, source).
# Only figures that we can name a source for.
PUBLISHED = [
    ("dair-ai/emotion", "not stated", "accuracy", 0.938, 1),
    ("dair-ai/emotion", "not stated", "F1, average not stated", 0.9379, 1),
    ("rajpurkar/squad", "validation", "exact_match", 77.7, 2),
    ("rajpurkar/squad", "validation", "f1", 85.8, 2),
    ("rajpurkar/squad", "validation", "exact_match", 79.1, 3),
    ("rajpurkar/squad", "validation", "f1", 86.9, 3),
]
SOURCES = "Published by others for DistilBERT with 66 million parameters, **not measured here**: " \
    "[1] model card of bhadresh-savani/distilbert-base-uncased-emotion; [2] Sanh et al. 2019, " \
    "table 2; [3] the same, distilled once more while fine-tuning."


def pivot(head: Sequence[str], columns: Sequence[str],
          figures: Iterable[tuple[Sequence[str], str, str]]) -> str:
    """A table with a column for each of `columns`, from (first cells, column, figure)."""
    lines: dict[tuple, dict[str, str]] = {}
    for first, column, shown in figures:
        cells = lines.setdefault(tuple(first), {})
        cells[column] = "; ".join(filter(None, [cells.get(column), shown]))
    columns = [name for name in columns if any(name in cells for cells in lines.values())]
    return markdown([*head, *columns], [[*first, *(cells.get(name, "") for name in columns)]
                                        for first, cells in lines.items()])


def checkpoint(rows: Sequence[Mapping]) -> str:
    """Fill-mask of the embedded checkpoint, a part of it, and a baseline, side by side."""
    rows = [row for row in rows if row["task"].startswith("fill-mask")
            and not details.is_side_by_side(row) and " - " not in row["task"]]
    if not rows:
        return EMPTY
    figures = []
    for (task, data, split, metric), same in grouped(rows).items():
        layers = task.partition(", ")[2]
        model = layers.replace(" layers", " of its layers") or OURS
        if metric.endswith(" of the most frequent word") or model == "unigram baseline":
            metric, model = metric.removesuffix(" of the most frequent word"), BASELINE
        where = data if split in ("all", "test") else f"{data}, {split}"
        figures.append(((where, metric, f"{same[0]['rows']:,}"), model, over_seeds(same)))
    figures.sort(key=lambda one: [int(part) if part.isdigit() else part  # accuracy@5 before @10
                                  for part in re.split(r"(\d+)", " ".join(one[0][:2]))])
    models = dict.fromkeys([OURS, *(model for _, model, _ in figures if model != BASELINE),
                            BASELINE])
    return pivot(["on", "metric", "rows"], list(models), figures) + f"\n{BRACKETS}\n" + \
        measured_on(rows)


def finetuning(rows: Sequence[Mapping]) -> str:
    """The metrics of each data set, from ours and from where it comes; others' figures beside."""
    rows = [row for row in rows if row["task"] in details.FINE_TUNINGS]
    published, figures = "DistilBERT, published", []
    for (_, data, split, metric), same in grouped(rows).items():
        name, model, count = re.fullmatch(r"(.+) \((.+), (\d+) training rows\)", data).groups()
        seeds = f", {len(same)} seeds" if len(same) > 1 else ""
        figures.append(((name, split, f"{int(count):,}", metric), f"from {model}",
                        over_seeds(same) + seeds))
    for name, split, metric, value, source in PUBLISHED:
        figures.append(((name, split, "all", metric), published, f"{number(value)} [{source}]"))
    figures.sort(key=lambda one: one[0][0])
    return ("" if rows else EMPTY + "\n") + pivot(
        ["data", "split", "training rows", "metric"],
        [f"from {OURS}", f"from {ENCODER}", published], figures) + \
        f"\n{BRACKETS} {SOURCES}\n" + (measured_on(rows) if rows else "")


def speed(rows: Sequence[Mapping]) -> str:
    """Every comparison that has a bar, and what the number formats cost on real text."""
    rows = [row for row in rows if details.is_side_by_side(row)]
    if not rows:
        return EMPTY
    lines = []
    for row in rows:
        if (names := details.compared(row)) and find_bar(row):
            ours, theirs, what = names
            lines.append([f"{row['task']}: {what}", row["data"], ours, theirs, figure(row),
                          *verdict(row)])
    return markdown(["work", "on", "ours", "against", "times better", "bar", "reached"], lines) + \
        details.real_text(rows) + measured_on(rows)


TABLES: dict[str, Callable[[Sequence[Mapping]], str]] = {
    "checkpoint": checkpoint, "finetuning": finetuning, "speed": speed,
    "quality-details": details.quality, "speed-details": details.speed,
}


def render(text: str, rows: Sequence[Mapping]) -> str:
    """The text with every table made anew; raises ValueError for a marker of no table."""
    def block(found: re.Match) -> str:
        if found[2] not in TABLES:
            raise ValueError(f"<!-- table:{found[2]} -->: no such table; "
                             f"there are {', '.join(TABLES)}")
        return f"{found[1]}\n{TABLES[found[2]](rows)}\n{found[3]}"
    return BLOCK.sub(block, text)


def write(file=results.FILE) -> None:
    """Rewrite the tables of FILES."""
    for page in FILES:
        text = page.read_text(encoding="utf-8")
        new = render(text, results.load(file))
        if new != text:
            page.write_text(new, encoding="utf-8")


if __name__ == "__main__":
    write()
