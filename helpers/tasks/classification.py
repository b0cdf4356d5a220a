"""Text classification: one label for a text; `emotion-detection.ipynb` builds it by hand."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from scipy.special import softmax
from sklearn.metrics import accuracy_score, f1_score
from transformers import AutoModelForSequenceClassification

from helpers import tasks

METRIC = "macro_f1"


def labels(dataset) -> list[str]:
    """The label names of a data set with a ClassLabel column `label`."""
    return list(dataset.features["label"].names)


def encode(dataset, tokenizer, max_length: int | None = None) -> list[dict]:
    """Turn rows of `text` and `label` into {input_ids, labels}; longer texts are cut.

    `max_length` is in tokens with the two special ones, the model's own limit by default.
    """
    ids = tokenizer(list(dataset["text"]), truncation=True, return_attention_mask=False,
                    max_length=max_length or tasks.limit(tokenizer))["input_ids"]
    return [{"input_ids": np.array(row, dtype=np.int32), "labels": label}
            for row, label in zip(ids, dataset["label"])]


def build(folder: str | Path, labels: Sequence[str]):
    """A checkpoint's encoder with a new head for these labels; draws from torch's generator."""
    return tasks.build_with_head(AutoModelForSequenceClassification, folder, labels)


def load(folder: str | Path, device: str = "auto", precision: str = "fp32") -> "Predictor":
    """Load a trained classifier and its tokenizer from a local folder."""
    return Predictor(*tasks.load_parts(AutoModelForSequenceClassification, folder, device,
                                        precision))


def decode(logits: np.ndarray, names: Sequence[str], top_k: int = 1) -> list[list[dict]]:
    """Turn logits [texts, labels] into the `top_k` surest labels of each text, surest first."""
    scores = softmax(logits, axis=-1)
    order = np.argsort(-scores, axis=-1, kind="stable")[:, :top_k]
    return [[{"label": names[i], "score": float(row[i])} for i in best]
            for row, best in zip(scores, order)]


def gold(dataset) -> list[int]:
    """The true label ids of a data set."""
    return list(dataset["label"])


def score(predicted: Sequence[int], gold: Sequence[int]) -> dict[str, float]:
    """Accuracy and macro-F1, both in [0, 1], of label ids (scikit-learn's definitions)."""
    return {"accuracy": float(accuracy_score(gold, predicted)),
            "macro_f1": float(f1_score(gold, predicted, average="macro", zero_division=0))}


class Predictor(tasks.BasePredictor):
    """Names the label of texts: `classifier(["i feel fine"])[0][0]["label"]`."""

    def __call__(self, texts: Sequence[str], top_k: int = 1) -> list[list[dict]]:
        """Return for each text its `top_k` labels, {label, score}, surest first.

        Raises ValueError naming the first row that is no string or longer than the model reads.
        """
        count = self.model.config.num_labels
        if isinstance(top_k, bool) or not isinstance(top_k, int) or not 1 <= top_k <= count:
            raise ValueError(f"top_k: {top_k!r} is not an integer from 1 to {count}")
        names = [self.model.config.id2label[i] for i in range(count)]
        return decode(self.logits(texts, truncate=False), names, top_k)

    def logits(self, texts: Sequence[str], truncate: bool = True,
               progress: bool = False) -> np.ndarray:
        """Return float32 logits [texts, labels]; longer texts are cut, or refused."""
        texts = tasks.checked(texts)
        if not texts:
            return np.zeros((0, self.model.config.num_labels), dtype=np.float32)
        ids = self.tokenizer(texts, truncation=truncate, max_length=self.max_length if truncate
                             else None, return_attention_mask=False, verbose=False)["input_ids"]
        for row, tokens in enumerate(ids):
            if len(tokens) > self.max_length:
                raise ValueError(f"row {row}: {len(tokens)} tokens, more than the model's "
                                 f"{self.max_length}; shorten the text")
        result = np.empty((len(ids), self.model.config.num_labels), dtype=np.float32)
        for rows, output in self.run(ids, progress):
            result[rows] = output["logits"]
        return result

    def predictions(self, dataset, progress: bool = False) -> list[int]:
        """The surest label id of every row of a data set."""
        return self.logits(dataset["text"], progress=progress).argmax(-1).tolist()
