"""Scoring script of the online endpoints: joins the wire contract and the task's model.

The task follows from the checkpoint's config. Settings, all from environment variables:
AZUREML_MODEL_DIR (set by Azure ML; the model may lie in a folder below it), else CHECKPOINT
and REVISION, else the embedded checkpoint; TASK, where the config
names no task; PRECISION; the limits of one request MAX_TEXTS, MAX_BYTES, MAX_TOKENS (of all
its texts together) and MAX_ANSWER_BYTES.
"""

import json
import os
import sys
import tempfile
from pathlib import Path

from azureml_inference_server_http.api.aml_request import rawhttp
from azureml_inference_server_http.api.aml_response import AMLResponse
from azureml_inference_server_http.server.config import config
from werkzeug.exceptions import HTTPException

# On Azure the project lies in a folder below the one that the server puts on the path.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from helpers import checkpoints, contract, fill_mask, memory, tasks  # noqa: E402

HEADS = {"ForMaskedLM": "fill-mask", "ForSequenceClassification": "text-classification",
         "ForTokenClassification": "token-classification",
         "ForQuestionAnswering": "question-answering"}
READ_SECONDS = 30  # without a byte of the body, before the caller is told that it is incomplete
service = {}  # what init leaves for run


def init():
    """Load the model and describe the service. Any error ends the server, with its reason."""
    folder = checkpoints.deployed()
    task = pick_task(folder)
    limits = contract.Limits(texts=number("MAX_TEXTS", contract.Limits.texts),
                             bytes=number("MAX_BYTES", contract.Limits.bytes),
                             tokens=number("MAX_TOKENS", contract.Limits.tokens),
                             answer_bytes=number("MAX_ANSWER_BYTES", contract.Limits.answer_bytes))
    module = fill_mask if task == "fill-mask" else tasks.module(task)
    memory.keep_products(256)
    predict = module.load(folder, precision=os.environ.get("PRECISION", "fp32"))
    service.update(task=task, limits=limits, predict=predict, model=describe(task, predict))
    publish_swagger(task)


@rawhttp
def run(body):
    """Answer one request: the server's request object, or its text when called by hand.

    `rawhttp` hands over the request itself: without it the server answers bytes that are not
    UTF-8 in its own words, and a POST without a JSON content type arrives as an empty string.
    """
    by_hand = isinstance(body, (str, bytes))
    method = "POST" if by_hand else body.method
    if not by_hand:  # the server logs it afterwards, and answers 500 where it is not UTF-8
        body.query_string = body.query_string.decode(errors="replace").encode()
    if method == "OPTIONS":  # what browsers ask first; the server adds its headers
        return AMLResponse({}, 200, json_str=True)
    if method != "POST":
        error = contract.BadRequest("method", f"{method} is not answered here; POST JSON")
        return AMLResponse(error.body(), 405, {"Allow": "POST, OPTIONS"}, json_str=True)
    try:
        raw = body if by_hand else read(body)
        request = contract.parse(service["task"], raw, service["limits"])
        contract.check(service["task"], request, service["model"], service["limits"])
    except contract.BadRequest as error:
        return AMLResponse(error.body(), 400, json_str=True)
    return contract.answer(service["task"], request, predict(request))


def predict(request):
    """Call the task's model with what the request asks."""
    model, inputs, parameters = service["predict"], request.inputs, request.parameters
    if service["task"] == "fill-mask":
        return model(inputs.input_string, top_k=parameters.top_k, targets=parameters.targets)
    if service["task"] == "text-classification":
        return model(inputs.input_string, top_k=parameters.top_k)
    if service["task"] == "token-classification":
        return model(inputs.input_string)
    return model(inputs.question, inputs.context)


def read(request):
    """Return the body, or as much of it as shows that it is too large.

    The rest of a large body is read and dropped, within reason: a server that closes while
    the caller still sends breaks the connection, and the answer is never seen.
    """
    most, kept, dropped = service["limits"].bytes, bytearray(), 0
    connection = request.environ.get("gunicorn.socket")
    try:
        if connection:
            connection.settimeout(READ_SECONDS)
        while (part := request.stream.read(1 << 16)) and dropped < 100 * most:
            if len(kept) <= most:
                kept += part
            else:
                dropped += len(part)
    except (HTTPException, OSError) as error:  # the caller hung up, was silent, or chunked badly
        raise contract.BadRequest("incomplete", "the body ended early; send as many bytes as "
                                  "the headers promise") from error
    finally:
        if connection:
            connection.settimeout(None)
    return bytes(kept)


def describe(task, predict):
    """What the contract must know of a model."""
    tokenizer, model = predict.tokenizer, predict.model

    def lengths(texts):
        encoded = tokenizer(texts, truncation=False, padding=False, verbose=False,
                            return_attention_mask=False)
        return [len(ids) for ids in encoded["input_ids"]]

    known = {"lengths": lengths, "max_tokens": predict.max_length,
             "special": tokenizer.num_special_tokens_to_add(pair=False)}
    if task == "fill-mask":
        known.update(choices=model.config.vocab_size, mask_token=tokenizer.mask_token,
                     find_targets=predict.target_ids)
    elif task == "text-classification":
        known.update(choices=model.config.num_labels)
    else:  # long texts are read in parts; every part of a context repeats its question
        known.update(max_tokens=None, max_question=predict.max_length // 4)
    return contract.Model(**known)


def pick_task(folder):
    """Return the task that the checkpoint was trained for; TASK must name no other.

    TASK decides where the config names no architecture that is known here. Raises ValueError.
    """
    names = json.loads((folder / "config.json").read_text()).get("architectures") or []
    fitting = [task for head, task in HEADS.items() for name in names if name.endswith(head)]
    asked = os.environ.get("TASK")
    task = asked or next(iter(fitting), None)
    if asked in contract.TASKS and fitting and asked not in fitting:  # its head would be random
        raise ValueError(f"TASK: {asked} was asked for, but {', '.join(names)} in {folder} is "
                         f"trained for {fitting[0]}; leave TASK out, or give a checkpoint "
                         f"trained for {asked}")
    if task not in contract.TASKS:
        raise ValueError(f"TASK: {task!r} from the architectures {names}; set TASK to one of "
                         f"{', '.join(contract.TASKS)}")
    return task


def number(name, default):
    """Read a limit from the environment."""
    text = os.environ.get(name, str(default))
    if not text.isascii() or not text.isdigit() or int(text) < 1:
        raise ValueError(f"{name}: {text!r} is not a whole number of at least 1")
    return int(text)


def publish_swagger(task):
    """Have /swagger.json answered from the contract's models.

    The server reads swagger files from AML_APP_ROOT once `init` has returned. That folder may
    be read-only or somebody's source tree, so they go to a folder of their own.
    """
    service["swagger"] = tempfile.TemporaryDirectory(prefix="swagger-")
    config.app_root = service["swagger"].name
    for version in ("2", "3", "3.1"):
        Path(config.app_root, f"swagger{version}.json").write_text(
            json.dumps(contract.swagger(task, version)))
