"""Extractive question answering: a span of a passage; `extractive-qa.ipynb` builds it by hand.

A long passage is read in windows that overlap by `stride` tokens. transformers 5 has no
question-answering pipeline; the decoding here is ours, and exact.
"""

import re
import string
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from transformers import AutoModelForQuestionAnswering

from helpers import tasks

METRIC = "f1"
LENGTH, STRIDE, LONGEST = 384, 128, 30  # tokens of a window, of the overlap, of an answer


class Window(NamedTuple):
    """A part of one passage behind its question, as the model reads it."""

    row: int
    ids: list[int]
    first: int  # position in `ids` of the window's first passage token
    offsets: np.ndarray  # [passage tokens, 2]: their characters in the whole passage


def labels(dataset) -> None:
    """Question answering has no labels."""


def windows(questions: Sequence[str], contexts: Sequence[str], tokenizer,
            max_length: int = LENGTH, stride: int = STRIDE) -> list[Window]:
    """Cut every passage into windows of at most `max_length` tokens with question and specials.

    Neighbours share `stride` tokens, or half a window where the question leaves less room, so
    every token lies in some window. The windows are those of the tokenizer's own
    `return_overflowing_tokens`. Raises ValueError for a row whose passage has no token or whose
    question leaves room for fewer than 16 of them.
    """
    contexts = list(contexts)
    distinct = {context: i for i, context in enumerate(dict.fromkeys(contexts))}
    plain = {"add_special_tokens": False, "return_attention_mask": False, "verbose": False}
    asked = tokenizer(list(questions), **plain)["input_ids"] if len(contexts) else []
    # several questions share a passage, so each passage is tokenized once
    passages = tokenizer(list(distinct), return_offsets_mapping=True, **plain) if distinct else {}
    offsets = [np.array(row).reshape(-1, 2) for row in passages.get("offset_mapping", [])]
    cls, sep = tokenizer.cls_token_id, tokenizer.sep_token_id
    found = []
    for row, (question, context) in enumerate(zip(asked, contexts, strict=True)):
        ids, where = passages["input_ids"][distinct[context]], offsets[distinct[context]]
        room = max_length - len(question) - 3
        if not ids:
            raise ValueError(f"row {row}: no word in the context {context!r:.60}; write one")
        if room < 16:
            raise ValueError(f"row {row}: the question has {len(question)} tokens, which leaves "
                             f"no room for the context in {max_length}; shorten the question")
        front = [cls, *question, sep]
        step = room - min(stride, room // 2)
        for start in range(0, max(1, len(ids) - room + step), step):
            found.append(Window(row, [*front, *ids[start:start + room], sep], len(front),
                                where[start:start + room]))
    return found


def encode(dataset, tokenizer, max_length: int = LENGTH, stride: int = STRIDE) -> list[dict]:
    """Turn rows of `question`, `context`, `answers` into windows to train on.

    {input_ids, start_positions, end_positions} a window, of the first gold answer. Where the
    window does not hold the whole answer, both positions are 0, the place of [CLS]. No window is
    longer than the tokenizer's `model_max_length`.
    """
    rows, max_length = [], min(max_length, tokenizer.model_max_length)
    answers = list(dataset["answers"])
    for window in windows(dataset["question"], dataset["context"], tokenizer, max_length, stride):
        answer = answers[window.row]
        start = answer["answer_start"][0]
        first, last = tokens_of(window.offsets, start, start + len(answer["text"][0]))
        inside = first is not None
        rows.append({"input_ids": np.array(window.ids, dtype=np.int32),
                     "start_positions": window.first + first if inside else 0,
                     "end_positions": window.first + last if inside else 0})
    return rows


def tokens_of(offsets: np.ndarray, start: int, end: int) -> tuple[int | None, int | None]:
    """First and last token of the characters start to end, or (None, None) if not all are there.

    `offsets` is [tokens, 2], the characters of each token, in order.
    """
    if start < offsets[0, 0] or end > offsets[-1, 1]:
        return None, None
    first = int(np.searchsorted(offsets[:, 1], start, side="right"))
    last = int(np.searchsorted(offsets[:, 0], end, side="left")) - 1
    return (first, last) if first <= last else (None, None)


def build(folder: str | Path, labels: None = None):
    """A checkpoint's encoder with a new span head; draws from torch's generator."""
    return tasks.build_with_head(AutoModelForQuestionAnswering, folder)


def load(folder: str | Path, device: str = "auto", precision: str = "fp32") -> "Predictor":
    """Load a trained question answerer and its tokenizer from a local folder."""
    return Predictor(*tasks.load_parts(AutoModelForQuestionAnswering, folder, device, precision))


def band(starts: np.ndarray, ends: np.ndarray, longest: int = LONGEST) -> np.ndarray:
    """Sums of logits of all legal spans: [start, length - 1], -inf where the span would leave.

    `starts` and `ends` are the passage's logits, [tokens]; a span has 1 to `longest` tokens.
    """
    padded = np.concatenate([ends, np.full(longest - 1, -np.inf, dtype=ends.dtype)])
    return starts[:, None] + sliding_window_view(padded, longest)


def decode(starts: np.ndarray, ends: np.ndarray,
           longest: int = LONGEST) -> tuple[int, int, float, float]:
    """The best legal span of one window: (first token, last token, its sum, log of all).

    Exactly the largest start + end logit over all spans of at most `longest` tokens; among equal
    ones the leftmost, then the shortest. The last value is the log of the sum of exp over all
    legal spans, so exp(third - fourth) is the span's probability among them.
    """
    sums = band(starts, ends, longest)
    first, length = divmod(int(sums.argmax()), longest)
    best = float(sums[first, length])
    total = best + float(np.log(np.exp(sums - best, dtype=np.float64).sum()))
    return first, first + length, best, total


def gold(dataset) -> list[list[str]]:
    """The true answers of a data set, several a question."""
    return [list(answers["text"]) for answers in dataset["answers"]]


def normalized(answer: str) -> str:
    """Lower case, without ASCII punctuation, the articles a, an, the, and spare white space."""
    text = "".join(c for c in answer.lower() if c not in string.punctuation)
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", text).split())


def exact_match(predicted: str, answers: Sequence[str]) -> float:
    """1 where the prediction equals one of the gold answers, else 0 (Rajpurkar et al. 2016)."""
    return float(any(normalized(predicted) == normalized(answer) for answer in answers))


def f1(predicted: str, answers: Sequence[str]) -> float:
    """The best overlap of words with one of the gold answers (Rajpurkar et al. 2016)."""
    def overlap(answer: str) -> float:
        ours, true = normalized(predicted).split(), normalized(answer).split()
        same = sum((Counter(ours) & Counter(true)).values())
        return 2 * same / (len(ours) + len(true)) if same else 0.0
    return max(map(overlap, answers))


def score(predicted: Sequence[str], gold: Sequence[Sequence[str]]) -> dict[str, float]:
    """Exact match and F1 over all gold answers, in percent, by SQuAD 1.1's published rules."""
    pairs = list(zip(predicted, gold, strict=True))
    return {"exact_match": 100 * float(np.mean([exact_match(*pair) for pair in pairs])),
            "f1": 100 * float(np.mean([f1(*pair) for pair in pairs]))}


class Predictor(tasks.BasePredictor):
    """Answers questions from passages: `answerer(["Who?"], ["Ada did."])[0]["answer"]`."""

    def __call__(self, questions: Sequence[str], contexts: Sequence[str],
                 progress: bool = False) -> list[dict]:
        """Return for each pair {score, start, end, answer}.

        start and end count characters of the context; the answer is context[start:end]. The
        score is the span's probability among all legal spans of all windows. Raises ValueError
        naming the first row that is no string, has no word, or too long a question.
        """
        questions = tasks.checked(questions, "question")
        contexts = tasks.checked(contexts, "context")
        if len(questions) != len(contexts):
            raise ValueError(f"{len(questions)} questions and {len(contexts)} contexts; "
                             "give one context for each question")
        parts = windows(questions, contexts, self.tokenizer, min(LENGTH, self.max_length))
        best: list = [None] * len(questions)
        totals = np.full(len(questions), -np.inf)
        for some, output in self.run([part.ids for part in parts], progress):
            for i, part in ((i, parts[n]) for i, n in enumerate(some)):
                passage = slice(part.first, len(part.ids) - 1)
                first, last, value, total = decode(
                    output["start_logits"][i, passage], output["end_logits"][i, passage])
                totals[part.row] = np.logaddexp(totals[part.row], total)
                place = (value, -int(part.offsets[first, 0]), -int(part.offsets[last, 1]))
                if best[part.row] is None or place > best[part.row]:
                    best[part.row] = place
        return [{"score": float(np.exp(value - total)), "start": -start, "end": -end,
                 "answer": context[-start:-end]}
                for (value, start, end), total, context in zip(best, totals, contexts)]

    def predictions(self, dataset, progress: bool = False) -> list[str]:
        """The answer to every row of a data set."""
        return [answer["answer"] for answer in
                self(dataset["question"], dataset["context"], progress)]
