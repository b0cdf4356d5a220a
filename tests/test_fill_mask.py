"""fill_mask against transformers' own pipeline on the same checkpoint."""

import random
import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (AutoModelForMaskedLM, AutoTokenizer, BertConfig, BertForMaskedLM,
                          DistilBertConfig, DistilBertForMaskedLM,
                          DistilBertForSequenceClassification, RobertaConfig, RobertaForMaskedLM,
                          pipeline)

from helpers import fill_mask, onednn

WORDS = (
    "the of city river music war old young doctor said walks brightly unbelievable rain "
    "café naïve Zürich señor Ærø œuvre Łódź façade jalapeño résumé İstanbul ß "
    "東京 中文 日本語 한국어 русский ελληνικά עברית العربية ไทย हिन्दी "
    "😀 👩‍🚀 🇫🇷 ❤️ ½ ² € 3.14 1,000 1999 #tag @name http://a.b/c?d=e co-op don't it's U.S. "
    "[PAD] [UNK] [SEP] ##ing antidisestablishmentarianism xqzjv e\u0301 a\u0308 "
    "\u200b \t").split(" ")
MARKS = [".", "!", "?", ",", ";", ":", "...", '"', "'", "(", ")", " - ", "—", "/", "", "", ""]


def prompts(count: int, seed: int = 0) -> list[str]:
    """Seeded texts of 1 to about 500 words with one mask (two thirds) or several."""
    rng = random.Random(seed)
    texts = ["[MASK]", "[MASK] [MASK]", "[MASK].", "a[MASK]b", "[MASK]" * 5,
             "  [MASK]  ", "[CLS] [MASK] [SEP]", "[mask] [MASK]", "\n[MASK]\n\n"]
    while len(texts) < count:
        length = rng.choice([1, 2, 4, 8, 15, 15, 30, 60]) if rng.random() < 0.97 else 200
        words = [rng.choice(WORDS) + rng.choice(MARKS) for _ in range(rng.randint(1, length))]
        for _ in range(1 if rng.random() < 0.67 else rng.randint(2, 4)):
            words.insert(rng.randint(0, len(words)), "[MASK]" + rng.choice(MARKS))
        texts.append(" ".join(words))
    return texts


@pytest.fixture(scope="module")
def checkpoint(tiny_checkpoint, tmp_path_factory):
    """Random weights so large that the answer depends on every word of the text."""
    folder = tmp_path_factory.mktemp("sharp-checkpoint")
    config = DistilBertConfig.from_pretrained(tiny_checkpoint, initializer_range=0.4)
    torch.manual_seed(0)
    DistilBertForMaskedLM(config).save_pretrained(folder)
    AutoTokenizer.from_pretrained(tiny_checkpoint).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def fill(checkpoint):
    return fill_mask.load(checkpoint, device="cpu")


@pytest.fixture(scope="module")
def oracle(checkpoint):
    return pipeline("fill-mask", model=str(checkpoint), device="cpu")


def varied(tokenizer) -> list[str]:
    """520 prompts, with the two ends of the range: 3 and exactly 512 tokens."""
    full = ["[MASK] " + "word " * 509, "word " * 200 + "[MASK] " * 3 + "word " * 307]
    texts = [text for text in prompts(560) if len(tokenizer(text)["input_ids"]) <= 512]
    texts = full + texts[:518]
    lengths = [len(tokenizer(text)["input_ids"]) for text in texts]
    assert len(texts) == 520 and max(lengths) == 512 and min(lengths) == 3
    assert sum(text.count("[MASK]") > 1 for text in texts) > 100
    return texts


@pytest.fixture(scope="module")
def texts(fill):
    return varied(fill.tokenizer)


def flat(answer) -> list[dict]:
    """The candidates of one text, of one mask or several, in a row."""
    return [c for part in answer for c in (part if isinstance(part, list) else [part])]


