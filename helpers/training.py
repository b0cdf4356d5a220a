"""One Trainer for the three tasks, resumable at any moment; also a command line.

    python -m helpers.training --task text-classification --output_dir runs/emotion
    torchrun --nproc_per_node 2 -m helpers.training --task ... --output_dir ...

The notebook `emotion-detection.ipynb` builds the loop by hand first.
"""

import hashlib
import json
import math
import os
import re
import shutil
import time
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from transformers import AutoConfig, AutoTokenizer, EarlyStoppingCallback, Trainer
from transformers import TrainerCallback, TrainingArguments, set_seed
from transformers.trainer_callback import PrinterCallback

from helpers import checkpoints, dropout, memory, onednn, parameters, report, tasks

MODEL_FILES = ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json")
COMPLETE = "complete.json"  # the sizes of a checkpoint's files, written after them
TRAINED = "trained.json"  # what the model beside it came from, written after it
POOL = 32  # batches that are sorted by length together


class Result(NamedTuple):
    """What a training leaves: the saved model's folder, its validation metrics, the record."""

    folder: Path
    metrics: dict[str, float]
    history: list[dict]  # rows with step, epoch, and loss or eval_* values, in order


def fine_tune(task: str, splits: Mapping, folder: str | Path, output_dir: str | Path, *,
              seed: int = 0, epochs: float = 3.0, batch_size: int = 32,
              learning_rate: float = 2e-4, precision: str = "fp32", device: str = "auto",
              patience: int | None = None, save_steps: int = 500,
              progress: bool = True) -> Result:
    """Train a checkpoint's encoder with a new head; keep the best epoch by the task's METRIC.

    `splits` has train and validation as `helpers.data.load` gives them, `folder` is a local
    checkpoint. The model is saved in `output_dir`/model. Killed and called again with the same
    arguments, it goes on from the last complete checkpoint, to the same end; where the model is
    complete, it is returned without training. `batch_size` counts the rows of all processes,
    `patience` the epochs without a better metric before it stops, `save_steps` the updates
    between checkpoints within an epoch. Raises ValueError for a row of any split, test too,
    that the model cannot read, for another precision, or where the batch cannot be shared
    evenly among the processes.
    """
    if precision not in ("fp32", "bf16"):
        raise ValueError(f"precision: training has no {precision}; use fp32 or bf16")
    module, device = tasks.module(task), checkpoints.pick_device(device)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    # without a tokenizer_config.json there is no limit, and the model has one
    tokenizer.model_max_length = min(tokenizer.model_max_length, AutoConfig.from_pretrained(
        folder).max_position_embeddings)
    encoded = {name: _encode(module, splits, name, tokenizer) for name in splits}
    rows, gold = encoded["train"], module.gold(splits["validation"])
    settings = {"task": task, "seed": seed, "epochs": epochs, "batch_size": batch_size,
                "learning_rate": learning_rate, "precision": precision, "device": device,
                "patience": patience, "processes": _processes()}
    fingerprint = _fingerprint([settings, gold, module.labels(splits["train"])],
                               rows + encoded["validation"], folder)
    output_dir = report.folder(output_dir)
    kept = output_dir / f"checkpoints-{fingerprint}"
    if done := _trained(output_dir, fingerprint):
        shutil.rmtree(kept, ignore_errors=True)  # killed before these were removed
        return _result(output_dir, module.METRIC, done["history"], done["best_step"])
    set_seed(seed)
    model = module.build(folder, module.labels(splits["train"]))
    if device == "cpu":
        prepare_for_cpu(model, precision)
    trainer = _ResumableTrainer(
        module=module, progress=progress, model=model, eval_dataset=splits["validation"],
        args=_arguments(kept, settings, math.ceil(len(rows) / batch_size * epochs)),
        train_dataset=rows, processing_class=tokenizer,
        data_collator=partial(tasks.collate, pad_id=tokenizer.pad_token_id),
        callbacks=[_SaveWithinEpochs(save_steps, math.ceil(len(rows) / batch_size)),
                   *([EarlyStoppingCallback(patience)] if patience else [])])
    with tasks.quiet(), memory.kept():
        state = trainer.finish()
    best = kept / f"checkpoint-{state.best_global_step}"
    if trainer.is_world_process_zero():
        (output_dir / TRAINED).unlink(missing_ok=True)  # it tells of the model before this one
        _publish(best, output_dir / "model")
        report.save_json(output_dir / "history.json", state.log_history)
        report.save_json(output_dir / TRAINED, {
            "fingerprint": fingerprint, "files": _sizes(output_dir / "model"),
            "best_step": state.best_global_step, "history": state.log_history})
        shutil.rmtree(kept)
    trainer.accelerator.wait_for_everyone()
    return _result(output_dir, module.METRIC, state.log_history, state.best_global_step)


