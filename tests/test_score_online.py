"""The real inference server: every rule of the wire contract by hand, then by fuzzing."""

import importlib.util
import json
import os
import shutil
import socket
import unicodedata
from concurrent.futures import ThreadPoolExecutor
from itertools import count

import pytest
import requests
from hypothesis import HealthCheck, given, seed, settings

from helpers import checkpoints, contract, serving
from tests import bodies
from tests.bodies import Shot

REQUESTS = serving.SCRIPT.parent / "requests"
OTHERS = ["text-classification", "token-classification", "question-answering"]
HOLE = "Paris is the [MASK] of France."
KEYS = {task: list(known.item.model_fields) for task, known in contract.TASKS.items()}


def sample(name: str) -> dict:
    return json.loads((REQUESTS / f"{name}.json").read_text())


@pytest.fixture(scope="module")
def checkpoint_of(tmp_path_factory, tiny_checkpoint):
    """A tiny random checkpoint for each task, with the real vocabulary."""
    import torch
    import transformers

    def make(task: str):
        if task == "fill-mask":
            return tiny_checkpoint
        folder = tmp_path_factory.mktemp(task)
        head, labels = {
            "text-classification": ("SequenceClassification", ["sadness", "joy", "anger"]),
            "token-classification": ("TokenClassification", ["O", "B-PER", "I-PER", "B-LOC"]),
            "question-answering": ("QuestionAnswering", ["start", "end"])}[task]
        config = transformers.AutoConfig.from_pretrained(tiny_checkpoint)
        config.id2label = dict(enumerate(labels))
        config.label2id = {label: i for i, label in enumerate(labels)}
        torch.manual_seed(0)
        model = getattr(transformers, f"DistilBertFor{head}")(config)
        with torch.no_grad():  # spread the scores: random heads answer nearly evenly
            for name, weight in model.named_parameters():
                if "distilbert" not in name:
                    weight.normal_(std=1.0)
        model.save_pretrained(folder)
        transformers.AutoTokenizer.from_pretrained(tiny_checkpoint).save_pretrained(folder)
        return folder

    return make


class Service:
    """A running server, and a session that leaves proxies aside."""

    def __init__(self, task: str, url: str):
        self.task, self.url, self.session, self.sent = task, url, requests.Session(), 0
        self.session.trust_env = False

    def post(self, body, **kwargs):
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        return self.send(Shot(data, **kwargs))

    def send(self, shot: Shot):
        self.sent += 1
        return self.session.request(shot.method, self.url + "/score", data=shot.body,
                                    headers=shot.headers, timeout=60)

    def refused(self, body, code: str, says: str = "", index: int | None = None, **kwargs):
        answer = self.post(body, **kwargs)
        found = answer.json()
        assert answer.status_code == 400, answer.text[:500]
        assert list(found) == ["error"] and list(found["error"]) == ["code", "message", "index"]
        assert (found["error"]["code"], found["error"]["index"]) == (code, index), found
        assert says in found["error"]["message"], found

    def good(self):
        answer = self.post(contract.TASKS[self.task].sample)
        assert answer.status_code == 200, answer.text[:500]
        return answer.json()


@pytest.fixture(scope="module")
def serve(checkpoint_of):
    from contextlib import ExitStack
    with ExitStack() as stack:
        running = {}

        def start(task: str) -> Service:
            if task not in running:
                url = stack.enter_context(serving.local_server(
                    checkpoint_of(task), env={"OMP_NUM_THREADS": "1"}))
                running[task] = Service(task, url)
            return running[task]

        yield start


@pytest.fixture(scope="module")
def server(serve):
    return serve("fill-mask")


@pytest.fixture(scope="module")
def pipeline(tiny_checkpoint):
    import transformers
    return transformers.pipeline("fill-mask", str(tiny_checkpoint), device="cpu")


