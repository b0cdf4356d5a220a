"""int8, measured and left out: the linear layers of the encoder as 8-bit products.

torch's oneDNN kernels multiply 8-bit activations (one scale a batch, taken from its largest
value, as onnxruntime's dynamic quantisation does) by 8-bit weights (one scale a column) and
give bfloat16. The rows `bulk-*` time it, the row `agreement` says what it costs on real text:
where the first word stays the same on less than 98 % of real text it does not earn its place.
"""

from pathlib import Path

import torch
from torch import nn

from helpers import fill_mask


class Int8Linear(nn.Module):
    """A linear layer with 8-bit weights and activations; gives `dtype`."""

    def __init__(self, linear: nn.Linear, dtype: torch.dtype = torch.bfloat16):
        super().__init__()
        weight, self.scale = round_weight(linear.weight.detach().float())
        self.weight = torch.ops.onednn.qlinear_prepack(weight.to(torch.int8), None)
        self.zeros = torch.zeros(len(self.scale), dtype=torch.int32)
        self.bias = None if linear.bias is None else linear.bias.detach().float()
        self.dtype = dtype

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        largest = max(-float(x.min()), float(x.max())) or 1.0
        eight = torch.add(128.5, x.float(), alpha=127 / largest).to(torch.uint8)
        return torch.ops.onednn.qlinear_pointwise(
            eight, largest / 127, 128, self.weight, self.scale, self.zeros, self.bias,
            1.0, 0, self.dtype, "none", [], "")


class RoundedWeights(nn.Linear):
    """A linear layer whose weights alone are rounded to 8 bits: the most that int8 can keep."""

    def __init__(self, linear: nn.Linear):
        super().__init__(linear.in_features, linear.out_features, linear.bias is not None)
        weight, scale = round_weight(linear.weight.detach().float())
        self.weight = nn.Parameter(weight * scale[:, None], requires_grad=False)
        self.bias = linear.bias


def round_weight(weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Whole numbers from -127 to 127, [out, in], and the scale of each output, [out]."""
    scale = weight.abs().amax(1).clamp_min(1e-12) / 127
    return (weight / scale[:, None]).round(), scale


def load(folder: Path, layer=Int8Linear) -> fill_mask.FillMask:
    """fill_mask with every linear layer of the encoder replaced by one of these."""
    fill = fill_mask.load(folder, "cpu", "bf16" if layer is Int8Linear else "fp32")
    for module in list(fill.model.base_model.transformer.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, nn.Linear):
                setattr(module, name, layer(child))
    return fill