def _encode(module, splits: Mapping, name: str, tokenizer) -> list[dict]:
    """Encode a split, so that a row that cannot be read fails before any training."""
    try:
        return module.encode(splits[name], tokenizer)
    except ValueError as error:
        raise ValueError(f"splits[{name!r}], {error}") from error


def _trained(output_dir: Path, fingerprint: str) -> dict | None:
    """What TRAINED tells of the model, where it is whole and came from the same training."""
    path, model = output_dir / TRAINED, output_dir / "model"
    found = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    same = found.get("fingerprint") == fingerprint and model.is_dir()
    return found if same and found["files"] == _sizes(model) else None


def _result(output_dir: Path, metric: str, history: Sequence[dict], best_step: int) -> Result:
    at_best = [row for row in history
               if row["step"] == best_step and f"eval_{metric}" in row][-1]
    return Result(output_dir / "model",
                  {k.removeprefix("eval_"): v for k, v in at_best.items() if k[:5] == "eval_"},
                  [row for row in history if "train_runtime" not in row])


def prepare_for_cpu(model, precision: str) -> None:
    """Choose what is fast on a processor: dropout drawn in bulk, oneDNN's products, and bf16
    from the embeddings on.

    Under autocast the weights and the optimizer stay float32. Without the hook the residual
    stream would stay float32 too, and every layer would convert it four times.
    """
    dropout.quicken(model)
    onednn.quicken(model)
    if precision == "bf16":
        model.base_model.embeddings.register_forward_hook(
            lambda module, inputs, output: output.to(torch.bfloat16))


class BatchesOfLikeLength(torch.utils.data.Sampler):
    """The order of the rows of an epoch: shuffled, but each batch of like length.

    Rows are shuffled, sorted by length within pools of `POOL` batches, cut into batches, and
    the batches shuffled; only the last may be short. The order depends on (seed, epoch) alone,
    whatever the number of processes. `epoch` is a function that tells the epoch.
    """

    def __init__(self, lengths: Sequence[int], batch_size: int, seed: int, epoch=lambda: 0):
        self.lengths, self.batch_size = np.asarray(lengths), batch_size
        self.seed, self.epoch = seed, epoch

    def __len__(self) -> int:
        return len(self.lengths)

    def __iter__(self):
        rng = np.random.default_rng([self.seed, self.epoch()])
        order, size = rng.permutation(len(self.lengths)), self.batch_size
        whole = len(order) // size * size
        batches = []
        for start in range(0, whole, POOL * size):
            pool = order[start:min(start + POOL * size, whole)]
            pool = pool[np.argsort(self.lengths[pool], kind="stable")]
            batches.extend(pool.reshape(-1, size))
        for i in rng.permutation(len(batches)):
            yield from batches[i].tolist()
        yield from order[whole:].tolist()


