"""Every row of the benchmarks at tiny size: it runs, and both sides computed the same thing."""

import json
import re
import shutil
from contextlib import contextmanager

import numpy as np
import pytest
import torch

from benchmarks import (__main__ as bench, agreement, bars, batch, bulk, cells, details, evaluating,
                        finetuning, harness, int8, online, results, start, table, training_speed)
from helpers import checkpoints, data, evaluation, tasks


@pytest.fixture(autouse=True)
def quiet():
    from transformers import logging
    logging.set_verbosity_error()


def figures(measured):
    """The one Measured's lines by name; every one a finite number within its own range."""
    (one,) = measured
    for line in one.lines:
        assert np.isfinite(line.value), line
        assert line.low is None or line.low <= line.value <= line.high, line
    names = [line.metric for line in one.lines]
    assert len(set(names)) == len(names)
    return {line.metric: line.value for line in one.lines}


def assert_conditions(found, sides):
    """The machine's own rate, and the peak memory of so many sides."""
    assert found["matrix-multiply rate, fp32, GFLOP/s"] > 0
    memory = [value for name, value in found.items() if name.endswith(": peak memory, MB")]
    assert len(memory) == sides and min(memory) > 100


# ------------------------------------------------------------ the harness

def test_sides_take_turns():
    calls = []
    seconds = harness.alternate({name: lambda name=name: calls.append(name) for name in "ab"}, 3)
    assert "".join(calls) == "ab" + "abbaab"  # each once to warm up, then in turn
    assert {name: len(values) for name, values in seconds.items()} == {"a": 3, "b": 3}


def test_ratio_pairs_the_rounds():
    seconds = {"ours": [1.0, 10.0, 1.0], "theirs": [2.0, 30.0, 4.0]}
    assert harness.ratio(seconds, "ours", "theirs", "x/s") == \
        ("ours over theirs: x/s", 3.0, 2.0, 4.0)
    assert harness.speeds(10, "x", seconds)[0] == ("ours: x/s", 10.0, 1.0, 10.0)
    assert harness.quickest(seconds, ["ours", "theirs"]) == "ours"


def test_operations_are_counted():
    a, b = torch.ones(3, 5), torch.ones(5, 7)
    assert harness.count_operations(lambda: a @ b) == 2 * 3 * 5 * 7
    assert harness.matmul_rate("fp32", seconds=0.05) > 0


def test_peak_memory_of_a_child_process():
    program = "import time; held = b'x' * ({} << 20); time.sleep(0.5)"
    small, large = (harness.peak_memory(exec, program.format(size)) for size in (1, 300))
    assert 250 < large - small < 350
    with pytest.raises(RuntimeError, match="exec ended with code 1"):
        harness.peak_memory(exec, "1 / 0")


def test_command_fails_in_words():
    import sys
    with pytest.raises(RuntimeError, match="ended with code 3:\nbecause"):
        harness.run_command([sys.executable, "-c", "import sys; print('because', "
                             "file=sys.stderr); sys.exit(3)"])


def test_base_checkpoint_has_the_exact_shape(shared):
    from transformers import DistilBertConfig, DistilBertForMaskedLM
    with harness.base_checkpoint() as folder:
        model = DistilBertForMaskedLM.from_pretrained(folder)
        ours = json.loads((folder / "config.json").read_text())
    assert sum(p.numel() for p in model.parameters()) == 66_985_530  # as published
    real = shared("hub", "distilbert", "distilbert-base-uncased", "config.json")
    real = DistilBertConfig.from_dict(json.loads(real.read_text())).to_dict()
    for name in ("dim", "hidden_dim", "n_heads", "n_layers", "vocab_size",
                 "max_position_embeddings", "activation"):
        assert ours[name] == real[name], name


def test_sentences_have_one_mask_and_repeat():
    texts = harness.sentences(200)
    assert texts == harness.sentences(200) != harness.sentences(200, seed=1)
    assert all(text.count("[MASK]") == 1 for text in texts)


