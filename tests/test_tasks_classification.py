"""Text classification against the transformers pipeline and scikit-learn's definitions."""

import numpy as np
import pytest
import torch
from datasets import ClassLabel, Dataset, Features, Value
from sklearn.metrics import f1_score
from transformers import AutoTokenizer, pipeline

from helpers import evaluation, onednn, tasks
from helpers.tasks import classification

NAMES = ["sad", "glad", "cross"]
TEXTS = ["I lost my keys.", "What a lovely morning by the sea!", "No.", "", "   ",
         "They took the wrong turning again, and nobody would say whose fault it was.",
         "Zażółć gęślą jaźń 🙂", "word " * 300]


@pytest.fixture(scope="module")
def folder(tiny_checkpoint, tmp_path_factory):
    torch.manual_seed(1)
    model = classification.build(tiny_checkpoint, NAMES)
    with torch.no_grad():  # spread the scores
        for parameter in (model.pre_classifier.weight, model.classifier.weight):
            parameter.normal_(std=1.0)
    target = tmp_path_factory.mktemp("classifier")
    model.save_pretrained(target)
    AutoTokenizer.from_pretrained(tiny_checkpoint).save_pretrained(target)
    return target


@pytest.fixture(scope="module")
def predictor(folder):
    return classification.load(folder, device="cpu")


def dataset(texts, labels):
    features = Features({"text": Value("string"), "label": ClassLabel(names=NAMES)})
    return Dataset.from_dict({"text": texts, "label": labels}, features=features)


@pytest.mark.parametrize("top_k", [1, 2, 3])
def test_equals_the_pipeline(predictor, folder, top_k):
    theirs = pipeline("text-classification", model=str(folder), device="cpu")(TEXTS, top_k=top_k)
    ours = predictor(TEXTS, top_k=top_k)
    assert len(ours) == len(TEXTS)
    for a, b in zip(ours, theirs):
        assert list(a[0]) == ["label", "score"]
        assert [x["label"] for x in a] == [x["label"] for x in b]
        assert [x["score"] for x in a] == pytest.approx([x["score"] for x in b], abs=1e-5)


def test_order_and_batching_change_nothing(predictor):
    alone = [predictor([text])[0][0]["score"] for text in TEXTS]
    assert [row[0]["score"] for row in predictor(TEXTS)] == pytest.approx(alone, abs=1e-5)
    assert predictor([]) == []


def test_metrics_by_hand():
    gold, predicted = [0, 0, 0, 1, 1, 2], [0, 0, 1, 1, 2, 0]
    # sad: 2 right of 3 predicted, of 3 true; glad: 1 of 2, of 2; cross: 0
    expected = {"accuracy": 3 / 6, "macro_f1": (2 / 3 + 1 / 2 + 0) / 3}
    assert classification.score(predicted, gold) == pytest.approx(expected)


@pytest.mark.parametrize("absent", ["from the gold labels", "from both sides"])
def test_macro_f1_and_its_interval_agree_where_a_class_is_absent(absent):
    rng = np.random.default_rng(0)
    gold = rng.choice([0, 1, 3], size=80)
    wrong = [0, 1, 2, 3] if absent == "from the gold labels" else [0, 1, 3]
    predicted = np.where(rng.random(80) < 0.6, gold, rng.choice(wrong, size=80))
    ours, true = np.eye(5)[predicted], np.eye(5)[gold]
    counts = np.stack([ours * true, ours, true], axis=-1)
    found = evaluation.bootstrap(counts, statistic=evaluation.f1, n=200, seed=3)
    expected = f1_score(gold, predicted, average="macro", zero_division=0)
    assert found.value == pytest.approx(expected)
    assert classification.score(predicted, gold)["macro_f1"] == pytest.approx(expected)
    draws = rng.integers(80, size=(50, 4))  # so few rows that most draws lack classes
    assert evaluation.f1(counts[draws].sum(1), np.full(50, 4.0)) == pytest.approx(
        [f1_score(gold[rows], predicted[rows], average="macro", zero_division=0)
         for rows in draws])
    assert evaluation.f1(np.zeros((2, 5, 3)), np.ones(2)).tolist() == [0, 0]


def test_encode_cuts_and_labels(tiny_checkpoint):
    tokenizer = AutoTokenizer.from_pretrained(tiny_checkpoint)
    rows = classification.encode(dataset(TEXTS, [0, 1, 2, 0, 1, 2, 0, 1]), tokenizer, 64)
    assert [row["labels"] for row in rows] == [0, 1, 2, 0, 1, 2, 0, 1]
    assert max(len(row["input_ids"]) for row in rows) == 64
    assert tokenizer.decode(rows[2]["input_ids"]) == "[CLS] no. [SEP]"


def test_collate_pads_and_keeps(tiny_checkpoint):
    batch = tasks.collate([{"input_ids": np.array([5, 6, 7]), "labels": np.array([1, -100, 2])},
                           {"input_ids": np.array([8]), "labels": np.array([3])}], pad_id=0)
    assert batch["input_ids"].tolist() == [[5, 6, 7], [8, 0, 0]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1], [1, 0, 0]]
    assert batch["labels"].tolist() == [[1, -100, 2], [3, -100, -100]]


def test_batches_hold_every_row_once_within_the_limit():
    lengths = np.random.default_rng(0).integers(1, 500, 1000).tolist()
    found = list(tasks.batches(lengths, 1024))
    assert sorted(row for rows in found for row in rows) == list(range(1000))
    assert all(len(rows) * max(lengths[r] for r in rows) <= 1024 for rows in found)
    padded = sum(len(rows) * max(lengths[r] for r in rows) for rows in found)
    assert padded < 1.05 * sum(lengths)


@pytest.mark.parametrize("texts, message", [
    (["fine", 3], "row 1: the text is 3, not a string"),
    (["half a pair: \ud83d"], "row 0: half of a surrogate pair"),
    (["fine", "word " * 600], "row 1: 602 tokens, more than the model's 512"),
])
def test_bad_texts_are_named(predictor, texts, message):
    with pytest.raises(ValueError, match=message):
        predictor(texts)


@pytest.mark.parametrize("top_k", [0, 4, True, 1.0, "1"])
def test_bad_top_k(predictor, top_k):
    with pytest.raises(ValueError, match="top_k"):
        predictor(["fine"], top_k=top_k)


def test_predictions_cut_long_rows_and_bf16_agrees(predictor, folder):
    data = dataset(TEXTS + ["word " * 600], [0] * 9)
    exact = predictor.predictions(data)
    assert exact[:8] == [NAMES.index(row[0]["label"]) for row in predictor(TEXTS)]
    half = classification.load(folder, "cpu", "bf16")
    products = {m.dtype for m in half.model.modules() if isinstance(m, onednn.Packed)}
    assert (products or {half.model.dtype}) == {torch.bfloat16}
    assert not np.array_equal(half.logits(TEXTS), predictor.logits(TEXTS))
    assert half.logits(TEXTS) == pytest.approx(predictor.logits(TEXTS), rel=0.03, abs=0.5)
    assert predictor.evaluate(data) == classification.score(exact, [0] * 9)


def test_int8_is_refused(folder):
    with pytest.raises(ValueError, match="precision: .* int8"):
        classification.load(folder, "cpu", "int8")


def test_unknown_task():
    with pytest.raises(ValueError, match="text-classification, token-classification"):
        tasks.module("emotion")
