"""Dropout drawn in bulk: what torch's does, and transformers' eager attention around it."""

import copy

import pytest
import torch
from transformers import AutoModelForQuestionAnswering

from helpers import dropout


@pytest.mark.parametrize("share", [0.1, 0.5])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_drops_its_share_and_scales_the_rest(share, dtype):
    torch.manual_seed(0)
    x = torch.randn(1001, 999, dtype=dtype).clamp_min(0.01)  # no multiple of four, no zeros
    y = dropout.drop(x, share)
    assert y.shape == x.shape and y.dtype == dtype
    gone = y == 0
    error = (share * (1 - share) / x.numel()) ** 0.5
    assert abs(gone.double().mean() - share) < 5 * error + 2**-16
    scale = torch.tensor(1 / (1 - share), dtype=dtype)
    assert torch.equal(y, torch.where(gone, 0, x * scale))
    # neither rows, columns nor neighbours go together
    for dim in (0, 1):
        assert (gone.double().mean(dim) - share).abs().max() < 6 * (share / 999) ** 0.5
    both = (gone[:, 1:] & gone[:, :-1]).double().mean()
    assert both == pytest.approx(share ** 2, abs=6 * error)


def test_follows_torchs_seed():
    x = torch.ones(1000)
    torch.manual_seed(1)
    one, two = dropout.drop(x, 0.3), dropout.drop(x, 0.3)
    torch.manual_seed(1)
    assert torch.equal(dropout.drop(x, 0.3), one) and not torch.equal(one, two)
    again = torch.get_rng_state()
    three = dropout.drop(x, 0.3)
    torch.set_rng_state(again)  # as a resumed training does
    assert torch.equal(dropout.drop(x, 0.3), three)


def test_gradients_pass_where_values_do():
    x = torch.full((500,), 2.0, requires_grad=True)
    y = dropout.Dropout(0.25)(x)
    y.sum().backward()
    assert torch.equal(x.grad, y.detach() / 2)
    assert sorted(set(x.grad.tolist())) == [0, pytest.approx(4 / 3)]


def test_evaluation_and_none_leave_all():
    x = torch.randn(10)
    assert dropout.Dropout(0.5).eval()(x) is x and dropout.Dropout(0.0)(x) is x


@pytest.mark.parametrize("training", [False, True])
def test_without_dropping_it_is_transformers_eager_attention(tiny_checkpoint, training):
    theirs = AutoModelForQuestionAnswering.from_pretrained(
        tiny_checkpoint, dropout=0.0, attention_dropout=0.0, qa_dropout=0.0,
        attn_implementation="eager").train(training)
    ours = copy.deepcopy(theirs)
    dropout.quicken(ours)
    batch = {"input_ids": torch.randint(1000, 30000, (3, 20)),
             "attention_mask": (torch.arange(20) < torch.tensor([[20], [7], [1]])).long(),
             "start_positions": torch.tensor([3, 2, 0]), "end_positions": torch.tensor([5, 2, 0])}
    a, b = theirs(**batch), ours(**batch)
    torch.testing.assert_close(a.start_logits, b.start_logits, atol=1e-6, rtol=1e-5)
    a.loss.backward(), b.loss.backward()
    for one, two in zip(theirs.parameters(), ours.parameters(), strict=True):
        torch.testing.assert_close(one.grad, two.grad, atol=1e-6, rtol=1e-4)


def test_every_dropout_of_a_model_is_replaced(tiny_checkpoint):
    model = AutoModelForQuestionAnswering.from_pretrained(tiny_checkpoint)
    before = [m.p for m in model.modules() if isinstance(m, torch.nn.Dropout)]
    dropout.quicken(model)
    after = [m for m in model.modules() if isinstance(m, torch.nn.Dropout)]
    assert before == [m.p for m in after] and {type(m) for m in after} == {dropout.Dropout}
    for name, module in model.named_modules():  # training passes differ by attention alone too
        if isinstance(module, torch.nn.Dropout) and not name.endswith("attention.dropout"):
            module.p = 0.0
    batch = {"input_ids": torch.randint(1000, 30000, (2, 20))}
    model.train()
    assert not torch.equal(model(**batch).start_logits, model(**batch).start_logits)
