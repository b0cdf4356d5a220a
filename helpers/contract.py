"""The wire format of the endpoints: parse a request, check it, answer it, describe it.

Four published generations of request bodies come in, one answer goes out: that of the model
card of April 2023. The pydantic models here validate and also make the swagger files. What a
check must know of a model arrives as plain values in `Model`; no model is imported.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, NoReturn

from pydantic import (AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field,
                      RootModel, ValidationError)
from pydantic.json_schema import models_json_schema


class BadRequest(ValueError):
    """What the caller got wrong: `code`, `message`, and `index`, the row from 0 or None."""

    def __init__(self, code: str, message: str, index: int | None = None):
        super().__init__(message if index is None else f"row {index}: {message}")
        self.code, self.message, self.index = code, str(self), index

    def body(self) -> dict:
        """The JSON body of the answer with status 400."""
        return {"error": {"code": self.code, "message": self.message, "index": self.index}}


@dataclass(frozen=True)
class Limits:
    """The most that one request may ask; an answer's size is estimated before computing."""

    texts: int = 1_000
    bytes: int = 1_000_000
    tokens: int = 131_072  # of all texts together: what a model must read takes the time
    answer_bytes: int = 100_000_000


@dataclass(frozen=True)
class Model:
    """What `check` must know of a model.

    lengths: tokens of each text with its special tokens, of which a text alone has `special`;
    max_tokens: the most the model reads (None: long texts are read in parts);
    max_question: the same for a question; choices: the most that top_k may ask for;
    find_targets: raises ValueError for a word that is not in the vocabulary.
    """

    lengths: Callable[[list[str]], Sequence[int]]
    max_tokens: int | None = 512
    max_question: int = 128
    special: int = 2
    choices: int = 1
    mask_token: str = "[MASK]"
    find_targets: Callable[[list[str]], Any] = list


# ---------------------------------------------------------------- what goes over the wire


def _utf8(text: str) -> str:
    """Refuse half of a surrogate pair: JSON can write it ("\\ud800"), UTF-8 cannot."""
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ValueError("holds half of a surrogate pair; write the character itself "
                         "or its whole pair") from None
    return text


