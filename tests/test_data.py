"""Where a data set comes from: own files good and bad, carving, and the Hub on loopback."""

import collections
import json
import subprocess
import sys

import datasets
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from helpers import data
from tests import hub_server
from tests.conftest import shared_folder

CLASSIFY, TAG, ANSWER, FILL = data.TASKS

TWEETS = [
    ("Rained off again, so we ate the sandwiches in the car.", "calm"),
    ('She said "no, never", twice; and meant it.', "cross"),
    ("Ça va, très bien même, à demain!", "glad"),
    ("Who moved the ladder,\nand who let the goat out?", "cross"),
    ("tabs\tare allowed in a cell", "calm"),
    ("Eleven, out of ten.", "glad"),
] * 5
NOTES = [
    (["Ada", "King", "left", "Leeds", "."], ["B-PER", "I-PER", "O", "B-LOC", "O"]),
    (["Nobody", "came", "."], ["O", "O", "O"]),
    (["The", "U.N.", "wrote", "\"", "yes", "\""], ["O", "B-ORG", "O", "O", "O", "O"]),
] * 5
PASSAGES = [(f"Ferry {n} leaves Oban at {n}.15 and the Ferry band plays.", f"When does {n} leave?",
             f"{n}.15", len(f"Ferry {n} leaves Oban at ")) for n in range(10, 30)]


def write(path, rows):
    """Write rows (dicts) in the format that the path's ending names, by other hands than ours."""
    path.parent.mkdir(parents=True, exist_ok=True)
    frame = pd.DataFrame(rows)
    if path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    elif path.suffix == ".json":
        path.write_text(json.dumps(rows, ensure_ascii=False, indent=1), encoding="utf-8")
    elif path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    else:
        frame.to_csv(path, index=False, sep="\t" if path.suffix == ".tsv" else ",")
    return str(path)


def rows_of(loaded):
    """Every row of every split, in no order, with names instead of numbers."""
    found = []
    for split in loaded.values():
        for row in split:
            if "ner_tags" in row:
                feature = split.features["ner_tags"].feature
                row["ner_tags"] = [feature.int2str(tag) for tag in row["ner_tags"]]
            if "label" in row:
                row["label"] = split.features["label"].int2str(row["label"])
            found.append(row)
    return sorted(json.dumps(row, sort_keys=True) for row in found)


def expected(rows):
    return sorted(json.dumps(row, sort_keys=True) for row in rows)


# Readers' own files

@pytest.mark.parametrize("task", data.TASKS)
def test_embedded_is_what_the_files_say(task):
    folder = data.EMBEDDED / data.TASKS[task][0]
    loaded = data.load("embedded", task)
    assert list(loaded) == ["train", "validation", "test"]
    lines = [json.loads(line) for file in folder.glob("*.jsonl")
             for line in file.read_text(encoding="utf-8").splitlines()]
    columns = loaded["train"].column_names
    for line in lines:
        line["label"] = line.get("label_text")
    assert rows_of(loaded) == expected([{name: line[name] for name in columns} for line in lines])
    for file in folder.glob("*.jsonl"):
        if task != FILL:
            assert len(loaded[file.stem]) == len(file.read_text().splitlines())


def test_embedded_has_the_hubs_columns_and_names():
    label = data.load("embedded", CLASSIFY)["test"].features["label"]
    assert label.names == ["sadness", "joy", "love", "anger", "fear", "surprise"]
    tags = data.load("embedded", TAG)["test"].features["ner_tags"].feature
    assert tags.names == ["O", "B-PER", "I-PER", "B-ORG", "I-ORG", "B-LOC", "I-LOC",
                          "B-MISC", "I-MISC"]
    assert data.load("embedded", ANSWER)["test"].features == datasets.Features({
        "id": datasets.Value("string"), "title": datasets.Value("string"),
        "context": datasets.Value("string"), "question": datasets.Value("string"),
        "answers": {"text": datasets.List(datasets.Value("string")),
                    "answer_start": datasets.List(datasets.Value("int32"))}})
    assert data.load("embedded", FILL)["test"].features["label"].names == ["neg", "pos"]


@pytest.mark.parametrize("ending", ["jsonl", "json", "csv", "tsv", "parquet"])
@pytest.mark.parametrize("columns", ["text=tweet, label=feeling",
                                     {"text": "tweet", "label": "feeling"}])
def test_own_classification_file(tmp_path, ending, columns):
    rows = [{"no": n, "feeling": label, "text": "not this one", "tweet": text}
            for n, (text, label) in enumerate(TWEETS)]
    loaded = data.load(write(tmp_path / f"mine.{ending}", rows), CLASSIFY, columns=columns)
    assert loaded["test"].features["label"].names == ["calm", "cross", "glad"]
    assert rows_of(loaded) == expected([{"text": t, "label": l} for t, l in TWEETS])


@pytest.mark.parametrize(
    "ending", ["jsonl", "json", "csv", "tsv", "parquet", "conll", "txt", "bio"])