def same_candidates(found: list, expected: list) -> None:
    assert [list(one) for one in found] == [KEYS["fill-mask"]] * len(expected)
    for mine, theirs in zip(found, expected, strict=True):
        assert mine["score"] == pytest.approx(theirs["score"], abs=1e-5)
        assert (mine["token"], mine["token_str"], mine["sequence"]) == \
            (theirs["token"], theirs["token_str"], theirs["sequence"])


# ---------------------------------------------------------------- what is answered


def test_the_card_s_request_is_answered_in_the_card_s_shape(server, pipeline):
    request = sample("fill-mask")
    answer = server.post(request)
    assert answer.headers["Content-Type"] == "application/json"
    found = answer.json()
    assert len(found) == 2
    for text, candidates in zip(request["inputs"]["input_string"], found):
        same_candidates(candidates, pipeline(text, top_k=2))
    assert answer.text.startswith('[[{"score": ')


def test_all_generations_give_one_answer(server):
    expected = server.post(sample("fill-mask")).json()
    for generation in (3, 4):
        assert server.post(sample(f"fill-mask-generation-{generation}")).json() == expected
    five = server.post(sample("fill-mask-generation-2")).json()
    assert [len(one) for one in five] == [5, 5] and [one[:2] for one in five] == expected
    texts = sample("fill-mask")["inputs"]["input_string"]
    for form in range(5):
        body = bodies.shaped({"input_string": texts}, {"top_k": 2}, form)
        assert server.post(body).json() == expected, body


@pytest.mark.parametrize("body", [
    {"inputs": {"input_string": HOLE}}, {"inputs": {"input_string": [HOLE]}},
    {"input_data": [HOLE]}, {"input_data": {"input_string": [HOLE], "parameters": {}}},
    {"input_data": {"columns": ["input_string"], "index": [0], "data": [HOLE]}},
    {"inputs": {"input_string": [HOLE]}, "parameters": {"targets": None}},
])
def test_one_input_is_one_list(server, body):
    found = server.post(body).json()
    assert len(found) == 1 and len(found[0]) == 5
    assert found[0][0]["sequence"] == found[0][0]["sequence"].lower()


def test_several_masks_nest_as_in_the_pipeline(server, pipeline):
    text = "The [MASK] is [MASK] today."
    found = server.post({"inputs": {"input_string": [text, HOLE]}, "parameters": {"top_k": 3}})
    nested, plain = found.json()
    for mine, theirs in zip(nested, pipeline(text, top_k=3), strict=True):
        same_candidates(mine, theirs)
    same_candidates(plain, pipeline(HOLE, top_k=3))


def test_targets_mean_what_they_mean_in_the_pipeline(server, pipeline):
    targets = ["city", "capital", "Paris", "city"]
    found = server.post({"inputs": {"input_string": [HOLE]},
                         "parameters": {"top_k": 9, "targets": targets}}).json()
    same_candidates(found[0], pipeline(HOLE, top_k=9, targets=targets))


def test_the_whole_vocabulary_can_be_asked_for(server):
    found = server.post({"inputs": {"input_string": [HOLE]}, "parameters": {"top_k": 30522}}).json()
    assert sorted(one["token"] for one in found[0]) == list(range(30522))
    assert sum(one["score"] for one in found[0]) == pytest.approx(1, abs=1e-4)


def test_a_string_with_a_byte_order_mark_and_any_content_type_are_fine(server):
    body = json.dumps(sample("fill-mask")).encode()
    expected = server.post(body).json()
    assert server.post(b"\xef\xbb\xbf" + body).json() == expected
    for content in ("text/plain", "application/x-www-form-urlencoded", "multipart/form-data"):
        assert server.post(body, headers={"Content-Type": content}).json() == expected
    assert server.post(body, headers={}).json() == expected


