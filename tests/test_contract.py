"""The wire contract by itself: no model, no server. (The rules by hand: test_score_online.)"""

import json
import re
import subprocess
import sys

import jsonschema
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from helpers import contract
from tests import bodies

QUICK = settings(max_examples=150, deadline=None, database=None, derandomize=True,
                 suppress_health_check=list(HealthCheck))
VOCABULARY = {"capital", "city", "paris"}
TASKS = pytest.mark.parametrize("task", list(contract.TASKS))


def find_targets(words):
    for word in words:
        if word.lower() not in VOCABULARY:
            raise ValueError(f"targets: {word} is not in the vocabulary")


MODEL = contract.Model(lengths=lambda texts: [len(text.split()) + 2 for text in texts],
                       max_tokens=8, max_question=6, choices=100, find_targets=find_targets)


def refused(call, *args) -> contract.BadRequest:
    with pytest.raises(contract.BadRequest) as caught:
        call(*args)
    error = caught.value
    assert error.body() == {"error": {"code": error.code, "message": str(error),
                                      "index": error.index}}
    return error


def test_it_imports_no_model():
    code = "import sys, helpers.contract; print([n for n in ('torch', 'transformers', " \
           "'azureml_inference_server_http', 'azure') if n in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True,
                          check=True).stdout.strip() == "[]"


# ---------------------------------------------------------------- in


@TASKS
def test_every_form_of_a_request_reads_the_same(task):
    fields, parameters = contract.TASKS[task].sample["inputs"], \
        contract.TASKS[task].sample.get("parameters", {})
    read = [contract.parse(task, json.dumps(bodies.shaped(fields, parameters, form)))
            for form in range(5)]
    assert all(one == read[0] for one in read)
    assert read[0].inputs.model_dump() == fields
    assert contract.parse(task, json.dumps(contract.TASKS[task].sample).encode()) == read[0]


def test_defaults():
    assert contract.parse("fill-mask", '{"inputs": "x"}').parameters.top_k == 5
    assert contract.parse("text-classification", '{"inputs": "x"}').parameters.top_k == 1


@TASKS
def test_whatever_comes_in_is_read_or_refused(task):
    @QUICK
    @given(st.one_of(bodies.mutated(task), bodies.wild()))
    def each(shot):
        try:
            request = contract.parse(task, shot.body)
        except contract.BadRequest as error:
            json.dumps(error.body()).encode()
            assert error.code and 0 < len(error.message) < 500
        else:
            assert bodies.readable(shot.body)
            for texts in request.inputs.model_dump().values():
                assert texts and all(isinstance(text, str) for text in texts)
            if hasattr(request.parameters, "top_k"):
                assert type(request.parameters.top_k) is int and request.parameters.top_k >= 1

    each()


def test_limits_are_settings():
    two = contract.Limits(texts=2, bytes=60, answer_bytes=3000)
    contract.parse("fill-mask", '{"inputs": ["[MASK]", "b"]}', two)
    assert refused(contract.parse, "fill-mask", '{"inputs": ["a", "b", "c"]}', two).code == \
        "too_many_texts"
    assert contract.parse("fill-mask", json.dumps({"inputs": "é" * 7}), two)  # é is 6 bytes here
    assert "60 bytes" in refused(contract.parse, "fill-mask",
                                 '{"inputs": "' + "é" * 24 + '"}', two).message
    request = contract.parse("fill-mask", '{"inputs": ["a [MASK]"], "params": {"top_k": 24}}')
    contract.check("fill-mask", request, MODEL, two)
    request.parameters.top_k = 25
    assert refused(contract.check, "fill-mask", request, MODEL, two).code == "answer_too_large"
    request.parameters.targets = ["city"]  # one candidate, whatever top_k says
    contract.check("fill-mask", request, MODEL, two)


@TASKS
def test_all_texts_together_have_a_limit_of_tokens(task):
    fields = {"question": ["a"] * 3, "context": ["b [MASK]"] * 3} \
        if task == "question-answering" else {"input_string": ["b [MASK]"] * 3}
    total = 3 * (3 + 4) if task == "question-answering" else 3 * 4  # a text has 2 special tokens
    request = contract.parse(task, json.dumps({"inputs": fields}))
    contract.check(task, request, MODEL, contract.Limits(tokens=total))
    error = refused(contract.check, task, request, MODEL, contract.Limits(tokens=total - 1))
    assert (error.code, error.index) == ("too_many_tokens", None)
    assert error.message == (f"the texts have {total} tokens in all; one request may hold "
                             f"{total - 1}; send fewer texts at a time")
    assert contract.Limits().tokens == 131_072


