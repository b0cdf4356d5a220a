"""Evaluation against plain, slow computations of the same definitions."""

import json
import math
import unicodedata

import numpy as np
import pytest
import scipy.stats
import torch
from sklearn.metrics import f1_score
from transformers import AutoModelForMaskedLM, AutoTokenizer

from benchmarks import evaluate_imdb
from helpers import data, evaluation, fill_mask
from helpers.pretraining import student_of


@pytest.fixture(scope="module")
def fill(tiny_checkpoint):
    return fill_mask.load(tiny_checkpoint, "cpu")


@pytest.fixture(scope="module")
def plain(tiny_checkpoint):
    """The same checkpoint through transformers alone."""
    return (AutoModelForMaskedLM.from_pretrained(tiny_checkpoint).eval(),
            AutoTokenizer.from_pretrained(tiny_checkpoint))


@pytest.fixture(scope="module")
def reviews():
    return data.load("embedded", "fill-mask")["test"]["text"]


# ---------------------------------------------------------------- intervals

def test_mean_and_interval_equal_scipys():
    values = np.random.default_rng(1).random(80) ** 3
    ours = evaluation.bootstrap(values, n=20_000)
    theirs = scipy.stats.bootstrap((values,), np.mean, method="percentile", n_resamples=20_000,
                                   rng=np.random.default_rng(2)).confidence_interval
    assert ours.value == pytest.approx(values.mean())
    assert (ours.low, ours.high) == pytest.approx((theirs.low, theirs.high), abs=0.003)


def test_groups_are_resampled_whole_as_in_a_plain_loop():
    rng = np.random.default_rng(3)
    groups = np.repeat(list("abcdefgh"), [1, 5, 2, 9, 4, 3, 7, 2])
    values = rng.random(len(groups)) + (groups > "d")
    kept = {name: values[groups == name] for name in "abcdefgh"}
    loop = [np.concatenate([kept[g] for g in rng.choice(list(kept), 8)]).mean()
            for _ in range(8000)]
    ours = evaluation.bootstrap(values, groups, n=8000)
    assert (ours.low, ours.high) == pytest.approx(np.quantile(loop, [0.025, 0.975]), abs=0.03)
    alone = evaluation.bootstrap(values, n=8000)
    assert ours.high - ours.low > 1.3 * (alone.high - alone.low)


def test_intervals_cover_the_truth_at_their_rate():
    rng, covered, naive, paired = np.random.default_rng(4), 0, 0, 0
    groups = np.repeat(np.arange(60), 5)
    for trial in range(500):
        skill = rng.beta(2, 2, size=(60, 1)).repeat(5, 1).ravel()  # words of a text are alike
        a, b = rng.random(300) < skill, rng.random(300) < 0.8 * skill
        found = evaluation.bootstrap(a, groups, n=300, seed=trial)
        covered += found.low <= 0.5 <= found.high
        found = evaluation.bootstrap(a, n=300, seed=trial)
        naive += found.low <= 0.5 <= found.high
        found = evaluation.paired_bootstrap(a, b, groups, n=300, seed=trial)
        paired += found.low <= 0.1 <= found.high
    assert 0.92 < covered / 500 < 0.98 and 0.92 < paired / 500 < 0.98
    assert naive < covered  # words taken for independent promise too much


def test_f1_equals_scikit_learns():
    rng = np.random.default_rng(5)
    gold = rng.integers(4, size=300)
    predicted = np.where(rng.random(300) < 0.6, gold, rng.integers(4, size=300))
    g, p = (x[:, None] == np.arange(4) for x in (gold, predicted))
    values = np.stack([g & p, p, g], axis=2)
    assert evaluation.bootstrap(values, statistic=evaluation.f1).value == pytest.approx(
        f1_score(gold, predicted, average="macro"))
    assert evaluation.bootstrap(values.sum(1), statistic=evaluation.f1).value == pytest.approx(
        f1_score(gold, predicted, average="micro"))