def test_at_the_limits(server):
    text = "a [MASK]"
    assert len(server.post({"inputs": [text] * 1000, "params": {"top_k": 1}}).json()) == 1000
    server.refused({"inputs": [text] * 1001}, "too_many_texts", "1,000")
    assert len(server.post({"inputs": "[MASK]" + " a" * 509}).json()) == 1
    server.refused({"inputs": [text, "[MASK]" + " a" * 510]}, "too_long", "513", index=1)
    padding = b" " * (1_000_000 - len(json.dumps({"inputs": text})))
    body = json.dumps({"inputs": text}).encode() + padding
    assert server.post(body).status_code == 200
    server.refused(body + b" ", "too_large", "1,000,000")
    server.refused(b"x" * 20_000_000, "too_large", "1,000,000")
    long = {"inputs": ["[MASK]" + " a" * 508] * 970}  # small enough by texts and by bytes
    assert len(json.dumps(long)) < 1_000_000
    server.refused(long, "too_many_tokens", "495,670 tokens in all; one request may hold 131,072")
    server.refused({"inputs": ["[MASK] " * 500] * 100, "params": {"top_k": 30522}},
                   "answer_too_large", "100,000,000")


def test_requests_at_the_same_time_do_not_mix(server):
    texts = [f"{word} is the [MASK] of France." for word in bodies.WORDS[:8]]
    alone = [server.post({"inputs": text}).json() for text in texts]
    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(lambda text: requests.post(
            server.url + "/score", json={"inputs": text}, timeout=60).json(), texts * 3))
    assert together == alone * 3


# ---------------------------------------------------------------- what is refused, rule by rule


@pytest.mark.parametrize("body, code, says, index", [
    (b"", "not_json", "empty", None),
    (b"{'inputs': 1}", "not_json", "line 1", None),
    (b'{"inputs": "\xff [MASK]"}', "not_utf8", "byte 12", None),
    (json.dumps({"inputs": HOLE}).encode("utf-16"), "not_utf8", "UTF-8", None),
    (b"[" * 100_000, "not_json", "nested", None),
    (b'{"inputs": ' * 50_000, "not_json", "nested", None),
    (b'{"inputs": "a [MASK]", "params": {"top_k": ' + b"9" * 5000 + b"}}", "not_json", "digits",
     None),
    (b'{"inputs": "a [MASK]", "params": {"top_k": NaN}}', "not_json", "NaN", None),
    (b'{"inputs": "a [MASK]", "inputs": "b [MASK]"}', "duplicate_key", '"inputs"', None),
    (b"[]", "not_an_object", "a list", None), (b"null", "not_an_object", "null", None),
    ({}, "missing_key", "inputs", None),
    ({"inputs": {}}, "missing_key", "inputs.input_string", None),
    ({"inputs": HOLE, "input_data": HOLE}, "unknown_key", "only inputs", None),
    ({"inputs": HOLE, "parameters": {}, "params": {}}, "unknown_key", "one of them", None),
    ({"inputs": HOLE, "model": 1}, "unknown_key", '"model"', None),
    ({"inputs": HOLE, "\ud800": 1}, "unknown_key", "surrogate", None),
    ({"inputs": {"input_string": HOLE, "x": 1}}, "unknown_key", '"inputs.x"', None),
    ({"inputs": HOLE, "parameters": {"topk": 1}}, "unknown_key", "known here: top_k", None),
    ({"inputs": HOLE, "parameters": None}, "wrong_type", "parameters: null", None),
    ({"inputs": 5}, "wrong_type", "inputs: 5", None),
    ({"inputs": {"input_string": 5}}, "wrong_type", "neither a string nor a list", None),
    ({"inputs": {"input_string": None}}, "wrong_type", "neither a string nor a list", None),
    ({"inputs": {"input_string": [HOLE, 5]}}, "wrong_type", "row 1", 1),
    ({"input_data": [HOLE, None]}, "wrong_type", "row 1: input_data.input_string: null", 1),
    ({"inputs": {"input_string": [HOLE, [HOLE]]}}, "wrong_type", "a list is not a string", 1),
    ({"inputs": {"input_string": []}}, "empty_list", "at least one", None),
    ({"inputs": ""}, "no_mask", "[MASK]", 0),
    ({"inputs": [HOLE, "No hole."]}, "no_mask", 'row 1: no [MASK] in "No hole."; write [MASK]', 1),
    ({"inputs": "a [mask] <mask>"}, "no_mask", "write [MASK]", 0),
    ({"inputs": [HOLE, "\ud800 [MASK]"]}, "not_text", "surrogate", 1),
    ({"inputs": "[MASK] " * 511}, "too_long", "513 tokens; at most 512", 0),
    *(({"inputs": HOLE, "parameters": {"top_k": k}}, "top_k", "integer", None)
      for k in (0, -1, 30523, 2**64, 1.0, "2", True, False, None, [1], {})),
    (b'{"inputs": "a [MASK]", "parameters": {"top_k": 1e400}}', "top_k", "integer", None),
    ({"inputs": HOLE, "parameters": {"targets": []}}, "empty_list", "targets", None),
    ({"inputs": HOLE, "parameters": {"targets": "city"}}, "wrong_type", "list of strings", None),
    ({"inputs": HOLE, "parameters": {"targets": ["city", 1]}}, "wrong_type", "targets", None),
    ({"inputs": HOLE, "parameters": {"targets": ["city", "qwertzu"]}}, "targets", "qwertzu", None),
    ({"inputs": HOLE, "parameters": {"targets": ["two words"]}}, "targets", "two words", None),
    ({"inputs": HOLE, "parameters": {"targets": [""]}}, "targets", "vocabulary", None),
    ({"input_data": {"columns": ["input_string"], "index": [0], "data": []}}, "wrong_type",
     "index", None),
    ({"input_data": {"columns": ["text"], "data": [[HOLE]]}}, "missing_key", "input_string", None),
    ({"input_data": {"columns": ["input_string"], "data": [[HOLE], [HOLE, HOLE]]}}, "wrong_type",
     "row 1", 1),
    ({"input_data": {"columns": ["input_string"]}}, "wrong_type", "data", None),
    ({"input_data": {"columns": "input_string", "data": []}}, "wrong_type", "columns", None),
])
def test_refused(server, body, code, says, index):
    server.refused(body, code, says, index)
    server.good()