def test_conditions_are_rates_and_memory():
    lines = harness.conditions({"ours": [3.0, 1.0, 2.0], "theirs": 4.0}, {"bf16": 5e9})
    assert [line[:2] for line in lines] == [("matrix-multiply rate, bf16, GFLOP/s", 5.0),
                                            ("ours: peak memory, MB", 2.0),
                                            ("theirs: peak memory, MB", 4.0)]


def test_memory_of_a_child_that_a_block_starts():
    import subprocess
    import sys
    import time

    @contextmanager
    def server():
        with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as child:
            yield "address"
            child.communicate(b"\n")

    peaks = {}
    with harness.memory_of_children(peaks, "python", server()) as address:
        time.sleep(0.6)
    assert address == "address" and 1 < peaks["python"] < 200


def answer(*pairs):
    return [[{"token": token, "score": score} for token, score in pairs]]


def test_same_answers():
    expected = answer((1, 0.5), (2, 0.2), (3, 0.2))
    harness.check_same(answer((1, 0.500001), (3, 0.2), (2, 0.2)), expected)  # a tie turns round
    for other in (answer((2, 0.5), (1, 0.2), (3, 0.2)), answer((1, 0.5001), (2, 0.2), (3, 0.2)),
                  answer((1, 0.5), (2, 0.2), (3, 0.1))):
        with pytest.raises(RuntimeError, match="mask 0: the sides disagree"):
            harness.check_same(other, expected)


def test_versions_of_the_servers_are_told():
    assert "mlflow " in harness.machine() and "azureml-inference-server-http " in harness.machine()


# ------------------------------------------------------------ the rows

def test_bulk(tiny_checkpoint):
    found = figures(bulk.run(str(tiny_checkpoint), texts=12, rounds=2, precisions=("fp32",)))
    assert found["ours, fp32: largest difference of a score"] < 1e-5
    assert found["ours, fp32: same first word"] == 1
    assert any(name.startswith("ours, fp32 over pipeline, batches of ") for name in found)
    assert found["ours, fp32: share of that rate"] > 0
    assert_conditions(found, 2)


def test_bulk_fast_formats_stay_close(tiny_checkpoint):
    ways = bulk.sides(tiny_checkpoint, harness.sentences(16), ("fp32", "bf16", "int8"))
    exact = ways["ours, fp32"]()
    for name, most in (("ours, bf16", 1e-3), ("ours, int8", 5e-3)):
        error, agree = bulk.differences(ways[name](), exact)
        assert 0 < error < most
        assert agree >= 0.8


@pytest.mark.parametrize("layer, most", [(int8.Int8Linear, 0.02), (int8.RoundedWeights, 0.01)])
def test_int8_layer_is_a_rounded_linear_layer(layer, most):
    torch.manual_seed(0)
    linear = torch.nn.Linear(64, 96)
    x = torch.randn(10, 64)
    with torch.inference_mode():
        exact, found = linear(x), layer(linear)(x).float()
    assert 0 < (found - exact).norm() / exact.norm() < most


def test_int8_rounds_token_by_token():
    torch.manual_seed(0)
    x = torch.randn(2, 6, 64) * torch.logspace(-3, 3, 6)[:, None]
    x[0, 0] = 0  # and a token without any value
    eight, scale, zero = int8.round_tokens(x)
    assert ((eight.float() - zero) * scale - x).abs().le(scale * 0.5001).all()
    layer = int8.Int8Linear(torch.nn.Linear(64, 32), torch.float32)
    torch.testing.assert_close(layer(x)[:, 2:3], layer(x[:, 2:3]))  # whatever its neighbours are


def test_gpu_row_says_what_is_missing():
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    with pytest.raises(RuntimeError, match="no CUDA device"):
        bulk.on_gpu()


def test_online(tiny_checkpoint):
    found = figures(online.run(str(tiny_checkpoint), requests_each=6, rounds=1, clients=(1, 2)))
    assert all(value == 0 for name, value in found.items() if name.endswith("failed requests"))
    assert {f"{name}, 2 clients: requests/s" for name in ("ours", "pipeline", "mlflow")} <= \
        found.keys()
    assert found["ours, 1 clients: p50, ms"] <= found["ours, 1 clients: p99, ms"]
    assert found["ours, 2 workers, 2 clients over mlflow, 2 clients: requests/s"] > 0
    assert "ours, 2 workers, 1 clients: requests/s" not in found
    assert_conditions(found, 4)


