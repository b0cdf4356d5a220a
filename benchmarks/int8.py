"""int8: the linear layers of the encoder as 8-bit products, by torch's oneDNN kernels.

Activations are rounded token by token, from each token's own least and greatest value: one
scale for a whole batch lets one large value take the levels from all other tokens, and makes
a text's answer depend on its neighbours. Weights have one scale an output. The rows `bulk-*`
time it, the row `agreement` says what it costs on real text; it is not in the helpers.

Tried as well, on masked words of real imdb: one symmetric scale a batch, or one scale and zero
point a batch, with and without the last product of each feed-forward layer in bfloat16: little
quicker, and all keep the first word less often. So does onnxruntime's dynamic quantisation,
one scale a batch and an output: the quickest by far, but one first word in eleven is another.
"""

from pathlib import Path

import torch
from torch import nn
from transformers import AutoModelForMaskedLM, AutoTokenizer

from helpers import fill_mask, onednn


class Int8Linear(nn.Module):
    """A linear layer with 8-bit weights and activations; gives `dtype`."""

    def __init__(self, linear: nn.Linear, dtype: torch.dtype = torch.bfloat16):
        super().__init__()
        weight, self.scale = round_weight(linear.weight.detach().float())
        self.weight = torch.ops.onednn.qlinear_prepack(weight.to(torch.int8), None)
        self.zeros = torch.zeros(len(self.scale), dtype=torch.int32)
        self.columns = weight.sum(1) * self.scale
        self.bias = linear.bias.detach().float()
        self.dtype = dtype

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        eight, scale, zero = round_tokens(x)
        product = torch.ops.onednn.qlinear_pointwise(
            eight, 1.0, 0, self.weight, self.scale, self.zeros, None, 1.0, 0, torch.float32,
            "none", [], "")
        # x = (eight - zero) * scale: the kernel knows one scale, so each token's comes after it.
        product.addcmul_(zero, self.columns, value=-1)
        return torch.addcmul(self.bias, product, scale).to(self.dtype)


class RoundedWeights(nn.Linear):
    """A linear layer whose weights alone are rounded to 8 bits, one scale an output."""

    def __init__(self, linear: nn.Linear):
        super().__init__(linear.in_features, linear.out_features, linear.bias is not None)
        weight, scale = round_weight(linear.weight.detach().float())
        self.weight = nn.Parameter(weight * scale[:, None], requires_grad=False)
        self.bias = linear.bias


def round_tokens(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Whole numbers from 0 to 255, [..., in], and each token's scale and zero point, [..., 1].

    All levels lie between a token's least and greatest value, 0 included. One of them is spare,
    so that the rounding of the zero point leads nowhere beyond 255.
    """
    least, greatest = (end.float() for end in torch.aminmax(x, dim=-1, keepdim=True))
    least, greatest = least.clamp_max(0), greatest.clamp_min(0)
    scale = ((greatest - least) / 254).clamp_min(1e-12)
    zero = (-least / scale).round()
    return torch.addcmul(zero + 0.5, x.float(), 1 / scale).to(torch.uint8), scale, zero


def round_weight(weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Whole numbers from -127 to 127, [out, in], and the scale of each output, [out]."""
    scale = weight.abs().amax(1).clamp_min(1e-12) / 127
    return (weight / scale[:, None]).round(), scale


def load(folder: Path, layer=Int8Linear) -> fill_mask.FillMask:
    """fill_mask with every linear layer of the encoder replaced by one of these."""
    model = AutoModelForMaskedLM.from_pretrained(
        folder, dtype=torch.bfloat16 if layer is Int8Linear else torch.float32)
    onednn.replace_linear(model.base_model.transformer, layer)
    return fill_mask.FillMask(model, AutoTokenizer.from_pretrained(folder))
