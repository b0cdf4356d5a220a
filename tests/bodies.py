"""Hypothesis strategies for odd requests: single mutations of valid ones, and wild bodies."""

import copy
import json
import math
from dataclasses import dataclass, field

from hypothesis import strategies as st

JSON_TYPE = "application/json"
WORDS = ["Paris", "the", "of", "France", "café", "東京", "🙂", "a" * 120, "don't", "\u200b", "\n"]


@dataclass
class Shot:
    """One HTTP request to /score."""

    body: bytes
    method: str = "POST"
    headers: dict = field(default_factory=lambda: {"Content-Type": JSON_TYPE})


def valid(task: str) -> st.SearchStrategy:
    """Requests of every published form that must be answered with 200."""
    words = st.lists(st.sampled_from(WORDS[:7]), min_size=1, max_size=8)
    plain = words.map(lambda some: "It is " + " ".join(some) + ".")
    if task == "question-answering":
        fields = st.lists(st.tuples(plain, plain), min_size=1, max_size=3).map(
            lambda pairs: {"question": [q for q, _ in pairs], "context": [c for _, c in pairs]})
    elif task == "fill-mask":
        masked = st.tuples(words, words, st.integers(1, 2)).map(
            lambda t: " ".join([*t[0], *["[MASK]"] * t[2], *t[1]]))
        fields = st.lists(masked, min_size=1, max_size=3).map(lambda texts: {"input_string": texts})
    else:
        fields = st.lists(plain, min_size=1, max_size=3).map(lambda t: {"input_string": t})
    options = {"fill-mask": {"top_k": st.integers(1, 40),
                             "targets": st.just(["capital", "city"])},
               "text-classification": {"top_k": st.integers(1, 3)}}.get(task, {})
    parameters = st.fixed_dictionaries({}, optional=options)
    return st.tuples(fields, parameters, st.integers(0, 5)).map(lambda t: shaped(*t))


def shaped(fields: dict, parameters: dict, form: int) -> dict:
    """The same request in one of the forms that went around."""
    if form == 1:
        return {"inputs": fields} | ({"parameters": parameters} if parameters else {})
    if form == 2:
        return {"input_data": {**fields, "parameters": parameters}}
    if form == 3 and len(fields) == 1:
        return {"input_data": next(iter(fields.values())), "params": parameters}
    if form == 4:
        rows = [list(row) for row in zip(*fields.values())]
        return {"input_data": {"columns": list(fields), "index": list(range(len(rows))),
                               "data": rows}, "params": parameters}
    if form == 5 and all(len(values) == 1 for values in fields.values()):
        return {"inputs": {name: values[0] for name, values in fields.items()},
                "parameters": parameters}
    return {"inputs": fields, "parameters": parameters}


odd_text = st.one_of(
    st.text(max_size=20), st.sampled_from(["", " ", "\x00", "\ud800", "[MASK]", "[mask]", "[PAD]",
                                           "[MASK] " * 600, "word " * 600, "x" * 20_000,
                                           "[CLS] [SEP] [UNK]", "\u202e[MASK]", "true", "None"]))
odd_number = st.one_of(
    st.integers(), st.floats(allow_nan=True), st.sampled_from([0, -1, 30522, 30523, 2**63, 10**400,
                                                               1.0, -0.0, 1e308]))
scalar = st.one_of(st.none(), st.booleans(), odd_number, odd_text)
anything = st.recursive(
    scalar, lambda part: st.lists(part, max_size=4)
    | st.dictionaries(st.sampled_from(["inputs", "input_string", "input_data", "parameters",
                                       "params", "top_k", "targets", "question", "context",
                                       "columns", "data", "index", "x", "", "\udfff"]),
                      part, max_size=4), max_leaves=12)


def dump(value) -> bytes:
    return json.dumps(value).encode()


def places(value, path=()) -> list[tuple]:
    """The paths of all parts of a JSON document, the root first."""
    inside = value.items() if isinstance(value, dict) else \
        enumerate(value) if isinstance(value, list) else ()
    return [path, *(place for key, part in inside for place in places(part, (*path, key)))]