@pytest.mark.parametrize("method", ["GET", "PUT", "DELETE", "PATCH", "OPTIONS", "HEAD"])
def test_other_methods(server, method):
    answer = server.post(sample("fill-mask"), method=method)
    assert answer.status_code == (200 if method == "OPTIONS" else 405)
    assert method == "HEAD" or isinstance(answer.json(), dict)


LENGTH = b"Content-Length: 22\r\n\r\n"


@pytest.mark.parametrize("first, rest, status", [
    (b"POST /score?\xff\xfe HTTP/1.1", LENGTH + b'{"inputs": "a [MASK]"}', b"200"),
    (b"POST /score?a=%ff&b HTTP/1.1", LENGTH + b'{"inputs": "a [MASK]"}', b"200"),
    (b"POST /score HTTP/1.1", b"Content-Length: 1000\r\n\r\n{", b"400"),
    (b"POST /score HTTP/1.1", b"\r\n", b"400"),
    (b"POST /score HTTP/1.1", b"Transfer-Encoding: chunked\r\n\r\nzz\r\n", b"400"),
    (b"POST /score HTTP/1.1", b"Transfer-Encoding: chunked\r\n\r\nff\r\n{", b"400"),
    (b"POST /score HTTP/1.1", b"Transfer-Encoding: chunked\r\n\r\n16\r\n"
     b'{"inputs": "a [MASK]"}\r\n0\r\n\r\n', b"200"),
    (b"POST /score HTTP/1.1", b"Content-Length: -1\r\n\r\n", b"400"),
    (b"POST /nowhere HTTP/1.1", LENGTH + b'{"inputs": "a [MASK]"}', b"404"),
])
def test_broken_http(server, first, rest, status):
    host, port = server.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=60) as connection:
        connection.sendall(first + b"\r\nHost: x\r\n" + rest)
        connection.shutdown(socket.SHUT_WR)
        answer = b"".join(iter(lambda: connection.recv(1 << 16), b""))
    assert answer.split(b" ")[1] == status, answer[:500]
    server.good()


