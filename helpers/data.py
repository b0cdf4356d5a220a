"""Where a data set comes from: `embedded`, a folder or file, or the Hub at a pinned revision.

Every source ends as train, validation and test with the Hub's own columns and label names, and
every row is checked before any work: an error names the file, the row and what to do.
"""

import ast
import difflib
import io
import json
import re
import unicodedata
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from datasets import ClassLabel, Dataset, DatasetDict, Features, List, Value

from helpers import checkpoints, parameters
from helpers.report import PROJECT

EMBEDDED = PROJECT / "samples" / "data"
# What a task reads: its embedded data set, the columns it needs, and those it takes if there.
TASKS = {
    "text-classification": ("emotion", ["text", "label"], ["label_text"]),
    "token-classification": ("entities", ["tokens", "ner_tags"], []),
    "question-answering": ("questions", ["context", "question", "answers"],
                           ["id", "title", "answer_text", "answer_start"]),
    "fill-mask": ("reviews", ["text"], ["label", "label_text"]),
}
# Hub names that need no `revision`: the commits this project was written against.
REVISIONS = {
    "dair-ai/emotion": "cab853a1dbdf4c42c2b3ef2173804746df8825fe",
    "rajpurkar/squad": "7b6d24c440a36b6815f21b70d25016731768db1f",
    "stanfordnlp/imdb": "e6281661ce1c48d982bc483cf8a173c1bbeb5d31",
}
TYPES = ["PER", "ORG", "LOC", "MISC"]
TAGS = ["O", *(f"{prefix}-{kind}" for kind in TYPES for prefix in "BI")]  # CoNLL-2003's order
NOT_A_LITERAL = (ValueError, SyntaxError, TypeError, MemoryError, RecursionError)
SPLITS = {"train": "train|training", "validation": "validation|valid|val|dev|eval", "test": "test"}


@dataclass
class Part:
    """One file, or one split of the Hub: its columns as lists, and how to name its rows."""

    name: str
    columns: dict[str, list]
    names: dict[str, list[str]]  # label or tag names, where the source declares them
    place: Callable[[int], str] = lambda row: f"row {row + 1}"

    def fail(self, row: int, problem: str) -> NoReturn:
        raise ValueError(f"{self.name}, {self.place(row)}: {problem}")

    @property
    def rows(self) -> int:
        return len(next(iter(self.columns.values()), []))


def load(dataset: str, task: str, revision: str | None = None,
         columns: Mapping[str, str] | str | None = None, seed: int = 0,
         max_train_samples: int | None = None,
         max_eval_samples: int | None = None) -> DatasetDict:
    """Return train, validation and test of a data set, checked and in the Hub's columns.

    `dataset` is `embedded`, a folder or file (jsonl, json, csv, tsv, parquet, or CoNLL columns
    in .conll, .bio or .txt), or a Hub name, `owner/name` or `owner/name@commit`; a name that is
    not in REVISIONS needs the commit. `columns` maps our names to the data's own, as a dict or
    as "text=tweet,label=feeling"; a CoNLL file's columns are 0, 1, 2 and so on.
    Integer tags without names are read in CoNLL-2003's order. A missing split is carved out of
    train, seeded: 80/10/10, or 80/20 if one of the two is there; classes keep their shares and
    no passage is in two splits. `max_*_samples` takes a seeded sample of what is there.
    Raises ValueError or FileNotFoundError naming file, row and remedy.
    """
    parameters.check(dataset=dataset, revision=revision, seed=seed,
                     max_train_samples=max_train_samples, max_eval_samples=max_eval_samples)
    if task not in TASKS:
        raise ValueError(f"task: no task {task!r}; give one of {', '.join(TASKS)}")
    embedded, needed, optional = TASKS[task]
    wanted = _mapping(columns, [*needed, *optional])
    path = EMBEDDED / embedded if dataset == "embedded" else Path(dataset).expanduser()
    if path.exists():
        splits = _files(path, task)
    elif not on_hub(dataset):
        raise FileNotFoundError(f"dataset: no folder or file {path}; give an existing one, "
                                "embedded, or a name on the Hub (owner/name)")
    else:
        splits = _hub(dataset, revision)
    for part in (part for parts in splits.values() for part in parts):
        _choose(part, wanted, needed)
    data = {"question-answering": _answers, "token-classification": _tags}.get(
        task, _labels)(splits)
    data = _carve(data, seed)
    for name, most in (("train", max_train_samples), ("validation", max_eval_samples),
                       ("test", max_eval_samples)):
        if most is not None and most < len(data[name]):
            order = np.random.default_rng(seed).permutation(len(data[name]))
            data[name] = data[name].select(np.sort(order[:most]))
    return DatasetDict({name: data[name] for name in SPLITS})


