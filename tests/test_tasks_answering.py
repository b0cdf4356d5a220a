"""Question answering: decoding against brute force, windows, SQuAD's rules."""

import random

import numpy as np
import pytest
import torch
from datasets import Dataset
from transformers import AutoTokenizer

from helpers.tasks import answering

LONG = " ".join(f"In {year} the town of Zoë-{year} had {year * 7:,} people — so they say."
                for year in range(1200, 1290))


@pytest.fixture(scope="module")
def tokenizer(tiny_checkpoint):
    return AutoTokenizer.from_pretrained(tiny_checkpoint)


@pytest.fixture(scope="module")
def predictor(tiny_checkpoint, tmp_path_factory):
    torch.manual_seed(1)
    model = answering.build(tiny_checkpoint)
    with torch.no_grad():  # spread the scores
        model.qa_outputs.weight.normal_(std=1.0)
    target = tmp_path_factory.mktemp("answerer")
    model.save_pretrained(target)
    AutoTokenizer.from_pretrained(tiny_checkpoint).save_pretrained(target)
    return answering.load(target, device="cpu")


# ---------------------------------------------------------------- best span

def brute_force(starts, ends, longest):
    best = None
    for i in range(len(starts)):
        for j in range(i, min(i + longest, len(starts))):
            if best is None or starts[i] + ends[j] > best[2]:
                best = (i, j, starts[i] + ends[j])
    return best


def test_best_span_equals_brute_force_on_random_windows():
    rng = np.random.default_rng(0)
    for n in range(2000):
        tokens, longest = int(rng.integers(1, 60)), int(rng.integers(1, 40))
        starts, ends = rng.normal(size=(2, tokens)).astype(np.float32) * 5
        if n % 2:  # whole numbers tie often
            starts, ends = np.round(starts), np.round(ends)
        first, last, value, total = answering.decode(starts, ends, longest)
        assert (first, last, value) == brute_force(starts, ends, longest)
        sums = [starts[i] + ends[j] for i in range(tokens)
                for j in range(i, min(i + longest, tokens))]
        assert total == pytest.approx(np.logaddexp.reduce(np.array(sums, dtype=float)), abs=1e-4)


# ---------------------------------------------------------------- windows

@pytest.mark.parametrize("max_length, stride", [(64, 16), (128, 48), (384, 128), (512, 1)])
def test_windows_are_the_tokenizers_own(tokenizer, max_length, stride):
    questions = ["How many people lived there in 1250?", "Why?", "Who says so?"]
    contexts = [LONG, "Because.", LONG[:700]]
    theirs = tokenizer(questions, contexts, truncation="only_second", max_length=max_length,
                       stride=stride, return_overflowing_tokens=True, return_offsets_mapping=True)
    ours = answering.windows(questions, contexts, tokenizer, max_length, stride)
    assert [w.ids for w in ours] == theirs["input_ids"]
    assert [w.row for w in ours] == theirs["overflow_to_sample_mapping"]
    for i, window in enumerate(ours):
        inside = [k for k, side in enumerate(theirs.sequence_ids(i)) if side == 1]
        assert window.first == inside[0] and len(window.offsets) == len(inside)
        assert window.offsets.tolist() == [list(theirs["offset_mapping"][i][k]) for k in inside]


def test_every_character_is_in_some_window(tokenizer):
    rng = random.Random(0)
    for _ in range(60):
        start = rng.randrange(len(LONG))
        context = LONG[start:start + rng.randint(20, 4000)]
        question = "Was it " + "really " * rng.randint(0, 30) + "so?"
        found = answering.windows([question], [context], tokenizer, rng.randint(64, 384),
                                  rng.choice([0, 10, 64, 128]))
        covered = np.zeros(len(context), dtype=bool)
        for window in found:
            covered[window.offsets[0, 0]:window.offsets[-1, 1]] = True
            assert len(window.ids) <= 384
        missing = [context[i] for i in np.flatnonzero(~covered)]
        assert not "".join(missing).strip(), missing
        for a, b in zip(found, found[1:]):  # neighbours touch or overlap
            assert b.offsets[0, 0] <= a.offsets[-1, 1] + 1


@pytest.mark.parametrize("question, context, message", [
    ("Who?", " \n", "row 1: no word in the context"),
    ("who " * 370, "Ada.", "row 1: the question has 370 tokens, which leaves no room"),
])
def test_bad_rows_are_named(tokenizer, predictor, question, context, message):
    with pytest.raises(ValueError, match=message):
        answering.windows(["Who?", question], ["Ada.", context], tokenizer)
    with pytest.raises(ValueError, match=message):
        predictor(["Who?", question], ["Ada.", context])


# ---------------------------------------------------------------- encoding

