"""How good the filled masks are: metrics of masked words, calibration, bootstrap intervals.

The notebook evaluate-model-fill-mask builds each of these in full first.
"""

import re
from collections import Counter
from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
import pandas as pd

from helpers import report
from helpers.fill_mask import FillMask

# ---------------------------------------------------------------- intervals


class Estimate(NamedTuple):
    """A figure and the ends of its confidence interval."""

    value: float
    low: float
    high: float


Statistic = Callable[[np.ndarray, np.ndarray], np.ndarray]


def mean(sums: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """The mean per row, from sums over rows."""
    return sums / rows


def f1(sums: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """F1 from counts [..., (correct, predicted, gold)]: macro-averaged over a class axis, if any.

    A class that is neither predicted nor in the gold answers of a resample is left out of its
    average, as scikit-learn does; without any class at all F1 is 0.
    """
    both = sums[..., 1] + sums[..., 2]
    score = np.divide(2.0 * sums[..., 0], both, out=np.zeros(both.shape), where=both > 0)
    if score.ndim == 1:
        return score
    score, there = score.reshape(len(score), -1), (both > 0).reshape(len(score), -1)
    return score.sum(axis=1) / there.sum(axis=1).clip(min=1)


def expected_calibration(sums: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """The expected calibration error, from sums of `calibration_gaps`."""
    return np.abs(sums).sum(axis=-1) / rows


def bootstrap(values, groups=None, *, statistic: Statistic = mean, n: int = 1000,
              seed: int = 0, level: float = 0.95) -> Estimate:
    """Estimate a statistic and its percentile bootstrap interval, resampling whole groups.

    `values` is [rows] or [rows, ...]; `groups` names each row's group (a review, a document),
    none where every row stands alone. `statistic(sums, rows)` takes sums of the values over the
    rows of each of n resamples, [n] or [n, ...], and their numbers of rows, [n], and returns
    [n]; `mean` and `f1` are such. Efron and Tibshirani 1993, chapter 13.
    Raises ValueError where there are no rows, or where groups and values differ in length.
    """
    totals, sizes = _by_group(values, groups)
    draws = statistic(*_resample(totals, sizes, n, seed))
    low, high = np.nanquantile(draws, [(1 - level) / 2, (1 + level) / 2])
    return Estimate(_whole(statistic, totals, sizes), float(low), float(high))


def paired_bootstrap(a, b, groups=None, *, statistic: Statistic = mean, n: int = 1000,
                     seed: int = 0, level: float = 0.95) -> Estimate:
    """Estimate the difference a - b of a statistic, both sides resampled alike.

    `a` and `b` are the values of two models on the same rows; all else as in `bootstrap`. An
    interval without 0 says that the models differ on more than these rows.
    """
    one, sizes = _by_group(a, groups)
    two, _ = _by_group(b, groups)
    if one.shape != two.shape:
        raise ValueError(f"a has shape {np.shape(a)}, b {np.shape(b)}; pair the rows first")
    both, rows = _resample(np.stack([one, two], axis=1), sizes, n, seed)
    draws = statistic(both[:, 0], rows) - statistic(both[:, 1], rows)
    low, high = np.nanquantile(draws, [(1 - level) / 2, (1 + level) / 2])
    value = _whole(statistic, one, sizes) - _whole(statistic, two, sizes)
    return Estimate(value, float(low), float(high))


def _by_group(values, groups) -> tuple[np.ndarray, np.ndarray]:
    """Sums of the values and numbers of rows, group by group."""
    values = np.asarray(values, dtype=np.float64)
    if not len(values):
        raise ValueError("no rows to estimate from; give at least one")
    if groups is None:
        return values, np.ones(len(values))
    _, index = np.unique(np.asarray(groups), return_inverse=True)
    if index.shape != values.shape[:1]:
        raise ValueError(f"{len(values)} rows of values, {len(index)} groups; name one per row")
    totals = np.zeros((index.max() + 1, *values.shape[1:]))
    np.add.at(totals, index, values)
    return totals, np.bincount(index).astype(np.float64)


def _resample(totals: np.ndarray, sizes: np.ndarray, n: int,
              seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Sums and numbers of rows of n resamples of the groups, without a loop over resamples."""
    rng, count = np.random.default_rng(seed), len(totals)
    flat = np.column_stack([totals.reshape(count, -1), sizes])
    sums = []
    step = max(1, 2**20 // count)  # some megabytes at a time, however many groups
    for size in (min(step, n - start) for start in range(0, n, step)):
        drawn = rng.integers(count, size=(size, count)) + count * np.arange(size)[:, None]
        times = np.bincount(drawn.ravel(), minlength=size * count).reshape(size, count)
        sums.append(times @ flat)
    sums = np.concatenate(sums)
    return sums[:, :-1].reshape(n, *totals.shape[1:]), sums[:, -1]


def _whole(statistic: Statistic, totals: np.ndarray, sizes: np.ndarray) -> float:
    return float(statistic(totals.sum(axis=0)[None], sizes.sum()[None])[0])


# ---------------------------------------------------------------- calibration

def calibration_gaps(confidence, correct, bins: int = 10) -> np.ndarray:
    """Confidence minus correctness of each row, in the column of its bin of confidence.

    Returns [rows, bins]; `bootstrap(gaps, groups, statistic=expected_calibration)` gives the
    expected calibration error with its interval.
    """
    confidence = np.asarray(confidence, dtype=np.float64)
    gaps = np.zeros((len(confidence), bins))
    which = np.clip(np.ceil(confidence * bins).astype(int) - 1, 0, bins - 1)
    gaps[np.arange(len(confidence)), which] = confidence - np.asarray(correct, dtype=np.float64)
    return gaps


def expected_calibration_error(confidence, correct, bins: int = 10) -> float:
    """Mean distance between confidence and accuracy over equally wide bins of confidence.

    `confidence` [rows] lies in [0, 1], `correct` [rows] is true or false. Guo et al. 2017.
    """
    gaps = calibration_gaps(confidence, correct, bins)
    return _whole(expected_calibration, gaps, np.ones(len(gaps)))


# ---------------------------------------------------------------- masked words

def plain_text(review: str) -> str:
    """A review without its markup: imdb writes its line breaks as `<br />`."""
    return re.sub(r"(?i)(?:<br\s*/?>\s*)+", " ", review)


class MaskedWords(NamedTuple):
    """Texts with one whole word masked each; one entry per masked word in every field."""

    ids: list[list[int]]  # [CLS] text [SEP], one mask per piece of the word
    gold: list[list[int]]  # the word's pieces
    text: list[int]  # which text it was drawn from
    position: list[float]  # where in the text: 0 its first word, 1 its last
    word: list[str]


def find_words(ids: list[int], word_ids: list[int | None], characters: list[str],
               unknown: int) -> list[slice]:
    """The tokens of each whole word, by the tokenizer's own splitting into words.

    `characters` is what each token covers in the text. Left out is what has no letter or
    digit, and what the vocabulary has no pieces for.
    """
    starts = [i for i, word in enumerate(word_ids) if i == 0 or word != word_ids[i - 1]]
    spans = [slice(a, b) for a, b in zip(starts, [*starts[1:], len(ids)])]
    return [span for span in spans if word_ids[span.start] is not None
            and unknown not in ids[span] and any(c.isalnum() for c in "".join(characters[span]))]


def split_words(texts: list[str], tokenizer) -> Iterator[tuple[list[int], list[slice], list[str]]]:
    """Yield each text's token ids, the tokens of its whole words, and what tokens cover."""
    for start in range(0, len(texts), 256):  # some at a time: offsets take memory
        some = texts[start:start + 256]
        encoded = tokenizer(some, add_special_tokens=False, return_offsets_mapping=True,
                            verbose=False)
        for i, (text, ids) in enumerate(zip(some, encoded["input_ids"])):
            characters = [text[a:b] for a, b in encoded["offset_mapping"][i]]
            # A mask that the text itself holds is not ours to fill.
            ids = [tokenizer.unk_token_id if t == tokenizer.mask_token_id else t for t in ids]
            yield ids, find_words(ids, encoded.word_ids(i), characters,
                                  tokenizer.unk_token_id), characters


def mask_words(texts: list[str], tokenizer, per_text: int = 5, seed: int = 0,
               max_length: int = 128) -> MaskedWords:
    """Mask whole words by position: `per_text` words of each text, each in a copy of its own.

    A word of several pieces gets a mask for each of them. A text longer than `max_length`
    tokens is cut around the masked word; a longer word is never drawn.
    """
    rng, body = np.random.default_rng(seed), max_length - 2
    result = MaskedWords([], [], [], [], [])
    for number, (ids, spans, characters) in enumerate(split_words(texts, tokenizer)):
        last = max(1, len(spans) - 1)
        order = {span.start: i / last for i, span in enumerate(spans)}
        spans = [span for span in spans if span.stop - span.start <= body]
        drawn = rng.choice(len(spans), min(per_text, len(spans)), replace=False) if spans else []
        for span in (spans[i] for i in sorted(drawn)):
            masked = [*ids[:span.start], *[tokenizer.mask_token_id] * (span.stop - span.start),
                      *ids[span.stop:]]
            start = (span.start + span.stop - body) // 2
            start = max(0, min(start, len(ids) - body))
            result.ids.append([tokenizer.cls_token_id, *masked[start:start + body],
                               tokenizer.sep_token_id])
            result.gold.append(ids[span])
            result.text.append(number)
            result.position.append(order[span.start])
            result.word.append("".join(characters[span]))
    return result


def score_words(fill: FillMask, masked: MaskedWords, progress: bool = False) -> pd.DataFrame:
    """Score the model on masked words; one row per word.

    Columns: text, position, word, pieces, `rank` of the word (1 is best), `log_prob` of it,
    `confidence` in the word that the model puts first, and that word as `predicted`. For a word
    of several pieces, whose masks are filled independently: the worst piece's rank, the sum of
    the log-probabilities, the product of the confidences.
    """
    found = fill.masked_log_probs(masked.ids, masked.gold, progress)
    return _by_word(masked, fill.tokenizer, found["rank"], found["log_prob"],
                    found["token_log_prob"], found["token"])


def count_words(texts: list[str], tokenizer) -> Counter:
    """Count whole words, each as the tuple of its pieces."""
    return Counter(tuple(ids[span]) for ids, spans, _ in split_words(texts, tokenizer)
                   for span in spans)


def score_unigram(masked: MaskedWords, counts: Counter, tokenizer) -> pd.DataFrame:
    """Score the baseline that always answers with the most frequent words.

    `counts` comes from `count_words` on training texts; every piece of the vocabulary is given
    one more. Equally frequent pieces share their mean rank. Columns as in `score_words`.
    """
    pieces = np.ones(len(tokenizer))
    for word, count in counts.items():
        np.add.at(pieces, list(word), count)
    gold = np.concatenate(masked.gold)
    rising = np.sort(-pieces)
    ranks = sum(np.searchsorted(rising, -pieces[gold], side) for side in ("left", "right")) + 1
    log_prob = np.log(pieces / pieces.sum())
    best = np.full(len(gold), pieces.argmax())
    return _by_word(masked, tokenizer, ranks / 2, log_prob[gold], log_prob[best], best)


def _by_word(masked: MaskedWords, tokenizer, rank, log_prob, best_log_prob,
             best) -> pd.DataFrame:
    """Join what is known of each mask into one row per word."""
    pieces = np.array([len(gold) for gold in masked.gold])
    starts = np.cumsum(pieces) - pieces
    return pd.DataFrame({
        "text": masked.text, "position": masked.position, "word": masked.word, "pieces": pieces,
        "rank": np.maximum.reduceat(rank, starts), "log_prob": np.add.reduceat(log_prob, starts),
        "confidence": np.exp(np.add.reduceat(best_log_prob, starts)),
        "predicted": tokenizer.batch_decode(np.split(best, starts[1:]))})


METRICS = ("accuracy@1", "accuracy@5", "accuracy@10", "mean reciprocal rank",
           "negative log-likelihood", "expected calibration error")


def metric(words: pd.DataFrame, name: str) -> tuple[np.ndarray, Statistic]:
    """The values per word and the statistic that make one of METRICS."""
    if name.startswith("accuracy@"):
        return np.array(words["rank"] <= int(name.split("@")[1])), mean
    if name == "mean reciprocal rank":
        return np.array(1 / words["rank"]), mean
    if name == "negative log-likelihood":
        return np.array(-words["log_prob"]), mean
    return calibration_gaps(words["confidence"], words["rank"] == 1), expected_calibration


def measure(words: pd.DataFrame, **options) -> dict[str, Estimate]:
    """All METRICS of scored words, resampling texts; options as for `bootstrap`."""
    return {name: bootstrap(values, words["text"], statistic=statistic, **options)
            for name in METRICS for values, statistic in [metric(words, name)]}


def compare(a: pd.DataFrame, b: pd.DataFrame, **options) -> dict[str, Estimate]:
    """The differences a - b of all METRICS on the same words, resampling texts alike."""
    return {name: paired_bootstrap(metric(a, name)[0], metric(b, name)[0], a["text"],
                                   statistic=metric(a, name)[1], **options) for name in METRICS}


# ---------------------------------------------------------------- pseudo-perplexity

def pseudo_log_likelihoods(fill: FillMask, texts: list[str], max_length: int = 128,
                           progress: bool = False) -> np.ndarray:
    """Sum the log-probabilities of a text's tokens, each masked alone, all else in sight.

    Returns [texts, 2]: the sum and the number of tokens, of which a text longer than
    `max_length` keeps the first. Salazar et al. 2020, equation 2.
    """
    tokenizer, result = fill.tokenizer, np.zeros((len(texts), 2))
    encoded = tokenizer(texts, truncation=True, max_length=max_length, verbose=False)["input_ids"]
    with report.bar(show=progress, total=len(texts), unit="text") as bar:
        for start in range(0, len(texts), 32):  # each token makes a row: some texts at a time
            rows, gold, owner = [], [], []
            for number, ids in enumerate(encoded[start:start + 32], start):
                ids = [tokenizer.unk_token_id if t == tokenizer.mask_token_id else t for t in ids]
                for i in range(1, len(ids) - 1):
                    rows.append([*ids[:i], tokenizer.mask_token_id, *ids[i + 1:]])
                    gold.append([ids[i]])
                    owner.append(number)
            found = fill.masked_log_probs(rows, gold)
            np.add.at(result, owner, np.column_stack([found["log_prob"], np.ones(len(rows))]))
            bar.update(min(32, len(texts) - start))
    return result


def unigram_log_likelihoods(texts: list[str], known: list[str], tokenizer,
                            max_length: int = 128) -> np.ndarray:
    """The baseline beside `pseudo_log_likelihoods`: a token's share among those of `known`.

    Punctuation is counted like words, and every token of the vocabulary once more. Returns
    [texts, 2]: the sum over the same tokens, and their number.
    """
    counts = np.ones(len(tokenizer))
    for start in range(0, len(known), 256):
        for ids in tokenizer(known[start:start + 256], add_special_tokens=False,
                             verbose=False)["input_ids"]:
            np.add.at(counts, ids, 1)
    log_prob = np.log(counts / counts.sum())
    # a mask that the text itself holds is an unknown word there too
    log_prob[tokenizer.mask_token_id] = log_prob[tokenizer.unk_token_id]
    encoded = tokenizer(texts, truncation=True, max_length=max_length, verbose=False)["input_ids"]
    return np.array([(log_prob[ids[1:-1]].sum(), len(ids) - 2) for ids in encoded])


def pseudo_perplexity(sums: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """The statistic that turns `pseudo_log_likelihoods` into a pseudo-perplexity per token."""
    return np.exp(-sums[:, 0] / sums[:, 1])