def on_hub(dataset: str) -> bool:
    """Whether a data set is given by its name on the Hub."""
    return ("/" in dataset and not checkpoints.is_path(dataset)
            and Path(dataset).suffix not in READERS)


def pinned(dataset: str, revision: str | None = None) -> tuple[str, str | None]:
    """Name of a data set on the Hub, and its revision: given, after the @, or in REVISIONS."""
    name, _, commit = dataset.partition("@")
    return name, revision or commit or REVISIONS.get(name)


def _mapping(columns: Mapping[str, str] | str | None, known: list[str]) -> dict[str, str]:
    if isinstance(columns, str):
        pairs = [pair.partition("=") for pair in columns.split(",")]
        if wrong := [name for name, equals, _ in pairs if not equals]:
            raise ValueError(f"columns: no = in {wrong[0]!r}; write text=tweet,label=feeling")
        columns = {name.strip(): own.strip() for name, _, own in pairs}
    for name in columns or {}:
        if name not in known:
            raise ValueError(f"columns: {name!r} is not one of {', '.join(known)}; "
                             "ours comes first, as in text=tweet")
    return {name: str((columns or {}).get(name, name)) for name in known}


def _choose(part: Part, wanted: dict[str, str], needed: list[str]) -> None:
    """Keep the wanted columns under our names; every row must have the same columns."""
    there = part.columns
    if not part.rows:
        raise ValueError(f"{part.name}: no rows; put at least one there")
    if "answers" in needed and wanted["answers"] not in there and \
            {wanted["answer_text"], wanted["answer_start"]} <= set(there):
        there["answers"] = [{"text": text, "answer_start": start} for text, start in zip(
            there[wanted["answer_text"]], there[wanted["answer_start"]])]
    for name, own in wanted.items():
        if own not in there and (name in needed or own != name):
            raise ValueError(
                f"{part.name}: no column {own!r}, it has {', '.join(map(repr, there))}; rename "
                f'one, or map it with columns="{name}=ITS_NAME"')
    part.columns = {name: there[own] for name, own in wanted.items() if own in there}
    part.names = {name: part.names[own] for name, own in wanted.items() if own in part.names}


# Reading files: each reader returns a Part, and names the line it cannot read.

def _files(path: Path, task: str) -> dict[str, list[Part]]:
    """Read a file as train, or a folder's files as the splits their names say."""
    if path.is_file():
        return {"train": [_read(path, path.name, task)]}
    found = sorted(file for file in path.rglob("*") if file.suffix.lower() in READERS
                   and not any(part.startswith(".") for part in file.relative_to(path).parts))
    splits: dict[str, list[Path]] = {}
    for file in found:
        stem = file.relative_to(path).with_suffix("").as_posix().lower()
        said = [(match.end(), split) for split, words in SPLITS.items()
                for match in re.finditer(rf"(?<![a-z])(?:{words})(?![a-z])", stem)]
        if said:
            splits.setdefault(max(said)[1], []).append(file)
    if not splits and len(found) == 1:
        splits["train"] = found
    if "train" not in splits:
        raise FileNotFoundError(
            f"dataset: no train file in {path} (it has {len(found)} data files); name one "
            f"train with one of the endings {', '.join(READERS)}")
    for split, files in splits.items():
        if len({file.suffix for file in files}) > 1:
            raise ValueError(f"dataset: {split} is there as "
                             f"{' and '.join(file.name for file in files)}; keep one format")
    return {split: [_read(file, file.relative_to(path).as_posix(), task) for file in files]
            for split, files in splits.items()}


