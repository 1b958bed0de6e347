"""A sibling decoder in plain PyTorch, with Hugging Face's parameter names: its weights ARE a GPT-2 checkpoint.

Learnt absolute positions, LayerNorm with bias, one matrix for queries, keys and values, GELU, tied embeddings. It is
trained on the same corpus by the same script, so that what is tested on the embedded model is not tied to one shape.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from latentlens.organism.decoder import Edit, Past

#: What transformers' GPT2Config is given.
SHAPE: dict[str, Any] = {
    "n_embd": 128,
    "n_layer": 6,
    "n_head": 4,
    "n_inner": 512,
    "n_positions": 256,
    "activation_function": "gelu_new",
    "layer_norm_epsilon": 1e-5,
    "tie_word_embeddings": True,
}


class Matrix(nn.Module):
    """x W + b, W stored [inputs, outputs] as GPT-2 stores it."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(inputs, outputs))
        self.bias = nn.Parameter(torch.zeros(outputs))

    def forward(self, x: Tensor) -> Tensor:
        """Map [..., inputs] to [..., outputs]."""
        return F.linear(x, self.weight.mT, self.bias)


class Attention(nn.Module):
    """Self-attention without positions, with an explicit mask."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.c_attn = Matrix(width, 3 * width)
        self.c_proj = Matrix(width, width)

    def forward(self, x: Tensor, mask: Tensor, past: Past | None = None) -> Tensor:
        """Attend: x [batch, time, width], mask [batch, 1, time, all]; `past` as in `decoder.Attention`."""
        batch, time, width = x.shape
        q, k, v = (y.view(batch, time, self.heads, -1).transpose(1, 2) for y in self.c_attn(x).split(width, -1))
        if past is not None:
            past[:] = k, v = (k, v) if not past else (torch.cat((past[0], k), 2), torch.cat((past[1], v), 2))
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        return self.c_proj(y.transpose(1, 2).reshape(batch, time, width))


class MLP(nn.Module):
    """c_proj(gelu(c_fc x)), GELU by its tanh formula."""

    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.c_fc = Matrix(width, inner)
        self.c_proj = Matrix(inner, width)

    def forward(self, x: Tensor) -> Tensor:
        """Map [..., width] to [..., width]."""
        return self.c_proj(F.gelu(self.c_fc(x), approximate="tanh"))


class Block(nn.Module):
    """Pre-norm block: x + attention(norm x), then x + mlp(norm x)."""

    def __init__(self, width: int, heads: int, inner: int) -> None:
        super().__init__()
        self.ln_1 = nn.LayerNorm(width, SHAPE["layer_norm_epsilon"])
        self.attn = Attention(width, heads)
        self.ln_2 = nn.LayerNorm(width, SHAPE["layer_norm_epsilon"])
        self.mlp = MLP(width, inner)

    def forward(self, x: Tensor, mask: Tensor, past: Past | None = None) -> Tensor:
        """Map the residual stream [batch, time, width] to itself."""
        x = x + self.attn(self.ln_1(x), mask, past)
        return x + self.mlp(self.ln_2(x))


class GPT2(nn.Module):
    """A GPT-2 decoder with tied embeddings, used as `decoder.Decoder` is.

    Args: vocabulary: number of tokens. seed: of the initial weights.
    """

    depth = SHAPE["n_layer"]

    def __init__(self, vocabulary: int, seed: int = 0) -> None:
        super().__init__()
        width = SHAPE["n_embd"]
        self.transformer: Any = nn.ModuleDict(
            {
                "wte": nn.Embedding(vocabulary, width),
                "wpe": nn.Embedding(SHAPE["n_positions"], width),
                "h": nn.ModuleList(Block(width, SHAPE["n_head"], SHAPE["n_inner"]) for _ in range(self.depth)),
                "ln_f": nn.LayerNorm(width, SHAPE["layer_norm_epsilon"]),
            }
        )
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for name, parameter in self.named_parameters():
                if parameter.ndim == 2:
                    # Blocks start as the identity: what writes into the residual stream starts at zero.
                    parameter.normal_(0.0, 0.0 if name.endswith("c_proj.weight") else 0.02, generator=generator)

    def matrices(self) -> list[nn.Parameter]:
        """Return the weights of the blocks' matrices."""
        return [p for n, p in self.named_parameters() if p.ndim == 2 and ".h." in n]

    def residuals(
        self,
        ids: Tensor,
        positions: Tensor,
        mask: Tensor,
        edit: Edit | None = None,
        past: Sequence[Past] | None = None,
    ) -> list[Tensor]:
        """Return the residual stream: the sum of both embeddings, then each block's output; arguments as `Decoder`."""
        streams = [self.transformer["wte"](ids) + self.transformer["wpe"](positions)]
        for index, block in enumerate(self.transformer["h"]):
            x = block(streams[-1], mask, None if past is None else past[index])
            streams.append(x if edit is None else edit(index, x))
        return streams

    def logits(self, x: Tensor) -> Tensor:
        """Map the last residual [..., width] to logits [..., vocabulary]."""
        return F.linear(self.transformer["ln_f"](x), self.transformer["wte"].weight)

    def forward(self, ids: Tensor, positions: Tensor, mask: Tensor) -> Tensor:
        """Return the final residual stream, [batch, time, width]: `logits` of it is left to the caller."""
        return self.residuals(ids, positions, mask)[-1]
