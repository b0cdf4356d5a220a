"""Fine-tuning: samples per second of one epoch, batches of like length against plain padding.

All sides are transformers' Trainer with the same model, rows, batch size and settings. Ours
takes its batches and settings from helpers.training; the others pad as the example scripts of
transformers do by default, or to the longest row of a shuffled batch.
"""

import contextlib
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch
from transformers import AutoTokenizer, Trainer, TrainerCallback, TrainingArguments, set_seed
from transformers.trainer_callback import PrinterCallback
from transformers.utils import logging

from benchmarks import harness
from benchmarks.harness import Line, Measured
from helpers import checkpoints, data, memory, tasks, training

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


def train(side: str, one: Trainer) -> None:
    """Train to the end; ours as helpers.training does it."""
    with memory.kept() if side.startswith("ours") else contextlib.nullcontext():
        one.train()


def _once(side: str, task: str, folder: str, rows: int, batch_size: int) -> None:
    """One epoch in a process of its own, whose memory is watched."""
    logging.set_verbosity_error()
    splits = data.load("embedded", task, max_train_samples=rows)
    with tempfile.TemporaryDirectory(prefix="training-") as place:
        train(side, trainer(side, task, splits, Path(folder), place, batch_size))


def run(task: str, model: str = "embedded", rows: int = 128, rounds: int = 3,
        batch_size: int = 16) -> list[Measured]:
    """Samples per second of whole epochs over the same rows, forward, backward and update."""
    splits = data.load("embedded", task, max_train_samples=rows)
    with (harness.checkpoint(model) as folder, tasks.quiet(),
          tempfile.TemporaryDirectory(prefix="training-") as place):
        trainers = {side: trainer(side, task, splits, folder, place, batch_size)
                    for side in side_names(task)}
        seconds = harness.alternate(
            {side: partial(train, side, one) for side, one in trainers.items()}, rounds)
        steps = {one.state.global_step for one in trainers.values()}
        peaks = {side: harness.peak_memory(_once, side, task, str(folder), rows, batch_size)
                 for side in trainers}
    if len(steps) != 1:
        raise RuntimeError(f"fine-tuning: the sides took different steps: {steps}")
    samples = len(trainers[DYNAMIC].train_dataset)  # windows, in question answering
    lines = harness.speeds(samples, "samples", seconds)
    for theirs in side_names(task)[2:]:
        lines += [harness.ratio(seconds, ours, theirs, "samples/s")
                  for ours in side_names(task)[:2]]
    rates = {name: harness.matmul_rate(name) for name in ("fp32", "bf16")}
    return [Measured(f"fine-tuning, {task}", f"embedded, batches of {batch_size}, "
                     f"{harness.about(model)}", samples,
                     [*lines, *harness.conditions(peaks, rates)],
                     folder if model == "embedded" else None)]


class Watch(TrainerCallback):
    """Scores the model every few steps, `seen`: (seconds of training, score).

    The clock stands still meanwhile.
    """

    def __init__(self, score: Callable[[torch.nn.Module], float], every: int):
        self.score, self.every, self.seen = score, every, []

    def on_train_begin(self, args, state, control, **_):
        self.began = time.perf_counter()

    def on_step_end(self, args, state, control, model=None, **_):
        if state.global_step % self.every and state.global_step < state.max_steps:
            return
        stopped = time.perf_counter()
        self.seen.append((stopped - self.began, self.score(model)))
        model.train()
        self.began += time.perf_counter() - stopped


def seconds_to(seen: Sequence[tuple[float, float]], target: float) -> float:
    """The training time at the first score that is at least the target."""
    return next(seconds for seconds, score in seen if score >= target)


def mean_and_error(name: str, values: Sequence[float]) -> Line:
    """The mean, and one standard error to either side."""
    mean = float(np.mean(values))
    error = float(np.std(values, ddof=1) / np.sqrt(len(values))) if len(values) > 1 else 0.0
    return Line(name, mean, mean - error, mean + error)


def to_metric(data_folder: Path, task: str = "text-classification", folder: Path | None = None,
              rows: int = 1000, epochs: float = 3.0, seeds=(0, 1, 2), held_rows: int = 1000,
              batch_size: int = 16, looks: int = 5,
              learning_rate: float = 2e-4) -> list[Measured]:
    """Final metric on real data, and the seconds of training until a common one, over seeds.

    The common metric is the lowest that any run ends with, so that every run comes to it.
    Every side is scored `looks` times on `held_rows` rows outside the clock, so the seconds are
    as fine as a `looks`-th of the training. Lines are the mean over the seeds, and one standard
    error to either side.
    """
    folder = folder or checkpoints.find("embedded")
    source, module, sides = data_folder / REAL[task], tasks.module(task), side_names(task)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    seen: dict[str, list] = {side: [] for side in sides}
    for number, seed in enumerate(seeds):
        splits = data.load(str(source), task, seed=seed, max_train_samples=rows,
                           max_eval_samples=held_rows)
        held = splits["validation"]  # SQuAD has no public test set
        gold = module.gold(held)

        def score(model):
            answers = module.Predictor(model, tokenizer).predictions(held)
            return module.score(answers, gold)[module.METRIC]

        for side in sides if number % 2 == 0 else sides[::-1]:
            with tempfile.TemporaryDirectory(prefix="training-") as place, tasks.quiet():
                one = trainer(side, task, splits, folder, place, batch_size, seed, epochs,
                              learning_rate)
                steps = int(epochs * -(-len(one.train_dataset) // batch_size))
                watch = Watch(score, max(1, steps // looks))
                one.add_callback(watch)
                train(side, one)
                seen[side].append(watch.seen)
    final = {side: [run[-1][1] for run in runs] for side, runs in seen.items()}
    spent = {side: [run[-1][0] for run in runs] for side, runs in seen.items()}
    target = min(score for scores in final.values() for score in scores)
    reached = {side: [seconds_to(run, target) for run in runs] for side, runs in seen.items()}
    lines = [Line(f"common {module.METRIC}", target)]
    for side in sides:
        lines += [mean_and_error(f"{side}: seconds", spent[side]),
                  mean_and_error(f"{side}: {module.METRIC}", final[side]),
                  mean_and_error(f"{side}: seconds to the common metric", reached[side])]
    for ours in sides[:2]:
        lines.append(mean_and_error(f"{ours} less {DYNAMIC}: {module.METRIC}",
                                    np.subtract(final[ours], final[DYNAMIC])))
        for theirs in sides[2:]:
            lines += [harness.ratio(spent, ours, theirs, "seconds"),
                      harness.ratio(reached, ours, theirs, "seconds to the common metric")]
    return [Measured(f"time to metric, {task}", f"{REAL[task]}, {epochs:g} epochs, batches of "
                     f"{batch_size}, embedded checkpoint", rows, lines, folder,
                     split="validation")]