def assert_same(answer, expected, tolerance=1e-5):
    assert isinstance(answer[0], list) == isinstance(expected[0], list)
    if isinstance(answer[0], list):
        assert [len(part) for part in answer] == [len(part) for part in expected]
    for ours, theirs in zip(flat(answer), flat(expected), strict=True):
        assert list(ours) == ["score", "token", "token_str", "sequence"]
        assert type(ours["score"]) is float and type(ours["token"]) is int
        assert {**ours, "score": 0} == {**theirs, "score": 0}
        assert ours["score"] == pytest.approx(theirs["score"], abs=tolerance)


def test_520_prompts_answer_as_the_pipeline(fill, oracle, texts):
    answers = fill(texts)
    for text, answer in zip(texts, answers, strict=True):
        assert_same(answer, oracle(text))
    surest = [flat(answer)[0] for answer in answers]
    assert len({c["token"] for c in surest}) > 40  # the texts differ in their answers
    assert np.quantile([c["score"] for c in surest], 0.9) > 0.01


def test_targets_mean_what_the_pipeline_means(fill, oracle, texts):
    for i, targets in enumerate([["doctor", "nurse", "river"], ["Paris", "##ing", "[PAD]"],
                                 ["the", "the", "of"], "music"]):
        some = texts[2 + i::40]
        for top_k in (1, 5):
            for text, answer in zip(some, fill(some, top_k=top_k, targets=targets), strict=True):
                assert_same(answer, oracle(text, targets=targets, top_k=top_k))


def test_a_top_k_of_one_and_of_many(fill, oracle):
    for top_k in (1, 200):
        for text in ("Paris is the [MASK] of France.", "[MASK] and [MASK]"):
            assert_same(fill(text, top_k=top_k)[0], oracle(text, top_k=top_k))


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("batch_tokens", [8, 512, 20_000])
def test_alone_or_in_company_the_answer_is_the_same(
        checkpoint, fill, texts, batch_tokens, attention, monkeypatch):
    some = texts[::4]
    alone = [fill(text)[0] for text in some]
    model = AutoModelForMaskedLM.from_pretrained(checkpoint, attn_implementation=attention)
    own = fill_mask.FillMask(model, fill.tokenizer)
    monkeypatch.setattr(own, "batch_tokens", batch_tokens)
    for one, together in zip(alone, own(some), strict=True):
        assert_same(together, one, tolerance=5e-6)


def test_a_bert_checkpoint_answers_as_the_pipeline(fill, tmp_path):
    torch.manual_seed(0)
    model = BertForMaskedLM(BertConfig(
        vocab_size=30522, hidden_size=32, intermediate_size=64, num_attention_heads=2,
        num_hidden_layers=2))
    model.save_pretrained(tmp_path)
    fill.tokenizer.save_pretrained(tmp_path)
    own, oracle = fill_mask.load(tmp_path, "cpu"), pipeline("fill-mask", model=str(tmp_path))
    for text, answer in zip(prompts(30), own(prompts(30))):
        ours, theirs = flat(answer), flat(oracle(text))
        assert [c["token"] for c in ours] == [c["token"] for c in theirs]


def test_a_model_of_another_kind_is_refused(fill):
    model = RobertaForMaskedLM(RobertaConfig(
        vocab_size=50, hidden_size=8, intermediate_size=8, num_attention_heads=2,
        num_hidden_layers=1))
    with pytest.raises(ValueError, match="^checkpoint: fill_mask knows distilbert and bert, not "
                       "roberta; give one of these"):
        fill_mask.FillMask(model, fill.tokenizer)


def test_weights_without_a_trained_head_are_refused(fill, tmp_path):
    fill.tokenizer.save_pretrained(tmp_path)
    model = DistilBertForSequenceClassification(DistilBertConfig(
        dim=8, hidden_dim=8, n_heads=2, n_layers=1))
    model.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="has no weights for vocab_layer_norm.bias, .*; give a "
                       "masked language model saved with its head"):
        fill_mask.load(tmp_path, "cpu")


