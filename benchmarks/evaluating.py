"""Evaluation: masked words per second, against the pipeline one at a time and in batches."""

from pathlib import Path

import numpy as np

from benchmarks import bulk, harness
from benchmarks.harness import Line, Measured
from helpers import data, evaluation, fill_mask

OURS = "ours, fp32"
ONE = "pipeline, one at a time"


def masked_reviews(tokenizer, words: int) -> tuple[evaluation.MaskedWords, list[str]]:
    """Masked words of the embedded reviews, and the same rows as texts for the pipeline.

    Only words of one piece, in rows whose text leads back to the same token ids.
    """
    reviews = list(data.load("embedded", "fill-mask")["train"]["text"])
    masked = evaluation.mask_words(reviews, tokenizer, per_text=-(-3 * words // len(reviews)))
    texts = tokenizer.batch_decode([ids[1:-1] for ids in masked.ids])
    again = tokenizer(texts)["input_ids"]
    fit = [i for i, ids in enumerate(masked.ids) if ids == again[i] and len(masked.gold[i]) == 1]
    kept = np.sort(np.random.default_rng(0).permutation(fit)[:words])
    return (evaluation.MaskedWords(*([column[i] for i in kept] for column in masked)),
            [texts[i] for i in kept])


def score(fill: fill_mask.FillMask, masked: evaluation.MaskedWords, texts: list[str]):
    """Our side, from the same texts as the pipeline's."""
    return evaluation.score_words(fill, masked._replace(ids=fill.encode(texts)))


def _once(side: str, folder: str, words: int) -> None:
    """One whole run in a process of its own, whose memory is watched."""
    fill = fill_mask.load(folder, "cpu", "fp32")
    masked, texts = masked_reviews(fill.tokenizer, words)
    if side == OURS:
        score(fill, masked, texts)
        return
    del fill
    pipe = bulk.load_pipeline(Path(folder))
    if side == ONE:
        for text in texts:
            pipe(text, top_k=1)
    else:
        pipe(texts, batch_size=int(side.rsplit(" ", 1)[1]), top_k=1)


def run(model: str = "embedded", words: int = 120, rounds: int = 3) -> list[Measured]:
    """Masked words per second: rank and probability of each, as evaluation needs them.

    Both sides start from texts, so that both tokenize inside the clock.
    The pipeline gives its first word and the gold word's probability by two calls; it is
    timed with one of them.
    """
    with harness.checkpoint(model) as folder:
        fill, pipe = fill_mask.load(folder, "cpu", "fp32"), bulk.load_pipeline(folder)
        masked, texts = masked_reviews(fill.tokenizer, words)
        sides = {OURS: lambda: score(fill, masked, texts),
                 ONE: lambda: [pipe(text, top_k=1) for text in texts]}
        sides |= {f"pipeline, batches of {size}":
                  lambda size=size: pipe(texts, batch_size=size, top_k=1)
                  for size in bulk.BATCH_SIZES[1:]}
        seconds = harness.alternate(sides, rounds)
        batched = harness.quickest(seconds, list(sides)[2:])
        scored = sides[OURS]()
        first = [row[0] for row in sides[ONE]()]
        same = np.mean([a == b["token_str"] for a, b in zip(scored["predicted"], first)])
        confidence = np.abs(scored["confidence"] - [row["score"] for row in first]).max()
        lines = [*harness.speeds(len(texts), "words", seconds),
                 harness.ratio(seconds, OURS, ONE, "words/s"),
                 harness.ratio(seconds, OURS, batched, "words/s"),
                 Line(f"{OURS}: same first word", float(same)),
                 Line(f"{OURS}: largest difference of a score", float(confidence)),
                 *harness.conditions({side: harness.peak_memory(_once, side, str(folder), words)
                                      for side in (OURS, ONE, batched)})]
        return [Measured("evaluation speed", f"masked words of the embedded reviews, "
                         f"{harness.about(model)}", len(texts), lines,
                         folder if model == "embedded" else None)]