def _read(path: Path, name: str, task: str) -> Part:
    reader = READERS.get(path.suffix.lower())
    if reader is None:
        raise ValueError(f"{name}: cannot read {path.suffix or 'a file without an ending'}; "
                         f"give one of {', '.join(READERS)}")
    if reader is _read_conll and task != "token-classification":
        raise ValueError(f"{name}: {path.suffix} is read as CoNLL columns, for "
                         "token-classification only; give jsonl, csv or parquet")
    return reader(path, name)


def _decode(path: Path, name: str) -> str:
    raw = path.read_bytes()
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw[:error.start].count(b"\n") + 1
        raise ValueError(f"{name}, line {line}: not UTF-8 (byte 0x{raw[error.start]:02x}); "
                         "save the file as UTF-8") from error


def _rows(rows: list, part: Part) -> Part:
    """Turn rows into columns; a key that a row lacks is None there."""
    for row, value in enumerate(rows):
        if not isinstance(value, dict):
            part.fail(row, f"is a {type(value).__name__}, not an object; write "
                           '{"text": ...} with a name for each column')
    names = dict.fromkeys(name for row in rows for name in row)
    part.columns = {name: [row.get(name) for row in rows] for name in names}
    return part


def _read_jsonl(path: Path, name: str) -> Part:
    part, rows = Part(name, {}, {}), []
    for row, line in enumerate(_decode(path, name).rstrip().split("\n")):
        try:
            rows.append(json.loads(line, parse_int=_integer))
        except json.JSONDecodeError as error:
            if not line.strip():
                part.fail(row, "the line is empty; delete it")
            part.fail(row, f"not JSON ({error.msg} at column {error.colno}); write one object "
                           "a line")
        except RecursionError:
            part.fail(row, "lists within lists without end; write one flat object a line")
        if "\\u" in line:  # the only way to half a character in a UTF-8 file
            _characters(part, row, rows[-1])
    return _rows(rows, part)


def _integer(digits: str) -> int | float:
    """An integer of JSON; one that nobody means is infinite, for the checks to refuse its row."""
    return int(digits) if len(digits) < 100 else float(digits)


def _characters(part: Part, row: int, value: Any) -> None:
    """Refuse half of a surrogate pair, which no file, model or answer can hold."""
    try:
        json.dumps(value, ensure_ascii=False, default=str).encode()
    except UnicodeEncodeError as error:
        half = error.object[error.start]
        part.fail(row, f"half of a surrogate pair ({half!r}); write the character itself or its "
                       "whole pair")


def _read_json(path: Path, name: str) -> Part:
    part, text = Part(name, {}, {}), _decode(path, name)
    try:
        rows = json.loads(text, parse_int=_integer)
    except json.JSONDecodeError as error:
        raise ValueError(f"{name}, line {error.lineno}: not JSON ({error.msg} at column "
                         f"{error.colno}); write one list of objects, or one object a line "
                         "in a .jsonl file") from error
    except RecursionError:
        raise ValueError(f"{name}: lists within lists without end; write one list of flat "
                         "objects") from None
    if isinstance(rows, dict):
        rows = rows.get("data")
    if not isinstance(rows, list):
        raise ValueError(f'{name}: no list of rows; write [{{...}}, ...] or {{"data": [...]}}')
    if "\\u" in text:
        for row, value in enumerate(rows):
            _characters(part, row, value)
    if rows and all(isinstance(row, dict) and "paragraphs" in row for row in rows):
        rows = [{"title": article.get("title"), "context": paragraph.get("context"), **question}
                for row, article in enumerate(rows)
                for paragraph in _objects(part, row, article, "paragraphs")
                for question in _objects(part, row, paragraph, "qas")]
    return _rows(rows, part)


def _objects(part: Part, row: int, value: dict, name: str) -> list[dict]:
    """The list of objects of that name in SQuAD's own nesting."""
    found = value.get(name, [])
    if not isinstance(found, list) or not all(isinstance(one, dict) for one in found):
        part.fail(row, f"{name} is {str(found)[:40]}, not a list of objects; write "
                       '"paragraphs": [{"context": ..., "qas": [{"question": ..., '
                       '"answers": [...]}]}]')
    return found