def test_tied_weights_may_be_left_out_of_the_file(fill, checkpoint, tmp_path):
    """Nothing is missing where the head's matrix is the embeddings' own, stored or not."""
    shutil.copytree(checkpoint, tmp_path, dirs_exist_ok=True)
    weights = load_file(tmp_path / "model.safetensors")
    words = weights["distilbert.embeddings.word_embeddings.weight"]
    text = "Paris is the [MASK] of France."
    for stored in ({}, {"vocab_projector.weight": words.clone()}):
        weights.pop("vocab_projector.weight", None)
        save_file(weights | stored, tmp_path / "model.safetensors", {"format": "pt"})
        assert_same(fill_mask.load(tmp_path, "cpu")(text)[0], fill(text)[0], tolerance=1e-6)


def test_the_vocabulary_projection_sees_the_masks_only(fill, texts):
    seen = []
    hook = fill.model.vocab_transform.register_forward_hook(
        lambda module, inputs, output: seen.append(inputs[0].shape[0]))
    fill(texts[:50])
    hook.remove()
    assert sum(seen) == sum(text.count("[MASK]") for text in texts[:50])


def test_batches_keep_the_budget_and_lose_nothing(fill):
    rng = random.Random(0)
    ids = [[fill.mask_id] + [5] * rng.randint(0, 500) for _ in range(300)]
    batches = list(fill._batches(ids))
    assert sorted(row for batch in batches for row in batch) == list(range(300))
    for batch in batches:
        padded = len(batch) * max(len(ids[row]) for row in batch)
        assert padded <= fill.batch_tokens or len(batch) == 1
    assert sum(map(len, ids)) > 0.9 * sum(len(b) * len(ids[b[0]]) for b in batches)


def test_no_texts_no_answers(fill):
    assert fill([]) == [] and list(fill.stream([])) == []


def test_a_single_string_is_one_text(fill):
    assert fill("A [MASK].") == fill(["A [MASK]."]) and len(fill("A [MASK].")) == 1
    assert list(fill.stream("A [MASK].")) == fill("A [MASK].")


@pytest.mark.parametrize("bad, code, message", [
    ("Paris is it.", "no_mask",
     'row 2: no [MASK] in "Paris is it."; write [MASK] where the word is missing'),
    ("", "no_mask", 'row 2: no [MASK] in ""; write [MASK] where the word is missing'),
    ("[mask] [MASK", "no_mask", "row 2: no [MASK]"),
    ("[MASK] " + "word " * 510, "too_long", "row 2: 513 tokens in \"[MASK] word"),
    (None, "not_text", "row 2: None is not a string"),
    (7, "not_text", "row 2: 7 is not a string"),
    (["[MASK]"], "not_text", "row 2: ['[MASK]'] is not a string"),
    ("[MASK] \ud800", "not_text", "row 2: half of a surrogate pair"),
])
def test_a_bad_text_is_named_with_its_remedy(fill, bad, code, message):
    with pytest.raises(ValueError) as caught:
        fill(["Good [MASK].", "Better [MASK].", bad, "no mask either"])
    assert str(caught.value).startswith(message) and "; " in str(caught.value)
    assert (caught.value.row, caught.value.code) == (2, code)
    assert len(str(caught.value)) < 250


@pytest.mark.parametrize("targets, named", [
    (["city", "qwertyuiopasdf"], '"qwertyuiopasdf"'), ("unbelievability", '"unbelievability"'),
    (["東京塔"], '"東京塔"'), (["\ud800"], "targets"), ([""], '""'), ([None], "None"),
    ([], "none given"), (["new york"], '"new york"'),
])
def test_a_target_outside_the_vocabulary_is_named(fill, targets, named):
    with pytest.raises(ValueError, match="^targets: ") as caught:
        fill("A [MASK].", targets=targets)
    assert named in str(caught.value)


@pytest.mark.parametrize("top_k", [0, -1, 30523, True, 1.5, "5", None])
def test_top_k_out_of_range_is_refused(fill, top_k):
    with pytest.raises(ValueError, match="^top_k: .* from 1 to 30522"):
        fill("A [MASK].", top_k=top_k)


