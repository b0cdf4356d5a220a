"""Files of texts in, pairs of predictions and errors out; memory bounded, no row lost.

`cli/score_batch.py` joins this with a model; the notebook fill-mask-batch-endpoint shows it.
Rows are numbered from 0, without the header; masks from 0; ranks from 1.
"""

import csv
import io
import json
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, NamedTuple, TextIO

import pandas as pd

from helpers import contract

if TYPE_CHECKING:  # torch takes seconds to import, and the driver needs none of it
    from helpers.fill_mask import FillMask

COLUMN = "input_string"
PREDICTIONS = ["file", "row", "mask", "rank", "score", "token", "token_str", "sequence"]
ERRORS = ["file", "row", "code", "message"]
LONGEST = 2**18  # characters of one row; 512 tokens of text have some thousands
WINDOW_ROWS, WINDOW_BYTES = 512, 4 * 2**20  # rows filled together, and their answers


class Bad(NamedTuple):
    """Why a row, or with row None a whole file, cannot be filled."""

    row: int | None
    code: str
    message: str


class Counts(NamedTuple):
    """What came of one file: rows with predictions, rows with errors."""

    file: str
    predictions: int
    errors: int


# ---------------------------------------------------------------- reading

def read(path: str | Path) -> Iterator[str | Bad]:
    """Yield the text of every row of a .csv or .jsonl file, or what is wrong with the row.

    csv: RFC 4180 with a header that names `input_string`; jsonl: one object a line with that
    field. Other columns are ignored. UTF-8, with or without a byte order mark. A blank line is
    a row with an empty text, except at the end of the file. What makes the whole file
    unreadable comes as one Bad with row None. Raises OSError.
    """
    with open(path, "rb") as raw:
        yield from _read(raw, Path(path).suffix.lower())


def _read(raw: BinaryIO, kind: str) -> Iterator[str | Bad]:
    if kind not in (".csv", ".jsonl"):
        yield Bad(None, "unknown_format", f"a file of type {kind or 'unknown'}; "
                  "give .csv or .jsonl")
        return
    stream = io.TextIOWrapper(raw, encoding="utf-8-sig", errors="surrogateescape")
    try:
        yield from _csv(stream) if kind == ".csv" else _jsonl(stream)
    finally:
        stream.detach()  # the caller still asks `raw` where it stands, and closes it


def _lines(stream: TextIO) -> Iterator[str]:
    """Lines with their ends, without the blank ones at the end of the file.

    What a line has beyond LONGEST is read and dropped, so that memory stays bounded.
    """
    blank = 0
    while line := stream.readline(LONGEST + 1):
        if line == "\n":
            blank += 1
            continue
        yield from ("\n" for _ in range(blank))
        blank, rest = 0, line
        while len(rest) > LONGEST and not rest.endswith("\n"):
            rest = stream.readline(LONGEST + 1) or "\n"
        yield line


def _flaw(row: int | None, raw: str) -> Bad | None:
    """What is wrong with the characters of one row, whatever its format."""
    if len(raw) > LONGEST:
        return Bad(row, "too_large", f"more than {LONGEST:,} characters, the most that one row "
                   "may have; shorten it")
    try:
        raw.encode()
    except UnicodeEncodeError as error:
        byte = ord(raw[error.start]) - 0xDC00
        return Bad(row, "not_utf8", f"the byte 0x{byte:02X} is not UTF-8; save the file as UTF-8")
    return None


def _jsonl(stream: TextIO) -> Iterator[str | Bad]:
    form = f'write {{"{COLUMN}": "..."}} on one line'
    for row, line in enumerate(_lines(stream)):
        if flaw := _flaw(row, line):
            yield flaw
            continue
        try:
            value = json.loads(line.rstrip("\n"), object_pairs_hook=_unique)
        except RecursionError:
            yield Bad(row, "not_json", f"the line is nested too deeply; {form}")
        except ValueError as error:
            said = error if line.strip() else "it is blank"
            yield Bad(row, "not_json", f"the line is not JSON: {said}; {form}")
        else:
            if not isinstance(value, dict):
                yield Bad(row, "not_an_object", f"the line is no JSON object; {form}")
            elif COLUMN not in value:
                yield Bad(row, "missing_key", f"no {COLUMN} in the object; {form}")
            elif isinstance(value[COLUMN], str):
                yield value[COLUMN]
            else:
                yield _refused(row, {"inputs": {COLUMN: [value[COLUMN]]}})