class _ResumableTrainer(Trainer):
    """transformers' Trainer with our batches, our metrics, and checkpoints that are whole."""

    def __init__(self, *, module, progress, **options):
        super().__init__(**options)
        self.module, self.progress = module, progress
        self.remove_callback(PrinterCallback)
        if self.is_world_process_zero():
            if progress:
                self.add_callback(_Progress())
            if os.environ.get("MLFLOW_TRACKING_URI"):
                self.add_callback(_LogToMlflow())

    def _get_train_sampler(self, train_dataset=None):
        return BatchesOfLikeLength(
            [len(row["input_ids"]) for row in self.train_dataset],
            self.args.train_batch_size * self.args.world_size, self.args.seed,
            # whole epochs done, also when going on in the middle of one
            epoch=lambda: int(self.state.epoch or 0))

    def evaluate(self, eval_dataset=None, ignore_keys=None, metric_key_prefix="eval"):
        """Score the validation rows as a user's calls would be answered, shared by processes."""
        data, world, rank = self.eval_dataset, self.args.world_size, self.args.process_index
        shard = data.select(range(rank, len(data), world)) if world > 1 else data
        predictor = self.module.Predictor(self.model, self.processing_class)
        predicted = predictor.predictions(shard, self.progress and rank == 0) if len(shard) else []
        if world > 1:
            shards = [None] * world
            torch.distributed.all_gather_object(shards, predicted)
            predicted = [shards[i % world][i // world] for i in range(len(data))]
        scores = self.module.score(predicted, self.module.gold(data))
        metrics = {f"{metric_key_prefix}_{name}": value for name, value in scores.items()}
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(
            self.args, self.state, self.control, metrics)
        return metrics

    def _save_checkpoint(self, model, trial):
        """Save, then mark as complete, and only then drop older ones but the best."""
        newest = Path(self.args.output_dir) / f"checkpoint-{self.state.global_step}"
        if self.is_world_process_zero():
            (newest / COMPLETE).unlink(missing_ok=True)
        super()._save_checkpoint(model, trial)
        self.accelerator.wait_for_everyone()  # every process has its own random state to write
        if self.is_world_process_zero():
            report.save_json(newest / COMPLETE, _sizes(newest))
            keep = {newest.name, f"checkpoint-{self.state.best_global_step}"}
            for old in newest.parent.glob("checkpoint-*"):
                if old.name not in keep:
                    shutil.rmtree(old)
        self.accelerator.wait_for_everyone()

    def finish(self):
        """Train to the end from the last complete checkpoint, if any; return the final state."""
        last = last_complete(Path(self.args.output_dir))
        if last:
            state = json.loads((last / "trainer_state.json").read_text())
            stopped = state["stateful_callbacks"]["TrainerControl"]["args"]["should_training_stop"]
            if stopped or state["global_step"] >= state["max_steps"]:  # killed after its last step
                self.state = self.state.load_from_json(last / "trainer_state.json")
                return self.state
        self.train(resume_from_checkpoint=str(last) if last else None)
        return self.state


class _SaveWithinEpochs(TrainerCallback):
    """Saves every `save_steps` updates, except where an epoch's end saves anyway."""

    def __init__(self, save_steps: int, steps_per_epoch: int):
        self.save_steps, self.steps_per_epoch = save_steps, steps_per_epoch

    def on_step_end(self, args, state, control, **_):
        at_end = state.global_step % self.steps_per_epoch == 0
        if state.global_step % self.save_steps == 0 and not at_end \
                and state.global_step < state.max_steps:
            control.should_save = True
        return control


class _Progress(TrainerCallback):
    """A bar over the updates, with the loss."""

    def on_train_begin(self, args, state, control, **_):
        self.bar = report.bar(total=state.max_steps, unit="step",
                              initial=state.global_step)

    def on_step_end(self, args, state, control, **_):
        self.bar.update(1)

    def on_log(self, args, state, control, logs, **_):
        self.bar.set_postfix({k: f"{v:.3f}" for k, v in logs.items()
                              if k in ("loss", f"eval_{args.metric_for_best_model}")})

    def on_train_end(self, args, state, control, **_):
        self.bar.close()


class _LogToMlflow(TrainerCallback):
    """Curves for MLflow, in the run in force or a new one, which report.save_metrics then shares.

    transformers' own callback would also log its arguments, whose names are ours with other
    values; MLflow refuses that.
    """

    def on_log(self, args, state, control, logs, **_):
        import mlflow

        mlflow.log_metrics({name: float(value) for name, value in logs.items()
                            if isinstance(value, (int, float))}, step=state.global_step)


def last_complete(folder: Path) -> Path | None:
    """The newest checkpoint whose files are all there, each with the size it was saved with."""
    found = {}
    for path in folder.glob("checkpoint-*"):
        number = re.fullmatch(r"checkpoint-(\d+)", path.name)
        marker = path / COMPLETE
        if number and marker.exists() and json.loads(marker.read_text()) == _sizes(path):
            found[int(number[1])] = path
    return found[max(found)] if found else None


def _sizes(folder: Path) -> dict[str, int]:
    return {path.name: path.stat().st_size for path in sorted(folder.iterdir())
            if path.name != COMPLETE and not path.name.endswith(".part")}


def _processes() -> int:
    return int(os.environ.get("WORLD_SIZE", 1))


def _arguments(folder: Path, settings: Mapping[str, Any], steps: int) -> TrainingArguments:
    processes, batch_size = settings["processes"], settings["batch_size"]
    if batch_size % processes:
        raise ValueError(f"batch_size: {batch_size} rows cannot be shared evenly by {processes} "
                         f"processes; use a multiple of {processes}")
    on_cpu = settings["device"] == "cpu"
    return TrainingArguments(
        output_dir=str(folder), seed=settings["seed"], num_train_epochs=settings["epochs"],
        per_device_train_batch_size=batch_size // processes,
        learning_rate=settings["learning_rate"], lr_scheduler_type="linear", warmup_steps=0.1,
        weight_decay=0.01, optim="adamw_torch_fused", bf16=settings["precision"] == "bf16",
        use_cpu=on_cpu, ddp_backend="gloo" if on_cpu and processes > 1 else None,
        eval_strategy="epoch", save_strategy="epoch",
        metric_for_best_model=tasks.module(settings["task"]).METRIC, greater_is_better=True,
        restore_callback_states_from_checkpoint=True,
        logging_steps=max(1, min(50, steps // 30)), remove_unused_columns=False,
        dataloader_pin_memory=False,
        # these models average over their own rows: the sum over processes would be too large
        average_tokens_across_devices=False, disable_tqdm=True,
        report_to="none")


def _fingerprint(settings: list, rows: Sequence[Mapping], folder: str | Path) -> str:
    """Names what decides the result, so that no other training's work is taken up."""
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode())
    for row in rows:
        for name in sorted(row):
            digest.update(np.asarray(row[name], dtype=np.int32).tobytes())
    for path in [*sorted(Path(folder).glob("*.safetensors")), Path(folder, "config.json")]:
        with path.open("rb") as content:
            digest.update(hashlib.file_digest(content, "sha256").digest())
    return digest.hexdigest()[:12]


def _publish(checkpoint: Path, folder: Path) -> None:
    """Copy a checkpoint's model and tokenizer aside, then put them in place at once."""
    aside = folder.with_name(folder.name + ".part")
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir()
    for name in MODEL_FILES:
        shutil.copy2(checkpoint / name, aside / name)
    shutil.rmtree(folder, ignore_errors=True)
    os.replace(aside, folder)


DEFAULTS = {"task": "text-classification", "checkpoint": "embedded", "revision": None,
            "dataset": "embedded", "columns": None, "output_dir": "runs/training", "seed": 0,
            "device": "auto", "precision": "fp32", "max_train_samples": None,
            "max_eval_samples": None, "epochs": 3.0, "batch_size": 32, "learning_rate": 2e-4,
            "patience": None}


def main(arguments: Sequence[str] | None = None) -> None:
    """Train from the command line, score the test split, write metrics.json."""
    from helpers import data

    given = parameters.parser(DEFAULTS, prog="python -m helpers.training",
                              description=__doc__.splitlines()[0]).parse_args(arguments)
    started, first = time.time(), int(os.environ.get("RANK", 0)) == 0
    splits = data.load(given.dataset, task=given.task, columns=given.columns, seed=given.seed,
                       max_train_samples=given.max_train_samples,
                       max_eval_samples=given.max_eval_samples)
    result = fine_tune(
        given.task, splits, checkpoints.find(given.checkpoint, given.revision), given.output_dir,
        seed=given.seed, epochs=given.epochs, batch_size=given.batch_size,
        learning_rate=given.learning_rate, precision=given.precision, device=given.device,
        patience=given.patience)
    if first:
        module = tasks.module(given.task)
        scores = module.load(result.folder, given.device, given.precision).evaluate(
            splits["test"], progress=True)
        metrics = {**{f"validation_{k}": v for k, v in result.metrics.items()},
                   **{f"test_{k}": v for k, v in scores.items()}}
        report.save_metrics(
            given.output_dir, notebook="helpers.training", parameters=vars(given),
            metrics=metrics, started=started,
            headline=f"{module.METRIC} {scores[module.METRIC]:.4g} on {len(splits['test'])} rows")
        print(json.dumps(metrics, indent=2))


if __name__ == "__main__":
    main()