def _read_csv(path: Path, name: str) -> Part:
    text = _decode(path, name)
    try:
        table = pd.read_csv(io.StringIO(text), sep="\t" if path.suffix.lower() == ".tsv" else ",",
                            dtype=str, keep_default_na=False, skip_blank_lines=False)
    except (pd.errors.ParserError, pd.errors.EmptyDataError) as error:
        raise ValueError(f"{name}: {str(error).removeprefix('Error tokenizing data. C error: ')}"
                         '; put cells that hold a separator or a quote in "..."') from error
    if not isinstance(table.index, pd.RangeIndex):
        raise ValueError(f"{name}, row 1: more cells than the header has names; put cells that "
                         'hold a separator in "..."')
    table = table.astype(object).where(table.notna(), None)  # cells that a short row lacks
    return Part(name, {column: table[column].tolist() for column in table}, {})


def _read_parquet(path: Path, name: str) -> Part:
    try:
        return _arrow(pq.read_table(path), name)
    except pa.ArrowInvalid as error:
        raise ValueError(f"{name}: not a parquet file ({error}); write it again") from error


def _arrow(table: pa.Table, name: str) -> Part:
    names = {}
    for column, feature in Features.from_arrow_schema(table.schema).items():
        feature = getattr(feature, "feature", feature)
        if isinstance(feature, ClassLabel):
            names[column] = feature.names
    return Part(name, {column: table[column].to_pylist() for column in table.column_names}, names)


def _read_conll(path: Path, name: str) -> Part:
    """Read a token a line, columns apart by tabs or spaces, an empty line after a sentence."""
    sentences: list[list[list[str]]] = [[]]
    starts = []
    for number, line in enumerate(_decode(path, name).split("\n"), 1):
        cells = line.rstrip().split("\t") if "\t" in line.rstrip() else line.split()
        if not cells or cells[0] == "-DOCSTART-":
            if sentences[-1]:
                sentences.append([])
            continue
        if cells[0].startswith("#") and not re.fullmatch("O|[BI]-.+", cells[-1]):
            continue  # a comment
        width = len(sentences[0][0]) if sentences[0] else max(len(cells), 2)
        if len(cells) != width:
            raise ValueError(f"{name}, line {number}: {len(cells)} columns, not {width}; write "
                             "token and tag on each line and an empty line after a sentence")
        if not sentences[-1]:
            starts.append(number)
        sentences[-1].append(cells)
    sentences = [sentence for sentence in sentences if sentence]
    width = len(sentences[0][0]) if sentences else 0
    columns = {str(column): [[cells[column] for cells in sentence] for sentence in sentences]
               for column in range(width)}
    if columns:
        columns |= {"tokens": columns["0"], "ner_tags": columns[str(width - 1)]}
    return Part(name, columns, {}, lambda row: f"sentence {row + 1} at line {starts[row]}")


READERS = {".jsonl": _read_jsonl, ".json": _read_json, ".csv": _read_csv, ".tsv": _read_csv,
           ".parquet": _read_parquet, ".conll": _read_conll, ".bio": _read_conll,
           ".txt": _read_conll}


def _hub(name: str, revision: str | None) -> dict[str, list[Part]]:
    """Load a Hub data set at one commit; what is in the cache needs no network."""
    from datasets import exceptions, load_dataset

    name, revision = pinned(name, revision)
    if not checkpoints.is_commit(revision):
        raise ValueError(f"revision: {name} needs the full commit of the Hub data set (40 hex "
                         f"digits, on its page under Files, History), got {revision!r}; pass "
                         f"revision=, or write {name}@COMMIT")
    try:
        found = load_dataset(name, revision=revision)
    except (OSError, ValueError, RuntimeError, exceptions.DatasetsError) as error:
        raise FileNotFoundError(
            f"dataset: {name} at {revision[:7]} could not be had from the Hub "
            f"({type(error).__name__}: {str(error).partition(chr(10))[0]}); check the name and the "
            "network, or use dataset=embedded or a folder") from error
    for file in (file for split in found.values() for file in split.cache_files):
        if revision not in file["filename"]:  # without a network datasets takes any commit
            raise FileNotFoundError(f"dataset: the Hub was not reached and the cache has {name} "
                                    f"at another commit than {revision[:7]}; go online once")
    if "train" not in found:
        raise ValueError(f"dataset: {name} has no train split, only {', '.join(found)}")
    return {split: [_arrow(found[split].with_format("arrow")[:], f"{name} {split}")]
            for split in SPLITS if split in found}


