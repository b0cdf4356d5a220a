"""Masked-LM pretraining and distillation, against torch, transformers and numbers by hand."""

import copy
import hashlib
import json
import math
import os
import re
import signal
import subprocess
import sys
import time

import numpy as np
import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from transformers import (AutoModelForMaskedLM, AutoTokenizer, BertConfig, BertForMaskedLM,
                          BertModel, DistilBertConfig, DistilBertForMaskedLM, GPT2Config)

from helpers import checkpoints
from helpers import pretraining as p

TINY_BERT = {"hidden_size": 32, "num_hidden_layers": 4, "num_attention_heads": 2,
             "intermediate_size": 48, "vocab_size": 200, "max_position_embeddings": 40}


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(checkpoints.EMBEDDED)


@pytest.fixture(scope="module")
def words(tokenizer):
    return sorted(w for w in tokenizer.get_vocab() if w.isalpha() and len(w) > 3)


@pytest.fixture(scope="module")
def packed(tokenizer, words):
    rng = np.random.default_rng(0)
    return p.pack((" ".join(rng.choice(words[:400], 60)) for _ in range(80)), tokenizer, 32)


def tiny_model(layers=2, width=32, vocabulary=30_522, seed=0):
    torch.manual_seed(seed)
    config = DistilBertConfig(dim=width, hidden_dim=48, n_heads=2, n_layers=layers,
                              vocab_size=vocabulary, max_position_embeddings=64)
    return DistilBertForMaskedLM(config).eval()


def bert_folder(folder, kind=BertModel):
    torch.manual_seed(1)
    bert = kind(BertConfig(**TINY_BERT)).eval()
    with torch.no_grad():  # so that a bias or a norm left behind would show
        for parameter in bert.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    bert.save_pretrained(folder)
    return bert


# ---------------------------------------------------------------- where a model starts from

def test_a_folded_bert_has_the_same_hidden_states(tmp_path):
    bert = bert_folder(tmp_path)
    folded = p.fold_bert(tmp_path).eval()
    ids = torch.randint(0, 200, (3, 17))
    attention = torch.ones_like(ids)
    attention[1, 9:] = 0
    ours = folded.distilbert(input_ids=ids, attention_mask=attention, output_hidden_states=True)
    theirs = bert(input_ids=ids, attention_mask=attention, output_hidden_states=True)
    assert len(ours.hidden_states) == len(theirs.hidden_states) == 5
    for one, other in zip(ours.hidden_states, theirs.hidden_states):
        assert torch.allclose(one[attention == 1], other[attention == 1], atol=2e-6)
    tied = folded.vocab_projector.weight, folded.distilbert.embeddings.word_embeddings.weight
    assert tied[0].data_ptr() == tied[1].data_ptr()


def test_a_folded_bert_keeps_its_own_masked_lm_head(tmp_path):
    bert = bert_folder(tmp_path, BertForMaskedLM)
    ids = torch.randint(0, 200, (2, 12))
    assert torch.allclose(p.start_from(tmp_path).eval()(ids).logits, bert(ids).logits, atol=1e-5)


def test_a_distilbert_is_loaded_in_fp32(tmp_path):
    tiny_model().half().save_pretrained(tmp_path)
    loaded = p.start_from(tmp_path)
    assert {x.dtype for x in loaded.parameters()} == {torch.float32}


def test_another_kind_of_model_is_refused(tmp_path):
    GPT2Config().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="gpt2 checkpoint; give one of BERT or DistilBERT"):
        p.start_from(tmp_path)


@pytest.mark.parametrize("layers,taken", [(1, [0]), (2, [0, 3]), (3, [0, 2, 4]), (6, range(6))])
def test_a_student_takes_every_nth_layer(layers, taken):
    teacher = tiny_model(layers=6)
    before = copy.deepcopy(teacher.state_dict())
    student = p.student_of(teacher, layers)
    assert student.config.n_layers == len(student.distilbert.transformer.layer) == layers
    for mine, number in zip(student.distilbert.transformer.layer, taken):
        theirs = teacher.distilbert.transformer.layer[number].state_dict()
        assert all(torch.equal(value, theirs[key]) for key, value in mine.state_dict().items())
    assert torch.equal(student.vocab_transform.weight, teacher.vocab_transform.weight)
    assert torch.equal(student.vocab_projector.bias, teacher.vocab_projector.bias)
    with torch.no_grad():  # what the student learns must not reach the teacher
        for parameter in student.parameters():
            parameter.zero_()
    assert all(torch.equal(value, before[key]) for key, value in teacher.state_dict().items())


