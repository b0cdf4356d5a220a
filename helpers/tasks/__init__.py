"""The three fine-tuned tasks, with the same few names in each module.

| name | what it does |
|---|---|
| encode(dataset, tokenizer, ...) | rows to token ids and labels, ready to train on |
| build(folder, labels) | the model: a checkpoint's encoder with a new head |
| load(folder, device, precision) | a trained model as a predictor: call it with texts |
| decode(...) | logits to answers |
| gold(dataset), score(predicted, gold) | the metrics; METRIC names the deciding one |

`Predictor.predictions(dataset)` answers a data set, `Predictor.evaluate(dataset)` scores it.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from html import escape
from importlib import import_module
from pathlib import Path

import numpy as np
import torch
from transformers import AutoTokenizer, logging

from helpers import onednn, report

MODULES = {"text-classification": "classification", "token-classification": "tagging",
           "question-answering": "answering"}
BATCH_TOKENS = {"cpu": 1024, "cuda": 32768, "mps": 8192}
IGNORED = -100  # the label of a position without a loss, as everywhere in transformers


def module(task: str):
    """Return the module of a task by its name on the Hub; raises ValueError for others."""
    if task not in MODULES:
        raise ValueError(f"task: {task!r} is not one of {', '.join(MODULES)}")
    return import_module(f"helpers.tasks.{MODULES[task]}")


@contextmanager
def quiet():
    """Keep transformers from reporting that a new head is new, which is what we want."""
    before = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(before)


def build_with_head(auto_class, folder: str | Path, labels: Sequence[str] | None = None):
    """A float32 model with a freshly drawn head, or the checkpoint's own where it fits."""
    names = {}
    if labels is not None:
        names = {"num_labels": len(labels), "id2label": dict(enumerate(labels)),
                 "label2id": {label: i for i, label in enumerate(labels)}}
    with quiet():
        return auto_class.from_pretrained(folder, dtype=torch.float32, use_safetensors=True,
                                          ignore_mismatched_sizes=True, **names)


def load_parts(auto_class, folder: str | Path, device: str, precision: str):
    """A trained model, on its device, and its tokenizer.

    Raises ValueError for any other precision.
    """
    if precision not in ("fp32", "bf16"):
        raise ValueError(f"precision: the fine-tuned tasks have no {precision}; use fp32 or bf16")
    model, _ = onednn.load(auto_class, folder, device, precision)
    return model, AutoTokenizer.from_pretrained(folder)


def limit(tokenizer) -> int:
    """The most tokens of a row; a tokenizer without a limit says 1e30, too many for itself."""
    return min(tokenizer.model_max_length, 2**31 - 1)


def collate(rows: Sequence[Mapping], pad_id: int) -> dict[str, torch.Tensor]:
    """Pad rows to the longest among them: `input_ids`, `attention_mask` and their labels.

    Values of one row are arrays as long as its `input_ids` (padded, labels with -100) or single
    integers. Returns int64 tensors [rows] or [rows, longest].
    """
    lengths = [len(row["input_ids"]) for row in rows]
    batch = {"attention_mask": torch.from_numpy(
        (np.arange(max(lengths)) < np.array(lengths)[:, None]).astype(np.int64))}
    for name, first in rows[0].items():
        if np.ndim(first) == 0:
            batch[name] = torch.tensor([int(row[name]) for row in rows])
            continue
        padded = np.full((len(rows), max(lengths)), pad_id if name == "input_ids" else IGNORED)
        for i, row in enumerate(rows):
            padded[i, :lengths[i]] = row[name]
        batch[name] = torch.from_numpy(padded)
    return batch


def batches(lengths: Sequence[int], batch_tokens: int) -> Iterator[list[int]]:
    """Yield the rows of like length together, until a batch would pass `batch_tokens`."""
    batch: list[int] = []
    for row in sorted(range(len(lengths)), key=lambda row: -lengths[row]):
        if batch and lengths[batch[0]] * (len(batch) + 1) > batch_tokens:
            yield batch
            batch = []
        batch.append(row)
    if batch:
        yield batch


def checked(texts: str | Sequence[str], what: str = "text") -> list[str]:
    """Return texts as a list; raise ValueError naming the first row that is no valid string."""
    texts = [texts] if isinstance(texts, str) else list(texts)
    for row, text in enumerate(texts):
        if not isinstance(text, str):
            raise ValueError(f"row {row}: the {what} is {text!r:.60}, not a string; give a text")
        try:
            text.encode()
        except UnicodeEncodeError:
            raise ValueError(f"row {row}: half of a surrogate pair in the {what}; "
                             "write the character itself or its whole pair") from None
    return texts


def highlight(text: str, spans: Sequence[tuple[int, int, str]]) -> str:
    """HTML of a text with spans (start, end, label) marked, each label in words.

    Spans are in characters and must not overlap. Reads on light and dark pages alike.
    """
    parts, place = [], 0
    for start, end, label in sorted(spans):
        parts += [escape(text[place:start]),
                  '<mark style="background:#cfe6f5;color:#111;padding:1px 4px;border-radius:3px">',
                  escape(text[start:end]), f" <b><small>{escape(label)}</small></b></mark>"]
        place = end
    return f"<p>{''.join(parts)}{escape(text[place:])}</p>"


class BasePredictor:
    """What the tasks' predictors share: a model, its tokenizer, and batches of like length."""

    def __init__(self, model, tokenizer):
        self.model, self.tokenizer = model.eval(), tokenizer
        self.max_length = min(tokenizer.model_max_length, model.config.max_position_embeddings)

    def run(self, ids: Sequence[Sequence[int]], progress: bool = False) -> Iterator:
        """Yield (rows, outputs) batch by batch, longest rows first.

        outputs: float32 numpy arrays by name (`logits`, or `start_logits` and `end_logits`),
        [len(rows), ...]; what stands beyond a row's own length is padding.
        """
        self.model.eval()
        device = self.model.device
        room = BATCH_TOKENS.get(device.type, BATCH_TOKENS["cpu"])
        with report.bar(show=progress, total=len(ids), unit="row") as done:
            for rows in batches([len(row) for row in ids], room):
                batch = collate([{"input_ids": ids[row]} for row in rows],
                                self.tokenizer.pad_token_id)
                if bool(batch["attention_mask"].all()):
                    del batch["attention_mask"]
                with torch.inference_mode():
                    output = self.model(**{k: v.to(device) for k, v in batch.items()})
                yield rows, {name: value.float().cpu().numpy() for name, value in output.items()}
                done.update(len(rows))

    def evaluate(self, dataset, progress: bool = False) -> dict[str, float]:
        """Score the predictions for a data set against its gold answers."""
        task = import_module(type(self).__module__)
        return task.score(self.predictions(dataset, progress), task.gold(dataset))