def test_load_test_counts_failures():
    with pytest.raises(StopIteration):
        next(online._Shared([]))
    failed = online.load_test("http://127.0.0.1:9/none", [{}] * 5, clients=2)
    assert len(failed["failures"]) == len(failed["latencies"]) == 5


def test_percentiles_are_of_all_rounds():
    rounds = [np.arange(100.0), np.arange(100.0, 200)]
    assert online.percentile(rounds, 50, "p50") == ("p50", 99.5, 49.5, 149.5)


def test_evaluation(tiny_checkpoint):
    found = figures(evaluating.run(str(tiny_checkpoint), words=10, rounds=1))
    assert found["ours, fp32: same first word"] == 1
    assert found["ours, fp32: largest difference of a score"] < 1e-5
    assert_conditions(found, 3)


@pytest.mark.parametrize("task", tasks.MODULES)
def test_fine_tuning_sides_train_on_the_same_rows(tiny_checkpoint, tmp_path, task):
    splits = data.load("embedded", task, max_train_samples=9)
    losses, seen = {}, {}
    for side in training_speed.side_names(task):
        one = training_speed.trainer(side, task, splits, tiny_checkpoint, str(tmp_path), 4)
        one.model.eval()  # no dropout: the same rows must give the same losses
        seen[side], losses[side] = [], []
        with torch.inference_mode():
            for rows in one.get_train_dataloader():
                for i in range(len(rows["input_ids"])):
                    row = {name: values[i:i + 1] for name, values in rows.items()}
                    if task == "question-answering":  # its softmax runs over padding, too
                        length = int(row["attention_mask"].sum())
                        row = {name: values[:, :length] if values.ndim == 2 else values
                               for name, values in row.items()}
                    seen[side].append(tuple(row["input_ids"][row["attention_mask"] == 1].tolist()))
                    with torch.autocast("cpu", torch.bfloat16, enabled="bf16" in side):
                        losses[side].append(float(one.model(**row).loss))
        order = sorted(range(len(seen[side])), key=lambda i: seen[side][i])
        losses[side] = np.array(losses[side])[order]
    assert len({tuple(sorted(rows)) for rows in seen.values()}) == 1
    for side, values in losses.items():
        np.testing.assert_allclose(values, losses[training_speed.DYNAMIC],
                                   atol=2e-2 if "bf16" in side else 1e-5)


def test_padding_as_the_scripts_do():
    rows = [{"input_ids": [5, 6], "labels": [1, 2]}, {"input_ids": [7], "labels": [3]}]
    batch = training_speed.pad_to(rows, pad_id=0, length=4)
    assert batch["input_ids"].tolist() == [[5, 6, 0, 0], [7, 0, 0, 0]]
    assert batch["attention_mask"].tolist() == [[1, 1, 0, 0], [1, 0, 0, 0]]
    assert batch["labels"].tolist() == [[1, 2, -100, -100], [3, -100, -100, -100]]


@pytest.mark.parametrize("task", ["text-classification", "question-answering"])
def test_fine_tuning(tiny_checkpoint, task):
    found = figures(training_speed.run(task, str(tiny_checkpoint), rows=8, rounds=1,
                                       batch_size=4))
    assert f"ours, fp32 over {training_speed.DYNAMIC}: samples/s" in found
    assert any(" over run_" in name for name in found)
    assert_conditions(found, len(training_speed.side_names(task)))


def test_seconds_to_a_metric():
    seen = [(1.0, 0.2), (2.0, 0.6), (3.0, 0.5), (4.0, 0.7)]
    assert training_speed.seconds_to(seen, 0.5) == 2.0
    assert training_speed.seconds_to(seen, 0.7) == 4.0