@pytest.mark.parametrize("layers", [0, 4, 5, 7, 12])
def test_layers_must_divide(layers):
    with pytest.raises(ValueError, match=rf"layers: {layers} does not .* one of \[1, 2, 3, 6\]"):
        p.student_of(tiny_model(layers=6), layers)


def test_an_unfolded_bert_is_no_teacher():
    with pytest.raises(ValueError, match="pretraining.start_from, which folds a BERT"):
        p.student_of(BertForMaskedLM(BertConfig(**TINY_BERT)), 2)


# ---------------------------------------------------------------- masking

def test_masking_draws_the_right_shares(tokenizer):
    rng = np.random.default_rng(1)
    ids = rng.integers(1000, 30_000, (400, 256)).astype(np.uint16)
    ids[:, 0], ids[:, -1], ids[:, 100] = 101, 102, 0
    ids[::2, 50] = tokenizer.unk_token_id
    masked, labels = p.mask(ids, tokenizer, 0.3, np.random.default_rng(2))
    special = np.isin(ids, tokenizer.all_special_ids)
    drawn = labels != p.IGNORED
    assert not drawn[special].any() and (masked[special] == ids[special]).all()
    assert (labels[drawn] == ids[drawn]).all() and (masked[~drawn] == ids[~drawn]).all()
    count = drawn.sum()
    assert drawn[~special].mean() == pytest.approx(0.3, abs=4 * math.sqrt(0.21 / count))
    as_mask = masked[drawn] == tokenizer.mask_token_id
    kept = masked[drawn] == ids[drawn]
    for share, wanted in ((as_mask, 0.8), (kept, 0.1), (~as_mask & ~kept, 0.1)):
        bound = 4 * math.sqrt(wanted * (1 - wanted) / count)
        assert share.mean() == pytest.approx(wanted, abs=bound)
    changed = masked[drawn][~as_mask & ~kept]
    assert changed.max() > 29_000 and changed.min() < 1_000  # drawn from the whole vocabulary


def test_only_mask_masks_all_that_is_drawn(tokenizer, packed):
    masked, labels = p.mask(packed, tokenizer, 0.5, np.random.default_rng(0), only_mask=True)
    assert (masked[labels != p.IGNORED] == tokenizer.mask_token_id).all()


def test_masks_are_seeded_and_fresh(tokenizer, packed):
    one, again, other = (p.mask(packed, tokenizer, 0.15, np.random.default_rng(seed))[0]
                         for seed in (0, 0, 1))
    assert (one == again).all() and (one != other).any()


# ---------------------------------------------------------------- packing