def test_a_stream_answers_in_order_and_reads_no_further_than_its_window(fill, texts):
    some = sorted(texts[:60], key=len, reverse=True)
    read = []

    def source():
        for text in some:
            read.append(text)
            yield text

    answers = fill.stream(source(), top_k=3, window=16)
    first = next(answers)
    assert len(read) == 16
    for streamed, listed in zip([first, *answers], fill(some, top_k=3), strict=True):
        assert_same(streamed, listed, tolerance=1e-6)


def test_a_stream_can_return_what_is_wrong_in_place(fill):
    texts = ["a [MASK]", "nothing", "b [MASK]", None, "c [MASK] [MASK]"]
    answers = list(fill.stream(texts, on_error="return", window=2))
    assert [getattr(a, "code", None) for a in answers] == [None, "no_mask", None, "not_text", None]
    assert [a.row for a in answers if isinstance(a, fill_mask.BadText)] == [1, 3]
    assert_same(answers[4], fill(texts[4])[0], tolerance=1e-6)
    with pytest.raises(ValueError, match="^row 1: "):
        list(fill.stream(texts, window=2))


def test_masked_log_probs_are_those_of_a_plain_forward_pass(fill, checkpoint, texts):
    model = AutoModelForMaskedLM.from_pretrained(checkpoint).eval()
    ids = fill.encode(texts[:40])
    rng = random.Random(0)
    gold = [[rng.randrange(30522) for token in row if token == fill.mask_id] for row in ids]
    result = fill.masked_log_probs(ids, gold)
    at = 0
    for row, (tokens, true) in enumerate(zip(ids, gold)):
        with torch.no_grad():
            probabilities = model(torch.tensor([tokens])).logits[0].double().log_softmax(-1)
        for position, token in zip(np.flatnonzero(np.array(tokens) == fill.mask_id), true):
            own = probabilities[position]
            assert result["row"][at] == row
            assert result["log_prob"][at] == pytest.approx(own[token].item(), abs=1e-4)
            assert result["token"][at] == own.argmax().item()
            assert result["token_log_prob"][at] == pytest.approx(own.max().item(), abs=1e-4)
            assert abs(result["rank"][at] - 1 - (own > own[token]).sum().item()) <= 1
            at += 1
    assert at == len(result["row"])
    with pytest.raises(ValueError, match="row 0: 1 masks and 2 gold tokens"):
        fill.masked_log_probs(ids[:1], [[1, 2]])


def test_bf16_stays_close_and_int8_is_refused_in_words(fill, tiny_checkpoint, texts):
    whole = fill_mask.load(tiny_checkpoint, "cpu")
    half = fill_mask.load(tiny_checkpoint, "cpu", "bf16")
    products = {m.dtype for m in half.model.modules() if isinstance(m, onednn.Packed)}
    assert (products or {p.dtype for p in half.model.parameters()}) == {torch.bfloat16}
    ids = fill.encode(texts[2:100])
    gold = [[2000] * row.count(fill.mask_id) for row in ids]
    exact, close = whole.masked_log_probs(ids, gold), half.masked_log_probs(ids, gold)
    assert np.abs(exact["log_prob"] - close["log_prob"]).max() < 0.1
    assert np.abs(exact["log_prob"] - close["log_prob"]).max() > 0
    with pytest.raises(ValueError, match="precision: .*int8"):
        fill_mask.load(tiny_checkpoint, "cpu", "int8")


def test_scores_are_those_of_double_precision(tiny_checkpoint):
    exact = AutoModelForMaskedLM.from_pretrained(
        tiny_checkpoint, dtype=torch.float64, attn_implementation="eager").eval()
    tokenizer = AutoTokenizer.from_pretrained(tiny_checkpoint)
    fill = fill_mask.load(tiny_checkpoint)
    texts = [f"a {'very ' * n}[MASK] day" for n in range(30)]
    for text, answer in zip(texts, fill(texts, top_k=50), strict=True):
        ids = tokenizer(text, return_tensors="pt").input_ids
        with torch.inference_mode():
            scores = exact(ids).logits[ids == fill.mask_id][0].softmax(-1)
        for one in answer:
            assert one["score"] == pytest.approx(float(scores[one["token"]]), abs=2e-6)