def _unique(pairs: list[tuple]) -> dict:
    if len(dict(pairs)) < len(pairs):
        raise ValueError("a key stands twice in one object")
    return dict(pairs)


def _csv(stream: TextIO) -> Iterator[str | Bad]:
    records = _records(_lines(stream))
    header, fault, raw = next(records, ([], "the file is empty", ""))
    names = [name.strip() for name in header]
    if names.count(COLUMN) != 1 or fault:
        said = (flaw.message if (flaw := _flaw(None, raw)) else fault) or \
            f"the header is {', '.join(names)[:200]}"
        yield Bad(None, "no_column", f"no column {COLUMN}: {said}; begin the file with a line "
                  "of column names that has it once")
        return
    column = names.index(COLUMN)
    for row, (fields, fault, raw) in enumerate(records):
        fields = fields or [""]
        if flaw := _flaw(row, raw):
            yield flaw
        elif fault:
            yield Bad(row, "not_csv", f"{fault}; put the text in quotes and double the quotes "
                      "inside it")
        elif len(fields) != len(names):
            yield Bad(row, "not_csv", f"{len(fields)} fields under a header of {len(names)}; put "
                      "texts with commas in quotes")
        else:
            yield fields[column]


def _records(lines: Iterator[str]) -> Iterator[tuple[list[str], str, str]]:
    """Yield (fields, fault, raw) of each csv record; a faulty one is its first line alone.

    So a quote that is never closed costs its own line only: reading goes on with the next one.
    """
    csv.field_size_limit(max(csv.field_size_limit(), 2 * LONGEST))
    waiting: deque[str] = deque()

    def feed(used: list[str]) -> Iterator[str]:
        size = 0
        while size <= LONGEST:
            line = waiting.popleft() if waiting else next(lines, None)
            if line is None:
                return
            used.append(line)
            size += len(line)
            yield line

    while True:
        used: list[str] = []
        try:
            fields = next(csv.reader(feed(used), strict=True), None)
        except csv.Error as error:
            waiting.extendleft(reversed(used[1:]))
            fault = "a quote is not closed" if "end of data" in str(error) else str(error)
            yield [], fault, used[0]
        else:
            if fields is None:
                return
            yield fields, "", "".join(used)


# ---------------------------------------------------------------- scoring

def score(path: str | Path, name: str, output: str | Path, fill: "FillMask", top_k: int = 5,
          report: Callable[[int, int], None] | None = None) -> Counts:
    """Fill every row of one file and write its pair of predictions and errors.

    `name` is the file's path below the input folder; the pair lies in `output` as
    predictions/<name>.csv and errors/<name>.csv. Both are written aside and renamed, the
    predictions last: where they are, the file is finished. `report(bytes, rows)` hears of
    progress. Raises OSError where the output cannot be written; what is wrong with the input
    becomes an error row.
    """
    places = [Path(output, part, f"{name}.csv") for part in ("errors", "predictions")]
    asides = [place.with_name(f"{place.name}.part") for place in places]
    for place in places:
        place.parent.mkdir(parents=True, exist_ok=True)
    good = bad = 0
    with (open(asides[0], "w", encoding="utf-8", newline="") as errors_file,
          open(asides[1], "w", encoding="utf-8", newline="") as predictions_file):
        errors, predictions = csv.writer(errors_file), csv.writer(predictions_file)
        errors.writerow(ERRORS)
        predictions.writerow(PREDICTIONS)
        for row, answer in _answers(path, fill, top_k, report):
            if isinstance(answer, Bad):
                bad += 1
                where = "" if answer.row is None else f"row {answer.row}: "
                errors.writerow([name, answer.row, answer.code, where + answer.message])
                continue
            good += 1
            for mask, candidates in enumerate(_by_mask(answer)):
                for rank, found in enumerate(candidates, 1):
                    predictions.writerow([name, row, mask, rank, found["score"], found["token"],
                                          found["token_str"], found["sequence"]])
    for aside, place in zip(asides, places):
        os.replace(aside, place)
    return Counts(name, good, bad)


def finished(path: str | Path, name: str, output: str | Path) -> bool:
    """Whether a file's pair is there and newer than the file."""
    pair = [Path(output, part, f"{name}.csv") for part in ("errors", "predictions")]
    return all(part.exists() for part in pair) and \
        pair[1].stat().st_mtime >= Path(path).stat().st_mtime