def _listed(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


class Wire(BaseModel):
    """Unknown keys are refused, and nothing is converted: true is no integer, 1 no string."""

    model_config = ConfigDict(extra="forbid", strict=True)


Text = Annotated[str, AfterValidator(_utf8)]
Words = Annotated[list[Text], Field(fail_fast=True), Field(min_length=1)]
Texts = Annotated[Words, BeforeValidator(_listed)]


class Inputs(Wire):
    input_string: Texts = Field(description="the texts; a string is a list of one")


class FillMaskParameters(Wire):
    top_k: int = Field(5, ge=1, description="candidates per mask, at most the vocabulary's size")
    targets: Words | None = Field(
        None, description="only these words are candidates; each must be in the vocabulary")


class FillMaskRequest(Wire):
    inputs: Inputs
    parameters: FillMaskParameters = FillMaskParameters()


class Candidate(Wire):
    score: float
    token: int
    token_str: str
    sequence: str


class FillMaskAnswer(RootModel):
    """Per text its candidates, best first; per text with several masks a list per mask."""

    root: list[list[Candidate] | list[list[Candidate]]]


class TextClassificationParameters(Wire):
    top_k: int = Field(1, ge=1, description="labels per text, at most all of them")


class TextClassificationRequest(Wire):
    inputs: Inputs
    parameters: TextClassificationParameters = TextClassificationParameters()


class Label(Wire):
    label: str
    score: float


class TextClassificationAnswer(RootModel):
    """Per text its label; with top_k above 1 a list of them, best first."""

    root: list[Label | list[Label]]


class NoParameters(Wire):
    pass


class TokenClassificationRequest(Wire):
    inputs: Inputs
    parameters: NoParameters = NoParameters()


class Entity(Wire):
    entity_group: str
    score: float
    word: str
    start: int
    end: int


class TokenClassificationAnswer(RootModel):
    """Per text its entities, with character offsets into the text."""

    root: list[list[Entity]]


class Pairs(Wire):
    question: Texts = Field(description="the questions; a string is a list of one")
    context: Texts = Field(description="for each question the text that holds its answer")


class QuestionAnsweringRequest(Wire):
    inputs: Pairs
    parameters: NoParameters = NoParameters()


class Answer(Wire):
    score: float
    start: int
    end: int
    answer: str


class QuestionAnsweringAnswer(RootModel):
    """Per pair its answer, with character offsets into the context."""

    root: list[Answer]


class Error(Wire):
    code: str
    message: str
    index: int | None = Field(description="row of the input from 0; null where no one row is")


class ErrorResponse(Wire):
    error: Error


Request = (FillMaskRequest | TextClassificationRequest | TokenClassificationRequest
           | QuestionAnsweringRequest)


@dataclass(frozen=True)
class Task:
    request: type[BaseModel]
    answer: type[RootModel]
    item: type[Wire]
    sample: dict
    sample_answer: list


TASKS = {
    "fill-mask": Task(
        FillMaskRequest, FillMaskAnswer, Candidate,
        {"inputs": {"input_string": ["Paris is the [MASK] of France.", "Today is a [MASK] day!"]},
         "parameters": {"top_k": 2}},
        [[{"score": 0.9815465807914734, "token": 3007, "token_str": "capital",
           "sequence": "paris is the capital of france."},
          {"score": 0.0033424433786422014, "token": 14508, "token_str": "birthplace",
           "sequence": "paris is the birthplace of france."}],
         [{"score": 0.17984138429164886, "token": 14013, "token_str": "glorious",
           "sequence": "today is a glorious day!"},
          {"score": 0.07140577584505081, "token": 3376, "token_str": "beautiful",
           "sequence": "today is a beautiful day!"}]]),
    "text-classification": Task(
        TextClassificationRequest, TextClassificationAnswer, Label,
        {"inputs": {"input_string": ["i feel wonderful this morning",
                                     "i am furious about the noise next door"]},
         "parameters": {"top_k": 1}},
        [{"label": "joy", "score": 0.99}, {"label": "anger", "score": 0.98}]),
    "token-classification": Task(
        TokenClassificationRequest, TokenClassificationAnswer, Entity,
        {"inputs": {"input_string": ["Marie Curie worked in Paris.", "Nobody was there."]}},
        [[{"entity_group": "PER", "score": 0.99, "word": "Marie Curie", "start": 0, "end": 11},
          {"entity_group": "LOC", "score": 0.99, "word": "Paris", "start": 22, "end": 27}], []]),
    "question-answering": Task(
        QuestionAnsweringRequest, QuestionAnsweringAnswer, Answer,
        {"inputs": {"question": ["Where did Marie Curie work?"],
                    "context": ["Marie Curie worked in Paris. She was born in Warsaw."]}},
        [{"score": 0.97, "start": 22, "end": 27, "answer": "Paris"}]),
}


# ---------------------------------------------------------------- in


def parse(task: str, body: str | bytes, limits: Limits = Limits()) -> Request:
    """Turn the raw body of any generation into the request that the card describes.

    Raises BadRequest for everything that can be seen without a model.
    """
    document = _load(body, limits)
    where, form = _card_form(document, TASKS[task].request)
    for name, values in form["inputs"].items() if isinstance(form["inputs"], dict) else ():
        if isinstance(values, list) and len(values) > limits.texts:
            raise BadRequest("too_many_texts", f"{where}.{name}: {len(values):,} texts; one "
                             f"request may hold {limits.texts:,}; send several requests")
    try:
        request = TASKS[task].request.model_validate(form)
    except ValidationError as error:
        _refuse(error.errors(include_url=False)[0], where, TASKS[task].request)
    if task == "question-answering":
        questions, contexts = len(request.inputs.question), len(request.inputs.context)
        if questions != contexts:
            raise BadRequest("unequal_lists", f"{where}: {questions} questions and {contexts} "
                             "contexts; give each question its context",
                             min(questions, contexts))
    return request


def check(task: str, request: Request, model: Model, limits: Limits = Limits()) -> None:
    """Check what only a model can say: masks, lengths, vocabulary, all tokens, the answer's size.

    Raises BadRequest for the first row that the model cannot take.
    """
    parameters = request.parameters
    if (top_k := getattr(parameters, "top_k", 1)) > model.choices:
        raise BadRequest("top_k", f"parameters.top_k: {_show(top_k)} is more than the "
                         f"{model.choices} there are; give an integer from 1 to {model.choices}")
    if task == "question-answering":
        questions = _check_lengths(request.inputs.question, model, model.max_question, "question")
        contexts = _check_lengths(request.inputs.context, model, model.max_tokens, "context")
        return _check_total([*questions, *contexts], limits)
    texts = request.inputs.input_string
    if task == "fill-mask":
        for row, text in enumerate(texts):
            if model.mask_token not in text:
                raise BadRequest("no_mask", f"no {model.mask_token} in {_show(text)}; write "
                                 f"{model.mask_token} where the word is missing", row)
    lengths = _check_lengths(texts, model, model.max_tokens, "text")
    _check_total(lengths, limits)
    if task != "fill-mask":
        return
    if parameters.targets is not None:
        words = list(dict.fromkeys(parameters.targets))
        if len(words) > model.choices:
            raise BadRequest("targets", f"parameters.targets: {len(words):,} words are more than "
                             f"the vocabulary's {model.choices:,}; leave targets out")
        try:
            model.find_targets(words)
        except ValueError as error:
            raise BadRequest("targets", f"parameters.{error}") from None
        top_k = min(top_k, len(words))
    # A candidate repeats its text: the names around it, and up to 6 bytes a token and more.
    size = top_k * sum(text.count(model.mask_token) * (100 + 6 * length)
                       for text, length in zip(texts, lengths))
    if size > limits.answer_bytes:
        raise BadRequest("answer_too_large", f"the answer would take about {size:,} bytes; one "
                         f"answer may take {limits.answer_bytes:,}; ask for fewer texts or a "
                         "smaller top_k")


def _load(body: str | bytes, limits: Limits) -> dict:
    """Read a JSON object, refusing what JSON readers disagree on."""
    raw = body.encode("utf-8", "surrogatepass") if isinstance(body, str) else body
    if len(raw) > limits.bytes:
        raise BadRequest("too_large", f"the body has more than {limits.bytes:,} bytes, the most "
                         "that one request may have; send several requests")
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise BadRequest("not_utf8", f"the body is not UTF-8 at byte {error.start}; "
                         "send JSON encoded as UTF-8") from None
    if not text.strip():
        raise BadRequest("not_json", "the body is empty; POST a JSON object")

    def constant(name: str) -> NoReturn:
        raise BadRequest("not_json", f"{name} is no JSON value; leave it out")

    def unique(pairs: list[tuple[str, Any]]) -> dict:
        found: dict = {}
        for name, value in pairs:
            if name in found:
                raise BadRequest("duplicate_key", f"the key {_show(name)} stands twice in one "
                                 "object; write it once")
            try:
                found[_utf8(name)] = value
            except ValueError as error:
                raise BadRequest("unknown_key", f"the key {_show(name)} {error}") from None
        return found

    try:
        document = json.loads(text, object_pairs_hook=unique, parse_constant=constant)
    except BadRequest:
        raise
    except RecursionError:
        raise BadRequest("not_json", "the body is nested too deeply; see /swagger.json") from None
    except ValueError as error:  # JSONDecodeError, or an integer of thousands of digits
        said = error if isinstance(error, json.JSONDecodeError) else "a number with too many digits"
        raise BadRequest("not_json", f"the body is not JSON: {said}") from None
    if not isinstance(document, dict):
        raise BadRequest("not_an_object", f"the body is {_show(document)}; send a JSON object "
                         "with the key inputs")
    return document


def _card_form(document: dict, request: type[BaseModel]) -> tuple[str, dict]:
    """Bring any generation into the card's form; return also what it calls its inputs."""
    where = [name for name in ("inputs", "input_data") if name in document]
    if len(where) != 1:
        raise BadRequest(*(("unknown_key", "both inputs and input_data; send only inputs") if where
                           else ("missing_key",
                                "no inputs; send a JSON object with the key inputs")))
    rest = {name: value for name, value in document.items() if name != where[0]}
    inputs, found = document[where[0]], {}
    if isinstance(inputs, dict):  # a shallow copy, to take the parameters out of it
        inputs = dict(inputs)
    for place, path in ((rest, ""), (inputs, f"{where[0]}.")):
        for name in ("parameters", "params"):
            if isinstance(place, dict) and name in place:
                found[path + name] = place.pop(name)
    if len(found) > 1:
        raise BadRequest("unknown_key", f"both {' and '.join(found)}; send one of them")
    fields = request.model_fields["inputs"].annotation.model_fields
    if isinstance(inputs, dict) and "columns" in inputs:
        inputs = _columns(inputs, where[0])
    elif isinstance(inputs, (str, list)) and len(fields) == 1:
        inputs = {next(iter(fields)): inputs}
    return where[0], {"inputs": inputs, **rest,
                      **{"parameters": value for value in found.values()}}


def _columns(table: dict, where: str) -> dict:
    """Turn the "split" form of a pandas table into columns."""
    if unknown := set(table) - {"columns", "index", "data"}:
        raise BadRequest("unknown_key", f"{_show(f'{where}.{min(unknown)}')} is an unknown key "
                         "beside columns; known here: columns, index, data")
    columns, data = table["columns"], table.get("data")
    if not isinstance(columns, list) or not all(isinstance(name, str) for name in columns) \
            or not columns or len(set(columns)) < len(columns):
        raise BadRequest("wrong_type", f"{where}.columns: give a list of different names")
    if not isinstance(data, list):
        raise BadRequest("wrong_type", f"{where}.data: give a list of rows")
    index = table.get("index", data)
    if not isinstance(index, list) or len(index) != len(data):
        raise BadRequest("wrong_type", f"{where}.index: give one entry for each row of data, "
                         "or leave index out")
    if len(columns) == 1:  # pandas takes a bare value for a row of one column
        data = [row if isinstance(row, list) else [row] for row in data]
    for row, values in enumerate(data):
        if not isinstance(values, list) or len(values) != len(columns):
            raise BadRequest("wrong_type", f"{where}.data: give each row as a list with one value "
                             f"for each of the {len(columns)} columns", row)
    return {name: [values[i] for values in data] for i, name in enumerate(columns)}


def _check_lengths(texts: list[str], model: Model, most: int | None, what: str) -> Sequence[int]:
    lengths = model.lengths(texts)
    for row, (text, length) in enumerate(zip(texts, lengths)):
        if length <= model.special:
            raise BadRequest("empty_text", f"no word in the {what} {_show(text)}; write one", row)
        if most is not None and length > most:
            raise BadRequest("too_long", f"the {what} has {length:,} tokens; at most {most:,} "
                             "are read; shorten it", row)
    return lengths


def _check_total(lengths: Sequence[int], limits: Limits) -> None:
    if (total := sum(lengths)) > limits.tokens:
        raise BadRequest("too_many_tokens", f"the texts have {total:,} tokens in all; one request "
                         f"may hold {limits.tokens:,}; send fewer texts at a time")


def _refuse(problem: dict, where: str, request: type[BaseModel]) -> NoReturn:
    """Raise pydantic's first error in our words."""
    at, kind, value = list(problem["loc"]), problem["type"], problem["input"]
    row = at[2] if at[0] == "inputs" and len(at) > 2 else None
    path = ".".join(str(step) for step in ([where] if at[0] == "inputs" else [at[0]]) + at[1:2])
    if kind == "missing":
        raise BadRequest("missing_key", f"{path}: missing; see /swagger.json for a sample")
    if kind == "extra_forbidden":
        known = request.model_fields
        if len(at) > 1:
            known = known[at[0]].annotation.model_fields
        raise BadRequest("unknown_key", f"{_show(path)} is an unknown key; known here: "
                         f"{', '.join(known) or 'none'}")
    if path == "parameters.top_k":
        raise BadRequest("top_k", f"{path}: {_show(value)} is not an integer of at least 1")
    if kind == "too_short":
        raise BadRequest("empty_list", f"{path}: an empty list; give at least one string")
    if kind == "value_error":
        raise BadRequest("not_text", f"{path}: {problem['ctx']['error']}", row)
    if at[0] == "inputs" and len(at) > 1 or path == "parameters.targets":
        wrong = ("not a string" if len(at) > 2 else "not a list of strings"
                 if path == "parameters.targets" else "neither a string nor a list of strings")
        raise BadRequest("wrong_type", f"{path}: {_show(value)} is {wrong}", row)
    raise BadRequest("wrong_type", f"{path}: {_show(value)} is not an object")


def _show(value: Any, limit: int = 60) -> str:
    """A JSON value in a message: short, and never deep."""
    if isinstance(value, (list, dict)):
        return "a list" if isinstance(value, list) else "an object"
    if isinstance(value, str):
        value = value if len(value) <= limit else value[:limit] + "..."
        return f'"{value}"'.encode("utf-8", "backslashreplace").decode()
    said = json.dumps(value)
    return said if len(said) <= limit else said[:limit] + "..."


# ---------------------------------------------------------------- out


def answer(task: str, request: Request, results: list) -> list:
    """Put a task's results, one per input, into the card's shape: names and their order."""
    types = {name: field.annotation for name, field in TASKS[task].item.model_fields.items()}

    def shape(result: list | dict) -> list | dict:
        if isinstance(result, dict):
            return {name: to(result[name]) for name, to in types.items()}
        return [shape(part) for part in result]

    if task == "text-classification" and request.parameters.top_k == 1:
        results = [labels[0] for labels in results]
    return shape(results)


def swagger(task: str, version: str = "2") -> dict:
    """The API description, version "2", "3" or "3.1", with the card's request as its sample.

    It shows the card's form; the older and later forms that `parse` takes are not in it.
    """
    known, old = TASKS[task], version == "2"
    base = "#/definitions/" if old else "#/components/schemas/"
    models = [(model, "validation") for model in (known.request, known.answer, ErrorResponse)]
    schemas = models_json_schema(models, ref_template=base + "{model}")[1]["$defs"]
    schemas["ServiceInput"] = schemas.pop(known.request.__name__)
    schemas["ServiceOutput"] = schemas.pop(known.answer.__name__)

    def plain(node: Any) -> Any:
        """Say in each version's own words what JSON Schema says with anyOf and null."""
        if isinstance(node, list):
            return [plain(part) for part in node]
        if not isinstance(node, dict):
            return node
        if "$ref" in node:  # no version allows a default or a title beside a reference
            return {"$ref": node["$ref"]}
        node = {name: plain(value) for name, value in node.items()
                if not (name == "default" and value is None)}
        if "anyOf" in node and version != "3.1":
            choices = node.pop("anyOf")
            kept = [part for part in choices if part != {"type": "null"}]
            # Version 2 knows no choice: the first is the card's form.
            node |= kept[0] if old or len(kept) == 1 else {"anyOf": kept}
            if len(kept) < len(choices):
                node["x-nullable" if old else "nullable"] = True
        return node

    schemas = plain(schemas)
    schemas["ServiceInput"]["example"] = known.sample
    schemas["ServiceOutput"]["example"] = known.sample_answer

    def body(name: str, text: str) -> dict:
        schema = {"$ref": base + name}
        inside = {"schema": schema} if old else {"content": {"application/json":
                                                            {"schema": schema}}}
        return {"description": text, **inside}

    given = body("ServiceInput", "The texts and the parameters.")
    score = {
        "operationId": "RunMLService", "summary": f"Run {task}",
        **({"parameters": [{"name": "serviceInputPayload", "in": "body", "required": True,
                            **given}]} if old else
           {"requestBody": {"required": True, **given}}),
        "security": [{"Bearer": []}],
        "responses": {"200": body("ServiceOutput", "One result per input, in order."),
                      "400": body("ErrorResponse", "What is wrong with the request."),
                      "default": {"description": "The service failed."}}}
    health = {"operationId": "ServiceHealthCheck", "summary": "Whether the service is up",
              "responses": {"200": {"description": "It is."}}}
    key = {"Bearer": {"type": "apiKey", "name": "Authorization", "in": "header",
                      "description": "Bearer and the endpoint's key"}}
    head = {"swagger": "2.0"} if old else {"openapi": "3.1.0" if version == "3.1" else "3.0.3"}
    tail = {"schemes": ["https"], "consumes": ["application/json"],
            "produces": ["application/json"], "securityDefinitions": key,
            "definitions": schemas} if old else \
        {"components": {"schemas": schemas, "securitySchemes": key}}
    return {**head, "info": {"title": f"DistilBERT {task}", "version": "1.0"},
            "paths": {"/": {"get": health}, "/score": {"post": score}}, **tail}
