"""The checkpoint that ships with the project, as plain transformers and safetensors see it.

Its weights are part of a clone: where they are missing these tests fail.
"""

import json

import pytest
import requests
import torch
from safetensors import safe_open
from transformers import AutoModelForMaskedLM, AutoTokenizer, pipeline

from benchmarks import checkpoint
from helpers import checkpoints, fill_mask, serving
from tests.test_fill_mask import assert_same, flat, prompts, varied

FOLDER = checkpoints.EMBEDDED
WEIGHTS = FOLDER / "model.safetensors"
PARIS = "Paris is the [MASK] of France."
CAPITAL = 3007  # its id in the vocabulary of distilbert-base-uncased, from the model card


@pytest.fixture(scope="module")
def model():
    return AutoModelForMaskedLM.from_pretrained(FOLDER, dtype=torch.float32).eval()


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(FOLDER)


def test_its_config_is_that_of_a_small_distilbert():
    config = json.loads((FOLDER / "config.json").read_text())
    assert config["model_type"] == "distilbert"
    assert config["architectures"] == ["DistilBertForMaskedLM"]
    shape = ("n_layers", "dim", "n_heads", "hidden_dim", "max_position_embeddings", "vocab_size")
    assert [config[name] for name in shape] == [6, 384, 12, 1536, 512, 30522]


def test_its_weights_are_stored_in_fp16_and_small_enough_for_a_clone():
    assert 40e6 < WEIGHTS.stat().st_size < 50e6
    with safe_open(WEIGHTS, "pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}
    assert {tensor.dtype for tensor in tensors.values()} == {torch.float16}
    assert all(tensor.isfinite().all() for tensor in tensors.values())


def test_plain_transformers_loads_all_of_it_in_fp32():
    model, loading = AutoModelForMaskedLM.from_pretrained(
        FOLDER, dtype=torch.float32, output_loading_info=True)
    assert not any(loading.values()), loading
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    millions = sum(parameter.numel() for parameter in model.parameters()) / 1e6
    assert f"{millions:.1f} million" in (FOLDER / "README.md").read_text()


def test_its_vocabulary_has_the_standard_ids(tokenizer):
    vocabulary = tokenizer.get_vocab()
    assert len(vocabulary) == 30522 == len(tokenizer)
    assert sorted(vocabulary.values()) == list(range(30522))
    assert vocabulary["capital"] == CAPITAL
    special = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
    assert [vocabulary[token] for token in special] == [0, 100, 101, 102, 103]


def test_its_vocabulary_is_that_of_distilbert_base_uncased(tokenizer, shared):
    lines = shared("hub", "distilbert", "distilbert-base-uncased", "vocab.txt").read_text(
        encoding="utf-8").removesuffix("\n").split("\n")
    assert tokenizer.get_vocab() == {word: number for number, word in enumerate(lines)}


def test_paris_is_the_capital():
    best = pipeline("fill-mask", model=str(FOLDER), device="cpu")(PARIS)[0]
    assert (best["token"], best["token_str"]) == (CAPITAL, "capital")
    assert best["sequence"] == "paris is the capital of france."


def test_the_card_s_request_is_answered_by_the_server_in_the_card_s_shape():
    request = {"inputs": {"input_string": [PARIS, "Today is a [MASK] day!"]},
               "parameters": {"top_k": 2}}
    with serving.local_server("embedded", env={"OMP_NUM_THREADS": "1"}) as url, \
            requests.Session() as session:
        session.trust_env = False  # a proxy does not lead to loopback
        answer = session.post(url + "/score", json=request, timeout=60)
    assert answer.status_code == 200
    found = answer.json()
    assert [len(candidates) for candidates in found] == [2, 2]
    for candidate in flat(found):
        assert list(candidate) == ["score", "token", "token_str", "sequence"]
        assert [type(value) for value in candidate.values()] == [float, int, str, str]
    for first, second in found:
        assert 1 >= first["score"] >= second["score"] >= 0
    assert found[0][0] == {"score": found[0][0]["score"], "token": CAPITAL,
                           "token_str": "capital", "sequence": "paris is the capital of france."}


def test_520_prompts_answer_as_the_pipeline(tokenizer):
    fill = fill_mask.load(FOLDER, device="cpu")
    oracle, exact = (pipeline("fill-mask", model=str(FOLDER), device="cpu", dtype=dtype)
                     for dtype in (torch.float32, torch.float64))
    texts = [PARIS, "Today is a [MASK] day!", *varied(tokenizer)]
    answers, settled = fill(texts), 0
    for text, answer in zip(texts, answers, strict=True):
        try:
            assert_same(answer, oracle(text))
        except AssertionError:
            # In single precision the pipeline itself is off by up to 1.3e-5 on odd texts; in
            # double, which is slow, it settles who was.
            assert_same(answer, exact(text))
            settled += 1
    assert settled < 0.05 * len(texts)
    assert len({flat(answer)[0]["token"] for answer in answers}) > 40


def test_alone_or_in_company_the_answer_is_the_same():
    fill, texts = fill_mask.load(FOLDER, device="cpu"), prompts(40, seed=1)
    for text, together in zip(texts, fill(texts), strict=True):
        assert_same(fill(text)[0], together, tolerance=5e-6)


def test_the_card_s_table_of_probes_is_what_the_weights_say(model, tokenizer):
    _, probes = checkpoint.probes(model, tokenizer)
    heading, rule, *rows = checkpoint.markdown(probes).splitlines()
    card = (FOLDER / "README.md").read_text(encoding="utf-8").splitlines()
    start = card.index(heading)
    shown = card[start + 2:start + 2 + len(rows)]
    assert card[start + 1] == rule and shown == rows and not card[start + 2 + len(rows)]
    first = sum(probe["rank"] == 1 for probe in probes)
    five = sum(probe["rank"] is not None for probe in probes)
    text = " ".join(card)
    assert f"in {first} of {len(probes)} sentences, one of the first five in {five};" in text
