"""What one would write without this project: the pipeline over a stream of `datasets`.

    python -m benchmarks.pipeline_batch INPUT OUTPUT CHECKPOINT BATCH_SIZE

INPUT is a folder of csv files with a column input_string; OUTPUT gets the columns of
cli/score_batch.py. No bad row is caught, and no file is finished twice.
"""

import csv
import sys
from pathlib import Path

import torch
from datasets import load_dataset
from transformers import pipeline

from helpers import batch


def main(source: str, output: str, checkpoint: str, batch_size: str) -> None:
    pipe = pipeline("fill-mask", model=checkpoint, dtype=torch.float32, device="cpu")
    place = Path(output, "predictions")
    place.mkdir(parents=True)
    for path in sorted(Path(source).glob("*.csv")):
        stream = load_dataset("csv", data_files=str(path), split="train", streaming=True)
        answers = pipe((row[batch.COLUMN] for row in stream), batch_size=int(batch_size), top_k=5)
        with open(place / path.name, "w", newline="", encoding="utf-8") as out:
            writer = csv.writer(out)
            writer.writerow(batch.PREDICTIONS)
            for row, answer in enumerate(answers):
                masks = [answer] if isinstance(answer[0], dict) else answer
                writer.writerows([path.name, row, mask, rank, c["score"], c["token"],
                                  c["token_str"], c["sequence"]]
                                 for mask, found in enumerate(masks)
                                 for rank, c in enumerate(found, 1))


if __name__ == "__main__":
    main(*sys.argv[1:])