def test_training_positions_give_the_answer_back(tokenizer):
    rng, rows = random.Random(0), []
    words = [(i, len(w)) for i, w in zip(np.cumsum([0] + [len(w) + 1 for w in LONG.split()]),
                                         LONG.split())]
    for _ in range(40):
        first = rng.randrange(len(words) - 8)
        last = first + rng.randint(0, 7)
        start, end = words[first][0], words[last][0] + words[last][1]
        rows.append({"question": "What is said?", "context": LONG,
                     "answers": {"text": [LONG[start:end]], "answer_start": [int(start)]}})
    data = Dataset.from_list(rows)
    encoded = answering.encode(data, tokenizer, 96, 32)
    parts = answering.windows(data["question"], data["context"], tokenizer, 96, 32)
    assert len(encoded) == len(parts)
    seen = set()
    for row, window in zip(encoded, parts):
        assert row["input_ids"].tolist() == window.ids
        answer = rows[window.row]["answers"]
        start, end = answer["answer_start"][0], answer["answer_start"][0] + len(answer["text"][0])
        if row["start_positions"] == 0:
            assert row["end_positions"] == 0
            assert start < window.offsets[0, 0] or end > window.offsets[-1, 1]
            continue
        a = window.offsets[row["start_positions"] - window.first, 0]
        b = window.offsets[row["end_positions"] - window.first, 1]
        assert LONG[a:b] == answer["text"][0]
        seen.add(window.row)
    assert len(seen) == len(rows)  # every answer lies whole in some window


def test_no_window_is_longer_than_the_model_reads(tokenizer, monkeypatch):
    row = {"question": "Why?", "context": LONG, "answers": {"text": ["In"], "answer_start": [0]}}
    data = Dataset.from_list([row])
    assert max(len(one["input_ids"]) for one in answering.encode(data, tokenizer)) == 384
    monkeypatch.setattr(tokenizer, "model_max_length", 128)
    assert max(len(one["input_ids"]) for one in answering.encode(data, tokenizer)) == 128


# ---------------------------------------------------------------- the predictor

def test_predictor_equals_brute_force_over_all_windows(predictor):
    questions, contexts = ["How many in 1250?", "Who says so?", "Why?"], [LONG, LONG[:300], "So."]
    for question, context, found in zip(questions, contexts, predictor(questions, contexts)):
        assert list(found) == ["score", "start", "end", "answer"]
        assert found["answer"] == context[found["start"]:found["end"]]
        encoded = predictor.tokenizer(
            question, context, truncation="only_second", max_length=384, stride=128,
            return_overflowing_tokens=True, return_offsets_mapping=True)
        spans = []
        for i, ids in enumerate(encoded["input_ids"]):
            with torch.inference_mode():
                output = predictor.model(input_ids=torch.tensor([ids]))
            inside = [k for k, side in enumerate(encoded.sequence_ids(i)) if side == 1]
            for a in inside:
                for b in inside[inside.index(a):inside.index(a) + answering.LONGEST]:
                    spans.append((float(output.start_logits[0, a] + output.end_logits[0, b]),
                                  encoded["offset_mapping"][i][a][0],
                                  encoded["offset_mapping"][i][b][1]))
        value, start, end = max(spans)
        assert (found["start"], found["end"]) == (start, end)
        total = np.logaddexp.reduce([v for v, _, _ in spans])
        assert found["score"] == pytest.approx(np.exp(value - total), rel=1e-3)


def test_predictor_keeps_the_order(predictor):
    contexts = [LONG[:n] for n in (900, 40, 3000, 200)]
    together = predictor(["Why?"] * 4, contexts)
    assert [a["answer"] for a in together] == [predictor(["Why?"], [c])[0]["answer"]
                                               for c in contexts]
    assert predictor([], []) == []
    with pytest.raises(ValueError, match="1 questions and 0 contexts"):
        predictor(["Why?"], [])


# ---------------------------------------------------------------- SQuAD's rules

@pytest.mark.parametrize("predicted, answers, exact, f1", [
    ("the Eiffel Tower", ["Eiffel Tower"], 1, 1),
    ("Eiffel tower!", ["An eiffel  tower."], 1, 1),
    ("in Paris", ["Paris", "Rome"], 0, 2 / 3),
    ("Rome", ["Paris", "Rome"], 1, 1),
    ("a b c", ["b c d"], 0, 2 * (2 / 2) * (2 / 3) / (2 / 2 + 2 / 3)),  # the article goes
    ("theatre", ["atre"], 0, 0),  # articles are whole words
    ("U.S.A.", ["USA"], 1, 1),
    ("well-known", ["well known"], 0, 0),  # punctuation goes without a space in its place
    ("\u201cnuit\u201d", ["nuit"], 0, 0),  # only ASCII punctuation goes
    ("5–6", ["5-6"], 0, 0),
    ("CAFÉ", ["café"], 1, 1),
    ("cafe\u0301", ["caf\u00e9"], 0, 0),  # no Unicode normalization
    ("one\u00a0two", ["one two"], 1, 1),  # any white space divides words
    ("two two three", ["two three three"], 0, 2 / 3),  # words are counted
    ("the", ["The"], 1, 0),  # nothing is left: equal, but no word in common
    ("", ["Paris"], 0, 0),
])
def test_published_rules_by_hand(predicted, answers, exact, f1):
    assert answering.exact_match(predicted, answers) == exact
    assert answering.f1(predicted, answers) == pytest.approx(f1)


def test_score_is_the_mean_in_percent_over_the_best_gold():
    scores = answering.score(["Rome", "in Paris"], [["Paris", "Rome"], ["Paris"]])
    assert scores == pytest.approx({"exact_match": 50.0, "f1": 100 * (1 + 2 / 3) / 2})
    with pytest.raises(ValueError):
        answering.score(["Rome"], [])