def test_own_token_file(tmp_path, ending):
    path = tmp_path / f"mine.{ending}"
    columns = "tokens=words,ner_tags=entities"
    if ending == "tsv":  # words apart by spaces
        write(path, [{"words": " ".join(w), "entities": " ".join(t)} for w, t in NOTES])
    elif ending in ("conll", "bio", "txt"):
        gap = "\t" if ending == "bio" else " "
        sentences = ["\n".join(gap.join([word, "X", tag, "last"]) for word, tag in zip(*note))
                     for note in NOTES]
        head = "-DOCSTART- X O last\n\n" if ending == "conll" else "# id 7 domain=notes\n"
        path.write_text(head + "\n\n\n".join(sentences) + "\n", newline="\r\n")
        columns = "tokens=0,ner_tags=2"
    else:
        write(path, [{"words": words, "entities": tags} for words, tags in NOTES])
    loaded = data.load(str(path), TAG, columns=columns)
    names = loaded["train"].features["ner_tags"].feature.names
    assert names == ["O", "B-PER", "I-PER", "B-ORG", "I-ORG", "B-LOC", "I-LOC"]
    assert rows_of(loaded) == expected([{"tokens": w, "ner_tags": t} for w, t in NOTES])


def test_conll_takes_the_first_and_last_column_and_keeps_a_hash_sign(tmp_path):
    (tmp_path / "mine.conll").write_text("# NN O\nAda NN B-PER\n\n" * 10)
    loaded = data.load(str(tmp_path / "mine.conll"), TAG)
    assert rows_of(loaded) == expected([{"tokens": ["#", "Ada"], "ner_tags": ["O", "B-PER"]}] * 10)


@pytest.mark.parametrize("ending", ["jsonl", "json", "csv", "tsv", "parquet"])
@pytest.mark.parametrize("form", ["nested", "flat", "list"])
def test_own_question_file(tmp_path, ending, form):
    rows = []
    for context, question, gold, start in PASSAGES:
        row = {"passage": context, "ask": question}
        if form == "flat":
            row |= {"gold": gold, "from": start}
        elif form == "list":
            row |= {"answers": [{"text": gold, "answer_start": start}]}
        else:
            row |= {"answers": {"text": [gold], "answer_start": [start]}}
        rows.append(row)
    columns = "context=passage,question=ask"
    columns += ",answer_text=gold,answer_start=from" if form == "flat" else ""
    loaded = data.load(write(tmp_path / f"mine.{ending}", rows), ANSWER, columns=columns)
    found = rows_of(loaded)
    assert found == expected([
        {"id": f"train-{n}", "title": "", "context": c, "question": q,
         "answers": {"text": [g], "answer_start": [s]}}
        for n, (c, q, g, s) in enumerate(PASSAGES)])


def test_squads_own_nesting(tmp_path):
    path = tmp_path / "train-v1.1.json"
    path.write_text(json.dumps({"version": "1.1", "data": [
        {"title": "Ferries", "paragraphs": [
            {"context": c, "qas": [{"id": q, "question": q,
                                    "answers": [{"text": g, "answer_start": s}]}]}
            for c, q, g, s in PASSAGES]}]}))
    loaded = data.load(str(path), ANSWER)
    assert sum(map(len, loaded.values())) == len(PASSAGES)
    assert set(loaded["test"]["title"]) == {"Ferries"}


def test_text_alone_is_enough_to_fill_masks(tmp_path):
    loaded = data.load(write(tmp_path / "mine.csv", [{"text": t} for t, _ in TWEETS]), FILL)
    assert loaded["train"].column_names == ["text"]
    assert rows_of(loaded) == expected([{"text": t} for t, _ in TWEETS])


def test_folder_takes_its_splits_from_the_names(tmp_path):
    parts = {"data/train-00000-of-00002.csv": TWEETS[:7], "data/train-00001-of-00002.csv":
             TWEETS[7:11], "data/dev.jsonl": TWEETS[11:14], "data/my_test.parquet": TWEETS[14:]}
    for name, rows in parts.items():
        write(tmp_path / name, [{"text": t, "label": l} for t, l in rows])
    (tmp_path / "README.md").write_text("training and testing")
    loaded = data.load(str(tmp_path), CLASSIFY)
    assert {split: len(rows) for split, rows in loaded.items()} == {
        "train": 11, "validation": 3, "test": 16}
    assert loaded["train"]["text"][:] == [text for text, _ in TWEETS[:11]]


def test_bom_and_windows_line_ends(tmp_path):
    lines = ["text,label"] + [f"row {n},{'ab'[n % 2]}" for n in range(20)]
    (tmp_path / "mine.csv").write_bytes("\r\n".join(lines).encode("utf-8-sig"))
    assert data.load(str(tmp_path / "mine.csv"), CLASSIFY)["test"]["text"][0].startswith("row ")
    lines = [json.dumps({"text": f"row {n}", "label": n % 2}) for n in range(20)]
    (tmp_path / "mine.jsonl").write_bytes("\r\n".join(lines).encode("utf-8-sig"))
    assert len(data.load(str(tmp_path / "mine.jsonl"), CLASSIFY)["train"]) == 16


