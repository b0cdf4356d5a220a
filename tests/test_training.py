"""The Trainer set-up: what it learns, that it resumes exactly, and that processes agree."""

import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoTokenizer

from helpers import checkpoints, data, tasks, training
from tests.conftest import PROJECT, shared_folder

# Runs fine_tune as the tests do, and dies by SIGKILL at the n-th of the moments that matter:
# before each update, and before each file of a checkpoint is written or removed.
KILLED = """
import json, os, signal, shutil, sys
import torch
torch.set_num_threads(1)
from transformers import PreTrainedModel, Trainer
from helpers import training
from tests import test_training
moments, last = 0, int(sys.argv[3])

def counted(function):
    def call(*arguments, **options):
        global moments
        moments += 1
        if moments == last:
            os.kill(os.getpid(), signal.SIGKILL)
        return function(*arguments, **options)
    return call

Trainer.training_step = counted(Trainer.training_step)
PreTrainedModel.save_pretrained = counted(PreTrainedModel.save_pretrained)
torch.save = counted(torch.save)
training.report.save_json = counted(training.report.save_json)
shutil.rmtree = counted(shutil.rmtree)
os.replace = counted(os.replace)
test_training.train_once(sys.argv[1], sys.argv[2])
print(json.dumps({"moments": moments}))
"""


@pytest.fixture(autouse=True, scope="module")  # before `whole`, or that has other sums
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def still_checkpoint(tiny_checkpoint, tmp_path_factory):
    """The tiny checkpoint without dropout, so that only the arithmetic is left."""
    folder = tmp_path_factory.mktemp("still") / "checkpoint"
    folder.mkdir()
    for path in tiny_checkpoint.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    config = json.loads((folder / "config.json").read_text())
    config |= {"dropout": 0.0, "attention_dropout": 0.0, "seq_classif_dropout": 0.0}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def small(task="text-classification", train=60, evaluate=30):
    return data.load("embedded", task=task, max_train_samples=train, max_eval_samples=evaluate)


def train_once(checkpoint, output_dir, **options):
    settings = {"epochs": 3.0, "batch_size": 16, "learning_rate": 1e-3, "save_steps": 3,
                "device": "cpu", "progress": False} | options
    return training.fine_tune("text-classification", small(), checkpoint, output_dir, **settings)


def weights(folder):
    return load_file(Path(folder) / "model.safetensors")


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def environment():
    return {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(PROJECT)}


# ---------------------------------------------------------------- the order of the rows

def test_every_epoch_is_a_new_order_of_all_rows():
    lengths = np.random.default_rng(0).integers(5, 100, 1003)
    epoch = [0]
    sampler = training.BatchesOfLikeLength(lengths, 32, seed=1, epoch=lambda: epoch[0])
    orders = []
    for epoch[0] in (0, 1, 0):
        orders.append(list(sampler))
        assert sorted(orders[-1]) == list(range(1003)) and len(sampler) == 1003
    assert orders[0] == orders[2] != orders[1]
    assert orders[0] != list(training.BatchesOfLikeLength(lengths, 32, seed=2))


def test_batches_are_of_like_length_and_not_in_order_of_length():
    lengths = np.random.default_rng(0).lognormal(3, 0.6, 4000).astype(int) + 1

    def padded(order):
        cut = [lengths[order[i:i + 32]] for i in range(0, len(order), 32)]
        return sum(len(rows) * rows.max() for rows in cut) / lengths.sum(), \
            np.array([rows.mean() for rows in cut])

    share, means = padded(list(training.BatchesOfLikeLength(lengths, 32, seed=0)))
    plain, _ = padded(np.random.default_rng(0).permutation(4000))
    assert share < 1.1 < 2 < plain
    assert abs(np.corrcoef(means[:-1], np.arange(len(means) - 1))[0, 1]) < 0.2


# ---------------------------------------------------------------- learning

def separable(rows, seed):
    """Rows whose label a word gives away."""
    rng = random.Random(seed)
    sides = [["gloomy", "bitter", "dismal"], ["sunny", "merry", "bright"]]
    made = [(rng.choice(sides[label]), label) for label in rng.choices([0, 1], k=rows)]
    return [{"text": f"it was a {word} day", "label": label} for word, label in made]


