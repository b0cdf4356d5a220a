"""Batch scoring: every row in exactly one of the pair, whatever the row, whenever it is killed."""

import csv
import importlib.util
import json
import os
import random
import signal
import subprocess
import sys
import time
import tracemalloc
from pathlib import Path

import pandas as pd
import pytest
import requests

from helpers import batch, checkpoints, fill_mask
from helpers.serving import local_server

PROJECT = Path(__file__).resolve().parents[1]
SCRIPT = PROJECT / "cli" / "score_batch.py"
GOOD = [f"{who} {did} the [MASK] {when}." for who in ("Anna", "nobody", 'the "boss"', "Żaneta")
        for did in ("opened", "lost,\nfound and lost", "fed") for when in ("today", "in [MASK]")]
HEADER = b"input_string\r\n"
# What a row can be poisoned with: its bytes in csv and in jsonl, and the code of its error.
POISONS = {
    "no mask": (b"no mask here", b'{"input_string": "no mask here"}', "no_mask"),
    "lower-case mask": (b"a [mask] here", b'{"input_string": "a [mask] here"}', "no_mask"),
    "too long": (b"word " * 600 + b"[MASK]", None, "too_long"),
    "not utf-8": (b"caf\xe9 [MASK]", b'{"input_string": "caf\xe9 [MASK]"}', "not_utf8"),
    "empty": (b'""', b'{"input_string": ""}', "no_mask"),
    "blank line": (b"", None, "no_mask"),
    "comma without quotes": (b"one, two [MASK]", None, "not_csv"),
    "quote never closed": (b'"one [MASK]', None, "not_csv"),
    "text after a quote": (b'"one" [MASK]', None, "not_csv"),
    "huge": (b"x" * 600_000 + b" [MASK]", b'{"input_string": "' + b"x" * 600_000 + b'"}',
             "too_large"),
    "broken json": (None, b'{"input_string": "one [MASK]', "not_json"),
    "blank json line": (None, b"", "not_json"),
    "no json": (None, b"one [MASK]", "not_json"),
    "a key twice": (None, b'{"input_string": "a [MASK]", "input_string": ""}', "not_json"),
    "deep": (None, b"[" * 100_000, "not_json"),
    "nul": (None, b'{"input_string": "one \x00 [MASK]"}', "not_json"),
    "no object": (None, b'["one [MASK]"]', "not_an_object"),
    "no field": (None, b'{"text": "one [MASK]"}', "missing_key"),
    "number": (None, b'{"input_string": 5}', "wrong_type"),
    "null": (None, b'{"input_string": null}', "wrong_type"),
    "half a surrogate": (None, b'{"input_string": "\\ud800 [MASK]"}', "not_text"),
}


@pytest.fixture(scope="module")
def fill(tiny_checkpoint):
    return fill_mask.load(tiny_checkpoint, "cpu")