# Checking: each returns the splits with the task's features, or fails at the first bad row.

def _texts(part: Part, column: str) -> None:
    for row, value in enumerate(part.columns[column]):
        if not isinstance(value, str):
            part.fail(row, f"{column} is missing; fill it in or delete the row" if value is None
                      else f"{column} is {value!r}, a {type(value).__name__}; write text")
        if not _visible(value):
            part.fail(row, f"{column} is empty; fill it in or delete the row")


def _visible(text: str) -> bool:
    """Whether a text holds more than white space, control and zero-width characters."""
    return any(not c.isspace() and unicodedata.category(c) not in ("Cc", "Cf") for c in text)


def _join(splits: dict[str, list[Part]], features: dict[str, Any]) -> dict[str, Dataset]:
    schema = Features(features).arrow_schema  # straight to Arrow: from_dict takes ten times as long
    return {split: Dataset(pa.Table.from_pydict(
        {name: [value for part in parts for value in part.columns[name]] for name in features},
        schema=schema)) for split, parts in splits.items()}


def _near(value: str, known: list[str]) -> str:
    close = difflib.get_close_matches(value, known, n=1)
    return f"did you mean {close[0]}?" if close else f"known are {', '.join(known[:20])}"


def _labels(splits: dict[str, list[Part]]) -> dict[str, Dataset]:
    """Check text and label; classes are named by the source, by label_text, or by themselves."""
    parts = [part for split in SPLITS for part in splits.get(split, [])]
    for part in parts:
        _texts(part, "text")
    if not all("label" in part.columns for part in parts):  # masked language modelling
        return _join(splits, {"text": Value("string")})
    for part in parts:
        values = part.columns["label"]
        for row, value in enumerate(values):
            if isinstance(value, str) != isinstance(values[0], str):
                part.fail(row, f"label {value!r} is a {type(value).__name__}, in row 1 it is "
                               f"{values[0]!r}; write all as names or all as numbers")
        part.columns["label"] = [_class(part, row, value)
                                 for row, value in enumerate(values)]
    names: list[str] = []
    for part in splits["train"]:
        values = list(dict.fromkeys(part.columns["label"]))
        names += [name for name in part.names.get("label", values) if name not in names]
    if not all("label" in part.names for part in splits["train"]):
        whole = all(re.fullmatch("-?[0-9]{1,18}", name) for name in names)
        names.sort(key=int if whole else str)
        if whole and all("label_text" in part.columns for part in splits["train"]):
            names = _named(parts, splits["train"], names)
    if len(names) < 2:
        raise ValueError(f"{splits['train'][0].name}: only one label, {names[0]!r}; give rows "
                         "of at least two")
    ids = {name: number for number, name in enumerate(names)}
    for part in parts:
        for row, name in enumerate(part.columns["label"]):
            if name not in ids:
                part.fail(row, f"label {name!r} does not occur in train, {_near(name, names)}; "
                               "mend it, or add such rows to train")
        part.columns["label"] = [ids[name] for name in part.columns["label"]]
    return _join(splits, {"text": Value("string"), "label": ClassLabel(names=names)})


def _class(part: Part, row: int, value: Any) -> str:
    """The class of a row, as the text that names it."""
    if value is None or value != value or str(value).strip() in ("", "-1", "-1.0"):
        part.fail(row, f"label is missing ({value!r}); fill it in or delete the row" + (
            "" if value is None or value != value or not str(value).strip() else
            "; -1 marks a missing label on the Hub, so write a name where it is a class"))
    if isinstance(value, float) and value.is_integer():
        value = int(value)  # pandas writes whole numbers so where a column has gaps
    if not isinstance(value, (str, int)):
        part.fail(row, f"label is {value!r}, a {type(value).__name__}; write a name or a whole "
                       "number")
    names = part.names.get("label")
    if names is None:
        return str(value).strip()
    if isinstance(value, int) and not 0 <= value < len(names):
        part.fail(row, f"label {value} is outside 0 to {len(names) - 1} ({', '.join(names)})")
    return names[value] if isinstance(value, int) else value