def test_packing_loses_nothing_but_the_tail(tokenizer, words):
    rng = np.random.default_rng(3)
    texts = [" ".join(rng.choice(words, rng.integers(1, 90))) for _ in range(300)]
    rows = p.pack(texts, tokenizer, 24)
    assert (rows[:, 0] == 101).all() and (rows[:, -1] == 102).all() and rows.shape[1] == 24
    stream = [i for text in texts
              for i in tokenizer(text)["input_ids"][1:]]  # its own [SEP] ends each text
    assert rows[:, 1:-1].ravel().tolist() == stream[:len(stream) // 22 * 22]


def test_packing_stops_at_its_limit(tokenizer):
    read = []

    def texts():
        for number in range(10_000):
            read.append(number)
            yield "the cat sat on the mat again"

    assert p.pack(texts(), tokenizer, 16, limit=100).shape == (6, 16)
    assert len(read) < 1_000


@pytest.mark.parametrize("texts,options,message", [
    ([], {}, "the texts have 0 tokens, one sequence needs 126"),
    (["only a few words"], {}, "have 5 tokens, .* give more text, or a smaller length"),
    (["fine", "  "], {}, "text 1: empty"), ([""], {}, "text 0: empty"), ([None], {}, "text 0"),
    (["a b c d"], {"limit": 5}, "not room for one sequence"),
    (["a b c d"], {"length": 2}, "not room for one sequence"),
])
def test_texts_that_cannot_be_packed(tokenizer, texts, options, message):
    with pytest.raises(ValueError, match=message):
        p.pack(texts, tokenizer, **options)


# ---------------------------------------------------------------- the losses

def test_distillation_loss_by_hand():
    # temperature 2 halves ln 9 to ln 3: the teacher says (1/4, 3/4), the student (1/2, 1/2);
    # 1/4 ln(1/2) + 3/4 ln(3/2) = 0.130812, times 2 squared
    teacher = torch.tensor([[0.0, math.log(9)]])
    loss = p.distillation_loss(torch.zeros(1, 2), teacher, 2.0)
    assert loss.item() == pytest.approx(0.523248, abs=1e-5)
    both = p.distillation_loss(torch.zeros(2, 2), torch.cat([teacher, torch.zeros(1, 2)]), 2.0)
    assert both.item() == pytest.approx(0.523248 / 2, abs=1e-5)  # a mean over tokens


def test_masked_lm_loss_by_hand():
    logits = torch.tensor([[0.0, math.log(3)], [0.0, 0.0], [5.0, -5.0]])
    loss = p.masked_lm_loss(logits, torch.tensor([1, 0, p.IGNORED]))
    assert loss.item() == pytest.approx((-math.log(3 / 4) + math.log(2)) / 2, abs=1e-6)


def test_cosine_loss_by_hand():
    student = torch.tensor([[1.0, 0.0], [1.0, 0.0], [2.0, 2.0]])
    teacher = torch.tensor([[3.0, 4.0], [-2.0, 0.0], [1.0, 1.0]])
    assert p.cosine_loss(student, teacher).item() == pytest.approx((0.4 + 2 + 0) / 3, abs=1e-6)


@pytest.mark.parametrize("temperature", [1.0, 2.0, 5.0])
def test_losses_agree_with_torch(temperature):
    torch.manual_seed(0)
    student, teacher = torch.randn(2, 50, 300).mul(3)
    labels = torch.randint(0, 300, (50,))
    labels[::7] = p.IGNORED
    kl = torch.nn.KLDivLoss(reduction="batchmean")(
        torch.log_softmax(student / temperature, 1), torch.softmax(teacher / temperature, 1))
    assert torch.allclose(p.distillation_loss(student, teacher, temperature), kl * temperature**2)
    assert p.distillation_loss(student, student, temperature).abs() < 1e-6
    assert torch.allclose(p.masked_lm_loss(student, labels),
                          torch.nn.CrossEntropyLoss()(student, labels))
    assert torch.allclose(p.cosine_loss(student, teacher),
                          torch.nn.CosineEmbeddingLoss()(student, teacher, torch.ones(50)))


@pytest.mark.parametrize("loss", [p.distillation_loss, p.cosine_loss])
def test_the_gradient_reaches_the_student_alone(loss):
    torch.manual_seed(0)
    student, teacher = (torch.randn(5, 8, requires_grad=True) for _ in range(2))
    loss(student, teacher).backward()
    assert student.grad.abs().sum() > 0 and teacher.grad is None


@pytest.mark.parametrize("dtype,tolerance", [
    (torch.float64, 1e-12), (torch.float32, 1e-6), (torch.bfloat16, 2e-2)])
@pytest.mark.parametrize("rows", [1, 255, 256, 257, 600])
def test_projected_cross_entropy_agrees_with_torch(rows, dtype, tolerance):
    torch.manual_seed(rows)
    inputs = [torch.randn(rows, 16), torch.randn(90, 16), torch.randn(90)]
    inputs = [x.to(dtype).requires_grad_() for x in inputs]
    labels = torch.randint(0, 90, (rows,))
    loss = p._ProjectedCrossEntropy.apply(*inputs, labels)
    (3 * loss).backward()  # a gradient from above that is not 1
    exact = [x.detach().double().requires_grad_() for x in inputs]
    wanted = F.cross_entropy(exact[0] @ exact[1].T + exact[2], labels)
    (3 * wanted).backward()
    assert loss.item() == pytest.approx(wanted.item(), rel=tolerance)
    for ours, theirs in zip(inputs, exact):
        assert ours.grad.dtype == dtype
        gap = (ours.grad.double() - theirs.grad).norm() / theirs.grad.norm()
        assert gap < tolerance


def test_projected_cross_entropy_of_nothing_is_zero():
    hidden, weight, bias = (torch.ones(s, requires_grad=True) for s in ((0, 4), (9, 4), (9,)))
    loss = p._ProjectedCrossEntropy.apply(hidden, weight, bias, torch.empty(0, dtype=torch.long))
    loss.backward()
    assert loss.item() == 0 and weight.grad.abs().sum() == 0


# ---------------------------------------------------------------- the loop

def test_learning_rate_rises_holds_and_falls():
    rates = [p.learning_rate(t, 100, 1.0, 0.1, 0.5) for t in (0, 5, 10, 50, 75, 100)]
    assert rates == pytest.approx([0, 0.5, 1, 1, 0.5, 0])
    assert p.learning_rate(0, 100, 1.0, 0, 0) == p.learning_rate(100, 100, 1.0, 0, 0) == 1.0


def update_by_torch(model, optimizer, loss, rate):
    optimizer.zero_grad()
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    for group in optimizer.param_groups:
        group["lr"] = rate
    optimizer.step()


def plain_adamw(model):
    matrices = [x for x in model.parameters() if x.ndim > 1]
    vectors = [x for x in model.parameters() if x.ndim == 1]
    return torch.optim.AdamW([{"params": matrices, "weight_decay": 0.01},
                              {"params": vectors, "weight_decay": 0.0}], betas=(0.9, 0.98))


def assert_same_way(start, model, other):
    """Both have gone the same way from the start, to a hundredth of its length.

    Not weight by weight: Adam turns rounding in a vanishing gradient into a whole step.
    """
    begun, one, two = (torch.cat([x.detach().ravel() for x in m.parameters()])
                       for m in (start, model, other))
    assert (two - begun).norm() > 0.1
    assert (one - two).norm() < 0.01 * (two - begun).norm()


def test_the_masked_lm_loop_agrees_with_a_plain_one(tokenizer, packed):
    plain = tiny_model()
    for module in plain.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    trainer = p.Pretrainer(copy.deepcopy(plain), tokenizer, packed, tokens=5 * 4 * 32,
                           batch_size=4, peak=1e-2, warmup=0.4, decay=0.4, head_first=0.0,
                           layer_decay=1.0, dtype=torch.float32)
    optimizer = plain_adamw(plain.train())
    rates = [0, 0.5e-2, 1e-2, 1e-2, 0.5e-2]
    for step, rate in enumerate(rates):
        _, masked, labels = trainer.batch(step)
        loss = plain(input_ids=masked, labels=labels).loss
        update_by_torch(plain, optimizer, loss, rate)
        assert trainer.train_step()["masked_lm"] == pytest.approx(loss.item(), rel=1e-5)
    assert_same_way(tiny_model(), trainer.model, plain)
    assert trainer.tokens_seen == trainer.tokens


def test_muon_steps_along_the_nearest_orthogonal_matrix(tokenizer, packed):
    """A first step of Muon is the gradient with its singular values made one, about."""
    def new(optimizer):
        return p.Pretrainer(tiny_model(), tokenizer, packed, tokens=4 * 32, batch_size=4,
                            peak=1e-2, warmup=0, decay=0, head_first=0.0, layer_decay=1.0,
                            optimizer=optimizer, dtype=torch.float32)
    muon, adamw = new("muon"), new("adamw")
    names = [name for name, _ in muon.model.named_parameters()]
    before = [master.clone() for master in muon.masters]
    sum(muon.losses(*muon.batch(0)).values()).backward()
    gradients = [parameter.grad.clone() for parameter in muon.working]
    muon.model.zero_grad()
    muon.train_step()
    adamw.train_step()
    matrices = 0
    for name, start, gradient, one, two in zip(names, before, gradients, muon.masters,
                                               adamw.masters):
        if name.startswith("distilbert.transformer.") and start.ndim == 2:
            matrices += 1
            step = (start * (1 - 1e-2 * 0.01) - one) / (1e-2 * 0.2 * max(start.shape) ** 0.5)
            left, _, right = torch.linalg.svd(gradient, full_matrices=False)
            near, plain = (F.cosine_similarity(x.ravel(), (left @ right).ravel(), dim=0)
                           for x in (step, gradient))
            assert near > plain + 0.2  # five rounds do not lift the smallest ones all the way
            assert 0.6 < torch.linalg.svdvals(step).max() < 1.3
        else:
            assert torch.equal(one, two), name
    assert matrices == 2 * 6  # of two layers: query, key, value, output and two feed-forward


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_the_encoder_is_fixed_while_the_head_learns(tokenizer, packed, optimizer):
    trainer = p.Pretrainer(tiny_model(), tokenizer, packed, tokens=4 * 4 * 32, batch_size=4,
                           peak=1e-2, warmup=0, head_first=0.5, hold=1.0, optimizer=optimizer)
    start = copy.deepcopy(trainer.model.state_dict())
    assert [set(trainer.train_step()) for _ in range(2)] == [{"masked_lm"}] * 2
    now = trainer.model.state_dict()
    moved = {name for name in now if not torch.equal(now[name], start[name])}
    assert {name.split(".")[0] for name in moved} == {
        "vocab_transform", "vocab_layer_norm", "vocab_projector"}
    assert "vocab_projector.weight" not in moved  # tied to the embeddings
    assert set(trainer.train_step()) == {"masked_lm", "cosine"}
    assert not torch.equal(trainer.model.distilbert.embeddings.word_embeddings.weight,
                           start["distilbert.embeddings.word_embeddings.weight"])


def test_hold_compares_visible_tokens_with_the_starting_encoder(tokenizer, packed):
    trainer = p.Pretrainer(tiny_model(), tokenizer, packed, tokens=3 * 4 * 32, batch_size=4,
                           peak=1e-2, warmup=0, head_first=0.0, hold=2.0, dtype=torch.float32)
    start, seen = copy.deepcopy(trainer.model).eval(), []
    for step in range(3):
        clean, masked, labels = trainer.batch(step)
        with torch.no_grad():
            wanted = start.distilbert(input_ids=clean).last_hidden_state[labels == p.IGNORED]
            got = trainer.model.distilbert(input_ids=masked).last_hidden_state
        gap = 1 - F.cosine_similarity(got[labels == p.IGNORED], wanted, dim=-1).mean()
        seen.append((trainer.train_step()["cosine"], gap.item()))
    assert all(one == pytest.approx(other, abs=1e-5) for one, other in seen)


@pytest.mark.parametrize("weights", [
    {"distillation": 5.0, "masked_lm": 2.0, "cosine": 1.0},
    {"distillation": 0.0, "masked_lm": 2.0, "cosine": 1.0},
    {"distillation": 5.0, "masked_lm": 0.0, "cosine": 1.0},
    {"distillation": 5.0, "masked_lm": 2.0, "cosine": 0.0},
    {"distillation": 0.0, "masked_lm": 1.0, "cosine": 0.0},
], ids=lambda w: "-".join(f"{v:g}" for v in w.values()))
def test_distillation_agrees_with_a_plain_loop(tokenizer, packed, weights):
    teacher = tiny_model(layers=4, seed=5)
    with torch.no_grad():  # a teacher with opinions
        teacher.vocab_projector.bias.normal_()
    before = copy.deepcopy(teacher.state_dict())
    plain = p.student_of(teacher, 2)
    for module in plain.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    distiller = p.Distiller(copy.deepcopy(plain), teacher, tokenizer, packed, tokens=3 * 4 * 32,
                            weights=weights, temperature=3.0, batch_size=4, peak=1e-2, warmup=0,
                            decay=0)
    optimizer = plain_adamw(plain.train())
    for step in range(3):
        _, masked, labels = distiller.batch(step)
        drawn = labels != p.IGNORED
        ours = plain(input_ids=masked, output_hidden_states=True)
        with torch.no_grad():
            theirs = teacher(input_ids=masked, output_hidden_states=True)
        log_q = torch.log_softmax(ours.logits[drawn] / 3, -1)
        soft = torch.softmax(theirs.logits[drawn] / 3, -1)
        flat = ours.hidden_states[-1].reshape(-1, 32), theirs.hidden_states[-1].reshape(-1, 32)
        wanted = {
            "distillation": 9 * (soft * (soft.log() - log_q)).sum(-1).mean(),
            "masked_lm": torch.nn.CrossEntropyLoss()(ours.logits[drawn], labels[drawn]),
            "cosine": torch.nn.CosineEmbeddingLoss()(*flat, torch.ones(len(flat[0]))),
        }
        update_by_torch(plain, optimizer, sum(weights[k] * v for k, v in wanted.items()), 1e-2)
        got = distiller.train_step()
        assert set(got) == {name for name, weight in weights.items() if weight}
        for name, value in got.items():
            assert value == pytest.approx(wanted[name].item(), rel=1e-3, abs=1e-5)
    assert_same_way(p.student_of(teacher, 2), distiller.model, plain)
    for key, value in distiller.teacher.state_dict().items():
        assert torch.equal(value, before[key]), key
    assert all(x.grad is None for x in (*distiller.teacher.parameters(), *teacher.parameters()))


def test_each_loss_reaches_every_student_weight_it_should(tokenizer, packed):
    teacher = tiny_model(layers=4, seed=5)
    for name in p.PAPER_WEIGHTS:
        weights = {key: float(key == name) for key in p.PAPER_WEIGHTS}
        distiller = p.Distiller(p.student_of(teacher, 2), teacher, tokenizer, packed, tokens=1000,
                                batch_size=4, weights=weights)
        losses = distiller.losses(*distiller.batch(0))
        losses[name].backward()
        for key, parameter in distiller.model.named_parameters():
            # the head takes no part in the hidden states
            expected = name != "cosine" or key.startswith("distilbert.")
            assert (parameter.grad is not None) == expected, (name, key)
        assert all(x.grad is None for x in distiller.teacher.parameters())


def test_distillation_makes_the_student_agree_with_its_teacher(tokenizer, packed):
    teacher = tiny_model(layers=2, seed=5)
    with torch.no_grad():
        teacher.vocab_projector.bias.normal_(std=2.0)
    student = tiny_model(layers=1, seed=6)
    distiller = p.Distiller(student, teacher, tokenizer, packed, tokens=60 * 4 * 32,
                            batch_size=4, peak=2e-2, warmup=0.1)
    losses = [distiller.train_step() for _ in range(60)]
    assert losses[-1]["distillation"] < losses[0]["distillation"] / 3
    assert losses[-1]["cosine"] < losses[0]["cosine"] / 2


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_a_state_goes_on_bit_by_bit(tokenizer, packed, optimizer):
    teacher = tiny_model(layers=2, seed=5)

    def new():
        return p.Distiller(p.student_of(teacher, 1), teacher, tokenizer, packed,
                           tokens=6 * 4 * 32, batch_size=4, peak=1e-2, optimizer=optimizer)
    whole, first, second = new(), new(), new()
    expected = [whole.train_step() for _ in range(6)]
    got = [first.train_step() for _ in range(3)]
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    got += [second.train_step() for _ in range(3)]
    assert got == expected
    for one, two in zip(whole.masters, second.masters):
        assert torch.equal(one, two)


def test_every_epoch_sees_every_sequence_once_in_its_own_order(tokenizer, packed):
    rows = packed[:12]
    trainer = p.Pretrainer(tiny_model(), tokenizer, rows, tokens=1000, batch_size=4)
    epochs = [[tuple(row) for step in range(3 * e, 3 * e + 3)
               for row in trainer.batch(step)[0].tolist()] for e in range(2)]
    assert sorted(epochs[0]) == sorted(epochs[1]) == sorted(map(tuple, rows.tolist()))
    assert epochs[0] != epochs[1]


@pytest.mark.parametrize("change,message", [
    ({"weights": {"distillation": 1.0}}, "give one for each of"),
    ({"weights": {"distillation": 0, "masked_lm": 0, "cosine": 0}}, "at least one above"),
    ({"weights": {"distillation": -1, "masked_lm": 0, "cosine": 1}}, "none below 0"),
    ({"temperature": 0.0}, "temperature: 0.0; it must be above 0"),
    ({"teacher": {"vocabulary": 200}}, "vocabularies differ: 200 .* 30,522 in the student"),
    ({"teacher": {"width": 16}}, "16 wide, the student's 32"),
    ({"batch_size": 1000}, "do not fill a batch of 1000; give more text"),
], ids=lambda value: "-".join(value) if isinstance(value, dict) else "")
def test_what_does_not_fit_is_refused(tokenizer, packed, change, message):
    change = dict(change)
    teacher = tiny_model(**change.pop("teacher", {}))
    with pytest.raises(ValueError, match=message):
        p.Distiller(tiny_model(), teacher, tokenizer, packed, tokens=1000, **change)
    if "batch_size" not in change:  # the rest is known before any text is read
        with pytest.raises(ValueError, match=message):
            p.check_fit(teacher, tiny_model(), **change)


def test_unequal_widths_need_no_cosine_loss(tokenizer, packed):
    weights = {"distillation": 5.0, "masked_lm": 2.0, "cosine": 0.0}
    distiller = p.Distiller(tiny_model(), tiny_model(width=16), tokenizer, packed, tokens=1000,
                            weights=weights, batch_size=4)
    assert set(distiller.train_step()) == {"distillation", "masked_lm"}


def test_vocabularies_are_compared_word_by_word(tokenizer, tmp_path):
    p.check_same_vocabulary(tokenizer, AutoTokenizer.from_pretrained(checkpoints.EMBEDDED))
    tokenizer.save_pretrained(tmp_path)
    content = (tmp_path / "tokenizer.json").read_text(encoding="utf-8")
    changed = json.loads(content)
    vocab = changed["model"]["vocab"]
    vocab["paris"], vocab["capital"] = vocab["capital"], vocab["paris"]
    (tmp_path / "tokenizer.json").write_text(json.dumps(changed), encoding="utf-8")
    with pytest.raises(ValueError, match="vocabularies differ.*'(paris|capital)' is"):
        p.check_same_vocabulary(tokenizer, AutoTokenizer.from_pretrained(tmp_path))


@pytest.mark.parametrize("only_mask", [False, True])
def test_predictions_are_the_models_own(tokenizer, packed, only_mask):
    model = tiny_model()
    with torch.no_grad():
        model.vocab_projector.bias.normal_()
    gold, predicted, sequence = p.predict_masked(model, tokenizer, packed, rate=0.2, seed=3,
                                                 only_mask=only_mask, batch_size=16)
    wanted = []
    for start in range(0, len(packed), 16):
        rng = np.random.default_rng([3, 2, start])
        masked, labels = p.mask(packed[start:start + 16], tokenizer, 0.2, rng, only_mask)
        best = model(torch.from_numpy(masked)).logits.argmax(-1)
        wanted += [(labels[i, j], best[i, j].item(), start + i)
                   for i, j in zip(*np.nonzero(labels != p.IGNORED))]
    assert list(zip(gold, predicted, sequence)) == wanted
    short = p.predict_masked(model, tokenizer, packed, rate=0.2, seed=3, only_mask=only_mask,
                             batch_size=16, limit=70)
    assert [len(x) for x in short] == [70] * 3 and (short[0] == gold[:70]).all()


# ---------------------------------------------------------------- the corpus

def test_the_held_out_split_is_a_stable_hash():
    titles = [f"Article {n}" for n in range(4000)]
    held = [title for title in titles if p.is_held_out(title, 0.1)]
    assert len(held) / 4000 == pytest.approx(0.1, abs=4 * math.sqrt(0.09 / 4000))
    wanted = [title for title in titles
              if int(hashlib.sha256(title.lower().encode()).hexdigest()[:16], 16) < 0.1 * 2**64]
    assert held == wanted
    assert set(held) < {title for title in titles if p.is_held_out(title, 0.2)}
    same = {p.is_held_out(t, 0.5) for t in ("New_York City", "new york city", " New York_City ")}
    assert len(same) == 1
    assert not p.is_held_out("anything", 0.0) and p.is_held_out("anything", 1.0)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory, words):
    """Sixty articles in three formats; the first word of each names it."""
    folder = tmp_path_factory.mktemp("corpus")
    rng = np.random.default_rng(4)
    names = [w for w in words if len(w) > 8][:60]
    rows = [{"title": f"Life_of {n}", "text": f"{n} " * 30 + " ".join(rng.choice(words[2000:2300], 90))}
            for n in names]
    pd.DataFrame(rows[:20]).to_csv(folder / "a.csv", index=False)
    pd.DataFrame(rows[20:40]).to_parquet(folder / "b.parquet")
    (folder / "deep").mkdir()
    pd.DataFrame(rows[40:]).to_json(folder / "deep" / "c.jsonl", orient="records", lines=True)
    (folder / "README.md").write_text("not a corpus file")
    return folder, names