@pytest.mark.parametrize("task, inputs, parameters, code, index", [
    ("fill-mask", {"input_string": ["a [MASK]", "b"]}, {}, "no_mask", 1),
    ("fill-mask", {"input_string": ["[MASK] b c d e f g"]}, {}, "too_long", 0),
    ("fill-mask", {"input_string": ["[MASK]"]}, {"top_k": 101}, "top_k", None),
    ("fill-mask", {"input_string": ["[MASK]"]}, {"targets": ["city", "x"]}, "targets", None),
    ("fill-mask", {"input_string": ["[MASK]"]}, {"targets": [f"w{i}" for i in range(101)]},
     "targets", None),
    ("text-classification", {"input_string": ["a", ""]}, {}, "empty_text", 1),
    ("text-classification", {"input_string": ["a"]}, {"top_k": 101}, "top_k", None),
    ("token-classification", {"input_string": ["b c d e f g h"]}, {}, "too_long", 0),
    ("question-answering", {"question": ["a"], "context": [" "]}, {}, "empty_text", 0),
    ("question-answering", {"question": ["a b c d e"], "context": ["a"]}, {}, "too_long", 0),
    ("question-answering", {"question": ["a"], "context": ["a b c d e f g"]}, {}, "too_long", 0),
])
def test_what_only_a_model_can_say(task, inputs, parameters, code, index):
    body = json.dumps({"inputs": inputs, "parameters": parameters})
    error = refused(contract.check, task, contract.parse(task, body), MODEL)
    assert (error.code, error.index) == (code, index)
    assert index is None or error.message.startswith(f"row {index}: ")


def test_the_mask_is_the_model_s_own():
    bert, other = MODEL, contract.Model(MODEL.lengths, mask_token="<mask>", choices=100)
    request = contract.parse("fill-mask", '{"inputs": "a <mask>"}')
    contract.check("fill-mask", request, other)
    assert "write [MASK] where" in refused(contract.check, "fill-mask", request, bert).message


def test_messages_stay_short_and_flat():
    for value in ("x" * 100_000, [[["deep"] * 50]], {"a": {"b": 1}}, 10**4000, "\ud800" * 500):
        error = refused(contract.parse, "fill-mask", json.dumps({"inputs": {"x": value}}))
        assert len(error.message) < 200
        error = refused(contract.parse, "fill-mask", json.dumps(
            {"inputs": "x", "parameters": {"top_k": [value]}}))
        assert len(error.message) < 200


# ---------------------------------------------------------------- out


def test_answers_keep_the_card_s_names_order_and_nesting():
    def one(token):
        return {"sequence": "s", "token_str": "t", "token": np.int64(token), "extra": 1,
                "score": np.float32(0.5)}
    request = contract.parse("fill-mask", '{"inputs": ["[MASK]", "[MASK] [MASK]"]}')
    found = contract.answer("fill-mask", request, [[one(1)], [[one(2)], [one(3)]]])
    said = '{"score": 0.5, "token": %d, "token_str": "t", "sequence": "s"}'
    assert json.dumps(found) == f"[[{said % 1}], [[{said % 2}], [{said % 3}]]]"


def test_one_label_per_text_or_a_list_of_them():
    rows = [[{"score": 0.9, "label": "joy"}], [{"score": 0.8, "label": "anger"}]]
    request = contract.parse("text-classification", '{"inputs": ["a", "b"]}')
    assert contract.answer("text-classification", request, rows) == \
        [{"label": "joy", "score": 0.9}, {"label": "anger", "score": 0.8}]
    request.parameters.top_k = 2
    assert contract.answer("text-classification", request, rows) == rows


# ---------------------------------------------------------------- swagger


def resolved(document: dict, node: dict):
    """A schema with its references replaced, as a JSON Schema of its own."""
    if isinstance(node, list):
        return [resolved(document, part) for part in node]
    if not isinstance(node, dict):
        return node
    if "$ref" in node:
        assert list(node) == ["$ref"], "OpenAPI reads nothing beside a reference"
        target = document
        for step in node["$ref"].removeprefix("#/").split("/"):
            target = target[step]
        return resolved(document, target)
    found = {name: resolved(document, part) for name, part in node.items() if name != "example"}
    if found.pop("nullable", False) or found.pop("x-nullable", False):
        found["type"] = [found["type"], "null"]
    return found


