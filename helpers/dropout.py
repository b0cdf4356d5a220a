"""Dropout for training on a processor: torch's, with the random numbers drawn in bulk.

On processors that are not Intel's torch draws them one by one on one core; numpy fills an array
several times as fast. Attention needs one for every pair of tokens, so that this was a fifth of
a training step of question answering.
"""

import numpy as np
import torch
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import eager_mask

ATTENTION = "eager_with_quick_dropout"


def drop(x: torch.Tensor, share: float) -> torch.Tensor:
    """Set each element to zero with probability `share`, to 1/65,536, and scale the others up.

    The draws follow from torch's generator, so that `torch.manual_seed` repeats them.
    """
    seed, count = int(torch.randint(2**63 - 1, ())), x.numel()
    draws = np.random.SFC64(seed).random_raw(-(-count // 4)).view(np.uint16)[:count]
    kept = torch.from_numpy(draws >= round(share * 2**16)).view(x.shape)
    return x * kept.to(x.dtype).mul_(1 / (1 - share))


class Dropout(torch.nn.Dropout):
    """torch's module by the function above."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return drop(x, self.p) if self.training and self.p else x


def attention(module, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor,
              attention_mask: torch.Tensor | None, scaling: float | None = None,
              dropout: float = 0.0, **_) -> tuple[torch.Tensor, torch.Tensor]:
    """transformers' eager attention of [rows, heads, tokens, width]; see there."""
    scaling = query.shape[-1] ** -0.5 if scaling is None else scaling
    scores = torch.matmul(query * scaling, key.transpose(2, 3))
    if attention_mask is not None:
        scores = scores + attention_mask
    weights = torch.softmax(scores, dim=-1)
    if dropout:
        weights = drop(weights, dropout)
    return torch.matmul(weights, value).transpose(1, 2).contiguous(), weights


def quicken(model: torch.nn.Module) -> None:
    """Let a transformers model drop elements in this way, its attention and its modules alike."""
    model.set_attn_implementation(ATTENTION)
    for module in model.modules():
        if type(module) is torch.nn.Dropout:
            module.__class__ = Dropout


AttentionInterface.register(ATTENTION, attention)
AttentionMaskInterface.register(ATTENTION, eager_mask)
