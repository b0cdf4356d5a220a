"""Masked words of real reviews: the figures of the README's evaluation table.

    python -m benchmarks.evaluate_imdb [--data FOLDER] [--checkpoint C] [--words 20000]

FOLDER holds data sets as the Hub lays them out (stanfordnlp/imdb); without it the pinned imdb is
downloaded. One row per metric goes to results.json: the checkpoint, the same one with every
other layer dropped, their difference, and the unigram baseline of the training split.
Pseudo-perplexity takes a forward pass for every token, so it is measured on the first tokens of
some of the reviews; the split of its rows says how many.
"""

import argparse
import time
from pathlib import Path

import torch
from transformers import AutoModelForMaskedLM

from benchmarks import results
from helpers import checkpoints, data, evaluation, fill_mask, pretraining


def measure(checkpoint: str = "embedded", folder: Path | None = None, words: int = 20_000,
            per_text: int = 10, known: int = 5000, openings: int = 100, tokens: int = 48,
            seed: int = 0, precision: str = "fp32") -> list[dict]:
    """Score at least `words` masked words of imdb's test split; return rows of results.

    `known` training reviews feed the unigram baseline; the pseudo-perplexity is that of the
    first `tokens` tokens of `openings` reviews.
    """
    place = checkpoints.find(checkpoint)
    dataset = str(folder / "stanfordnlp" / "imdb") if folder else "stanfordnlp/imdb"
    splits = data.load(dataset, "fill-mask", seed=seed, max_train_samples=known,
                       max_eval_samples=-(-words // per_text) * 21 // 20)  # short ones give less
    fill = fill_mask.load(place, precision=precision)
    reviews, train = ([evaluation.plain_text(text) for text in splits[name]["text"]]
                      for name in ("test", "train"))
    masked = evaluation.mask_words(reviews, fill.tokenizer, per_text, seed)
    if len(masked.word) < words:
        raise ValueError(f"words: only {len(masked.word):,} could be masked; ask for fewer")
    counts = evaluation.count_words(train, fill.tokenizer)
    rows = []

    def add(task: str, estimates: dict[str, evaluation.Estimate], seconds: float,
            split: str = "test", count: int = len(masked.word)) -> None:
        rows.extend(results.row(
            task=task, data="stanfordnlp/imdb", split=split, rows=count, metric=name,
            value=e.value, low=e.low, high=e.high, seed=seed, seconds=seconds,
            command=f"python -m benchmarks.evaluate_imdb --words {words} --seed {seed}"
                    + (f" --precision {precision}" if precision != "fp32" else ""),
            checkpoint=place, device=fill.device.type) for name, e in estimates.items())

    suffix = "" if precision == "fp32" else f", {precision}"
    began = time.monotonic()
    whole = evaluation.score_words(fill, masked, progress=True)
    add(f"fill-mask{suffix}", evaluation.measure(whole, seed=seed), time.monotonic() - began)
    if precision == "fp32":
        whole_model = AutoModelForMaskedLM.from_pretrained(place, dtype=torch.float32)
        layers = whole_model.config.num_hidden_layers // 2
        smaller = fill_mask.FillMask(
            pretraining.student_of(whole_model, layers).to(fill.device), fill.tokenizer)
        began = time.monotonic()
        half = evaluation.score_words(smaller, masked, progress=True)
        seconds = time.monotonic() - began
        add(f"fill-mask, {layers} layers", evaluation.measure(half, seed=seed), seconds)
        add(f"fill-mask, all layers - {layers} layers",
            evaluation.compare(whole, half, seed=seed), seconds)
        unigram = evaluation.score_unigram(masked, counts, fill.tokenizer)
        add("fill-mask, unigram baseline", evaluation.measure(unigram, seed=seed), 0.0)
        opening = reviews[:openings]
        split = f"test, first {tokens} tokens of {len(opening)} reviews"
        for task, (estimate, count, spent) in surprise(fill, smaller, opening, train, tokens,
                                                       seed).items():
            add(task, {"pseudo-perplexity": estimate}, spent, split, count)
    return rows


def surprise(fill: fill_mask.FillMask, smaller: fill_mask.FillMask, texts: list[str],
             known: list[str], tokens: int, seed: int) -> dict[str, tuple]:
    """The pseudo-perplexity of both models and of the unigram baseline, and the differences.

    Returns for each task the estimate, the number of tokens and the seconds.
    """
    names = ("fill-mask", f"fill-mask, {smaller.model.config.num_hidden_layers} layers",
             "fill-mask, unigram baseline")
    sums, seconds = [], []
    for model in (fill, smaller):
        began = time.monotonic()  # two more: [CLS] and [SEP]
        sums.append(evaluation.pseudo_log_likelihoods(model, texts, tokens + 2, progress=True))
        seconds.append(time.monotonic() - began)
    sums.append(evaluation.unigram_log_likelihoods(texts, known, fill.tokenizer, tokens + 2))
    options = {"statistic": evaluation.pseudo_perplexity, "seed": seed}
    found = {name: evaluation.bootstrap(values, **options) for name, values in zip(names, sums)}
    for name, values in zip(names[1:], sums[1:]):
        found[f"fill-mask, all layers - {name.removeprefix('fill-mask, ')}"] = \
            evaluation.paired_bootstrap(sums[0], values, **options)
    spent = dict(zip(names, seconds))
    return {name: (estimate, int(sums[0][:, 1].sum()), spent.get(name, 0.0))
            for name, estimate in found.items()}


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