def test_three_formats_are_read_alike(corpus):
    folder, names = corpus
    assert [title for title, _ in p.read_corpus(folder)] == [f"Life_of {n}" for n in names]


def test_titles_that_look_like_numbers_stay_titles(tmp_path):
    (tmp_path / "a.csv").write_text("title,text\n1984,A novel.\n1e5,NA\n")
    (tmp_path / "b.jsonl").write_text('{"title": "2001-01-01", "text": "A day."}\n')
    assert p.read_corpus(tmp_path) == [("1984", "A novel."), ("1e5", "NA"),
                                       ("2001-01-01", "A day.")]


def test_excluded_and_held_out_titles_are_never_trained_on(corpus, tokenizer, tmp_path):
    folder, names = corpus
    excluded = names[3:9]
    listing = tmp_path / "exclude.txt"
    listing.write_text("\n".join(f"LIFE of_{name}" for name in excluded) + "\n\n")
    parts = p.prepare(folder, tokenizer, tmp_path, length=32, tokens=10**6, held_out=0.25,
                      exclude_titles=str(listing), seed=0)
    train, held = (set(names) & set(tokenizer.decode(part.ravel()).split()) for part in parts)
    assert not train & set(excluded) and not held & set(excluded)
    assert not train & held and train | held == set(names) - set(excluded)
    assert held == {n for n in names if p.is_held_out(f"life of {n}", 0.25)} - set(excluded)