def test_the_clock_stands_still_while_the_model_is_scored(monkeypatch):
    from types import SimpleNamespace
    now = [0.0]
    monkeypatch.setattr(training_speed.time, "perf_counter", lambda: now[0])

    def score(model):
        now[0] += 100  # scoring takes long
        model.eval()
        return now[0]

    watch, model = training_speed.Watch(score, every=2), torch.nn.Linear(1, 1)
    watch.on_train_begin(None, None, None)
    for step in range(1, 6):
        now[0] += 1
        watch.on_step_end(None, SimpleNamespace(global_step=step, max_steps=5), None, model=model)
        assert model.training
    assert [seconds for seconds, _ in watch.seen] == [2, 4, 5]  # the last step counts, too


@pytest.mark.parametrize("task, name", [("text-classification", "emotion"),
                                        ("token-classification", "entities"),
                                        ("question-answering", "questions")])
def test_time_to_metric(tiny_checkpoint, tmp_path, task, name):
    shutil.copytree(checkpoints.PROJECT / "samples" / "data" / name,
                    tmp_path / training_speed.REAL[task])
    found = figures(training_speed.to_metric(tmp_path, task, tiny_checkpoint, rows=12, epochs=1.0,
                                             seeds=(0, 1), held_rows=8, looks=2))
    metric = tasks.module(task).METRIC
    sides = training_speed.side_names(task)
    for side in sides:
        assert 0 <= found[f"{side}: {metric}"] <= 100
        assert found[f"common {metric}"] <= found[f"{side}: {metric}"]
        assert found[f"{side}: seconds to the common metric"] <= found[f"{side}: seconds"]
    assert f"ours, fp32 less {sides[2]}: {metric}" in found


@pytest.mark.parametrize("all_rows", [True, False])
def test_held_out_rows_share_no_passage_with_train(all_rows):
    splits = data.load("embedded", "question-answering")
    found = finetuning.hold_out(splits, all_rows, most=30)
    train, chosen = (set(found[name]["context"]) for name in ("train", "validation"))
    assert not train & chosen
    assert 20 < len(found["validation"]) <= 30
    left = len(splits["test"]) - len(found["validation"])
    assert len(found["train"]) == len(splits["train"]) + (left if all_rows else 0)
    rows = [row["id"] for name in found for row in found[name]]
    assert len(set(rows)) == len(rows)
    assert set(found["validation"]["id"]) < set(splits["test"]["id"])


def test_intervals_of_answers_resample_passages():
    rows = data.load("embedded", "question-answering")["test"]
    answers = [gold[0] if n % 2 else "" for n, gold in
               enumerate(tasks.module("question-answering").gold(rows))]
    found = finetuning.estimates("question-answering", answers, rows)
    right = [100.0 * (n % 2) for n in range(len(rows))]
    assert found["exact_match"] == evaluation.bootstrap(right, rows["context"][:])


def test_batch(tiny_checkpoint):
    found = figures(batch.run(str(tiny_checkpoint), rows=22, rounds=1))
    for name in ("ours, 1 process", "ours, 2 processes"):
        assert found[f"{name}: largest difference of a score"] < 1e-5
        assert found[f"{name}: same words"] == 1
    assert_conditions(found, 3)
    size = next(name for name in found if name.startswith("pipeline")).split("batches of ")[1]
    assert int(size.split(":")[0]) in bulk.BATCH_SIZES


def test_batch_volume(tiny_checkpoint):
    found = figures(batch.volume(tiny_checkpoint, sizes=(5, 10)))
    assert {"5 rows: rows/s", "10 rows: peak memory, MB"} <= found.keys()


def test_start(tiny_checkpoint):
    found = figures(start.run(str(tiny_checkpoint), rounds=1))
    stages = sum(found[f"ours: {name}, s"] for name, _ in start.OURS)
    assert 0 < stages < found["ours: first answer of a fresh process, s"]
    assert "ours over pipeline: first answer of a fresh server, s" in found
    assert_conditions(found, 2)


@pytest.mark.soak
@pytest.mark.parametrize("name, sizes", [
    ("fine-tuning-emotion-base", {"rows": 2, "batch_size": 2, "rounds": 1}),
    ("batch-base", {"rows": 4, "rounds": 1, "workers": (1,)}), ("start-base", {"rounds": 1})])