def test_a_model_against_itself_differs_by_nothing():
    values = np.random.default_rng(6).random(50)
    assert evaluation.paired_bootstrap(values, values) == (0, 0, 0)
    better = evaluation.paired_bootstrap(values + 0.01, values)
    assert better.low == pytest.approx(0.01) == better.high


@pytest.mark.parametrize("call, message", [
    (lambda: evaluation.bootstrap([]), "no rows"),
    (lambda: evaluation.bootstrap([1, 2], ["a"]), "2 rows of values, 1 groups"),
    (lambda: evaluation.paired_bootstrap([1, 2], [1, 2, 3]), "pair the rows"),
])
def test_what_cannot_be_estimated_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_calibration_error_by_hand():
    confidence = [0.95, 0.91, 0.31, 0.35, 1.0, 0.0]
    correct = [True, False, False, True, True, False]
    by_hand = (abs(0.95 + 0.91 + 1 - 2) + abs(0.31 + 0.35 - 1) + 0) / 6
    assert evaluation.expected_calibration_error(confidence, correct) == pytest.approx(by_hand)
    sure = np.random.default_rng(7).random(20_000)
    hits = np.random.default_rng(8).random(20_000) < sure
    assert evaluation.expected_calibration_error(sure, hits) < 0.02


# ---------------------------------------------------------------- masking

def words_by_hand(text: str) -> list[str]:
    """Split as BERT's basic tokenizer does: at white space, and around each punctuation mark."""
    marked = "".join(f" {c} " if unicodedata.category(c).startswith("P") or c in "$+<=>^`|~"
                     else c for c in text)
    return [word for word in marked.split() if any(c.isalnum() for c in word)]


def test_masking_never_touches_part_of_a_word(fill, reviews):
    hard = ["A cat sat on a catalogue; a-cat, cat's. (a)", "Zürich naïveté antidisestablishment",
            "unbelievably supercalifragilistic words", "1,000.50 and C3PO's R2-D2 ... !!"]
    vocabulary = fill.tokenizer.convert_ids_to_tokens(range(len(fill.tokenizer)))
    continues = np.array([token.startswith("##") for token in vocabulary])
    texts = hard + list(reviews)
    drawn = 0
    for seed in range(20):
        masked = evaluation.mask_words(texts, fill.tokenizer, 5, seed)
        for ids, gold, text, position, word in zip(*masked):
            drawn += 1
            first = ids.index(fill.mask_id)
            after = ids[first + len(gold)]
            assert ids[first:first + len(gold)] == [fill.mask_id] * len(gold)
            assert ids.count(fill.mask_id) == len(gold)
            assert not continues[gold[0]] and continues[gold[1:]].all() and not continues[after]
            words = words_by_hand(texts[text])
            assert words[round(position * max(1, len(words) - 1))] == word
    assert drawn > 10_000


def test_masking_is_by_position_and_by_seed(fill):
    text = "the cat and the dog and the bird " * 3
    one, two, other = (evaluation.mask_words([text], fill.tokenizer, 8, s) for s in (0, 0, 1))
    assert one == two != other
    assert len({tuple(ids) for ids in one.ids}) == 8  # never one place twice
    whole = fill.tokenizer(text)["input_ids"]
    for ids, gold in zip(one.ids, one.gold):
        first = ids.index(fill.mask_id)
        assert [*ids[:first], *gold, *ids[first + len(gold):]] == whole


def test_texts_without_words_and_with_a_mask_of_their_own(fill):
    masked = evaluation.mask_words(["", "... !?", "only [MASK] here"], fill.tokenizer, 9)
    assert sorted(masked.word) == ["here", "only"] and set(masked.text) == {2}
    assert all(ids.count(fill.mask_id) == 1 for ids in masked.ids)


def test_long_texts_are_cut_around_the_word(fill, reviews):
    masked = evaluation.mask_words([" ".join(reviews[:20])], fill.tokenizer, 50, max_length=32)
    assert {len(ids) for ids in masked.ids} == {32} and len(masked.ids) == 50