def test_swagger_is_served(server):
    for version, query in (("2", ""), ("2", "?version=2"), ("3", "?version=3"),
                           ("3.1", "?version=3.1")):
        served = server.session.get(server.url + "/swagger.json" + query, timeout=60).json()
        assert served == contract.swagger("fill-mask", version)


# ---------------------------------------------------------------- the other three tasks


@pytest.mark.parametrize("task", OTHERS)
def test_the_other_tasks_answer_their_sample(serve, task):
    server, known = serve(task), contract.TASKS[task]
    found = server.good()
    known.answer.model_validate(found, strict=True)
    rows = len(next(iter(known.sample["inputs"].values())))
    assert len(found) == rows
    expected = found
    fields = known.sample["inputs"]
    for form in range(5):
        body = bodies.shaped(fields, known.sample.get("parameters", {}), form)
        assert server.post(body).json() == expected, body
    alone = server.post({"inputs": {name: some[0] for name, some in fields.items()}}).json()
    assert len(alone) == 1  # one input, one result
    served = server.session.get(server.url + "/swagger.json?version=3", timeout=60).json()
    assert served == contract.swagger(task, "3")


def test_labels_and_scores(serve):
    server, texts = serve("text-classification"), ["good day", "bad night"]
    best = server.post({"inputs": {"input_string": texts}}).json()
    assert [list(one) for one in best] == [["label", "score"]] * 2
    every = server.post({"inputs": texts, "params": {"top_k": 3}}).json()
    assert [one[0]["label"] for one in every] == [one["label"] for one in best]
    for labels in every:
        assert sorted(one["label"] for one in labels) == ["anger", "joy", "sadness"]
        assert sum(one["score"] for one in labels) == pytest.approx(1, abs=1e-5)
    server.refused({"inputs": texts, "params": {"top_k": 4}}, "top_k", "1 to 3")


def spelled(text: str) -> str:
    """A text as an uncased model reads it, without its spaces."""
    plain = unicodedata.normalize("NFD", text.lower())
    return "".join(c for c in plain if unicodedata.category(c) != "Mn" and not c.isspace())


def test_entities_are_offsets_into_the_input(serve):
    server = serve("token-classification")
    short = "Marie Curie, née Skłodowska, lived in Paris 🙂 and in Kraków."
    texts = [short, short * 60]  # the second is longer than the model reads at once
    found, number = server.post({"inputs": texts}).json(), 0
    for text, entities in zip(texts, found, strict=True):
        for one in entities:
            number += 1
            assert list(one) == KEYS["token-classification"]
            assert 0 <= one["start"] < one["end"] <= len(text)
            assert one["entity_group"] in ("PER", "LOC") and 0 < one["score"] <= 1
            if "🙂" not in text[one["start"]:one["end"]]:  # [UNK] to the model
                assert spelled(one["word"]) == spelled(text[one["start"]:one["end"]])
    assert number > 20


def test_answers_are_offsets_into_the_context(serve):
    server = serve("question-answering")
    context = "Łódź is a city 🙂. " * 200  # longer than one window
    found = server.post({"inputs": {"question": "Where?", "context": context}}).json()
    assert list(found[0]) == KEYS["question-answering"]
    assert found[0]["answer"] == context[found[0]["start"]:found[0]["end"]] != ""
    server.refused({"inputs": {"question": ["a", "b"], "context": ["c"]}}, "unequal_lists",
                   "2 questions and 1 contexts", index=1)
    server.refused({"inputs": {"question": "a " * 600, "context": "c"}}, "too_long", "question",
                   index=0)
    server.refused({"inputs": {"question": "a"}}, "missing_key", "inputs.context")
    server.refused({"inputs": [HOLE]}, "wrong_type", "not an object")


@pytest.mark.parametrize("task", OTHERS)
@pytest.mark.parametrize("text", ["", " ", "\n\t", "\u200b", "\x00"])
def test_a_text_without_words_is_refused(serve, task, text):
    fields = contract.TASKS[task].sample["inputs"]
    for name in fields:
        serve(task).refused({"inputs": {**{other: ["a"] for other in fields}, name: [text]}},
                            "empty_text", index=0)