def _named(parts: list[Part], train: list[Part], numbers: list[str]) -> list[str]:
    """Replace numbers by their label_text, which must say the same for a number everywhere."""
    texts: dict[str, str] = {}
    for part in parts:
        for row, number in enumerate(part.columns["label"]):
            if "label_text" not in part.columns:
                break
            text = part.columns["label_text"][row]
            if isinstance(text, str) and not text.strip():
                part.fail(row, "label_text is empty; fill it in or delete the column")
            if not isinstance(text, str) or texts.setdefault(number, text) != text:
                part.fail(row, f"label {number} is {texts.get(number)!r} elsewhere, label_text "
                               f"says {text!r} here; mend one of them")
        part.columns["label"] = [texts.get(number, number) for number in part.columns["label"]]
    if len(set(texts.values())) < len(texts):
        raise ValueError(f"{train[0].name}: two labels have one label_text ({texts}); mend it")
    return [texts[number] for number in numbers]


def _cells(part: Part, column: str) -> None:
    """Read the lists of a column that came as text: "[1, 2]", or words apart by spaces."""
    for row, value in enumerate(part.columns[column]):
        if isinstance(value, str):
            try:
                part.columns[column][row] = (ast.literal_eval(value) if value[:1] in ("[", "{")
                                             else value.split())
            except NOT_A_LITERAL:
                part.fail(row, f"{column} is not a list: {value[:40]!r}; write "
                               '["EU", "rejects"] or the words apart by spaces')
            if "\\" in value:
                _characters(part, row, part.columns[column][row])


def _tags(splits: dict[str, list[Part]]) -> dict[str, Dataset]:
    """Check tokens and tags; the types of train make the names, O first, CoNLL's order."""
    seen: set[str] = set()
    for split in SPLITS:
        for part in splits.get(split, []):
            for column in ("tokens", "ner_tags"):
                _cells(part, column)
            numbered = part.names.get("ner_tags", TAGS)
            for row, tokens in enumerate(part.columns["tokens"]):
                tags = part.columns["ner_tags"][row]
                for column, value in (("tokens", tokens), ("ner_tags", tags)):
                    if not isinstance(value, list) or not value:
                        part.fail(row, f"{column} is {value!r}; write a list with an entry for "
                                       "each token, or delete the row")
                if len(tokens) != len(tags):
                    part.fail(row, f"{len(tokens)} tokens but {len(tags)} ner_tags; give each "
                                   "token one tag")
                if wrong := [token for token in tokens
                             if not isinstance(token, str) or not token.strip()]:
                    part.fail(row, f"token {wrong[0]!r} is empty or not text; mend it")
                part.columns["ner_tags"][row] = [_tag(part, row, tag, numbered) for tag in tags]
                kinds = {tag[2:] for tag in part.columns["ner_tags"][row]} - {""}
                if split == "train":
                    seen |= kinds
                elif unknown := sorted(kinds - seen):
                    part.fail(row, f"type {unknown[0]} does not occur in train, "
                                   f"{_near(unknown[0], sorted(seen))}; mend it, or add such rows "
                                   "to train")
    if not seen:
        raise ValueError(f"{splits['train'][0].name}: every tag is O; tag some names B-TYPE and "
                         "I-TYPE")
    kinds = [kind for kind in TYPES if kind in seen] + sorted(seen - set(TYPES))
    names = ["O", *(f"{prefix}-{kind}" for kind in kinds for prefix in "BI")]
    ids = {name: number for number, name in enumerate(names)}
    for part in (part for parts in splits.values() for part in parts):
        part.columns["ner_tags"] = [[ids[tag] for tag in tags] for tags in part.columns["ner_tags"]]
    return _join(splits, {"tokens": List(Value("string")),
                          "ner_tags": List(ClassLabel(names=names))})


def _tag(part: Part, row: int, tag: Any, numbered: list[str]) -> str:
    if isinstance(tag, int) and not isinstance(tag, bool):
        if not 0 <= tag < len(numbered):
            part.fail(row, f"tag {tag} is outside 0 to {len(numbered) - 1} "
                           f"({', '.join(numbered)}); write tags as text")
        tag = numbered[tag]
    if not isinstance(tag, str) or not re.fullmatch("O|[BI]-.+", tag):
        part.fail(row, f"tag {tag!r}; write O, B-TYPE or I-TYPE (IOB)")
    return tag