def write(folder, name, rows):
    folder.mkdir(exist_ok=True)
    (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_tiny_model_learns_what_a_word_gives_away(tiny_checkpoint, tmp_path, precision):
    for seed, (name, rows) in enumerate((("train", 200), ("validation", 60), ("test", 60))):
        write(tmp_path / "data", name, separable(rows, seed))
    splits = data.load(str(tmp_path / "data"), task="text-classification")
    result = training.fine_tune(
        "text-classification", splits, tiny_checkpoint, tmp_path / "out", epochs=6.0,
        learning_rate=5e-3, precision=precision, device="cpu", progress=False)
    assert result.metrics["macro_f1"] > 0.95
    losses = [row["loss"] for row in result.history if "loss" in row]
    assert losses[-1] < 0.5 < losses[0]
    saved = weights(result.folder)
    assert all(tensor.dtype == torch.float32 for tensor in saved.values())
    test = tasks.module("text-classification").load(result.folder, "cpu").evaluate(splits["test"])
    assert test["accuracy"] > 0.95
    assert sorted(path.name for path in result.folder.iterdir()) == sorted(training.MODEL_FILES)
    assert [path.name for path in (tmp_path / "out").iterdir() if "checkpoint" in path.name] == []


@pytest.mark.parametrize("task, metric", [("token-classification", "span_f1"),
                                          ("question-answering", "f1")])
def test_the_best_epoch_is_kept(tiny_checkpoint, tmp_path, task, metric):
    splits = small(task, 64, 16)
    result = training.fine_tune(task, splits, tiny_checkpoint, tmp_path, epochs=2.0,
                                batch_size=16, learning_rate=3e-3, device="cpu", progress=False)
    scores = [row[f"eval_{metric}"] for row in result.history if f"eval_{metric}" in row]
    assert len(scores) == 2 and result.metrics[metric] == max(scores)
    again = tasks.module(task).load(result.folder, "cpu").evaluate(splits["validation"])
    assert again == pytest.approx({k: v for k, v in result.metrics.items()}, abs=1e-6)


def test_patience_stops_early(tiny_checkpoint, tmp_path):
    result = train_once(tiny_checkpoint, tmp_path, epochs=9.0, learning_rate=1e-9, patience=1)
    assert [row["epoch"] for row in result.history if "eval_accuracy" in row] == [1, 2]


def test_what_cannot_be_trained_is_refused(tiny_checkpoint, tmp_path, monkeypatch):
    with pytest.raises(ValueError, match="precision: training has no int8"):
        train_once(tiny_checkpoint, tmp_path, precision="int8")
    monkeypatch.setenv("WORLD_SIZE", "3")
    with pytest.raises(ValueError, match="batch_size: 16 rows cannot be shared evenly by 3"):
        train_once(tiny_checkpoint, tmp_path)


# ---------------------------------------------------------------- killed and started again

def kill_at(moment, checkpoint, output_dir):
    done = subprocess.run([sys.executable, "-c", KILLED, str(checkpoint), str(output_dir),
                           str(moment)], env=environment(), cwd=PROJECT, text=True,
                          capture_output=True)
    if done.returncode == 0:
        return json.loads(done.stdout.splitlines()[-1])["moments"]
    assert done.returncode == -signal.SIGKILL, done.stderr[-2000:]
    return None


def resume_equals(checkpoint, folder, whole):
    again = train_once(checkpoint, folder)
    assert again.metrics == whole.metrics
    assert same(weights(again.folder), weights(whole.folder))
    return again


@pytest.fixture(scope="module")
def whole(tiny_checkpoint, tmp_path_factory):
    """An uninterrupted run: 12 updates in 3 epochs, six checkpoints."""
    return train_once(tiny_checkpoint, tmp_path_factory.mktemp("whole"))


@pytest.mark.parametrize("seed, first, last", [(0, 8, 25), (1, 30, 50)])
def test_killed_and_resumed_ends_alike(tiny_checkpoint, tmp_path, whole, seed, first, last):
    moment = random.Random(seed).randint(first, last)
    assert kill_at(moment, tiny_checkpoint, tmp_path) is None
    folder, = tmp_path.glob("checkpoints-*")
    assert training.last_complete(folder)  # it goes on, it does not start over
    again = resume_equals(tiny_checkpoint, tmp_path, whole)
    assert again.history[-1]["step"] == 12


# Dies where training is done and the test rows are being scored.
KILLED_WHILE_SCORING = """
import os, signal, sys
from helpers import tasks, training
tasks.BasePredictor.evaluate = lambda *_, **__: os.kill(os.getpid(), signal.SIGKILL)
training.main(sys.argv[1:])
"""


def no_training(monkeypatch):
    def refuse(*_, **__):
        raise AssertionError("a training step")
    monkeypatch.setattr(training._ResumableTrainer, "training_step", refuse)


def test_killed_while_scoring_does_not_train_again(tiny_checkpoint, tmp_path, monkeypatch):
    sizes = {"max_train_samples": 48, "max_eval_samples": 20, "epochs": 2.0}
    training.main(options(tiny_checkpoint, tmp_path / "whole", **sizes))
    arguments = options(tiny_checkpoint, tmp_path / "killed", **sizes)
    done = subprocess.run([sys.executable, "-c", KILLED_WHILE_SCORING, *arguments], text=True,
                          env=environment(), cwd=PROJECT, capture_output=True)
    assert done.returncode == -signal.SIGKILL, done.stderr[-2000:]
    assert not (tmp_path / "killed" / "metrics.json").exists()
    no_training(monkeypatch)
    training.main(arguments)
    whole, killed = (json.loads((tmp_path / name / "metrics.json").read_text())["metrics"]
                     for name in ("whole", "killed"))
    assert killed == whole


def test_a_complete_model_is_returned_and_any_other_trained(tiny_checkpoint, tmp_path, whole,
                                                            monkeypatch):
    first = train_once(tiny_checkpoint, tmp_path)
    with monkeypatch.context() as patch:
        no_training(patch)
        again = train_once(tiny_checkpoint, tmp_path)
        assert again == first and again.metrics == whole.metrics
        for changed in ({"seed": 1}, {"learning_rate": 2e-3}, {"epochs": 2.0}):
            with pytest.raises(AssertionError, match="a training step"):
                train_once(tiny_checkpoint, tmp_path, **changed)
        (tmp_path / "model" / "model.safetensors").write_bytes(b"cut off")
        with pytest.raises(AssertionError, match="a training step"):
            train_once(tiny_checkpoint, tmp_path)
    resume_equals(tiny_checkpoint, tmp_path, whole)


@pytest.mark.soak
def test_killed_at_ten_random_moments(tiny_checkpoint, tmp_path, whole):
    moments = kill_at(10**9, tiny_checkpoint, tmp_path / "count")
    for moment in random.Random(2).sample(range(1, moments + 1), 10):
        kill_at(moment, tiny_checkpoint, tmp_path / str(moment))
        resume_equals(tiny_checkpoint, tmp_path / str(moment), whole)


@pytest.mark.soak
def test_killed_again_and_again(tiny_checkpoint, tmp_path, whole):
    rng, kills = random.Random(3), 0
    while kill_at(rng.randint(3, 25), tiny_checkpoint, tmp_path) is None:
        kills += 1
        assert kills < 60
    assert kills >= 1
    assert same(weights(tmp_path / "model"), weights(whole.folder))


def test_half_written_checkpoints_are_skipped(tmp_path):
    for step in (3, 4, 8):
        folder = tmp_path / f"checkpoint-{step}"
        folder.mkdir()
        (folder / "model.safetensors").write_bytes(b"x" * step)
        (folder / "complete.json").write_text(json.dumps({"model.safetensors": step}))
    (tmp_path / "checkpoint-x").mkdir()
    assert training.last_complete(tmp_path).name == "checkpoint-8"
    (tmp_path / "checkpoint-8" / "model.safetensors").write_bytes(b"x")  # cut off
    assert training.last_complete(tmp_path).name == "checkpoint-4"
    (tmp_path / "checkpoint-4" / "complete.json").unlink()
    assert training.last_complete(tmp_path).name == "checkpoint-3"
    assert training.last_complete(tmp_path / "nothing") is None


def test_other_arguments_take_up_no_checkpoint(tiny_checkpoint, tmp_path, whole):
    assert kill_at(20, tiny_checkpoint, tmp_path) is None
    other = train_once(tiny_checkpoint, tmp_path, seed=1)
    assert not same(weights(other.folder), weights(whole.folder))
    assert len(list(tmp_path.glob("checkpoints-*"))) == 1  # the killed run's, still to go on with
    resume_equals(tiny_checkpoint, tmp_path, whole)


# ---------------------------------------------------------------- several processes

def torchrun(arguments, processes=2):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    done = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", f"--nproc_per_node={processes}",
         "--master_addr=127.0.0.1", f"--master_port={port}", "-m", "helpers.training", *arguments],
        env=environment(), cwd=PROJECT, text=True, capture_output=True)
    assert done.returncode == 0, done.stderr[-3000:]


