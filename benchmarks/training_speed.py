"""Fine-tuning: samples per second of one epoch, batches of like length against plain padding.

All sides are transformers' Trainer with the same model, rows, batch size and settings. Ours
takes its batches and settings from helpers.training; the others pad as the example scripts of
transformers do by default, or to the longest row of a shuffled batch.
"""

import tempfile
import time
from functools import partial
from pathlib import Path

import numpy as np
import torch
from transformers import AutoTokenizer, Trainer, TrainingArguments, set_seed
from transformers.trainer_callback import PrinterCallback

from benchmarks import harness
from benchmarks.harness import Line, Measured
from helpers import checkpoints, data, tasks, training

DYNAMIC = "plain dynamic padding, fp32"
# The length that each example script pads to by default; none: to the longest of a batch.
SCRIPTS = {"text-classification": ("run_classification.py", 128),
           "token-classification": ("run_ner.py", None),
           "question-answering": ("run_qa.py", 384)}
REAL = {"text-classification": "dair-ai/emotion", "token-classification": "lhoestq/conll2003",
        "question-answering": "rajpurkar/squad"}


class LikeLengthTrainer(Trainer):
    """The Trainer with helpers.training's order of rows."""

    def _get_train_sampler(self, train_dataset=None):
        return training.BatchesOfLikeLength(
            [len(row["input_ids"]) for row in self.train_dataset],
            self.args.train_batch_size, self.args.seed, lambda: int(self.state.epoch or 0))


def pad_to(rows, pad_id: int, length: int) -> dict[str, torch.Tensor]:
    """Collate, then pad every row to `length` tokens."""
    batch = tasks.collate(rows, pad_id)
    missing = length - batch["input_ids"].shape[1]
    for name, values in batch.items():
        if values.ndim == 2 and missing > 0:
            fill = {"input_ids": pad_id, "attention_mask": 0}.get(name, tasks.IGNORED)
            batch[name] = torch.nn.functional.pad(values, (0, missing), value=fill)
    return batch


def side_names(task: str) -> list[str]:
    """Ours in two number formats, plain dynamic padding, and the script's default if another."""
    script, length = SCRIPTS[task]
    return ["ours, fp32", "ours, bf16", DYNAMIC,
            *([f"{script}, padding to {length}, fp32"] if length else [])]


def trainer(side: str, task: str, splits, folder: Path, place: str, batch_size: int,
            seed: int = 0, epochs: float = 1.0, learning_rate: float = 2e-4) -> Trainer:
    """A Trainer of this side on the train split."""
    module, tokenizer = tasks.module(task), AutoTokenizer.from_pretrained(folder)
    set_seed(seed)
    model = module.build(folder, module.labels(splits["train"]))
    mine, precision = side.startswith("ours"), side[-4:]
    if mine:
        training.prepare_for_cpu(model, precision)
    fixed = None if mine or side == DYNAMIC else SCRIPTS[task][1]
    collator = partial(pad_to, length=fixed) if fixed else tasks.collate
    result = (LikeLengthTrainer if mine else Trainer)(
        model=model, train_dataset=module.encode(splits["train"], tokenizer),
        data_collator=partial(collator, pad_id=tokenizer.pad_token_id),
        args=TrainingArguments(
            place, seed=seed, num_train_epochs=epochs, per_device_train_batch_size=batch_size,
            learning_rate=learning_rate, lr_scheduler_type="linear", warmup_steps=0.1,
            weight_decay=0.01, optim="adamw_torch_fused", bf16=precision == "bf16", use_cpu=True,
            save_strategy="no", logging_strategy="no", report_to="none", disable_tqdm=True,
            remove_unused_columns=False, dataloader_pin_memory=False))
    result.remove_callback(PrinterCallback)
    return result


def run(task: str, folder: Path | None = None, rows: int = 128, rounds: int = 3,
        batch_size: int = 16) -> list[Measured]:
    """Samples per second of whole epochs over the same rows, forward, backward and update."""
    folder = folder or checkpoints.find("embedded")
    splits = data.load("embedded", task, max_train_samples=rows)
    with tempfile.TemporaryDirectory(prefix="training-") as place, tasks.quiet():
        trainers = {side: trainer(side, task, splits, folder, place, batch_size)
                    for side in side_names(task)}
        seconds = harness.alternate({side: one.train for side, one in trainers.items()}, rounds)
        steps = {one.state.global_step for one in trainers.values()}
    if len(steps) != 1:
        raise RuntimeError(f"fine-tuning: the sides took different steps: {steps}")
    samples = len(trainers[DYNAMIC].train_dataset)  # windows, in question answering
    lines = harness.speeds(samples, "samples", seconds)
    for theirs in side_names(task)[2:]:
        lines += [harness.ratio(seconds, ours, theirs, "samples/s")
                  for ours in side_names(task)[:2]]
    return [Measured(f"fine-tuning, {task}", f"embedded, batches of {batch_size}, embedded "
                     "checkpoint", samples, lines, folder)]


def to_metric(data_folder: Path, task: str = "text-classification", folder: Path | None = None,
              rows: int = 4000, epochs: float = 2.0, seeds=(0, 1, 2)) -> list[Measured]:
    """Seconds and the metric on real data after the same epochs, over seeds.

    Each line is the mean over the seeds, and one standard error to either side.
    """
    folder = folder or checkpoints.find("embedded")
    source = data_folder / REAL[task]
    module = tasks.module(task)
    spent = {side: [] for side in side_names(task)}
    metric = {side: [] for side in side_names(task)}
    for seed in seeds:
        splits = data.load(str(source), task, seed=seed, max_train_samples=rows,
                           max_eval_samples=2000)
        held = splits["validation"]  # SQuAD has no public test set
        for side in side_names(task):
            with tempfile.TemporaryDirectory(prefix="training-") as place, tasks.quiet():
                one = trainer(side, task, splits, folder, place, 32, seed, epochs)
                began = time.perf_counter()
                one.train()
                spent[side].append(time.perf_counter() - began)
                predictor = module.Predictor(one.model, AutoTokenizer.from_pretrained(folder))
                scores = module.score(predictor.predictions(held), module.gold(held))
                metric[side].append(scores[module.METRIC])
    lines = []
    for side in spent:
        for name, values in ((f"{side}: seconds", spent[side]),
                             (f"{side}: {module.METRIC}", metric[side])):
            mean = float(np.mean(values))
            error = float(np.std(values, ddof=1) / np.sqrt(len(values))) if len(values) > 1 else 0
            lines.append(Line(name, mean, mean - error, mean + error))
    for theirs in side_names(task)[2:]:
        lines += [harness.ratio(spent, ours, theirs, "seconds")
                  for ours in side_names(task)[:2]]
    return [Measured(f"time to metric, {task}", f"{REAL[task]}, {epochs:g} epochs, embedded "
                     "checkpoint", rows, lines, folder, split="validation")]