@pytest.mark.parametrize("values, names", [
    ([0, 1, 2], ["0", "1", "2"]), ([10, 9, 0], ["0", "9", "10"]), (["b", "a"], ["a", "b"]),
    ([1.0, 0.0], ["0", "1"]), ([True, False], ["False", "True"])])
@pytest.mark.parametrize("ending", ["jsonl", "parquet", "csv"])
def test_labels_are_named_by_themselves(tmp_path, ending, values, names):
    rows = [{"text": f"row {n}", "label": values[n % len(values)]} for n in range(30)]
    if ending == "csv" and isinstance(values[0], float):
        names = ["0.0", "1.0"]
    loaded = data.load(write(tmp_path / f"mine.{ending}", rows), CLASSIFY)
    label = loaded["train"].features["label"]
    assert label.names == names
    for row in loaded["train"]:
        value = str(values[int(row["text"].split()[1]) % len(values)])
        assert label.int2str(row["label"]) in (value, value.removesuffix(".0"))


def test_numbers_are_named_by_label_text_and_by_the_files_own_features(tmp_path):
    rows = [{"text": f"row {n}", "label": n % 3, "label_text": ["low", "mid", "high"][n % 3]}
            for n in range(30)]
    loaded = data.load(write(tmp_path / "mine.csv", rows), CLASSIFY)
    assert loaded["train"].features["label"].names == ["low", "mid", "high"]
    features = datasets.Features({
        "text": datasets.Value("string"),
        "label": datasets.ClassLabel(names=["low", "mid", "high", "top"])})
    datasets.Dataset.from_dict({name: [row[name] for row in rows] for name in features},
                               features=features).to_parquet(tmp_path / "train.parquet")
    loaded = data.load(str(tmp_path / "train.parquet"), CLASSIFY)
    assert loaded["train"].features["label"].names == ["low", "mid", "high", "top"]


def test_numbered_tags_are_conlls(tmp_path):
    rows = [{"tokens": ["Ada", "left", "Oban"], "ner_tags": [1, 0, 5]}] * 10
    loaded = data.load(write(tmp_path / "mine.jsonl", rows), TAG)
    assert rows_of(loaded) == expected(
        [{"tokens": ["Ada", "left", "Oban"], "ner_tags": ["B-PER", "O", "B-LOC"]}] * 10)


# Bad files: the error names file, row and remedy

GOOD = [{"text": f"row {n}", "label": "ab"[n % 2]} for n in range(12)]
ASKS = [{"context": "Tea is at four in Leeds.", "question": "Where is tea?",
         "answers": {"text": ["Leeds"], "answer_start": [18]}} for _ in range(12)]
TAGS = [{"tokens": ["Ada", "left"], "ner_tags": ["B-PER", "O"]} for _ in range(12)]


def with_row(rows, row, **changes):
    """The rows, one of them (counted from 1) changed; None takes a column out."""
    changed = {name: value for name, value in {**rows[row - 1], **changes}.items()
               if value is not ...}
    return [*rows[:row - 1], changed, *rows[row:]]


