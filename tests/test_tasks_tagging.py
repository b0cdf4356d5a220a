"""Token classification against conlleval's rules and the transformers pipeline."""

import random

import numpy as np
import pytest
import torch
from datasets import ClassLabel, Dataset, Features, List, Value
from transformers import AutoTokenizer, pipeline

from helpers.tasks import tagging

TAGS = ["O", "B-PER", "I-PER", "B-ORG", "I-ORG", "B-LOC", "I-LOC"]
# Raw texts whose words are also the tokenizer's own, so that the pipeline reads the same words.
PLAIN = ["Ada Lovelace met Charles Babbage in London .", "nobody came",
         "The Kazlauskienė unbelievableness of Gearóid Mac Suibhne", "(Ely)", "Oslo",
         "Kłodzko, then Turin; unbelievable! Did Ada (of Ely) see it?"]


@pytest.fixture(scope="module")
def folder(tiny_checkpoint, tmp_path_factory):
    torch.manual_seed(1)
    model = tagging.build(tiny_checkpoint, TAGS)
    with torch.no_grad():  # spread the scores
        model.classifier.weight.normal_(std=1.0)
    target = tmp_path_factory.mktemp("tagger")
    model.save_pretrained(target)
    AutoTokenizer.from_pretrained(tiny_checkpoint).save_pretrained(target)
    return target


@pytest.fixture(scope="module")
def predictor(folder):
    return tagging.load(folder, device="cpu")


def dataset(tokens, tags):
    features = Features({"tokens": List(Value("string")), "ner_tags": List(ClassLabel(names=TAGS))})
    return Dataset.from_dict({"tokens": tokens, "ner_tags": tags}, features=features)


# ---------------------------------------------------------------- span F1

def conlleval_chunks(tags):
    """Chunks by the start and end tables of the CoNLL-2000 script: an independent reading."""
    def split(tag):
        return ("O", "") if tag == "O" else tuple(tag.split("-", 1))

    def starts(before, tag, type_before, kind):
        return (tag == "B" or (before == "O" and tag == "I")
                or (tag != "O" and kind != type_before))

    def ends(before, tag, type_before, kind):
        return before in "BI" and (tag in ("B", "O") or kind != type_before)

    chunks, begin = set(), None
    before, type_before = "O", ""
    for i, (tag, kind) in enumerate([*map(split, tags), ("O", "")]):
        if begin is not None and ends(before, tag, type_before, kind):
            chunks.add((type_before, begin, i))
            begin = None
        if starts(before, tag, type_before, kind):
            begin = i
        before, type_before = tag, kind
    return chunks


def random_pairs(n):
    rng = random.Random(0)
    for _ in range(n):
        gold = rng.choices(TAGS, weights=[4, 1, 2, 1, 2, 1, 2], k=rng.randint(0, 12))
        yield [tag if rng.random() < 0.7 else rng.choice(TAGS) for tag in gold], gold


def test_spans_equal_conlleval_on_random_tags():
    pairs = list(random_pairs(1000))
    illegal = sum(tag[0] == "I" and (i == 0 or row[i - 1][2:] != tag[2:])
                  for _, row in pairs for i, tag in enumerate(row))
    assert illegal > 500
    for predicted, gold in pairs:
        ours, true = conlleval_chunks(predicted), conlleval_chunks(gold)
        assert set(tagging.spans(gold)) == true and set(tagging.spans(predicted)) == ours
        both = len(ours & true)
        p, r = both / len(ours) if ours else 0, both / len(true) if true else 0
        f = 2 * p * r / (p + r) if p + r else 0
        assert tagging.score([predicted], [gold]) == pytest.approx(
            {"precision": p, "recall": r, "span_f1": f})


def test_counts_add_up_over_rows_and_types():
    pairs = list(random_pairs(200))
    predicted, gold = zip(*pairs)
    every = tagging.count(predicted, gold)
    assert every.shape == (200, 3)
    by_type = sum(tagging.count(predicted, gold, kind) for kind in ("PER", "ORG", "LOC"))
    assert np.array_equal(every, by_type)
    correct, ours, true = every.sum(0)
    assert tagging.score(predicted, gold)["span_f1"] == pytest.approx(2 * correct / (ours + true))


def test_unequal_rows_are_named():
    with pytest.raises(ValueError, match="row 1: 1 predicted and 2 gold tags"):
        tagging.score([["O"], ["O"]], [["O"], ["O", "O"]])


# ---------------------------------------------------------------- alignment