# ---------------------------------------------------------------- fuzzing


def judge(service: Service, shot: Shot) -> int:
    """Send one odd request; check what must hold of every answer."""
    answer = service.send(shot)
    said = answer.text[:500]
    assert answer.headers["Content-Type"] == "application/json", said
    found = json.loads(answer.content, parse_constant=lambda name: pytest.fail(f"{name}: {said}"))
    assert "Traceback" not in answer.text and 'File \\"' not in answer.text
    if shot.method != "POST":
        assert answer.status_code == (200 if shot.method == "OPTIONS" else 405), said
    elif answer.status_code == 200:
        assert bodies.readable(shot.body), said
        contract.TASKS[service.task].answer.model_validate(found, strict=True)
    else:
        assert answer.status_code == 400, said
        contract.ErrorResponse.model_validate(found, strict=True)
        assert list(found["error"]) == ["code", "message", "index"] and found["error"]["message"]
    return answer.status_code


def bombard(service: Service, strategy, examples: int, good_every: int, round: int = 0) -> dict:
    """Send `examples` odd requests; a good one is answered alike after every `good_every`."""
    expected, seen, number = service.good(), {}, count(1)

    @seed(round)
    @settings(max_examples=examples, deadline=None, database=None,
              suppress_health_check=list(HealthCheck))
    @given(strategy)
    def each(shot):
        status = judge(service, shot)
        seen[status] = seen.get(status, 0) + 1
        if next(number) % good_every == 0:
            assert service.good() == expected

    each()
    assert service.good() == expected
    assert sum(seen.values()) >= examples
    print(f"{service.task}: {seen}")
    return seen


def test_valid_requests_of_every_form_are_answered(serve):
    for task in contract.TASKS:
        seen = bombard(serve(task), bodies.valid(task).map(lambda d: Shot(bodies.dump(d))), 20, 20)
        assert set(seen) == {200}


def test_odd_requests_to_fill_mask(server):
    seen = bombard(server, bodies.mutated("fill-mask"), 500, 10)
    assert seen[400] > 250 and seen[200] > 20  # the mutations are neither all fatal nor harmless
    bombard(server, bodies.wild(), 500, 10)


@pytest.mark.parametrize("task", OTHERS)
def test_odd_requests_to_the_other_tasks(serve, task):
    seen = bombard(serve(task), bodies.mutated(task), 75, 10)
    assert seen[400] > 30 and seen[200] > 2
    bombard(serve(task), bodies.wild(), 75, 10)


@pytest.mark.soak
@pytest.mark.parametrize("kind", ["mutated", "wild"])
@pytest.mark.parametrize("task, examples", [("fill-mask", 2600), *((t, 1000) for t in OTHERS)])
def test_thousands_of_odd_requests(serve, task, examples, kind):
    strategy = bodies.mutated(task) if kind == "mutated" else bodies.wild()
    bombard(serve(task), strategy, examples, good_every=1, round=1)


# ---------------------------------------------------------------- settings