def _answers(splits: dict[str, list[Part]]) -> dict[str, Dataset]:
    """Check passages, questions and that every gold answer stands where it says."""
    for split, parts in splits.items():
        for part in parts:
            for column in ("context", "question"):
                _texts(part, column)
            part.columns["answers"] = [_gold(part, row, gold)
                                       for row, gold in enumerate(part.columns["answers"])]
            for column, fill in (("id", lambda row: f"{split}-{row}"), ("title", lambda row: "")):
                values = part.columns.get(column, [None] * part.rows)
                part.columns[column] = [fill(row) if value is None else str(value)
                                        for row, value in enumerate(values)]
    text = Value("string")
    return _join(splits, {
        "id": text, "title": text, "context": text, "question": text,
        "answers": {"text": List(text), "answer_start": List(Value("int32"))}})


def _gold(part: Part, row: int, gold: Any) -> dict[str, list]:
    """Gold answers as {"text": [...], "answer_start": [...]}, each checked against its passage."""
    if isinstance(gold, str):
        try:
            gold = ast.literal_eval(gold)
        except NOT_A_LITERAL:
            part.fail(row, f"answers is not an object: {gold[:40]!r}; write "
                           '{"text": ["Paris"], "answer_start": [17]}')
    if isinstance(gold, list) and all(isinstance(one, dict) for one in gold):
        gold = {key: [one.get(key) for one in gold] for key in ("text", "answer_start")}
    if not isinstance(gold, dict) or not {"text", "answer_start"} <= set(gold):
        part.fail(row, f'answers is {str(gold)[:60]}; write {{"text": ["Paris"], '
                       '"answer_start": [17]}')
    texts, starts = (value if isinstance(value, list) else [value]
                     for value in (gold["text"], gold["answer_start"]))
    if not texts or len(texts) != len(starts):
        part.fail(row, f"{len(texts)} answer texts and {len(starts)} answer_start; give each "
                       "question at least one answer, each with its start")
    context, checked = part.columns["context"][row], []
    for answer, start in zip(texts, starts):
        if isinstance(start, str) and re.fullmatch("[0-9]{1,18}", start.strip()):
            start = int(start)  # csv has only text
        if not isinstance(answer, str) or not answer.strip():
            part.fail(row, f"answer {answer!r} is empty or not text; fill it in")
        if not isinstance(start, int) or isinstance(start, bool) or start < 0:
            part.fail(row, f"answer_start {start!r:.40} is not a whole number from 0; "
                           "count the characters before the answer")
        if not context.startswith(answer, start):
            places = [match.start() for match in re.finditer(re.escape(answer), context)]
            part.fail(row, f"answer {answer!r} is not at {start}, the passage has "
                           f"{context[start:start + len(answer)]!r} there; " + (
                               f"set answer_start to {' or '.join(map(str, places[:5]))}"
                               if places else "copy the answer from the passage letter by letter")
                      + " (answer_start counts characters from 0)")
        checked.append(start)
    return {"text": texts, "answer_start": checked}


def _carve(data: dict[str, Dataset], seed: int) -> dict[str, Dataset]:
    """Carve missing splits out of train; passages stay whole, classes keep their shares."""
    missing = [split for split in ("validation", "test") if split not in data]
    if not missing:
        return data
    train, step = data["train"], 10 if len(missing) == 2 else 5
    groups = np.arange(len(train))
    if "context" in train.column_names:
        groups = pd.factorize(np.array(train["context"][:], dtype=object))[0]
    order = np.random.default_rng(seed).permutation(groups.max() + 1)
    if len(order) < step:
        raise ValueError(f"dataset: train has {len(order)} "
                         f"{'passages' if 'context' in train.column_names else 'rows'}, too few "
                         f"to carve {' and '.join(missing)} out of it; give files for them")
    if "label" in train.column_names:  # neighbours in the order now share their class
        order = order[np.argsort(np.array(train["label"][:])[order], kind="stable")]
    chosen = {split: np.isin(groups, order[step - 1 - index * 5::step])
              for index, split in enumerate(missing)}
    chosen["train"] = ~np.logical_or.reduce(list(chosen.values()))
    return data | {split: train.select(np.flatnonzero(rows)) for split, rows in chosen.items()}