# ---------------------------------------------------------------- metrics

def test_metrics_equal_the_plain_model_one_mask_at_a_time(fill, plain, reviews):
    model, _ = plain
    masked = evaluation.mask_words(reviews[:12] + ["Zürich antidisestablishment naïveté"],
                                   fill.tokenizer, 4, max_length=64)
    assert max(map(len, masked.gold)) > 1
    ranks, likelihoods, first, sure = [], [], [], []
    for ids, gold in zip(masked.ids, masked.gold):
        with torch.no_grad():
            logits = model(torch.tensor([ids])).logits[0]
        own = logits[[i for i, t in enumerate(ids) if t == fill.mask_id]].log_softmax(-1)
        ranks.append(max(int((row > row[t]).sum()) + 1 for row, t in zip(own, gold)))
        likelihoods.append(sum(float(row[t]) for row, t in zip(own, gold)))
        first.append([int(row.argmax()) for row in own] == gold)
        sure.append(math.exp(sum(float(row.max()) for row in own)))
    words = evaluation.score_words(fill, masked)
    assert words["rank"].tolist() == ranks
    assert words["log_prob"].to_numpy() == pytest.approx(np.array(likelihoods), abs=1e-4)
    assert words["confidence"].to_numpy() == pytest.approx(np.array(sure), rel=1e-4)
    found = evaluation.measure(words, n=50)
    ranks = np.array(ranks)
    for k in (1, 5, 10):
        assert found[f"accuracy@{k}"].value == pytest.approx((ranks <= k).mean())
    assert found["mean reciprocal rank"].value == pytest.approx((1 / ranks).mean())
    assert found["negative log-likelihood"].value == pytest.approx(-np.mean(likelihoods), abs=1e-4)
    assert found["expected calibration error"].value == pytest.approx(
        evaluation.expected_calibration_error(sure, first), abs=1e-4)
    assert all(e.low <= e.value <= e.high for e in list(found.values())[:5])


def test_pseudo_perplexity_is_one_token_at_a_time(fill, plain, reviews):
    model, tokenizer = plain
    texts = ["A short one.", "Word", *reviews[:2]]
    total, tokens = 0.0, 0
    for text in texts:
        ids = tokenizer(text, truncation=True, max_length=48, return_tensors="pt")["input_ids"]
        for i in range(1, ids.shape[1] - 1):
            masked = ids.clone()
            masked[0, i] = tokenizer.mask_token_id
            with torch.no_grad():
                total += float(model(masked).logits[0, i].log_softmax(-1)[ids[0, i]])
            tokens += 1
    sums = evaluation.pseudo_log_likelihoods(fill, texts, max_length=48)
    found = evaluation.bootstrap(sums, statistic=evaluation.pseudo_perplexity, n=50)
    assert sums[:, 1].sum() == tokens
    assert found.value == pytest.approx(math.exp(-total / tokens), rel=1e-5)


def test_unigram_likelihoods_are_shares_of_the_known_tokens(fill):
    known, texts = ["the cat. the dog.", "a [MASK] cat?"] * 150, ["the cat.", "a bird", ""]
    counts = {"the": 301, "cat": 301, ".": 301, "dog": 151, "a": 151, "bird": 1}
    total = 150 * (6 + 4) + len(fill.tokenizer)
    sums = evaluation.unigram_log_likelihoods(texts, known, fill.tokenizer)
    assert sums[:, 1].tolist() == [3, 2, 0]
    assert sums[:, 0] == pytest.approx([
        sum(math.log(counts[word] / total) for word in words)
        for words in (("the", "cat", "."), ("a", "bird"), ())])
    long = evaluation.unigram_log_likelihoods(["the " * 100], known, fill.tokenizer, 12)
    assert long.tolist() == [[pytest.approx(10 * math.log(301 / total)), 10]]
    same = evaluation.unigram_log_likelihoods(["a [MASK]", "a [UNK]"], known, fill.tokenizer)
    assert same[0].tolist() == same[1].tolist()