# ---------------------------------------------------------------- from a shell

SETTINGS = ("--tokens 24000 --length 32 --batch_size 8 --held_out 0.2 --hold 1 --head_first 0.1 "
            "--learning_rate 5e-3 --save_every 4000 --device cpu").split()


@pytest.fixture(scope="module")
def run(corpus, tiny_checkpoint, tmp_path_factory):
    """One whole run of the recipe."""
    folder = tmp_path_factory.mktemp("run")
    assert p.main(command(tiny_checkpoint, corpus, folder)) == 0
    return folder


def command(init, corpus, output_dir, *more):
    return ["--init", str(init), "--corpus", str(corpus[0]), "--output_dir", str(output_dir),
            *SETTINGS, *more]


def test_the_recipe_from_end_to_end(run, tokenizer):
    model = AutoModelForMaskedLM.from_pretrained(run / "model")
    stored = load_file(run / "model" / "model.safetensors")
    assert {value.dtype for value in stored.values()} == {torch.float16}
    assert model.config.n_layers == 2 and model.config.dropout == 0.1
    again = AutoTokenizer.from_pretrained(run / "model")
    assert again.get_vocab() == tokenizer.get_vocab()
    log = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    assert log[-1]["tokens"] >= 24_000 and len(log) == 6
    assert log[-1]["loss"] < log[0]["loss"] - 1
    assert not list(run.glob("*.part"))
    masters = torch.load(run / "state.pt", weights_only=True)["masters"]
    assert torch.equal(masters[0].half(), stored["distilbert.embeddings.word_embeddings.weight"])