def options(checkpoint, output_dir, **others):
    chosen = {"task": "text-classification", "checkpoint": checkpoint, "output_dir": output_dir,
              "device": "cpu", "batch_size": 16, "learning_rate": 1e-3} | others
    return [part for name, value in chosen.items() for part in (f"--{name}", str(value))]


def test_two_processes_do_what_one_does(still_checkpoint, tmp_path):
    sizes = {"max_train_samples": 64, "max_eval_samples": 31, "epochs": 2.0}
    torchrun(options(still_checkpoint, tmp_path / "two", **sizes))
    training.main(options(still_checkpoint, tmp_path / "one", **sizes))
    one, two = (weights(tmp_path / name / "model") for name in ("one", "two"))
    for name in one:
        assert torch.allclose(one[name], two[name], atol=2e-4), name
    one, two = (json.loads((tmp_path / name / "metrics.json").read_text())
                for name in ("one", "two"))
    assert one["metrics"] == pytest.approx(two["metrics"], abs=0.05)
    losses = [[row["loss"] for row in json.loads((tmp_path / name / "history.json").read_text())
               if "loss" in row] for name in ("one", "two")]
    assert losses[0] == losses[1] == [] or losses[0] == pytest.approx(losses[1], abs=1e-3)


@pytest.mark.soak
def test_two_processes_reach_the_metric_of_one(tmp_path):
    # on the few embedded rows one seed alone moves the metric by several points
    dataset, task = shared_folder("hub", "lhoestq", "conll2003"), "token-classification"
    scores = {1: [], 2: []}
    for seed in range(3):
        for processes, found in scores.items():
            folder = tmp_path / f"{processes}-{seed}"
            torchrun(options("embedded", folder, task=task, seed=seed, precision="bf16",
                             dataset=dataset, batch_size=32, epochs=3.0, learning_rate=3e-4,
                             max_train_samples=6000, max_eval_samples=1500), processes)
            metrics = json.loads((folder / "metrics.json").read_text())["metrics"]
            found.append(metrics["test_span_f1"])
    print("span F1 by processes and seed", scores)
    assert abs(sum(scores[1]) - sum(scores[2])) / 3 <= 0.01, scores