def test_line_breaks_of_markup_are_no_words(fill):
    review = "It ends.<br /><br />Twice a br<BR>and <br/> on."
    assert evaluation.plain_text(review) == "It ends. Twice a br and  on."
    assert evaluation.plain_text("5 < 6, a <b>\nand a break />") == "5 < 6, a <b>\nand a break />"
    masked = evaluation.mask_words([evaluation.plain_text("so<br />it<br>is")], fill.tokenizer)
    assert masked.word == ["so", "it", "is"]


def test_the_figures_of_real_reviews(tiny_checkpoint, tmp_path):
    folder = tmp_path / "stanfordnlp" / "imdb"
    folder.mkdir(parents=True)
    for split in ("train", "test"):
        (folder / f"{split}.jsonl").write_text("\n".join(json.dumps(
            {"text": f"film {i} of {split} <br /><br />was long and i liked it", "label": i % 2})
            for i in range(12)))
    rows = evaluate_imdb.measure(str(tiny_checkpoint), tmp_path, words=8, per_text=2, tokens=8)
    found = {(row["task"], row["metric"]): row for row in rows}
    surprise = {task: row for (task, metric), row in found.items() if metric == "pseudo-perplexity"}
    assert set(surprise) == {"fill-mask", "fill-mask, 1 layers", "fill-mask, unigram baseline",
                             "fill-mask, all layers - 1 layers",
                             "fill-mask, all layers - unigram baseline"}
    value = {task: row["value"] for task, row in surprise.items()}
    for other in ("1 layers", "unigram baseline"):
        assert value[f"fill-mask, all layers - {other}"] == pytest.approx(
            value["fill-mask"] - value[f"fill-mask, {other}"])
    for row in surprise.values():
        reviews = int(row["split"].split()[-2])
        assert row["split"].startswith("test, first 8 tokens") and row["rows"] == 8 * reviews
        assert row["low"] <= row["value"] <= row["high"]
    assert found["fill-mask", "accuracy@1"]["rows"] >= 8


def test_the_unigram_baseline_is_a_sorted_list_of_counts(fill):
    tokenizer = fill.tokenizer
    counts = evaluation.count_words(["the cat the dog the cat.", "a cat, a ##x"], tokenizer)
    assert {tokenizer.decode(list(w)): n for w, n in counts.items()} == {
        "the": 3, "cat": 3, "dog": 1, "a": 2, "x": 1}
    masked = evaluation.mask_words(["a dog barks"], tokenizer, 3)
    words = evaluation.score_unigram(masked, counts, tokenizer)
    total = 10 + len(tokenizer)
    unseen = len(tokenizer) - 5
    # behind the and cat; behind a, with x; the mean place of all that were not seen
    assert words["rank"].tolist() == [3, 4.5, 5 + (1 + unseen) / 2]
    assert np.exp(words["log_prob"].to_numpy()) == pytest.approx(
        np.array([3, 2, 1 / total]) / total)  # two pieces: bark, ##s
    assert words["confidence"].tolist() == pytest.approx([4 / total, 4 / total, (4 / total) ** 2])
    assert set(words["predicted"][:2]) <= {"the", "cat"}


def test_two_checkpoints_side_by_side(fill, plain, reviews):
    masked = evaluation.mask_words(reviews[:10], fill.tokenizer, 4, max_length=48)
    other = fill_mask.FillMask(student_of(plain[0], 1), fill.tokenizer)
    one, two = (evaluation.score_words(each, masked) for each in (fill, other))
    a, b = evaluation.measure(one, n=50), evaluation.measure(two, n=50)
    for name, difference in evaluation.compare(one, two, n=50).items():
        assert difference.value == pytest.approx(a[name].value - b[name].value)
    assert evaluation.compare(one, two, n=50)["negative log-likelihood"].value != 0