def words_of(node) -> set:
    """All keys of a schema, but for the names of properties."""
    if isinstance(node, list):
        return set().union(*map(words_of, node), set())
    if not isinstance(node, dict):
        return set()
    inside = [part for name, part in node.items() if name not in ("properties", "example")]
    inside += node.get("properties", {}).values()
    return set(node) | set().union(*map(words_of, inside), set())


# What each version's own definition of a schema object knows (of what we could write).
SWAGGER2 = {"$ref", "title", "description", "default", "minimum", "maximum", "minLength",
            "maxLength", "minItems", "maxItems", "required", "enum", "type", "items", "properties",
            "additionalProperties", "example", "x-nullable"}
KNOWN = {"2": SWAGGER2, "3": SWAGGER2 - {"x-nullable"} | {"anyOf", "nullable"},
         "3.1": SWAGGER2 - {"x-nullable"} | {"anyOf"}}


@TASKS
@pytest.mark.parametrize("version", ["2", "3", "3.1"])
def test_swagger_is_well_formed_and_fits_its_samples(task, version):
    document = json.loads(json.dumps(contract.swagger(task, version)))
    schemas = document["definitions"] if version == "2" else document["components"]["schemas"]
    assert words_of(list(schemas.values())) <= KNOWN[version]
    if version != "3.1":
        assert not re.search(r'"type": (\[|"null")|"default": null', json.dumps(document))
    score = document["paths"]["/score"]["post"]
    if version == "2":
        assert document["swagger"] == "2.0"
        given_ = score["parameters"][0]["schema"]
        answers = {code: answer.get("schema") for code, answer in score["responses"].items()}
    else:
        assert document["openapi"].startswith(f"{version}.")
        given_ = score["requestBody"]["content"]["application/json"]["schema"]
        answers = {code: answer["content"]["application/json"]["schema"]
                   for code, answer in score["responses"].items() if "content" in answer}
    checker = jsonschema.Draft4Validator if version != "3.1" else jsonschema.Draft202012Validator
    request, answer, error = (resolved(document, one)
                              for one in (given_, answers["200"], answers["400"]))
    for schema in (request, answer, error):
        checker.check_schema(schema)
    known = contract.TASKS[task]
    assert schemas["ServiceInput"]["example"] == known.sample
    checker(request).validate(known.sample)
    checker(answer).validate(schemas["ServiceOutput"]["example"])
    known.answer.model_validate(schemas["ServiceOutput"]["example"], strict=True)
    checker(error).validate(contract.BadRequest("code", "message", 3).body())
    checker(error).validate(contract.BadRequest("code", "message").body())
    for wrong in ({}, {"inputs": {}}, {**known.sample, "x": 1}, {"inputs": {"input_string": [1]}}):
        assert not checker(request).is_valid(wrong)


def card(found: dict) -> bool:
    """Whether a body is in the form of the card, which is all that swagger shows."""
    inputs = found.get("inputs")
    return set(found) <= {"inputs", "parameters"} and isinstance(inputs, dict) and \
        all(isinstance(some, list) for some in inputs.values()) and "columns" not in inputs


@TASKS
def test_what_swagger_allows_is_accepted(task):
    document = contract.swagger(task, "3.1")
    schema = resolved(document, document["components"]["schemas"]["ServiceInput"])
    validator, seen = jsonschema.Draft202012Validator(schema), {True: 0, False: 0}

    whole = bodies.valid(task).map(lambda body: bodies.Shot(bodies.dump(body)))

    @QUICK
    @given(st.one_of(whole, bodies.mutated(task)))
    def each(shot):
        if not bodies.readable(shot.body):
            return
        found = json.loads(shot.body.decode("utf-8-sig"))
        # JSON Schema takes 1.0 for an integer and half a surrogate pair for text
        odd = re.search(rb'\\ud[89a-f]|"top_k": -?[\d.]*(\.|e)|NaN|Infinity', shot.body)
        allowed = validator.is_valid(found)
        try:
            contract.parse(task, shot.body)
        except contract.BadRequest as error:
            unsaid = error.code in ("unequal_lists", "too_many_texts", "duplicate_key")
            assert odd or unsaid or not allowed, (found, error)
            seen[False] += 1
        else:
            assert allowed or not card(found), found
            seen[True] += allowed

    each()
    assert min(seen.values()) > 2, seen