# ---------------------------------------------------------------- a reader's own files

def test_own_csv_parquet_and_conll_files_train(tiny_checkpoint, tmp_path, capsys):
    import pandas as pd

    frame = pd.DataFrame(separable(80, 0)).rename(columns={"text": "tweet", "label": "feeling"})
    frame["feeling"] = frame["feeling"].map({0: "bad", 1: "good"})
    frame.to_csv(tmp_path / "own.csv", index=False)
    frame.to_parquet(tmp_path / "own.parquet")
    (tmp_path / "own.conll").write_text("".join(
        f"-DOCSTART- O\n\nAda NNP B-PER\nleft VBD O\n{town} NNP B-LOC\n. . O\n\n"
        for town in ("Ely", "Oslo", "Turin") * 10).replace("-DOCSTART- O", "-DOCSTART- X O"))
    for name, task, columns in (
            ("own.csv", "text-classification", "text=tweet,label=feeling"),
            ("own.parquet", "text-classification", "text=tweet,label=feeling"),
            ("own.conll", "token-classification", "tokens=0,ner_tags=2")):
        output_dir = tmp_path / f"out-{name}"
        training.main(options(tiny_checkpoint, output_dir, task=task, epochs=1.0,
                              dataset=tmp_path / name, columns=columns))
        found = json.loads((output_dir / "metrics.json").read_text())
        printed = json.loads(capsys.readouterr().out)
        assert printed == found["metrics"]
        assert f"test_{tasks.module(task).METRIC}" in found["metrics"]
        config = json.loads((output_dir / "model/config.json").read_text())
        labels = set(config["id2label"].values())
        assert labels == ({"bad", "good"} if "text" in task else {"O", "B-PER", "I-PER", "B-LOC",
                          "I-LOC"}) or (task[:2] == "to" and {"O", "B-PER", "B-LOC"} <= labels)


FINE = {
    "text-classification": [{"text": f"day {n}", "label": "ab"[n % 2]} for n in range(4)],
    "token-classification": [{"tokens": ["Ada", "left"], "ner_tags": ["B-PER", "O"]}] * 4,
    "question-answering": [{"context": "Tea is in Leeds.", "question": "Where is tea?",
                            "answers": {"text": ["Leeds"], "answer_start": [10]}}] * 4,
}