@pytest.mark.parametrize("task, rows, says", [
    (CLASSIFY, with_row(GOOD, 3, text=""), ["row 3", "text is empty", "delete the row"]),
    (CLASSIFY, with_row(GOOD, 4, text="  \n"), ["row 4", "text is empty"]),
    (CLASSIFY, with_row(GOOD, 5, text=None), ["row 5", "text is missing"]),
    (CLASSIFY, with_row(GOOD, 5, text=...), ["row 5", "text is missing"]),
    (CLASSIFY, with_row(GOOD, 6, text=17), ["row 6", "17", "int", "write text"]),
    (CLASSIFY, with_row(GOOD, 6, text=["a"]), ["row 6", "list", "write text"]),
    (CLASSIFY, with_row(GOOD, 7, label=None), ["row 7", "label None"]),
    (CLASSIFY, [{"text": "x", "label": None}] * 3, ["row 1", "label is missing"]),
    (CLASSIFY, with_row(GOOD, 7, label=""), ["row 7", "label is missing"]),
    (CLASSIFY, with_row(GOOD, 7, label=-1), ["row 7", "label -1 is a int, in row 1 it is 'a'"]),
    (CLASSIFY, with_row([{**row, "label": n % 2} for n, row in enumerate(GOOD)], 7, label=-1),
     ["row 7", "label is missing (-1)"]),
    (CLASSIFY, with_row(GOOD, 7, label=" "), ["row 7", "label is missing (' ')"]),
    (CLASSIFY, with_row(GOOD, 7, label="-1"), ["row 7", "label is missing ('-1')", "a name"]),
    (CLASSIFY, [{**row, "label": n % 3 - 1} for n, row in enumerate(GOOD)],
     ["row 1", "label is missing (-1)", "-1 marks a missing label on the Hub"]),
    (CLASSIFY, with_row([{**row, "label": n % 2} for n, row in enumerate(GOOD)], 7,
                        label=float("nan")), ["row 7", "label is missing (nan)"]),
    (CLASSIFY, with_row(GOOD, 3, text="\u200b \u200d\ufeff"), ["row 3", "text is empty"]),
    (CLASSIFY, with_row(GOOD, 3, text="x \ud800"), ["row 3", "surrogate pair ('\\ud800')"]),
    (CLASSIFY, with_row(GOOD, 4, label="\udc00"), ["row 4", "surrogate pair"]),
    (TAG, with_row(TAGS, 4, tokens=["Ada", "\ud83d"]), ["row 4", "surrogate pair"]),
    (TAG, with_row(TAGS, 4, tokens="['Ada', '\\ud83d']"), ["row 4", "surrogate pair"]),
    (TAG, with_row(TAGS, 4, tokens="{[]: 1}"), ["row 4", "tokens is not a list"]),
    (ANSWER, with_row(ASKS, 2, question="Who \udfff?"), ["row 2", "surrogate pair"]),
    (ANSWER, with_row(ASKS, 2, answers={"text": ["Leeds"], "answer_start": ["\u00b2"]}),
     ["row 2", "answer_start '\u00b2' is not a whole number"]),
    (ANSWER, with_row(ASKS, 2, answers="{[]: 1}"), ["row 2", "answers is not an object"]),
    (ANSWER, with_row(ASKS, 5, context="\u200b"), ["row 5", "context is empty"]),
    (CLASSIFY, with_row([{**row, "label": n % 2, "label_text": "ab"[n % 2]} for n, row in
                         enumerate(GOOD)], 9, label_text=" "), ["row 9", "label_text is empty"]),
    (CLASSIFY, with_row(GOOD, 8, label=0.5), ["row 8", "0.5", "all as numbers"]),
    (CLASSIFY, [{**row, "label": n / 2} for n, row in enumerate(GOOD)], ["row 2", "0.5", "whole"]),
    (CLASSIFY, [{**row, "label": "a"} for row in GOOD], ["only one label, 'a'"]),
    (CLASSIFY, [{"text": "x", "mood": "a"}], ["no column 'label'", "'text', 'mood'",
                                              "label=ITS_NAME"]),
    (CLASSIFY, with_row([{**row, "label": n % 2, "label_text": "ab"[n % 2]} for n, row in
                         enumerate(GOOD)], 9, label_text="c"),
     ["row 9", "'a' elsewhere", "'c' here"]),
    (FILL, with_row(GOOD, 2, text=""), ["row 2", "text is empty"]),
    (TAG, with_row(TAGS, 2, ner_tags=["O"]), ["row 2", "2 tokens but 1 ner_tags"]),
    (TAG, with_row(TAGS, 3, tokens=[], ner_tags=[]), ["row 3", "tokens is []"]),
    (TAG, with_row(TAGS, 3, tokens=None), ["row 3", "tokens is None"]),
    (TAG, with_row(TAGS, 4, tokens=["Ada", ""]), ["row 4", "token '' is empty"]),
    (TAG, with_row(TAGS, 4, tokens=["Ada", 7]), ["row 4", "token 7"]),
    (TAG, with_row(TAGS, 5, ner_tags=["PER", "O"]), ["row 5", "tag 'PER'", "B-TYPE"]),
    (TAG, with_row(TAGS, 5, ner_tags=["S-PER", "O"]), ["row 5", "tag 'S-PER'"]),
    (TAG, with_row(TAGS, 6, ner_tags=[9, 0]), ["row 6", "tag 9 is outside 0 to 8"]),
    (TAG, [{**row, "ner_tags": ["O", "O"]} for row in TAGS], ["every tag is O"]),
    (ANSWER, with_row(ASKS, 2, answers={"text": ["Leeds"], "answer_start": [17]}),
     ["row 2", "'Leeds' is not at 17", "' Leed'", "set answer_start to 18"]),
    (ANSWER, with_row(ASKS, 2, answers={"text": ["York"], "answer_start": [18]}),
     ["row 2", "'York'", "copy the answer"]),
    (ANSWER, with_row(ASKS, 3, answers={"text": [], "answer_start": []}),
     ["row 3", "at least one"]),
    (ANSWER, with_row(ASKS, 3, answers={"text": ["Leeds"], "answer_start": []}),
     ["row 3", "1 answer texts and 0 answer_start"]),
    (ANSWER, with_row(ASKS, 4, answers={"text": ["Leeds"], "answer_start": [-6]}),
     ["row 4", "-6", "whole number"]),
    (ANSWER, with_row(ASKS, 4, answers="Leeds"), ["row 4", "'Leeds'", "answer_start"]),
    (ANSWER, with_row(ASKS, 4, answers=None), ["row 4", "None", "answer_start"]),
    (ANSWER, with_row(ASKS, 5, question=" "), ["row 5", "question is empty"]),
    (ANSWER, with_row(ASKS, 5, context=...), ["row 5", "context is missing"]),
])
def test_bad_rows(tmp_path, task, rows, says):
    path = write(tmp_path / "mine.jsonl", rows)
    with pytest.raises(ValueError) as error:
        data.load(path, task)
    for words in ["mine.jsonl", *says]:
        assert words in str(error.value)
    assert str(error.value).count(";") >= 1, "no remedy"


