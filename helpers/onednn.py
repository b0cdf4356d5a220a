"""Linear layers on a processor through oneDNN, for training and, in its own layout, for answers.

For products in float32 torch calls MKL, which leaves half the speed of processors that are not
Intel's unused, and repacks the weights for every batch, however small. oneDNN comes with torch;
the operations used here are those that torch's own compiler emits.
"""

from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from transformers import PreTrainedModel

from helpers import checkpoints

PLAIN = "none", [], ""  # nothing fused to the product


def available(device: str | torch.device = "cpu", dtype: torch.dtype = torch.float32) -> bool:
    """Whether this torch has oneDNN for that device, and its processor that number format."""
    there = torch.device(device).type == "cpu" and torch.backends.mkldnn.is_available() \
        and hasattr(torch.ops.mkldnn, "_linear_pointwise")
    return there and (dtype == torch.float32 or dtype == torch.bfloat16
                      and torch.ops.mkldnn._is_mkldnn_bf16_supported())


class Packed(torch.nn.Module):
    """x [..., in] -> x weight^T + bias [..., out], for inference.

    The product is computed in the weight's number format, and the answer has that of x. Keeps a
    copy of weight [out, in] in the layout that suits the processor.
    """

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None):
        super().__init__()
        self.packed = torch.ops.mkldnn._reorder_linear_weight(weight.detach().contiguous(), None)
        self.bias = None if bias is None else bias.detach()
        self.dtype = weight.dtype

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.ops.mkldnn._linear_pointwise(
            x.to(self.dtype), self.packed, self.bias, *PLAIN).to(x.dtype)


def linear(weight: torch.Tensor, bias: torch.Tensor | None) -> Callable:
    """The function x -> x weight^T + bias for inference, packed where oneDNN is there."""
    return Packed(weight, bias) if available(weight.device, weight.dtype) else \
        partial(F.linear, weight=weight, bias=bias)


def pack(model: PreTrainedModel, dtype: torch.dtype) -> None:
    """Replace a model's linear layers for inference, but for one that shares the embeddings.

    Products are computed in `dtype`. Nothing is replaced where oneDNN does not have it.
    """
    if not available(model.device, dtype):
        return
    tied = model.get_output_embeddings()
    replace_linear(model, lambda layer: layer if layer is tied else Packed(
        layer.weight.to(dtype), None if layer.bias is None else layer.bias.to(dtype)))


def replace_linear(model: torch.nn.Module, replacement: Callable) -> None:
    """Put replacement(layer) in the place of every linear layer of a model."""
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if type(child) is torch.nn.Linear:
                setattr(parent, name, replacement(child))


def load(auto_class, folder: str | Path, device: str, precision: str
         ) -> tuple[PreTrainedModel, dict]:
    """A checkpoint's model for inference, on its device, and what the loading found.

    Its linear layers compute in the precision's number format. All else stays float32 where
    oneDNN has that format, so that nothing is rounded between two products and words stay the
    same more often; elsewhere the whole model is in that format.
    """
    device, dtype = checkpoints.pick_device(device), checkpoints.pick_dtype(precision)
    model, loading = auto_class.from_pretrained(
        folder, dtype=torch.float32 if available(device, dtype) else dtype,
        use_safetensors=True, output_loading_info=True)
    pack(model.to(device), dtype)
    return model, loading


class _Product(torch.autograd.Function):
    """The same product in float32 with its gradients."""

    @staticmethod
    def forward(ctx, x, weight, bias):
        ctx.save_for_backward(x, weight)
        return torch.ops.mkldnn._linear_pointwise(x, weight, bias, *PLAIN)

    @staticmethod
    def backward(ctx, grad):
        x, weight = ctx.saved_tensors
        product, grad = torch.ops.mkldnn._linear_pointwise, grad.contiguous()
        by_row = grad.reshape(-1, grad.shape[-1]), x.reshape(-1, x.shape[-1])
        of_x, of_weight, of_bias = ctx.needs_input_grad
        return (product(grad, weight.t().contiguous(), None, *PLAIN) if of_x else None,
                product(*(part.t().contiguous() for part in by_row), None, *PLAIN)
                if of_weight else None,
                by_row[0].sum(0) if of_bias else None)


class Linear(torch.nn.Linear):
    """torch's layer; in float32 its products are oneDNN's, forwards and backwards."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if x.dtype != torch.float32 or torch.is_autocast_enabled("cpu") or self.bias is None:
            return super().forward(x)
        return _Product.apply(x, self.weight, self.bias)


def quicken(model: PreTrainedModel) -> None:
    """Have a model's linear layers trained in this way; names and parameters stay.

    Nothing changes where oneDNN is not there.
    """
    if not available(model.device):
        return
    for module in model.modules():
        if type(module) is torch.nn.Linear:
            module.__class__ = Linear