@pytest.fixture
def script(monkeypatch):
    for name in ("AZUREML_MODEL_DIR", "CHECKPOINT", "REVISION", "TASK"):
        monkeypatch.delenv(name, raising=False)
    spec = importlib.util.spec_from_file_location("score_online", serving.SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_model_is_found_in_a_folder_below(tiny_checkpoint, tmp_path, monkeypatch):
    monkeypatch.setenv("AZUREML_MODEL_DIR", str(tmp_path))
    monkeypatch.setenv("CHECKPOINT", str(tiny_checkpoint))
    assert checkpoints.deployed() == tiny_checkpoint  # a folder without a file holds no model
    (tmp_path / "readme.txt").write_text("no model here")
    with pytest.raises(FileNotFoundError, match="0 models"):
        checkpoints.deployed()
    shutil.copytree(tiny_checkpoint, tmp_path / "a" / "model")
    shutil.copytree(tiny_checkpoint, tmp_path / "a" / "model" / "checkpoint-10")
    assert checkpoints.deployed() == tmp_path / "a" / "model"
    shutil.copytree(tiny_checkpoint, tmp_path / "b" / "model")
    with pytest.raises(FileNotFoundError, match="2 models"):
        checkpoints.deployed()


def test_the_task_follows_from_the_checkpoint(script, checkpoint_of, tmp_path, monkeypatch):
    for task in contract.TASKS:
        assert script.pick_task(checkpoint_of(task)) == task
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ValueError, match="set TASK to one of fill-mask"):
        script.pick_task(tmp_path)
    monkeypatch.setenv("TASK", "fill-mask")
    assert script.pick_task(tmp_path) == "fill-mask"
    monkeypatch.setenv("TASK", "poetry")
    with pytest.raises(ValueError, match="poetry"):
        script.pick_task(tmp_path)


def test_a_task_that_the_checkpoint_was_not_trained_for_is_refused(
        script, checkpoint_of, monkeypatch):
    for task in contract.TASKS:
        monkeypatch.setenv("TASK", task)
        assert script.pick_task(checkpoint_of(task)) == task
        other = "fill-mask" if task != "fill-mask" else "text-classification"
        monkeypatch.setenv("TASK", other)
        with pytest.raises(ValueError, match=f"^TASK: {other} was asked for, but DistilBertFor.* "
                           f"is trained for {task}; leave TASK out"):
            script.pick_task(checkpoint_of(task))
    with pytest.raises(serving.ServerError, match="TASK: fill-mask was asked for"):
        with serving.local_server(checkpoint_of(OTHERS[0]), env={
                "TASK": "fill-mask", "OMP_NUM_THREADS": "1"}):
            pass


@pytest.mark.parametrize("text", ["0", "-1", "ten", "1.5", ""])
def test_limits_are_whole_numbers(script, text, monkeypatch):
    monkeypatch.setenv("MAX_TEXTS", text)
    with pytest.raises(ValueError, match="MAX_TEXTS"):
        script.number("MAX_TEXTS", 1000)


def test_settings_reach_the_server(tiny_checkpoint, tmp_path):
    root = tmp_path / "registered" / "1"
    shutil.copytree(tiny_checkpoint, root / "model")
    before = set(os.listdir(serving.SCRIPT.parent))
    with serving.local_server("nowhere", env={
            "AZUREML_MODEL_DIR": str(root), "MAX_TEXTS": "2", "MAX_BYTES": "200",
            "MAX_TOKENS": "20", "MAX_ANSWER_BYTES": "1000", "PRECISION": "bf16",
            "OMP_NUM_THREADS": "1"}) as url:
        server = Service("fill-mask", url)
        assert len(server.post({"inputs": [HOLE, HOLE], "params": {"top_k": 2}}).json()) == 2
        server.refused({"inputs": ["[MASK]"] * 3}, "too_many_texts", "may hold 2")
        server.refused({"inputs": ["[MASK] a" + " b" * 7] * 2}, "too_many_tokens", "may hold 20")
        server.refused({"inputs": "[MASK]" * 40}, "too_large", "200 bytes")
        server.refused({"inputs": HOLE, "params": {"top_k": 30}}, "answer_too_large", "1,000")
    assert set(os.listdir(serving.SCRIPT.parent)) - before <= {"__pycache__"}


def test_by_hand_without_a_server(script, tiny_checkpoint, monkeypatch):
    monkeypatch.setenv("CHECKPOINT", str(tiny_checkpoint))
    monkeypatch.setattr(script.config, "app_root", script.config.app_root)
    script.init()
    assert len(script.run(json.dumps(sample("fill-mask")))) == 2
    assert script.run(b"{}").status_code == 400


def test_sample_requests_are_the_contract_s_own():
    for task, known in contract.TASKS.items():
        assert sample(task) == known.sample
        contract.parse(task, json.dumps(known.sample))
