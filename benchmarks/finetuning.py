"""How far fine-tuning goes on the real data, over seeds: rows for results.json.

    python -m benchmarks.finetuning --task text-classification --data FOLDER --seeds 0 1 2

FOLDER holds data sets as the Hub lays them out (dair-ai/emotion, lhoestq/conll2003,
rajpurkar/squad). With --train embedded it measures what the embedded data set transfers:
trained on it alone, tested on the real test set. SQuAD has no test split: its validation split is
what we report, so the best epoch is chosen on passages held out of train.
"""

import argparse
import shutil
import tempfile
import time
from pathlib import Path

import numpy as np
import pandas as pd
from datasets import concatenate_datasets

from benchmarks import results
from helpers import checkpoints, data, evaluation, runner, tasks, training

# Hub name, the split to report, and what the embedded checkpoint is trained with there.
REAL = {
    "text-classification": ("dair-ai/emotion", "test", {"epochs": 2, "learning_rate": 2e-4}),
    "token-classification": ("lhoestq/conll2003", "test", {"epochs": 3, "learning_rate": 3e-4}),
    "question-answering": ("rajpurkar/squad", "validation", {"epochs": 2, "learning_rate": 2e-4}),
}
NOTEBOOKS = {"text-classification": "emotion-detection",
             "token-classification": "token-classification",
             "question-answering": "extractive-qa"}


def embedded_settings(task: str) -> dict[str, float]:
    """What the task's notebook trains with on the embedded data."""
    given = runner.from_file(checkpoints.PROJECT / "cli/parameters/embedded",
                             Path(NOTEBOOKS[task]))
    return {name: given[name] for name in ("epochs", "learning_rate", "batch_size")}


def estimates(task: str, predicted: list, dataset) -> dict[str, evaluation.Estimate]:
    """The task's metrics on a data set, each with its bootstrap interval.

    Rows are resampled; for question answering whole passages, whose questions go together.
    """
    module = tasks.module(task)
    gold = module.gold(dataset)
    if task == "text-classification":
        predicted, gold = np.asarray(predicted), np.asarray(gold)
        classes = np.arange(max(gold.max(), predicted.max()) + 1)
        counts = np.stack([(predicted == gold)[:, None] & (gold[:, None] == classes),
                           predicted[:, None] == classes, gold[:, None] == classes], axis=-1)
        return {"accuracy": evaluation.bootstrap(predicted == gold),
                "macro_f1": evaluation.bootstrap(counts, statistic=evaluation.f1)}
    if task == "token-classification":
        return {"span_f1": evaluation.bootstrap(module.count(predicted, gold),
                                                statistic=evaluation.f1)}
    pairs = list(zip(predicted, gold, strict=True))
    return {name: evaluation.bootstrap([100 * measure(*pair) for pair in pairs],
                                       dataset["context"][:])
            for name, measure in (("exact_match", module.exact_match), ("f1", module.f1))}


def hold_out(splits, all_rows: bool, most: int = 1000) -> dict:
    """Train and a validation split of at most `most` rows, neither of them from the real one.

    `data.load` has carved whole passages out of train for a test split. The first of them make
    the validation split; with `all_rows`, what they leave goes back to train.
    """
    carved = splits["test"]
    passages = pd.factorize(np.array(carved["context"][:], dtype=object))[0]
    chosen = np.bincount(passages).cumsum()[passages] <= most  # numbered as they appear
    train, rest = splits["train"], carved.select(np.flatnonzero(~chosen))
    return {"train": concatenate_datasets([train, rest]) if all_rows else train,
            "validation": carved.select(np.flatnonzero(chosen))}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--task", required=True, choices=REAL)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--train", choices=("real", "embedded"), default="real")
    parser.add_argument("--checkpoint", default="embedded")
    parser.add_argument("--name", default="distilbert-mini-uncased", help="the checkpoint's name")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--max_train_samples", type=int)
    parser.add_argument("--epochs", type=float)
    parser.add_argument("--precision", default="bf16")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--results", type=Path, default=results.FILE)
    options = parser.parse_args()

    name, split, settings = REAL[options.task]
    if options.train == "embedded":
        settings = {**settings, **embedded_settings(options.task)}
    if options.epochs:
        settings["epochs"] = options.epochs
    folder = checkpoints.find(options.checkpoint)
    real = data.load(str(options.data / name), options.task)
    for seed in options.seeds:
        source = "embedded" if options.train == "embedded" else str(options.data / name)
        held_out = options.train == "real" and split == "validation"
        # one carving for all seeds, or each would have another number of training rows
        splits = data.load(source, options.task, seed=0 if held_out else seed,
                           max_train_samples=options.max_train_samples)
        if held_out:
            splits = hold_out(splits, all_rows=options.max_train_samples is None)
        place = Path(tempfile.mkdtemp(prefix="finetuning-"))
        began = time.time()
        try:
            result = training.fine_tune(options.task, splits, folder, place, seed=seed,
                                        precision=options.precision, device=options.device,
                                        progress=False, **settings)
            seconds = time.time() - began
            predictor = tasks.module(options.task).load(
                result.folder, options.device, options.precision)
            found = estimates(options.task, predictor.predictions(real[split]), real[split])
        finally:
            shutil.rmtree(place)
        command = (f"python -m benchmarks.finetuning --task {options.task} --data DATA "
                   f"--seeds {seed}")
        for flag in ("train", "name", "max_train_samples", "epochs", "precision", "checkpoint"):
            if getattr(options, flag) != parser.get_default(flag):
                shown = "FOLDER" if flag == "checkpoint" else getattr(options, flag)
                command += f" --{flag} {shown}"
        trained = name if options.train == "real" else f"embedded, tested on {name}"
        rows = len(splits["train"])
        results.add([results.row(
            task=options.task, data=f"{trained} ({options.name}, {rows} training rows)",
            split=split, rows=len(real[split]), metric=metric, value=e.value, low=e.low,
            high=e.high, seed=seed, command=command, seconds=seconds, checkpoint=folder)
            for metric, e in found.items()], options.results)
        print(options.task, options.name, f"seed {seed}",
              {metric: f"{e.value:.4f} [{e.low:.4f}, {e.high:.4f}]" for metric, e in found.items()},
              f"{seconds:.0f} s", flush=True)


if __name__ == "__main__":
    main()