@pytest.fixture
def script(monkeypatch, tiny_checkpoint, tmp_path):
    """The scoring script as Azure loads it, its output under tmp_path/out."""
    monkeypatch.setenv("AZUREML_MODEL_DIR", str(tiny_checkpoint))
    monkeypatch.setenv("AZUREML_BI_OUTPUT_PATH", str(tmp_path / "out"))
    monkeypatch.setenv("INPUT_FOLDER", str(tmp_path / "in"))
    monkeypatch.setenv("TOP_K", "2")
    spec = importlib.util.spec_from_file_location("score_batch", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def write_csv(path: Path, texts: list[str]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pd.DataFrame({"input_string": texts}).to_csv(path, index=False)
    return path


def rows_of(place: Path) -> list[tuple[str, str]]:
    with open(place, encoding="utf-8", newline="") as file:
        return [(row["file"], row["row"]) for row in csv.DictReader(file)]


def poisoned(path: Path, rows: int, share: float, seed: int, texts=GOOD) -> dict[int, str]:
    """Write a file of texts and poisons in a random order; return the code of each bad row."""
    rng, column = random.Random(seed), 0 if path.suffix == ".csv" else 1
    codes, path = {}, Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    fitting = [poison for poison in POISONS.values() if poison[column] is not None]
    with open(path, "wb") as file:
        file.write(HEADER if column == 0 else b"")
        for row in range(rows):
            text = rng.choice(texts)
            last = row == rows - 1  # there a blank line is no row
            if rng.random() < share and not last:
                poison = rng.choice(fitting)
                codes[row] = poison[2]
                file.write(poison[column] + b"\n")
            elif column == 0:
                file.write(b'"' + text.replace('"', '""').encode() + b'"\r\n')
            else:
                file.write(json.dumps({"id": row, "input_string": text}).encode() + b"\n")
    return codes


def check_pair(output: Path, name: str, rows: int, codes: dict[int, str]) -> None:
    """Every row is in exactly one of the pair, and the errors are the poisoned ones."""
    filled = rows_of(output / "predictions" / f"{name}.csv")
    failed = rows_of(output / "errors" / f"{name}.csv")
    assert {int(row) for _, row in failed} == set(codes) and len(failed) == len(codes)
    assert {int(row) for _, row in filled} == set(range(rows)) - set(codes)
    assert {file for file, _ in filled + failed} <= {name}
    errors = pd.read_csv(output / "errors" / f"{name}.csv")
    assert dict(zip(errors["row"], errors["code"])) == codes
    assert errors["message"].str.startswith("row ").all()


# ---------------------------------------------------------------- reading

def test_pandas_and_we_read_the_same_csv(tmp_path):
    odd = ['a "quoted" [MASK]', "line\none [MASK]", "comma, [MASK]", '"', " lead", "tab\t", "NA",
           '""', "x" * 2000, "Ω 日本 [MASK]", ",", "'", '","', "end\n"]
    path = write_csv(tmp_path / "odd.csv", odd)
    assert list(batch.read(path)) == odd
    assert list(batch.read(path)) == pd.read_csv(path, keep_default_na=False).iloc[:, 0].tolist()
    path.write_bytes("\ufeffid,input_string,more\r\n1,one [MASK],\r\n".encode())
    assert list(batch.read(path)) == ["one [MASK]"]


@pytest.mark.parametrize("name", POISONS)
def test_a_poisoned_row_costs_itself_only(name, script, tmp_path, fill):
    for column, kind in enumerate(("csv", "jsonl")):
        bad = POISONS[name][column]
        if bad is None:
            continue
        path = tmp_path / "in" / f"file.{kind}"
        path.parent.mkdir(exist_ok=True)
        good = [b"one [MASK]", b'"two, [MASK]"'] if kind == "csv" else [
            b'{"input_string": "one [MASK]"}', b'{"input_string": "two, [MASK]"}']
        path.write_bytes((HEADER if kind == "csv" else b"")
                         + b"\n".join([good[0], bad, bad, good[1], bad, good[0]]) + b"\n\n\n")
        batch.score(path, path.name, tmp_path / "out", fill, 1)
        check_pair(tmp_path / "out", path.name, 6, dict.fromkeys((1, 2, 4), POISONS[name][2]))


@pytest.mark.parametrize("name, content, code", [
    ("a.csv", b"text\none [MASK]\n", "no_column"), ("a.csv", b"", "no_column"),
    ("a.csv", b"input_string,input_string\na,b\n", "no_column"),
    ("a.csv", "input_string\na [MASK]\n".encode("utf-16"), "no_column"),
    ("a.csv", b'"input_string\nno end', "no_column"), ("a.txt", b"one [MASK]", "unknown_format"),
    ("a.parquet", b"PAR1", "unknown_format"),
])
def test_a_file_that_cannot_be_read_is_one_error(name, content, code, script, tmp_path, fill):
    path = tmp_path / name
    path.write_bytes(content)
    assert batch.score(path, name, tmp_path / "out", fill) == (name, 0, 1)
    table = batch.gather(tmp_path / "out")
    assert table["code"].tolist() == [code] and table["row"].isna().all()


def test_a_file_without_permission_is_one_error(tmp_path, fill):
    (tmp_path / "folder.csv").mkdir()  # reading it fails for root too
    assert batch.score(tmp_path / "folder.csv", "folder.csv", tmp_path / "out", fill).errors == 1
    assert batch.gather(tmp_path / "out")["code"].tolist() == ["unreadable"]


def test_files_without_rows_make_empty_pairs(tmp_path, fill):
    for name, content in (("a.csv", "input_string\n"), ("b.jsonl", "\n")):
        (tmp_path / name).write_text(content)
        assert batch.score(tmp_path / name, name, tmp_path / "out", fill) == (name, 0, 0)
    assert len(batch.gather(tmp_path / "out")) == 0


@pytest.mark.parametrize("content", [
    HEADER + b'"no end [MASK]\n' + b"row [MASK]\n" * 400_000, b"x" * 8_000_000,
    HEADER + b'"' + b"x" * 8_000_000, HEADER + b"\n" * 4_000_000,
], ids=["open quote", "one line", "quoted line", "blank lines"])
def test_reading_takes_little_memory_whatever_the_file(content, tmp_path):
    path = tmp_path / "long.csv"
    path.write_bytes(content)
    tracemalloc.start()
    rows = batch.read(path)
    for _ in range(2000):
        next(rows, None)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 6_000_000


def test_a_quote_never_closed_is_read_once(tmp_path):
    """Every line is measured a few times, however many of them wait behind the quote."""
    measured = 0

    class Line(str):
        def __len__(self):
            nonlocal measured
            measured += 1
            return super().__len__()

    lines = [Line('"no end [MASK]\n'), *(Line(f"row {i} [MASK]\n") for i in range(5000))]
    records = list(batch._records(iter(lines)))
    assert [fault for _, fault, _ in records[:2]] == ["a quote is not closed", ""]
    assert [fields for fields, _, _ in records[1:]] == [[f"row {i} [MASK]"] for i in range(5000)]
    assert measured < 5 * len(lines)


# ---------------------------------------------------------------- scoring

def test_azure_calls_init_and_run(script, tmp_path, fill):
    texts = {"a.csv": GOOD, "sub/a.csv": GOOD[::-1], "sub/b.jsonl": GOOD[:5]}
    for name in list(texts)[:2]:
        write_csv(tmp_path / "in" / name, texts[name])
    (tmp_path / "in" / "sub" / "b.jsonl").write_text(
        "\n".join(json.dumps({"input_string": text}) for text in GOOD[:5]))
    script.init()
    paths = [str(tmp_path / "in" / name) for name in texts]
    assert script.run(paths) == [f"{name}: {len(t)} rows filled, 0 errors"
                                 for name, t in texts.items()]
    assert script.run(paths) == [f"{name}: finished before" for name in texts]
    table = batch.gather(tmp_path / "out")
    for name, expected in texts.items():
        own = table[table["file"] == name]
        for row, answer in enumerate(fill(expected, top_k=2)):
            masks = [answer] if isinstance(answer[0], dict) else answer
            found = own[own["row"] == row]
            assert found["token"].tolist() == [c["token"] for mask in masks for c in mask]
            assert found["sequence"].tolist() == [c["sequence"] for mask in masks for c in mask]
            assert found["score"].tolist() == pytest.approx(
                [c["score"] for mask in masks for c in mask], abs=1e-6)
            assert found["mask"].tolist() == [m for m in range(len(masks)) for _ in (1, 2)]
            assert found["rank"].tolist() == [1, 2] * len(masks)


def test_a_changed_input_is_scored_again(script, tmp_path):
    path = write_csv(tmp_path / "in" / "a.csv", GOOD[:2])
    script.init()
    script.run([path])
    write_csv(path, GOOD[:3])
    os.utime(path, (time.time() + 5, time.time() + 5))
    assert script.run([path]) == ["a.csv: 3 rows filled, 0 errors"]


def test_batch_answers_equal_online_answers(script, tiny_checkpoint, tmp_path):
    bad = ["no mask", "", "word " * 600 + "[MASK]", "x [mask]", "\ud800 [MASK]", 5, None]
    path = tmp_path / "in" / "a.jsonl"
    path.parent.mkdir()
    path.write_text("\n".join(json.dumps({"input_string": t}) for t in [*GOOD, *bad]))
    script.init()
    script.run([path])
    table = batch.gather(tmp_path / "out").groupby("row")
    with local_server(tiny_checkpoint) as url:
        def ask(texts):
            return requests.post(f"{url}/score", json={
                "inputs": {"input_string": texts}, "parameters": {"top_k": 2}}, timeout=60).json()

        for row, answer in enumerate(ask(GOOD)):
            online = pd.json_normalize(answer if isinstance(answer[0], dict) else sum(answer, []))
            ours = table.get_group(row).reset_index()
            assert ours["score"].tolist() == pytest.approx(online["score"].tolist(), abs=1e-6)
            for name in ("token", "token_str", "sequence"):
                assert ours[name].tolist() == online[name].tolist()
        for row, text in enumerate(bad, len(GOOD)):
            error = ask([*GOOD, *bad[:row - len(GOOD)], text][row:] or [text])["error"]
            ours = table.get_group(row).iloc[0]
            assert ours["code"] == error["code"]
            assert ours["message"] == error["message"].replace("row 0:", f"row {row}:")


def test_no_answer_may_fill_the_memory(tmp_path, fill):
    path = write_csv(tmp_path / "a.csv", ["[MASK] " * 400, "one [MASK]"])
    counts = batch.score(path, "a.csv", tmp_path / "out", fill, fill.vocab_size)
    assert counts == ("a.csv", 1, 1)
    assert batch.gather(tmp_path / "out")["code"].dropna().tolist() == ["answer_too_large"]


def test_names_stay_apart_and_the_same_in_every_worker(script, monkeypatch, tmp_path):
    mount = "/mnt/azureml/cr/j/0123abcd/cap/data-capability/wd/INPUT_texts"
    assert script.name_of(f"{mount}/sub/a.csv") == "sub/a.csv"
    assert script.name_of(tmp_path / "in" / "sub" / "a.csv") == "sub/a.csv"
    monkeypatch.delenv("INPUT_FOLDER")
    assert script.name_of("/data/x/a.csv") == "data/x/a.csv"


def test_gather_refuses_half_a_pair(tmp_path, fill):
    path = write_csv(tmp_path / "a.csv", GOOD)
    batch.score(path, "a.csv", tmp_path / "out", fill)
    (tmp_path / "out" / "predictions" / "a.csv.csv").unlink()
    with pytest.raises(FileNotFoundError, match="no whole pair for a.csv.csv"):
        batch.gather(tmp_path / "out")


# ---------------------------------------------------------------- the driver

def drive(source: Path, output: Path, checkpoint: Path, *options: str, **more):
    command = [sys.executable, str(SCRIPT), str(source), str(output), "--checkpoint",
               str(checkpoint), "--top_k", "2", *options]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                            env={**os.environ, "OMP_NUM_THREADS": "1"}, start_new_session=True,
                            cwd=source.parent, **more)


def alive(group: int) -> bool:
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True


def wait_until(condition, seconds: float = 60) -> bool:
    end = time.monotonic() + seconds
    while not (done := condition()) and time.monotonic() < end:
        time.sleep(0.02)
    return done


def write_inputs(folder: Path, files: int, rows: int, share: float, texts=GOOD) -> dict:
    return {name: poisoned(folder / name, rows, share, seed, texts) for seed in range(files)
            for name in [f"{'sub/' * (seed % 2)}{seed}.{'csv' if seed % 3 else 'jsonl'}"]}


def kill_and_restart(folder: Path, checkpoint: Path, codes: dict, rows: int, kills: int,
                     seed: int, *options: str, seconds: float = 60) -> None:
    """SIGKILL the driver at random moments until it has worked `kills` times; check the pairs."""
    rng, output = random.Random(seed), folder / "out"
    for _ in range(kills):
        driver = drive(folder / "in", output, checkpoint, *options)
        before = len(list(output.rglob("*.csv")))
        wait_until(lambda: driver.poll() is not None or list(output.rglob("*.part"))
                   or len(list(output.rglob("*.csv"))) > before, 120)
        time.sleep(rng.random() * seconds)
        driver.kill()  # the driver alone: its workers must not live on
        driver.communicate()
        assert wait_until(lambda: not alive(driver.pid)), "a worker outlived its driver"
        for place in (output / "predictions").rglob("*.csv"):  # what looks finished is
            name = str(place.relative_to(output / "predictions")).removesuffix(".csv")
            check_pair(output, name, rows, codes[name])
    driver = drive(folder / "in", output, checkpoint, *options)
    said, errors = driver.communicate(timeout=3600)
    assert driver.returncode == 0, errors
    for name in codes:
        check_pair(output, name, rows, codes[name])
    assert not list(output.rglob("*.part"))
    assert len(list(output.rglob("*.csv"))) == 2 * len(codes)


def test_killed_at_random_and_started_again(tmp_path, tiny_checkpoint):
    codes = write_inputs(tmp_path / "in", 4, 700, 0.1)
    kill_and_restart(tmp_path, tiny_checkpoint, codes, 700, 2, 1, "--workers", "2", seconds=1)


def test_a_dead_worker_is_a_failure_said_so(tmp_path, tiny_checkpoint):
    if not Path("/proc/self/task").exists():
        pytest.skip("needs /proc to find the workers")
    write_inputs(tmp_path / "in", 4, 3000, 0.0)
    driver = drive(tmp_path / "in", tmp_path / "out", tiny_checkpoint, "--workers", "2")
    assert wait_until(lambda: list((tmp_path / "out").rglob("*.part")), 120)
    child = Path(f"/proc/{driver.pid}/task/{driver.pid}/children").read_text().split()[-1]
    os.kill(int(child), signal.SIGKILL)
    said, errors = driver.communicate(timeout=120)
    assert driver.returncode == 1 and "a worker died" in errors and "start it again" in errors


def test_the_driver_says_what_it_did(tmp_path, tiny_checkpoint):
    codes = write_inputs(tmp_path / "in", 2, 40, 0.2)
    environment = {k: v for k, v in os.environ.items() if k != "TQDM_DISABLE"}
    command = [sys.executable, str(SCRIPT), "in", "out", "--checkpoint", str(tiny_checkpoint)]
    bad = sum(map(len, codes.values()))
    for expected, progress in ((f"2 files, {80 - bad} rows filled, {bad} errors", "rows/s"),
                               ("2 files, 2 of them finished before", "")):
        done = subprocess.run(command, cwd=tmp_path, env=environment, text=True,
                              capture_output=True)
        assert done.returncode == 0 and expected in done.stdout and progress in done.stderr
    other = subprocess.run([*command, "--top_k", "3"], cwd=tmp_path, text=True,
                           capture_output=True)
    assert other.returncode == 2 and "begun with another top_k" in other.stderr


def test_hidden_files_and_folders_are_left_out(script, tmp_path):
    for name in ("a.csv", "sub/b.csv", ".c.csv", ".ipynb_checkpoints/a-checkpoint.csv",
                 "sub/.git/d.csv"):
        write_csv(tmp_path / ".home" / "in" / name, GOOD)
    source = tmp_path / ".home" / "in"  # what is above the input does not count
    found = script.find_files(source, tmp_path / "out")
    assert sorted(str(path.relative_to(source)) for path in found) == ["a.csv", "sub/b.csv"]
    assert script.find_files(source / ".c.csv", tmp_path / "out") == [source / ".c.csv"]


@pytest.mark.parametrize("arguments, said", [
    (["nowhere", "out"], "there is no nowhere"), (["empty", "out"], "no file in empty"),
    (["in", "in/out"], "lies in the input folder"), (["in", "out", "--top_k", "0"], "top_k"),
    (["in", "out", "--workers", "0"], "--workers"),
    (["in", "out", "--checkpoint", "./x"], "no folder"),
])
def test_wrong_usage_is_refused(arguments, said, script, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    write_csv(tmp_path / "in" / "a.csv", GOOD)
    (tmp_path / "empty").mkdir()
    try:
        status = script.main(arguments)
    except SystemExit as error:  # argparse's way out
        status = error.code
    assert status == 2 and said in capsys.readouterr().err


# ---------------------------------------------------------------- at full size

def texts_up_to_2_kb(count: int = 2000) -> list[str]:
    """Masked texts of 20 to 2,000 bytes; their words are long, so that 512 tokens hold them."""
    rng, words = random.Random(0), ["government", "international", "understanding", "development"]
    texts = []
    for _ in range(count):
        size = rng.randint(20, 2000)
        text = " ".join(rng.choices(words, k=size // 10))
        texts.append(text[:size - 7] + " [MASK]")
    return texts


def test_the_long_texts_are_long_and_fit(fill):
    texts = texts_up_to_2_kb()
    tokens = [len(ids) for ids in fill.tokenizer(texts)["input_ids"]]
    assert 1980 < max(map(len, texts)) <= 2000 and max(tokens) <= 512
    assert sum(len(text) > 1000 for text in texts) > 900


@pytest.mark.soak
def test_a_hundred_thousand_rows_killed_at_random(tmp_path, tiny_checkpoint):
    """Ten files of 10,000 rows of up to 2 kB, 1 % poisoned in every way."""
    codes = write_inputs(tmp_path / "in", 10, 10_000, 0.01, texts_up_to_2_kb())
    assert {code for bad in codes.values() for code in bad.values()} == {
        poison[2] for poison in POISONS.values()}
    kill_and_restart(tmp_path, tiny_checkpoint, codes, 10_000, 8, 2, seconds=45)


GROWTH = """
import resource, sys
sys.path.insert(0, {cli!r})
import score_batch
def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024  # MiB
score_batch.init()
score_batch.service["fill"](["Paris is the [MASK] of France."])
loaded = peak()
score_batch.run([{path!r}])
print(peak() - loaded)
"""


@pytest.mark.parametrize("rows, model", [
    (1000, "tiny"), *(pytest.param(*case, marks=pytest.mark.soak) for case in (
        (10_000, "tiny"), (100_000, "tiny"), (10_000, "embedded")))])
def test_memory_stays_flat_however_long_the_file(rows, model, tmp_path, tiny_checkpoint):
    checkpoint = checkpoints.EMBEDDED if model == "embedded" else tiny_checkpoint
    codes = poisoned(tmp_path / "long.csv", rows, 0.01, 1, texts_up_to_2_kb())
    code = GROWTH.format(cli=str(SCRIPT.parent), path=str(tmp_path / "long.csv"))
    done = subprocess.run([sys.executable, "-c", code], text=True, capture_output=True, env={
        **os.environ, "OMP_NUM_THREADS": "1", "AZUREML_MODEL_DIR": str(checkpoint),
        "AZUREML_BI_OUTPUT_PATH": str(tmp_path / "out"), "INPUT_FOLDER": str(tmp_path)})
    assert done.returncode == 0, done.stderr
    check_pair(tmp_path / "out", "long.csv", rows, codes)
    assert float(done.stdout.split()[-1]) < 50