def test_base_rows(name, sizes):
    (found,) = bench.measure(name, **sizes)
    assert found.data.endswith("shape of distilbert-base-uncased, random weights")
    assert found.folder is None  # it is gone
    figures([found])


def test_agreement(tiny_checkpoint, tmp_path):
    rows = [{"text": f"the film number {i} was long and i liked it", "label": i % 2}
            for i in range(12)]
    for split in ("train", "test"):
        (tmp_path / f"{split}.jsonl").write_text("\n".join(
            json.dumps({**row, "text": f"{split}: {row['text']}"}) for row in rows))
    found = figures(agreement.run(tmp_path, texts=10, folder=tiny_checkpoint))
    assert found["bf16: same first word as fp32"] > 0.7
    assert found["int8: accuracy@1 less fp32's"] == pytest.approx(
        found["int8: accuracy@1 of masked pieces"] - found["fp32: accuracy@1 of masked pieces"])


# ------------------------------------------------------------ the command and the tables

def test_every_row_has_a_function():
    for row in bench.ROWS.values():
        module, function = row.function.split(".")
        assert callable(getattr(__import__(f"benchmarks.{module}", fromlist=[function]), function))
    assert sum(row.minutes for row in bench.ROWS.values() if row.always) <= 20


def test_command_line(capsys, tmp_path):
    assert bench.main(["--list"]) == 0
    assert all(name in capsys.readouterr().out for name in ["bulk-base"])
    for arguments, said in ((["--row", "agreement"], "agreement needs real data"),
                            (["--row", "nothing"], "invalid choice: 'nothing'"),
                            (["--data", str(tmp_path / "none")], "there is no folder")):
        with pytest.raises(SystemExit):
            bench.main(arguments)
        assert said in capsys.readouterr().err


def test_a_failing_row_does_not_lose_the_others(tiny_checkpoint, tmp_path, capsys, monkeypatch):
    for name, model in (("evaluation-embedded", tiny_checkpoint), ("evaluation-base", "./none")):
        row = bench.ROWS[name]._replace(options={"model": str(model), "words": 4, "rounds": 1})
        monkeypatch.setitem(bench.ROWS, name, row)
    file = tmp_path / "results.json"
    assert bench.main(["--row", "evaluation-base", "evaluation-embedded",
                       "--results", str(file)]) == 1
    shown = capsys.readouterr()
    assert "failed: checkpoint: no folder ./none" in shown.err
    assert "ours, fp32: words/s" in shown.out
    assert {row["task"] for row in results.load(file)} == {"evaluation speed"}


def test_rows_are_saved_in_place_of_older_ones(tmp_path, tiny_checkpoint):
    file = tmp_path / "results.json"
    for metric in ("first: x/s", "second: x/s"):
        measured = harness.Measured("batch", "somewhere", 7, [harness.Line(metric, 2.0)],
                                    tiny_checkpoint)
        bench.save("batch", [measured], 1.5, file)
    (row,) = results.load(file)
    assert list(row) == results.FIELDS
    assert (row["metric"], row["command"], row["seconds"]) == \
        ("second: x/s", "make bench ROW=batch", 1.5)
    assert f"torch {torch.__version__}" in row["hardware"]


def some(task, metric, value, low=None, high=None, seed=0, data="here"):
    return {"task": task, "data": data, "split": "test", "rows": 1000, "metric": metric,
            "value": value, "low": low, "high": high, "seed": seed, "command": "c",
            "hardware": "a processor", "seconds": 1, "commit": "x", "checkpoint_sha256": None}


BLOCKS = "a\n" + "b\n".join(f"<!-- table:{name} -->\nold\n<!-- /table -->\n"
                            for name in table.TABLES)


