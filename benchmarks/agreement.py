"""What the fast formats cost on real text: words masked in real imdb reviews.

DATA is a folder that holds stanfordnlp/imdb as the Hub lays it out, or imdb's own folder.
"""

import time
from pathlib import Path

import numpy as np

from benchmarks import int8
from benchmarks.harness import Line, Measured
from helpers import checkpoints, evaluation, fill_mask
from helpers import data as data_sets


def run(data: Path, texts: int = 4000, per_text: int = 1,
        folder: Path | None = None) -> list[Measured]:
    """Top-1 agreement with fp32, and accuracy beside fp32's, for bf16 and int8.

    Intervals are bootstraps over reviews, 95 %.
    """
    folder = folder or checkpoints.find("embedded")
    source = data / "stanfordnlp" / "imdb" if (data / "stanfordnlp").is_dir() else data
    reviews = data_sets.load(str(source), "fill-mask", max_eval_samples=texts)["test"]
    models = {"fp32": fill_mask.load(folder, "cpu", "fp32"),
              "bf16": fill_mask.load(folder, "cpu", "bf16"),
              "int8": int8.load(folder), "int8 weights alone": int8.load(folder,
                                                                        int8.RoundedWeights)}
    masked = evaluation.mask_words([evaluation.plain_text(text) for text in reviews["text"]],
                                   models["fp32"].tokenizer, per_text=per_text)
    gold = np.concatenate(masked.gold)
    found, lines = {}, []
    for name, fill in models.items():
        began = time.perf_counter()
        result = fill.masked_log_probs(masked.ids, masked.gold, progress=True)
        token, row = result["token"], np.array(masked.text)[result["row"]]
        found[name] = token
        lines.append(Line(f"{name}: accuracy@1 of masked pieces",
                          *evaluation.bootstrap(token == gold, row)))
        lines.append(Line(f"{name}: pieces/s", len(gold) / (time.perf_counter() - began)))
        if name != "fp32":
            lines += [Line(f"{name}: same first word as fp32",
                           *evaluation.bootstrap(token == found["fp32"], row)),
                      Line(f"{name}: accuracy@1 less fp32's", *evaluation.paired_bootstrap(
                          token == gold, found["fp32"] == gold, row))]
    return [Measured("fast formats on real text", "stanfordnlp/imdb, embedded checkpoint",
                     len(gold), lines, folder, split="test")]