def test_labels_stand_at_first_pieces(tiny_checkpoint):
    tokenizer = AutoTokenizer.from_pretrained(tiny_checkpoint)
    words = ["Gearóid", "unbelievableness", "U.N.", "of", "\u200b", "1996-08-22", "Ely"]
    tags = [1, 0, 3, 0, 0, 2, 5]
    row, = tagging.encode(dataset([words], [tags]), tokenizer)
    expected = [-100]
    for word, tag in zip(words, tags):  # every word alone, one after the other
        pieces = tokenizer(word, add_special_tokens=False)["input_ids"]
        expected += [tag, *[-100] * (len(pieces) - 1)][:len(pieces)]
    assert row["labels"].tolist() == [*expected, -100]
    assert len(row["input_ids"]) == len(row["labels"])


@pytest.mark.parametrize("text, expected", [
    ("Mr. Hendrix's U.N. visit, 1996-08-22.", "Mr|.|Hendrix|'s|U.N.|visit|,|1996-08-22|."),
    ("O'Brien doesn’t owe €1,234.50!", "O'Brien|doesn|’t|owe|€|1,234.50|!"),
    ("(AT&T) e.g. 3-2 rock'n'roll", "(|AT&T|)|e.g.|3-2|rock'n'roll"),
    ("Zoe\u0308 in São Paulo\u00a0— 北京", "Zoe\u0308|in|São|Paulo|—|北京"),
    ("", ""), (" \n\t", ""),
])
def test_words_of_raw_text(text, expected):
    assert [text[a:b] for a, b in tagging.words(text)] == (expected.split("|") if expected else [])


# ---------------------------------------------------------------- against the pipeline

def comparable(entities):
    return [{k: v for k, v in entity.items() if k != "score"} for entity in entities]


def test_equals_the_pipeline_on_raw_text(predictor, folder):
    theirs = pipeline("token-classification", model=str(folder), device="cpu",
                      aggregation_strategy="first")
    ours = predictor(PLAIN)
    for text, found in zip(PLAIN, ours):
        expected = theirs(text)
        assert comparable(found) == comparable(expected)
        assert [e["score"] for e in found] == pytest.approx([e["score"] for e in expected], abs=1e-5)
    assert sum(map(len, ours)) >= 5
    assert list(ours[0][0]) == ["entity_group", "score", "word", "start", "end"]


def test_gold_tags_decode_to_gold_spans():
    text = "Ada Lovelace left the U.N. for Ely"
    offsets = tagging.words(text)
    words = [text[a:b] for a, b in offsets]
    found = tagging.decode(["B-PER", "I-PER", "O", "O", "B-ORG", "O", "B-LOC"], [0.5, 1.0] + [1.0] * 5,
                           offsets, lambda first, last: " ".join(words[first:last]))
    assert [(e["entity_group"], text[e["start"]:e["end"]]) for e in found] == [
        ("PER", "Ada Lovelace"), ("ORG", "U.N."), ("LOC", "Ely")]
    assert found[0]["score"] == 0.75


# ---------------------------------------------------------------- odd input

def test_long_texts_are_read_in_parts(predictor):
    text = " ".join(PLAIN[0].split() * 200)
    found, = predictor([text])
    assert max(e["end"] for e in found) > 0.9 * len(text)
    first, = predictor([" ".join(text.split()[:510])])  # what the first part holds
    assert comparable(found[:len(first) - 1]) == comparable(first[:-1])


def test_odd_texts_give_offsets_into_themselves(predictor):
    rng = random.Random(0)
    alphabet = "aB .,'-\u0301\u200b\u202e\x00\n🙂👨‍👩‍👧é北ß\u0e33İﬁ"
    texts = ["", " ", "a-" * 1500, "x" * 2000,
             *("".join(rng.choices(alphabet, k=rng.randint(1, 60))) for _ in range(100))]
    for text, entities in zip(texts, predictor(texts)):
        assert all(0 <= e["start"] < e["end"] <= len(text) for e in entities)
        assert sorted(e["start"] for e in entities) == [e["start"] for e in entities]


def test_predictions_tag_every_word(predictor):
    words = [PLAIN[0].split(), [], ["\u200b"], PLAIN[2].split() * 200]
    data = dataset(words, [[0] * len(row) for row in words])
    predicted = predictor.predictions(data)
    assert [len(row) for row in predicted] == [len(row) for row in words]
    assert predicted[2] == ["O"]
    assert predictor.evaluate(data)["recall"] == 0.0


def test_no_string_is_named(predictor):
    with pytest.raises(ValueError, match="row 1: the text is None"):
        predictor(["fine", None])