@pytest.mark.parametrize("name, content, says", [
    ("a.jsonl", b'{"text": "x", "label": 0}\n{"text": "y" "label": 1}\n', ["row 2", "not JSON"]),
    ("a.jsonl", b'{"text": "x", "label": 0}\n\n{"text": "y", "label": 1}\n', ["row 2", "empty"]),
    ("a.jsonl", b'{"text": "x", "label": 0}\n["y", 1]\n', ["row 2", "a list, not an object"]),
    ("a.jsonl", b"", ["row 1", "the line is empty"]),
    ("a.jsonl", '{"text": "x", "label": 0}\n{"text": "été", "label": 1}'.encode("latin-1"),
     ["line 2", "not UTF-8", "0xe9", "save the file as UTF-8"]),
    ("a.json", b'[{"text": "x",\n "label": }]', ["line 2", "not JSON"]),
    ("a.json", b'{"text": "x"}', ["no list of rows"]),
    ("a.json", b"[]", ["no rows"]),
    ("a.json", b'[{"text": "x", "label": 0}, 5]', ["row 2", "a int, not an object"]),
    ("a.csv", b"text,label\nx,0\ny,1,2\n", ["line 3", 'in "..."']),
    ("a.csv", b"text,label\nx,y,0\nz,1\n", ["row 1", "more cells than the header"]),
    ("a.csv", b'text,label\n"x,0\ny,1\n', ["EOF inside string", 'in "..."']),
    ("a.csv", b"text,label\nx,0\ny\nz,1\n", ["row 2", "label is missing"]),
    ("a.csv", b"text,label\nx,0\n,1\n", ["row 2", "text is empty"]),
    ("a.csv", b"text,label\nx,0\n\ny,1\n", ["row 2", "text is empty"]),
    ("a.csv", b"text,label\n", ["no rows"]),
    ("a.csv", b"", ["a.csv", "No columns"]),
    ("a.csv", "text,label\nx,0\nété,1\n".encode("utf-16"), ["line 1", "not UTF-8"]),
    ("a.parquet", b"text,label\nx,0\n", ["not a parquet file", "write it again"]),
    ("a.txt", b"x 0\n", ["token-classification only"]),
    ("a.xlsx", b"x", [".xlsx", ".parquet"]),
])
def test_broken_files(tmp_path, name, content, says):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError) as error:
        data.load(str(tmp_path / name), CLASSIFY)
    for words in [name, *says]:
        assert words in str(error.value)


PARAGRAPHS = '"paragraphs": [{"context"'


@pytest.mark.parametrize("name, content, says", [
    ("a.json", '[{"paragraphs": ["x"]}]', ["row 1", "paragraphs is ['x']", PARAGRAPHS]),
    ("a.json", '[{"paragraphs": []}, {"paragraphs": 5}]', ["row 2", "paragraphs is 5", PARAGRAPHS]),
    ("a.json", '[{"paragraphs": [{"qas": {}}]}]', ["row 1", "qas is {}", PARAGRAPHS]),
    ("a.json", '[{"paragraphs": [{"qas": ["x"]}]}]', ["row 1", "qas is ['x']", PARAGRAPHS]),
    ("a.json", '[{"context": "x \\ud800"}]', ["row 1", "surrogate pair", "its whole pair"]),
    ("a.json", "[" * 100_000, ["lists within lists", "flat objects"]),
    ("a.jsonl", "[" * 100_000, ["row 1", "lists within lists", "flat object a line"]),
    ("a.csv", "context,question,answer_text,answer_start\nTea in Ely.,Where?,Ely,\u00b2\n",
     ["row 1", "answer_start '\u00b2'", "count the characters"]),
    *((f"a.{ending}", start + '{"context": "Tea in Ely.", "question": "Where?", "answers": '
       '{"text": ["Ely"], "answer_start": [' + "7" * 5000 + "]}}" + end,
       ["row 1", "answer_start inf", "count the characters"])
      for ending, start, end in (("jsonl", "", ""), ("json", "[", "]"))),
])
def test_broken_question_files(tmp_path, name, content, says):
    (tmp_path / name).write_text(content, encoding="utf-8")
    with pytest.raises(ValueError) as error:
        data.load(str(tmp_path / name), ANSWER)
    for words in [name, *says]:
        assert words in str(error.value)