def test_a_killed_run_ends_in_the_same_weights(run, corpus, tiny_checkpoint, tmp_path):
    arguments = command(tiny_checkpoint, corpus, tmp_path)
    env = {**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())}
    process = subprocess.Popen([sys.executable, "-m", "helpers.pretraining", *arguments], env=env,
                               cwd=checkpoints.PROJECT, stderr=subprocess.DEVNULL)
    stop_after = int(np.random.default_rng(7).integers(1, 4))
    log, deadline = tmp_path / "log.jsonl", time.monotonic() + 300
    while not log.exists() or len(log.read_text().splitlines()) < stop_after:
        assert process.poll() is None and time.monotonic() < deadline, "it ended before the kill"
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert not (tmp_path / "model").exists()
    assert p.main(arguments) == 0
    one, two = (load_file(folder / "model" / "model.safetensors") for folder in (run, tmp_path))
    assert one.keys() == two.keys()
    assert all(torch.equal(one[name], two[name]) for name in one)
    one, two = (torch.load(f / "state.pt", weights_only=True) for f in (run, tmp_path))
    assert one["step"] == two["step"]
    assert all(torch.equal(a, b) for a, b in zip(one["masters"], two["masters"]))


def test_a_run_does_not_go_on_with_other_settings(run, corpus, tiny_checkpoint, capsys):
    before = (run / "model" / "model.safetensors").stat().st_mtime_ns
    assert p.main(command(tiny_checkpoint, corpus, run, "--seed", "1")) == 2
    assert "--seed was 0, is 1; give these, or another --output_dir" in capsys.readouterr().err
    assert (run / "model" / "model.safetensors").stat().st_mtime_ns == before


