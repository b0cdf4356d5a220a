"""Masked words of real reviews: the figures of the README's evaluation table.

    python -m benchmarks.evaluate_imdb [--data FOLDER] [--checkpoint C] [--words 20000]

FOLDER holds data sets as the Hub lays them out (stanfordnlp/imdb); without it the pinned imdb is
downloaded. One row per metric goes to results.json: the checkpoint, the same one with every
other layer dropped, their difference, and the unigram baseline of the training split.
"""

import argparse
import time
from pathlib import Path

from benchmarks import results
from helpers import checkpoints, data, evaluation, fill_mask, pretraining


def measure(checkpoint: str = "embedded", folder: Path | None = None, words: int = 20_000,
            per_text: int = 10, known: int = 5000, seed: int = 0,
            precision: str = "fp32") -> list[dict]:
    """Score at least `words` masked words of imdb's test split; return rows of results.

    `known` training reviews feed the unigram baseline.
    """
    place = checkpoints.find(checkpoint)
    dataset = str(folder / "stanfordnlp" / "imdb") if folder else "stanfordnlp/imdb"
    splits = data.load(dataset, "fill-mask", seed=seed, max_train_samples=known,
                       max_eval_samples=-(-words // per_text) * 21 // 20)  # short ones give less
    fill = fill_mask.load(place, precision=precision)
    masked = evaluation.mask_words(list(splits["test"]["text"]), fill.tokenizer, per_text, seed)
    if len(masked.word) < words:
        raise ValueError(f"words: only {len(masked.word):,} could be masked; ask for fewer")
    counts = evaluation.count_words(list(splits["train"]["text"]), fill.tokenizer)
    rows = []

    def add(task: str, estimates: dict[str, evaluation.Estimate], seconds: float) -> None:
        rows.extend(results.row(
            task=task, data="stanfordnlp/imdb", split="test", rows=len(masked.word),
            metric=name, value=e.value, low=e.low, high=e.high, seed=seed, seconds=seconds,
            command=f"python -m benchmarks.evaluate_imdb --words {words} --seed {seed}"
                    + (f" --precision {precision}" if precision != "fp32" else ""),
            checkpoint=place, device=fill.device.type) for name, e in estimates.items())

    suffix = "" if precision == "fp32" else f", {precision}"
    began = time.monotonic()
    whole = evaluation.score_words(fill, masked, progress=True)
    add(f"fill-mask{suffix}", evaluation.measure(whole, seed=seed), time.monotonic() - began)
    if precision == "fp32":
        layers = fill.model.config.num_hidden_layers // 2
        began = time.monotonic()
        half = evaluation.score_words(fill_mask.FillMask(
            pretraining.student_of(fill.model, layers).to(fill.device), fill.tokenizer),
            masked, progress=True)
        seconds = time.monotonic() - began
        add(f"fill-mask, {layers} layers", evaluation.measure(half, seed=seed), seconds)
        add(f"fill-mask, all layers - {layers} layers",
            evaluation.compare(whole, half, seed=seed), seconds)
        unigram = evaluation.score_unigram(masked, counts, fill.tokenizer)
        add("fill-mask, unigram baseline", evaluation.measure(unigram, seed=seed), 0.0)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description="Evaluate fill-mask on real imdb.")
    parser.add_argument("--data", type=Path, help="folder of data sets as the Hub lays them out")
    parser.add_argument("--checkpoint", default="embedded")
    parser.add_argument("--words", type=int, default=20_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--precision", default="fp32", choices=["fp32", "bf16", "int8"])
    options = parser.parse_args()
    rows = measure(options.checkpoint, options.data, options.words, seed=options.seed,
                   precision=options.precision)
    results.add(rows)
    for row in rows:
        print(f"{row['task']:40} {row['metric']:28} {row['value']:.4f} "
              f"[{row['low']:.4f}, {row['high']:.4f}]")


if __name__ == "__main__":
    main()