def test_tables():
    fitted = "dair-ai/emotion (distilbert-mini-uncased, 16000 training rows)"
    rows = [some("batch", "ours, 1 process: rows/s", 300.0, 290.0, 310.0),
            some("batch", "pipeline: rows/s", 100.0),
            some("batch", "ours, 1 process over pipeline: rows/s", 3.0, 2.9, 3.1),
            some("batch", "ours, 2 processes over pipeline: rows/s", 4.0),  # has no bar
            some("fill-mask", "accuracy@10", 0.6, 0.5, 0.7),
            some("fill-mask", "accuracy@5", 0.4321, 0.4, 0.45),
            some("fill-mask, 3 layers", "accuracy@5", 0.2),
            some("fill-mask, unigram baseline", "accuracy@5", 0.1),
            some("fill-mask, all layers - 3 layers", "accuracy@5", 0.2321),
            *(some("text-classification", "accuracy", 0.9 + seed / 100, seed=seed, data=fitted)
              for seed in range(3))]
    new = table.render(BLOCKS, rows)
    shown = dict(re.findall(r"<!-- table:([\w-]+) -->\n(.*?)<!-- /table -->", new, re.DOTALL))
    assert "| batch | here | ours, 1 process | pipeline | rows/s | 300 | 100 | " \
        "3.00 (2.90 to 3.10) | 3.00 | reached |  |" in shown["speed-details"]
    assert "| batch: rows/s | here | ours, 1 process | pipeline | 3.00 (2.90 to 3.10) | 3.00 | " \
        "reached |" in shown["speed"]
    assert "2 processes" in shown["speed-details"] and "2 processes" not in shown["speed"]
    head, _, *lines = shown["checkpoint"].strip().splitlines()
    assert head == "| on | metric | rows | distilbert-mini-uncased | 3 of its layers | " \
        "the most frequent words |"
    assert lines[:2] == [
        "| here | accuracy@5 | 1,000 | 0.432 (0.400 to 0.450) | 0.200 | 0.100 |",
        "| here | accuracy@10 | 1,000 | 0.600 (0.500 to 0.700) |  |  |"]
    assert "| fill-mask, all layers - 3 layers | here | test | accuracy@5 | 0.232 | 1,000 | 1 |" \
        in shown["quality-details"]
    assert f"| {fitted} | test | accuracy | 0.910 (0.900 to 0.920) | 1,000 | 3 |" \
        in shown["quality-details"]
    assert "| dair-ai/emotion | test | 16,000 | accuracy | 0.910 (0.900 to 0.920), 3 seeds |  |" \
        in shown["finetuning"]
    # what others report, and where
    assert "| rajpurkar/squad | validation | all | f1 |  | 85.8 [2]; 86.9 [3] |" \
        in shown["finetuning"] and "[2] Sanh et al. 2019, table 2" in shown["finetuning"]
    assert "old" not in new and new.startswith("a\n") and table.render(new, rows) == new
    empty = table.render(BLOCKS, [])
    assert empty.count("Not measured yet") == len(table.TABLES)
    with pytest.raises(ValueError, match="table:none .*no such table"):
        table.render("<!-- table:none -->\n<!-- /table -->", rows)


def test_figures_of_weights_that_are_gone_are_counted():
    now = results.sha256(checkpoints.EMBEDDED)
    fitted = "dair-ai/emotion ({}, 16000 training rows)"
    shas = [("here", None), ("here", now), ("here", "gone"), (fitted.format(cells.OURS), now),
            (fitted.format(cells.OURS), "gone"), (fitted.format(table.ENCODER), "its own")]
    rows = [{**some("fill-mask", f"accuracy@{k}", 0.5, data=data), "checkpoint_sha256": sha}
            for k, (data, sha) in enumerate(shas, 1)]
    assert cells.of_older_weights(rows) == [rows[2], rows[4]]
    assert "2 of these 6 figures were measured with the first version of " in \
        cells.measured_on(rows)
    assert "first version" not in cells.measured_on(rows[:2])