@pytest.mark.parametrize("split", ["train", "validation", "test"])
@pytest.mark.parametrize("task, changes, message", [
    ("text-classification", {"text": ""}, "{split}.jsonl, row 3: text is empty"),
    ("text-classification", {"text": "\u200b"}, "{split}.jsonl, row 3: text is empty"),
    ("text-classification", {"text": "x \ud800"}, "{split}.jsonl, row 3: half of a surrogate"),
    ("text-classification", {"label": " "}, "{split}.jsonl, row 3: label is missing"),
    ("token-classification", {"ner_tags": ["O"]}, "{split}.jsonl, row 3: 2 tokens but 1"),
    ("token-classification", {"tokens": ["Ada", " "]}, "{split}.jsonl, row 3: token ' '"),
    ("token-classification", {"ner_tags": ["PER", "O"]}, "{split}.jsonl, row 3: tag 'PER'"),
    ("question-answering", {"context": "\u200b"}, "{split}.jsonl, row 3: context is empty"),
    ("question-answering", {"answers": {"text": ["Leeds"], "answer_start": [9]}},
     "{split}.jsonl, row 3: answer 'Leeds' is not at 9"),
    # what only the tokenizer can tell: rows counted from 0, as splits[...] counts them
    ("question-answering", {"question": "who " * 370},
     "splits['{split}'], row 2: the question has 370 tokens"),
    ("question-answering", {"context": "\u0301", "answers": {"text": ["\u0301"],
                                                             "answer_start": [0]}},
     "splits['{split}'], row 2: no word in the context"),
])
def test_bad_data_stops_before_any_training(tiny_checkpoint, tmp_path, monkeypatch, task, changes,
                                            message, split):
    for name in data.SPLITS:
        rows = [*FINE[task]]
        if name == split:
            rows[2] = rows[2] | changes
        write(tmp_path / "data", name, rows)
    monkeypatch.setattr(tasks.module(task), "build", None)  # no model is even made
    with pytest.raises(ValueError) as error:
        training.main(options(tiny_checkpoint, tmp_path / "out", task=task,
                              dataset=tmp_path / "data"))
    assert message.format(split=split) in str(error.value)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("task, long", [
    ("text-classification", {"text": "word " * 600}),
    ("token-classification", {"tokens": ["Ada"] * 600, "ner_tags": ["B-PER"] * 600}),
    ("question-answering", {"context": "Tea is in Leeds." + " More tea." * 300})])
def test_a_checkpoint_without_a_tokenizer_config_trains(tiny_checkpoint, tmp_path, task, long):
    folder = tmp_path / "bare"
    shutil.copytree(tiny_checkpoint, folder)
    (folder / "tokenizer_config.json").unlink()
    assert AutoTokenizer.from_pretrained(folder).model_max_length > 10**9
    for name in data.SPLITS:
        write(tmp_path / "data", name, [*FINE[task], FINE[task][0] | long])
    training.main(options(folder, tmp_path / "out", task=task, dataset=tmp_path / "data",
                          epochs=1.0))
    saved = AutoTokenizer.from_pretrained(tmp_path / "out" / "model")
    assert saved.model_max_length == 512


def test_mlflow_gets_curves_and_results_in_one_run(tiny_checkpoint, tmp_path, monkeypatch):
    import mlflow

    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    mlflow.set_tracking_uri(uri)
    try:
        training.main(options(tiny_checkpoint, tmp_path / "out", epochs=3.0,
                              max_train_samples=64, max_eval_samples=10))
    finally:
        mlflow.end_run()
    client = mlflow.MlflowClient(uri)
    run, = client.search_runs(["0"])
    assert len(client.get_metric_history(run.info.run_id, "eval_macro_f1")) == 3
    assert run.data.metrics["test_accuracy"] >= 0
    assert run.data.params["learning_rate"] == "0.001"


def test_prepared_for_the_cpu_only_rounds(tiny_checkpoint):
    module, splits = tasks.module("text-classification"), small()
    torch.manual_seed(0)
    model = module.build(tiny_checkpoint, module.labels(splits["train"])).eval()
    tokenizer = AutoTokenizer.from_pretrained(tiny_checkpoint)
    batch = tasks.collate(module.encode(splits["train"], tokenizer)[:8], tokenizer.pad_token_id)
    with torch.no_grad():
        exact = model(**batch).logits
        training.prepare_for_cpu(model, "fp32")
        assert torch.allclose(model(**batch).logits, exact, atol=1e-5)
        training.prepare_for_cpu(model, "bf16")
        with torch.autocast("cpu", torch.bfloat16):
            assert torch.allclose(model(**batch).logits.float(), exact, atol=0.03)
    assert checkpoints.pick_device("cpu") == "cpu"