@pytest.mark.parametrize("ending", ["jsonl", "csv", "json", "parquet"])
def test_labels_from_minus_one_are_refused_in_every_format(tmp_path, ending):
    rows = [{"text": f"row {n}", "label": n % 3 - 1} for n in range(30)]
    with pytest.raises(ValueError, match=r"row 1: label is missing .*-1 marks a missing label"):
        data.load(write(tmp_path / f"mine.{ending}", rows), CLASSIFY)


def test_numbers_of_any_length_are_labels_or_named_errors(tmp_path):
    long = "7" * 5000
    (tmp_path / "mine.csv").write_text("text,label\n" + f"x,{long}\ny,2\n" * 10)
    loaded = data.load(str(tmp_path / "mine.csv"), CLASSIFY)
    assert loaded["train"].features["label"].names == ["2", long]
    (tmp_path / "mine.jsonl").write_text(
        '{"text": "x", "label": 0}\n{"text": "y", "label": %s}\n' % long)
    with pytest.raises(ValueError, match="mine.jsonl, row 2: label is inf, a float; write a name"):
        data.load(str(tmp_path / "mine.jsonl"), CLASSIFY)


@pytest.mark.parametrize("content, says", [
    ("Ada B-PER\nleft\n", ["line 2", "1 columns, not 2"]),
    ("Ada\nleft\n", ["line 1", "1 columns, not 2", "empty line after a sentence"]),
    ("Ada B-PER\nleft O\n\n\nOban LOC\n", ["sentence 2 at line 5", "tag 'LOC'"]),
    ("", ["no rows"]),
])
def test_broken_conll(tmp_path, content, says):
    (tmp_path / "a.conll").write_text(content)
    with pytest.raises(ValueError) as error:
        data.load(str(tmp_path / "a.conll"), TAG)
    for words in ["a.conll", *says]:
        assert words in str(error.value)


def test_unknown_labels_and_types_name_the_split_that_has_them(tmp_path):
    write(tmp_path / "train.csv", GOOD)
    write(tmp_path / "test.csv", with_row(GOOD, 5, label="bb"))
    with pytest.raises(ValueError, match=r"test\.csv, row 5: label 'bb' does not occur in train"):
        data.load(str(tmp_path), CLASSIFY)
    tags = tmp_path / "tags"
    write(tags / "train.jsonl", TAGS)
    write(tags / "validation.jsonl", with_row(TAGS, 4, ner_tags=["B-PRE", "O"]))
    with pytest.raises(ValueError, match=r"validation\.jsonl, row 4: type PRE .*did you mean PER"):
        data.load(str(tags), TAG)