@pytest.mark.parametrize("task, metric, value, high, bar, said", [
    ("fill-mask in bulk", "ours, fp32 over pipeline, batches of 8: texts/s", 2.3, 2.4, "2.20",
     "reached"),
    ("fill-mask in bulk", "ours, bf16 over pipeline, batches of 8: texts/s", 4.4, 4.6, "4.50",
     "missed: " + bars.REST),
    ("online", "ours, 1 clients over pipeline, 1 clients: p50, ms", 2.0, 2.1, "2.00", "reached"),
    ("online", "ours, 8 clients over mlflow, 8 clients: p50, ms", 1.0, 2.1, "", ""),
    ("online", "ours: failed requests", 1.0, None, "at most 0", "missed"),
    ("batch", "ours, 1 process: largest difference of a score", 2e-7, None, "at most 1e-05",
     "reached"),
    ("start", "ours over pipeline: first answer of a fresh server, s", 0.98, 1.01, "1.00",
     "reached within the spread"),
    ("start", "ours over pipeline: first answer of a fresh server, s", 0.98, 0.99, "1.00",
     "missed: nearly all of it is the import of the same torch and transformers"),
    ("fine-tuning, question-answering", "ours, bf16 over plain dynamic padding, fp32: samples/s",
     1.0, 1.0, "", "")])
def test_bars(task, metric, value, high, bar, said):
    row = some(task, metric, value, value if high else None, high)
    assert bars.verdict(row) == [bar, said]


def test_every_bar_is_of_a_row_that_runs():
    """BARS has the names that functions write: a renamed side would lose its bar."""
    script = {task: f"{name}, padding to {length}, fp32" if length else training_speed.DYNAMIC
              for task, (name, length) in training_speed.SCRIPTS.items()}
    ratios = {"fill-mask in bulk": [f"ours, {name} over pipeline, batches of 8: texts/s"
                                    for name in ("fp32", "bf16", "int8")],
              **{f"fine-tuning, {task}": [f"ours, fp32 over {theirs}: samples/s"]
                 for task, theirs in script.items()},
              "evaluation speed": [f"{evaluating.OURS} over {evaluating.ONE}: words/s"],
              "batch": [f"{batch.OURS.format(1, '')} over {batch.THEIRS.format(8)}: rows/s"]}
    for task, metrics in ratios.items():
        for metric in metrics:
            assert bars.find_bar(some(task, metric, 1.0)), metric


def test_table_of_speed_shows_what_was_measured():
    bulk_name = "ours, int8 over pipeline, batches of 8: texts/s"
    rows = [some("fill-mask in bulk", bulk_name, 6.0, 5.0, 7.0),
            some("fast formats on real text", "int8: same first word as fp32", 0.97, 0.96, 0.98),
            some("online", "ours, 8 clients: p99, ms", 12.0, 11.0, 13.0),
            some("online", "ours: failed requests", 0.0),
            some("online", "ours: peak memory, MB", 512.0),
            some("online", "matrix-multiply rate, fp32, GFLOP/s", 123.0),
            some("time to metric, x", "ours, fp32: f1", 0.8, 0.7, 0.9),
            some("start", "ours: import torch, s", 1.5)]
    shown = details.speed(rows)
    for line in ("| here | ours, 8 clients |  |  | 12.0 (11.0 to 13.0) |  |",
                 "| online | here | ours: failed requests | 0 | at most 0 | reached |",
                 "| online | here | ours: 512 | fp32: 123 |",
                 "| here | ours, fp32: f1 | 0.800 (0.700 to 0.900) |",
                 "| here | ours: import torch | 1.50 |",
                 f"int8 is left out of the helpers; it misses {bulk_name}, 6.00 (bar: 8.00); "
                 "int8: same first word as fp32, 0.970 (bar: 0.980)."):
        assert line in shown, line
    reached = [dict(row, value=9.0) if "int8" in row["metric"] else row for row in rows]
    assert "int8 reaches every bar" in details.speed(reached)


@pytest.mark.parametrize("value, shown", [(1e-7, "1e-07"), (0.5, "0.500"), (3, "3.00"),
                                          (12.34, "12.3"), (99.97, "100"), (1234.5, "1,234"),
                                          (0, "0")])
def test_numbers(value, shown):
    assert cells.number(value) == shown


def test_readme_and_card_are_in_step_with_the_results():
    used = {name for page in table.FILES
            for _, name, _ in table.BLOCK.findall(page.read_text(encoding="utf-8"))}
    assert used == set(table.TABLES)
    for page in table.FILES:
        text = page.read_text(encoding="utf-8")
        assert table.render(text, results.load()) == text, \
            f"{page.name}: python -m benchmarks.table"