def gather(output: str | Path) -> pd.DataFrame:
    """Gather all pairs of an output folder into one table, sorted by file and row.

    One line per candidate with the columns of the predictions, and one line with `code` and
    `message` per row that could not be filled. Raises FileNotFoundError where a pair is not
    complete: the run that wrote it did not end.
    """
    folders = [Path(output, part) for part in ("predictions", "errors")]
    names = [{str(path.relative_to(folder)) for path in folder.rglob("*.csv")}
             for folder in folders]
    if alone := sorted(names[0] ^ names[1]):
        raise FileNotFoundError(f"{output}: no whole pair for {alone[0]}; score again: what is "
                                "finished is kept")
    if not names[0]:
        raise FileNotFoundError(f"{output}: no predictions and no errors; score some files first")
    tables = [pd.read_csv(folder / name, keep_default_na=False, na_values={"row": [""]},
                          dtype={"file": str, "row": "Int64", "code": str, "message": str,
                                 "token_str": str, "sequence": str})
              for name in sorted(names[0]) for folder in folders]
    table = pd.concat([t for t in tables if len(t)] or tables[:1], ignore_index=True)
    table = table.reindex(columns=[*PREDICTIONS, *ERRORS[2:]])
    whole = {name: "Int64" for name in ("mask", "rank", "token")}
    return table.astype(whole).sort_values(["file", "row"], kind="stable", ignore_index=True)


def _refused(row: int, body: dict, fill: "FillMask | None" = None) -> Bad | None:
    """What the online endpoint says of a request with this one text, or None if it takes it."""
    def lengths(texts: list[str]) -> list[int]:
        return [len(ids) for ids in fill.tokenizer(texts, verbose=False)["input_ids"]]

    raw = json.dumps(body)
    limits = contract.Limits(bytes=len(raw))
    try:
        request = contract.parse("fill-mask", raw, limits)
        if fill:
            contract.check("fill-mask", request, contract.Model(
                lengths=lengths, max_tokens=fill.max_length, choices=fill.vocab_size,
                mask_token=fill.tokenizer.mask_token), limits)
    except contract.BadRequest as error:
        return Bad(row, error.code, error.message.removeprefix("row 0: "))
    return None


def _answers(path: str | Path, fill: "FillMask", top_k: int,
             report: Callable[[int, int], None] | None) -> Iterator[tuple[int, list | Bad]]:
    """Yield each row's number and its answer, or what is wrong with it, window by window."""
    for window in _windows(path, fill, top_k, report):
        texts = [text for _, text in window if isinstance(text, str)]
        filled = iter(fill.stream(texts, top_k, on_error="return", window=WINDOW_ROWS))
        for row, text in window:
            answer = next(filled) if isinstance(text, str) else text
            if isinstance(answer, ValueError):  # fill_mask's BadText
                answer = _refused(row, _request(text, top_k), fill) or \
                    Bad(row, answer.code, answer.message)
            yield row, answer


def _windows(path: str | Path, fill: "FillMask", top_k: int,
             report: Callable[[int, int], None] | None) -> Iterator[list]:
    """Rows to fill together: so many that likes meet, so few that their answers stay small."""
    window: list[tuple[int, str | Bad]] = []
    size, mask = 0, fill.tokenizer.mask_token
    try:
        with open(path, "rb") as raw:
            before = 0
            for row, text in enumerate(_read(raw, Path(path).suffix.lower())):
                if isinstance(text, str):  # a candidate repeats its text
                    need = len(text) + text.count(mask) * top_k * (100 + len(text))
                    if need > WINDOW_BYTES:
                        text = _refused(row, _request(text, top_k), fill) or text
                    size += need
                window.append((row, text))
                if len(window) >= WINDOW_ROWS or size >= WINDOW_BYTES:
                    yield window
                    if report:
                        report(raw.tell() - before, len(window))
                    window, size, before = [], 0, raw.tell()
            yield window
            if report:
                report(raw.tell() - before, len(window))
    except OSError as error:
        yield [*window, (0, Bad(None, "unreadable", f"{error.strerror}; see that the file can "
                                "be read"))]


def _request(text: str, top_k: int) -> dict[str, Any]:
    return {"inputs": {COLUMN: [text]}, "parameters": {"top_k": top_k}}


def _by_mask(answer: list) -> Iterable[list[dict]]:
    return [answer] if isinstance(answer[0], dict) else answer