def test_labels_outside_the_declared_names(tmp_path):
    table = datasets.Dataset.from_dict(
        {"text": ["x"] * 12, "label": [0, 1] * 6}, features=datasets.Features(
            {"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["a", "b"])}
        )).data.table
    table = table.set_column(1, table.schema.field("label"), pa.array([0, 1] * 5 + [0, 7]))
    pq.write_table(table, tmp_path / "mine.parquet")
    with pytest.raises(ValueError, match=r"mine\.parquet, row 12: label 7 is outside 0 to 1"):
        data.load(str(tmp_path / "mine.parquet"), CLASSIFY)


def test_the_last_of_a_hundred_thousand_rows_is_checked(tmp_path):
    rows = [{"text": f"row {n}", "label": n % 5} for n in range(99_999)] + [
        {"text": "the last", "label": "four"}]
    path = write(tmp_path / "mine.jsonl", rows[:-1])
    assert sum(map(len, data.load(path, CLASSIFY).values())) == 99_999
    write(tmp_path / "test.csv", [{"text": "x", "label": 1}] * 100_000 + [{"text": "", "label": 1}])
    (tmp_path / "mine.jsonl").rename(tmp_path / "train.jsonl")
    with pytest.raises(ValueError, match=r"test\.csv, row 100001: text is empty"):
        data.load(str(tmp_path), CLASSIFY)


@pytest.mark.parametrize("files, says", [
    (["test.csv"], "no train file"), ([], "no train file"),
    (["one.csv", "two.csv"], "no train file"),
    (["train.csv", "train.jsonl"], "keep one format")])
def test_folders_that_do_not_say_what_is_what(tmp_path, files, says):
    for name in files:
        write(tmp_path / name, GOOD)
    with pytest.raises((ValueError, FileNotFoundError), match=says):
        data.load(str(tmp_path), CLASSIFY)


@pytest.mark.parametrize("arguments, says", [
    (dict(dataset="embedded", task="emotion"), "task: no task 'emotion'"),
    (dict(dataset="./nowhere", task=CLASSIFY), "no folder or file nowhere"),
    (dict(dataset="nowhere.csv", task=CLASSIFY), "no folder or file nowhere.csv"),
    (dict(dataset="squad", task=ANSWER), "owner/name"),
    (dict(dataset="embedded", task=CLASSIFY, columns="text"), "no = in 'text'"),
    (dict(dataset="embedded", task=CLASSIFY, columns="tweet=text"), "'tweet' is not one of text"),
    (dict(dataset="embedded", task=CLASSIFY, columns={"text": "tweet"}), "no column 'tweet'"),
    (dict(dataset="embedded", task=CLASSIFY, max_train_samples=0), "max_train_samples"),
    (dict(dataset="embedded", task=CLASSIFY, seed="1"), "seed"),
    (dict(dataset="lhoestq/conll2003", task=TAG), "needs the full commit"),
    (dict(dataset="someone/else", task=TAG), "someone/else@COMMIT"),
    (dict(dataset="dair-ai/emotion", task=CLASSIFY, revision="main"), "40 hex digits"),
])
def test_arguments(arguments, says):
    with pytest.raises((ValueError, FileNotFoundError)) as error:
        data.load(**arguments)
    assert says in str(error.value)


# Carving and sampling

def shares(split):
    count = collections.Counter(split["label"])
    return {label: count[label] / len(split) for label in count}


def test_carving_keeps_shares_and_every_row_once(tmp_path):
    rows = [{"text": f"row {n}", "label": "a" if n % 10 == 0 else "b" if n % 3 else "c"}
            for n in range(1000)]
    path = write(tmp_path / "mine.jsonl", rows)
    loaded = data.load(path, CLASSIFY, seed=1)
    assert [len(split) for split in loaded.values()] == [800, 100, 100]
    assert rows_of(loaded) == expected(rows)
    whole = collections.Counter(row["label"] for row in rows)
    names = loaded["train"].features["label"].names
    for split in loaded.values():
        for label, share in shares(split).items():
            assert abs(share - whole[names[label]] / 1000) <= 1.5 / len(split)
    again, other = data.load(path, CLASSIFY, seed=1), data.load(path, CLASSIFY, seed=2)
    assert again["test"]["text"][:] == loaded["test"]["text"][:]
    assert set(other["test"]["text"]) != set(loaded["test"]["text"])


@pytest.mark.parametrize("there", ["validation", "test"])
def test_carving_takes_a_fifth_where_one_is_there(tmp_path, there):
    write(tmp_path / "train.csv", GOOD * 10)
    write(tmp_path / f"{there}.csv", GOOD[:4])
    loaded = data.load(str(tmp_path), CLASSIFY)
    carved = "test" if there == "validation" else "validation"
    assert (len(loaded["train"]), len(loaded[carved]), len(loaded[there])) == (96, 24, 4)
    assert shares(loaded[carved]) == {0: 0.5, 1: 0.5}


def test_a_class_with_one_row_can_be_carved(tmp_path):
    path = write(tmp_path / "mine.csv", [*GOOD, {"text": "alone", "label": "z"}])
    assert sum(map(len, data.load(path, CLASSIFY).values())) == 13


def test_no_passage_is_in_two_splits(tmp_path):
    rows = [{"context": c, "question": f"{q} ({n})",
             "answers": {"text": [g], "answer_start": [s]}}
            for n in range(3) for c, q, g, s in PASSAGES]
    loaded = data.load(write(tmp_path / "mine.jsonl", rows), ANSWER)
    passages = [set(split["context"]) for split in loaded.values()]
    assert [len(split) for split in loaded.values()] == [48, 6, 6]
    assert sum(map(len, passages)) == len(set.union(*passages)) == len(PASSAGES)
    with pytest.raises(ValueError, match="train has 9 passages, too few to carve"):
        data.load(write(tmp_path / "few.jsonl", [row for row in rows if row["context"] in
                                                 {c for c, *_ in PASSAGES[:9]}]), ANSWER)


def test_samples_are_seeded_and_only_make_smaller():
    loaded = data.load("embedded", CLASSIFY, seed=5, max_train_samples=50, max_eval_samples=20)
    assert [len(split) for split in loaded.values()] == [50, 20, 20]
    whole = data.load("embedded", CLASSIFY, max_train_samples=10**6)
    assert set(loaded["train"]["text"]) < set(whole["train"]["text"])
    assert loaded["train"].features == whole["train"].features
    again = data.load("embedded", CLASSIFY, seed=5, max_train_samples=50)
    assert again["train"]["text"][:] == loaded["train"]["text"][:]
    other = data.load("embedded", CLASSIFY, seed=6, max_train_samples=50)
    assert other["train"]["text"][:] != loaded["train"]["text"][:]


# The Hub, on loopback, with the real files

CONLL = "a" * 40  # no pin is known, so that a commit must be given: on this Hub, this one
NEWER = "f" * 40
NAMES = {
    "dair-ai/emotion": (CLASSIFY, data.REVISIONS["dair-ai/emotion"]),
    "lhoestq/conll2003": (TAG, CONLL),
    "rajpurkar/squad": (ANSWER, data.REVISIONS["rajpurkar/squad"]),
    "stanfordnlp/imdb": (FILL, data.REVISIONS["stanfordnlp/imdb"]),
}
LOAD = """
import json, sys
from helpers import data
out = {}
for name, task in json.loads(sys.argv[1]):
    loaded = data.load(name, task)
    features = loaded["train"].features
    label = features.get("label") or getattr(features.get("ner_tags"), "feature", None)
    out[name] = {
        "sizes": {split: len(rows) for split, rows in loaded.items()},
        "columns": loaded["train"].column_names, "names": label.names if label else None,
        "first": {split: rows[0] for split, rows in loaded.items()},
        "last": {split: rows[-1] for split, rows in loaded.items()}}
print("RESULT" + json.dumps(out))
"""


def client(hub, home, *wanted, **environment):
    """Load in a process of its own, which knows this Hub only."""
    return subprocess.run(
        [sys.executable, "-c", LOAD, json.dumps(wanted)], env=hub.environment(home) | environment,
        capture_output=True, text=True, timeout=600)


def result(run):
    assert run.returncode == 0, run.stderr[-3000:]
    return json.loads(run.stdout.partition("RESULT")[2])


@pytest.fixture(scope="module")
def hub(tmp_path_factory):
    """The four data sets at their pins, and newer commits on main that must not be used."""
    repositories = {}
    for name, (_, commit) in NAMES.items():
        folder = shared_folder("hub", *name.split("/"))
        newer = tmp_path_factory.mktemp("newer")
        for file in folder.rglob("*.parquet"):
            target = newer / file.relative_to(folder)
            target.parent.mkdir(parents=True, exist_ok=True)
            pq.write_table(pq.read_table(file).slice(0, 40), target)
        repositories[name] = hub_server.Repository({commit: folder, NEWER: newer}, kind="dataset")
    with hub_server.serve(repositories) as server:
        yield server


def on_disk(name):
    """The splits of the real files, read by pyarrow alone."""
    folder = shared_folder("hub", *name.split("/"))
    return {split: pa.concat_tables(map(pq.read_table, sorted(folder.rglob(f"{split}-*.parquet"))))
            for split in data.SPLITS if list(folder.rglob(f"{split}-*.parquet"))}


def test_the_four_hub_data_sets_at_their_pins_then_without_a_network(hub, tmp_path):
    wanted = [(f"{name}@{commit}" if name not in data.REVISIONS else name, task)
              for name, (task, commit) in NAMES.items()]
    found = result(client(hub, tmp_path, *wanted))
    files = [request.path for request in hub.files()]
    for (asked, _), (name, (task, commit)) in zip(wanted, NAMES.items()):
        answer, real = found[asked], on_disk(name)
        assert not any(name in path and NEWER in path for path in files)
        assert answer["columns"] == {
            CLASSIFY: ["text", "label"], TAG: ["tokens", "ner_tags"], FILL: ["text", "label"],
            ANSWER: ["id", "title", "context", "question", "answers"]}[task]
        assert answer["names"] == {
            CLASSIFY: ["sadness", "joy", "love", "anger", "fear", "surprise"],
            TAG: data.TAGS, ANSWER: None, FILL: ["neg", "pos"]}[task]
        assert list(answer["sizes"]) == ["train", "validation", "test"]
        assert sum(answer["sizes"].values()) == sum(table.num_rows for table in real.values())
        for split, table in real.items():
            if split != "train" or len(real) == 3:  # not carved: row for row the same
                assert answer["sizes"][split] == table.num_rows
                rows = table.select(answer["columns"])
                assert answer["first"][split] == rows.slice(0, 1).to_pylist()[0]
                assert answer["last"][split] == rows.slice(table.num_rows - 1).to_pylist()[0]
    hub.down = True
    try:
        again = result(client(hub, tmp_path, *wanted))
        offline = result(client(hub, tmp_path, wanted[0], HF_HUB_OFFLINE="1"))
    finally:
        hub.down = False
    assert again == found
    assert offline[wanted[0][0]] == found[wanted[0][0]]


def test_another_commit_in_the_cache_is_not_taken_for_the_pinned_one(hub, tmp_path):
    assert result(client(hub, tmp_path, (f"dair-ai/emotion@{NEWER}", CLASSIFY)))
    hub.down = True
    try:
        run = client(hub, tmp_path, ("dair-ai/emotion", CLASSIFY), HF_HUB_OFFLINE="1")
    finally:
        hub.down = False
    assert run.returncode == 1
    assert "FileNotFoundError: dataset: " in run.stderr.splitlines()[-1]


@pytest.mark.parametrize("name", ["nobody/nothing@" + "b" * 40, "dair-ai/emotion@" + "b" * 40])
def test_what_the_hub_does_not_have(hub, tmp_path, name):
    run = client(hub, tmp_path, (name, CLASSIFY))
    assert run.returncode == 1
    last = [line for line in run.stderr.splitlines() if line.strip()][-1]
    assert last.startswith("FileNotFoundError: dataset: ") and "bbbbbbb" in last
    assert "dataset=embedded" in last