@st.composite
def mutated(draw, task: str) -> Shot:
    """A valid request with one thing changed: in its tree, its bytes or its headers."""
    document = draw(valid(task))
    kind = draw(st.sampled_from(["replace"] * 4 + ["delete", "rename", "add", "wrap", "twice",
                                                   "repeat", "byte", "cut", "insert", "header",
                                                   "method", "encoding"]))
    body = dump(document)
    where = draw(st.integers(0, len(body) - 1))
    if kind == "byte":
        return Shot(body[:where] + bytes([draw(st.integers(0, 255))]) + body[where + 1:])
    if kind == "cut":
        return Shot(body[:where])
    if kind == "insert":
        return Shot(body[:where] + draw(st.binary(min_size=1, max_size=3)) + body[where:])
    if kind == "header":
        return Shot(body, headers=draw(headers))
    if kind == "method":
        return Shot(body, method=draw(methods))
    if kind == "encoding":
        return Shot(json.dumps(document, ensure_ascii=False).encode(
            draw(st.sampled_from(["utf-16", "utf-32", "utf-8-sig", "utf-7"]))))
    *path, last = draw(st.sampled_from(places(document)[1:]))
    document = copy.deepcopy(document)
    parent = document
    for step in path:
        parent = parent[step]
    if kind == "twice" and isinstance(parent, dict):  # the same key once more, as text
        again = dump(parent)
        pair = dump(last) + b": " + dump(parent[last])
        return Shot(body.replace(again, again[:-1] + b", " + pair + b"}", 1))
    if kind == "delete":
        del parent[last]
    elif kind == "rename" and isinstance(parent, dict):
        parent[draw(st.sampled_from(["x", "Inputs", "input", "top-k", "", "params"]))] = \
            parent.pop(last)
    elif kind == "add" and isinstance(parent, dict):
        parent[draw(st.sampled_from(["x", "inputs", "input_data", "params", "top_k"]))] = \
            draw(scalar)
    elif kind == "wrap":
        parent[last] = draw(st.sampled_from([[parent[last]], {"x": parent[last]}]))
    elif kind == "repeat" and isinstance(parent, list):
        parent.extend([parent[last]] * draw(st.sampled_from([1, 1000])))
    else:
        parent[last] = draw(anything)
    return Shot(dump(document))


headers = st.sampled_from([
    {}, {"Content-Type": "text/plain"}, {"Content-Type": "application/x-www-form-urlencoded"},
    {"Content-Type": "multipart/form-data; boundary=x"}, {"Content-Type": "multipart/form-data"},
    {"Content-Type": "application/json; charset=utf-16"}, {"Content-Type": "\xff/;;="},
    {"Content-Type": JSON_TYPE, "Content-Encoding": "gzip"}, {"Content-Type": "text/csv"},
    {"Content-Type": JSON_TYPE, "Accept": "text/html"},
    {"Content-Type": JSON_TYPE, "X-Request-Id": "x" * 90}])
methods = st.sampled_from(["GET", "PUT", "DELETE", "PATCH", "OPTIONS"])
wild_bytes = st.one_of(
    st.binary(max_size=200),
    anything.map(dump),
    st.dictionaries(st.sampled_from(["inputs", "input_data"]), anything, min_size=1,
                    max_size=1).map(dump),
    st.text(max_size=100).map(lambda text: text.encode("utf-8", "surrogatepass")),
    st.tuples(st.sampled_from([b"[", b'{"inputs":', b'[{"a":', b"-", b'"\\', b"1e", b"\x00"]),
              st.sampled_from([1, 50, 900, 1000, 5000, 50_000])).map(lambda t: t[0] * t[1]),
    st.sampled_from([900, 980, 1500, 90_000]).map(
        lambda n: b'{"inputs": ' + b"[" * n + b"]" * n + b"}"),
    st.sampled_from([b"", b"null", b"true", b'"text"', b"1" * 5000, b"{}", b"[]", b"{]", b"NaN",
                     b'{"inputs": NaN}', b'{"inputs": -Infinity}', b"{'inputs': 'a [MASK]'}",
                     b'{"inputs": "a [MASK]",}', b'{"inputs": "a [MASK]"} {}', b"\xef\xbb\xbf{}",
                     b"a=1&b=2", b"<xml/>", b"\x1f\x8b\x08", b'{"inputs": "\xed\xa0\x80 [MASK]"}',
                     b'{"inputs": "[MASK] ' + b"a" * 999_000 + b'"}', b" " * 1_000_001]))


@st.composite
def wild(draw) -> Shot:
    """Anything at all, now and then with another method or content type."""
    odd = draw(st.integers(0, 9))
    return Shot(draw(wild_bytes), draw(methods) if odd == 0 else "POST",
                draw(headers) if odd in (1, 2) else {"Content-Type": JSON_TYPE})


def readable(body: bytes) -> bool:
    """Whether a body is one JSON object in UTF-8 as the standard library reads it."""
    try:
        found = json.loads(body.decode("utf-8-sig"), parse_constant=lambda name: math.nan)
    except (ValueError, RecursionError):
        return False
    return isinstance(found, dict)