def write(name, text):
    return lambda folder: (folder / name).write_text(text)


@pytest.mark.parametrize("make,message", [
    (lambda folder: None, "no text found; give a folder of parquet, csv or jsonl"),
    (write("a.csv", "title,text\n"), "no text found"),
    (write("a.csv", "title,body\nx,y\n"), r"a\.csv: no column text; a corpus file needs"),
    (write("a.csv", ""), r"a\.csv: not a readable csv file"),
    (write("a.csv", "title,text\nx,fine\ny,\n"), r"a\.csv: row 1: the text is empty"),
    (write("a.jsonl", '{"title": "x", "text": "  "}\n'), r"a\.jsonl: row 0: the text is empty"),
    (write("a.jsonl", '{"title": "x", "text": null}\n'), r"a\.jsonl: row 0: the text is empty"),
    (write("a.jsonl", '{"title": "x", '), r"a\.jsonl: not a readable jsonl file"),
    (write("a.parquet", "title"), r"a\.parquet: not a readable parquet file"),
    (write("a.csv", "title,text\nx,a few words\n"), "part is too small .* change --held_out"),
], ids=["empty", "no-rows", "no-column", "empty-file", "empty-text", "blank-text", "null-text",
        "broken-json", "broken-parquet", "too-short"])
def test_a_bad_corpus_is_refused_before_any_work(make, message, tiny_checkpoint, tmp_path, capsys):
    folder = tmp_path / "corpus"
    folder.mkdir()
    make(folder)
    assert p.main(command(tiny_checkpoint, [folder], tmp_path / "out")) == 2
    said = capsys.readouterr().err
    assert re.search(message, said), said
    assert "Traceback" not in said
    assert not list((tmp_path / "out").glob("*.npy")) + list((tmp_path / "out").glob("*.pt"))


@pytest.mark.parametrize("more,message", [
    (["--tokens", "0"], "0 is not between 1"), (["--mask_rate", "1.5"], "not between 0 and 1"),
    (["--tokens", "many"], "invalid int value: 'many'"), (["--precision", "int8"], "int8"),
    (["--length", "1000"], "1000 is not between 8 and 512"), (["--hold", "-1"], "not between 0"),
])
def test_bad_options_are_refused(more, message, corpus, tmp_path, capsys):
    with pytest.raises(SystemExit) as stop:
        p.main(command(tmp_path, corpus, tmp_path / "out", *more))
    assert stop.value.code == 2 and message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_missing_checkpoint_is_named(corpus, tmp_path, capsys):
    assert p.main(command(tmp_path / "nowhere", corpus, tmp_path / "out")) == 2
    assert "--init: no checkpoint in" in capsys.readouterr().err


def test_too_many_positions_are_refused(corpus, tmp_path, tokenizer, capsys):
    tiny_model().save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    assert p.main(command(tmp_path, corpus, tmp_path / "out", "--length", "128")) == 2
    assert "--length: 128; the model has only 64 positions" in capsys.readouterr().err
