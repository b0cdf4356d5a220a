"""oneDNN's linear layers: torch's own in double precision, answers and gradients alike."""

import copy

import pytest
import torch
from transformers import AutoModelForMaskedLM, AutoModelForQuestionAnswering

from helpers import checkpoints, fill_mask, onednn, training

needs_onednn = pytest.mark.skipif(not onednn.available(), reason="this torch has no oneDNN")


@needs_onednn
@pytest.mark.parametrize("shape", [(0, 3, 24), (1, 24), (7, 24), (2, 5, 24), (2, 3, 5, 24)])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("dtype, error", [(torch.float32, 1e-5), (torch.bfloat16, 5e-2)])
def test_packed_is_the_same_product(shape, bias, dtype, error):
    torch.manual_seed(0)
    layer = torch.nn.Linear(24, 40, bias=bias, dtype=dtype)
    x = torch.randn(shape, dtype=dtype)
    exact = torch.nn.functional.linear(
        x.double(), layer.weight.double(), layer.bias.double() if bias else None)
    with torch.inference_mode():
        packed = onednn.linear(layer.weight, layer.bias)
        assert isinstance(packed, onednn.Packed)
        y = packed(x)
        apart = x.transpose(0, 1).contiguous().transpose(0, 1)  # the same, laid out otherwise
        assert torch.equal(packed(apart), y)
    assert y.dtype == dtype and y.shape == exact.shape
    torch.testing.assert_close(y.double(), exact, atol=error, rtol=error)


@needs_onednn
def test_packing_leaves_what_shares_the_embeddings(tiny_checkpoint):
    model = AutoModelForMaskedLM.from_pretrained(tiny_checkpoint, dtype=torch.float32).eval()
    plain = copy.deepcopy(model)
    onednn.pack(model, torch.float32)
    linear = {name for name, module in model.named_modules() if type(module) is torch.nn.Linear}
    packed = {name for name, module in model.named_modules() if type(module) is onednn.Packed}
    assert linear == {"vocab_projector"} and len(packed) == 6 * model.config.n_layers + 1
    ids = torch.tensor([[101, 2003, 103, 102]])
    with torch.inference_mode():
        assert torch.allclose(model(ids).logits, plain(ids).logits, atol=1e-4)


@pytest.mark.skipif(not onednn.available("cpu", torch.bfloat16), reason="no bf16 here")
def test_bf16_rounds_the_factors_and_nothing_else():
    checkpoint = checkpoints.find("embedded")
    fill = fill_mask.load(checkpoint, "cpu", "bf16")
    layer = fill.model.distilbert.transformer.layer[0].ffn.lin1
    assert fill.model.dtype == torch.float32 and layer.dtype == torch.bfloat16
    exact = AutoModelForMaskedLM.from_pretrained(checkpoint, dtype=torch.float64)
    exact = exact.distilbert.transformer.layer[0].ffn.lin1
    x = torch.randn(5, 384)
    y = layer(x)
    assert y.dtype == torch.float32
    rounded = torch.nn.functional.linear(x.bfloat16().double(), exact.weight.bfloat16().double(),
                                         exact.bias.bfloat16().double())
    torch.testing.assert_close(y.double(), rounded, atol=1e-3, rtol=2**-8)


@needs_onednn
def test_gradients_are_torchs(tiny_checkpoint):
    model = AutoModelForQuestionAnswering.from_pretrained(tiny_checkpoint, dtype=torch.float32)
    exact, model = copy.deepcopy(model).double().eval(), model.eval()
    names = list(model.state_dict())
    onednn.quicken(model)
    assert {type(m) for m in model.modules() if isinstance(m, torch.nn.Linear)} == {onednn.Linear}
    assert list(model.state_dict()) == names
    batch = {"input_ids": torch.randint(1000, 2000, (3, 17)),
             "start_positions": torch.tensor([1, 5, 9]), "end_positions": torch.tensor([2, 8, 9])}
    for one in (exact, model):
        one(**batch).loss.backward()
    for (name, a), b in zip(model.named_parameters(), exact.parameters()):
        torch.testing.assert_close(a.grad.double(), b.grad, atol=1e-6, rtol=1e-3, msg=name)


@needs_onednn
def test_gradients_of_every_shape_and_of_a_part():
    torch.manual_seed(0)
    layer = torch.nn.Linear(8, 5)
    mine = copy.deepcopy(layer)
    mine.__class__ = onednn.Linear
    for shape in ((8,), (1, 8), (4, 8), (2, 3, 8)):
        results = []
        for one in (layer, mine):
            x = torch.arange(float(torch.tensor(shape).prod())).view(shape).requires_grad_()
            one.zero_grad()
            one(x).square().sum().backward()
            results.append((x.grad, one.weight.grad, one.bias.grad))
        for a, b in zip(*results):
            torch.testing.assert_close(a, b)
    mine.weight.requires_grad_(False)  # a frozen layer passes gradients on
    mine.weight.grad = None
    x = torch.ones(2, 8, requires_grad=True)
    mine(x).sum().backward()
    assert mine.weight.grad is None and x.grad is not None


@needs_onednn
def test_autocast_and_layers_without_bias_are_torchs():
    mine = torch.nn.Linear(8, 5)
    mine.__class__ = onednn.Linear
    with torch.autocast("cpu", torch.bfloat16):
        assert mine(torch.ones(2, 8)).dtype == torch.bfloat16
    bare = torch.nn.Linear(8, 5, bias=False)
    bare.__class__ = onednn.Linear
    torch.testing.assert_close(bare(torch.ones(2, 8)), bare.weight.sum(1).expand(2, 5))


def test_without_onednn_everything_stays(monkeypatch, tiny_checkpoint):
    with_it = fill_mask.load(tiny_checkpoint)(["a [MASK] day"])
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    fill = fill_mask.load(tiny_checkpoint)
    model = AutoModelForQuestionAnswering.from_pretrained(tiny_checkpoint)
    training.prepare_for_cpu(model, "fp32")
    kinds = {type(m) for one in (fill.model, model) for m in one.modules()}
    assert torch.nn.Linear in kinds and not kinds & {onednn.Linear, onednn.Packed}
    for a, b in zip(fill(["a [MASK] day"])[0], with_it[0]):
        assert a["token"] == b["token"] and a["score"] == pytest.approx(b["score"], abs=1e-5)


def test_a_gpu_has_no_use_for_it_and_double_precision_no_kernel():
    assert not onednn.available("cuda") and not onednn.available("cpu", torch.float64)
