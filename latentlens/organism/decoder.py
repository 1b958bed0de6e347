"""The decoder in plain PyTorch, with Hugging Face's parameter names: its weights ARE a Llama checkpoint."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

#: What transformers' LlamaConfig is given; the sizes of the prototype that carried the phenomena.
SHAPE: dict[str, Any] = {
    "hidden_size": 128,
    "num_hidden_layers": 6,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "intermediate_size": 352,
    "max_position_embeddings": 512,
    "rms_norm_eps": 1e-5,
    "tie_word_embeddings": True,
}
THETA = 10_000.0
Edit = Callable[[int, Tensor], Tensor]
#: Keys and values of the positions seen so far, or nothing yet.
Past = list[Tensor]


class Norm(nn.Module):
    """RMSNorm: x / sqrt(mean(x^2) + eps) * weight, in float32."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        """Normalise the last dimension."""
        y = x.float()
        y = y * torch.rsqrt(y.square().mean(-1, keepdim=True) + SHAPE["rms_norm_eps"])
        return self.weight * y.to(x.dtype)


class Attention(nn.Module):
    """Rotary self-attention with an explicit mask."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.q_proj = nn.Linear(width, width, bias=False)
        self.k_proj = nn.Linear(width, width, bias=False)
        self.v_proj = nn.Linear(width, width, bias=False)
        self.o_proj = nn.Linear(width, width, bias=False)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, mask: Tensor, past: Past | None = None) -> Tensor:
        """Attend: x [batch, time, width], cos and sin [batch, 1, time, head], mask [batch, 1, time, all].

        `past` holds the keys and values of earlier positions, and is extended by those of this call.
        """
        batch, time, width = x.shape

        def split(y: Tensor) -> Tensor:
            return y.view(batch, time, self.heads, -1).transpose(1, 2)

        def rotate(y: Tensor) -> Tensor:
            a, b = y.chunk(2, -1)
            return y * cos + torch.cat((-b, a), -1) * sin

        q, k, v = rotate(split(self.q_proj(x))), rotate(split(self.k_proj(x))), split(self.v_proj(x))
        if past is not None:
            past[:] = k, v = (k, v) if not past else (torch.cat((past[0], k), 2), torch.cat((past[1], v), 2))
        y = F.scaled_dot_product_attention(q.to(v.dtype), k.to(v.dtype), v, attn_mask=mask)
        return self.o_proj(y.transpose(1, 2).reshape(batch, time, width))


class MLP(nn.Module):
    """SwiGLU: down(silu(gate x) * up x)."""

    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(width, inner, bias=False)
        self.up_proj = nn.Linear(width, inner, bias=False)
        self.down_proj = nn.Linear(inner, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Map [..., width] to [..., width]."""
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class Block(nn.Module):
    """Pre-norm block: x + attention(norm x), then x + mlp(norm x)."""

    def __init__(self, width: int, heads: int, inner: int) -> None:
        super().__init__()
        self.self_attn = Attention(width, heads)
        self.mlp = MLP(width, inner)
        self.input_layernorm = Norm(width)
        self.post_attention_layernorm = Norm(width)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, mask: Tensor, past: Past | None = None) -> Tensor:
        """Map the residual stream [batch, time, width] to itself."""
        x = x + self.self_attn(self.input_layernorm(x), cos, sin, mask, past)
        return x + self.mlp(self.post_attention_layernorm(x))


class Decoder(nn.Module):
    """A Llama decoder with tied embeddings.

    Args: vocabulary: number of tokens. seed: of the initial weights.
    """

    depth = SHAPE["num_hidden_layers"]
    frequencies: Tensor

    def __init__(self, vocabulary: int, seed: int = 0) -> None:
        super().__init__()
        width, heads = SHAPE["hidden_size"], SHAPE["num_attention_heads"]
        self.model: Any = nn.ModuleDict(
            {
                "embed_tokens": nn.Embedding(vocabulary, width),
                "layers": nn.ModuleList(
                    Block(width, heads, SHAPE["intermediate_size"]) for _ in range(SHAPE["num_hidden_layers"])
                ),
                "norm": Norm(width),
            }
        )
        half = torch.arange(0, width // heads, 2).float() / (width // heads)
        self.register_buffer("frequencies", 1.0 / THETA**half, persistent=False)
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for name, parameter in self.named_parameters():
                if parameter.ndim == 2:
                    # Blocks start as the identity: what writes into the residual stream starts at zero.
                    writes = name.endswith(("o_proj.weight", "down_proj.weight"))
                    parameter.normal_(0.0, 0.0 if writes else 0.02, generator=generator)

    def matrices(self) -> list[nn.Parameter]:
        """Return the weights of the blocks' matrices."""
        return [p for n, p in self.named_parameters() if p.ndim == 2 and ".layers." in n]

    def residuals(
        self,
        ids: Tensor,
        positions: Tensor,
        mask: Tensor,
        edit: Edit | None = None,
        past: Sequence[Past] | None = None,
    ) -> list[Tensor]:
        """Return the residual stream: the embedding, then each block's output, [batch, time, width].

        Args: ids, positions [batch, time]; mask [batch, 1, time, time], True where attention is allowed;
            edit: called with (block index from 0, its output), returns what the next block reads; past: an
            empty list for each block, which then remembers the positions it has seen: the next call gives the
            new ones only, and a mask over all.
        """
        angles = positions[..., None].float() * self.frequencies
        angles = torch.cat((angles, angles), -1)[:, None]
        cos, sin = angles.cos(), angles.sin()
        streams = [self.model["embed_tokens"](ids)]
        for index, block in enumerate(self.model["layers"]):
            x = block(streams[-1], cos, sin, mask, None if past is None else past[index])
            streams.append(x if edit is None else edit(index, x))
        return streams

    def logits(self, x: Tensor) -> Tensor:
        """Map the last residual [..., width] to logits [..., vocabulary]."""
        return F.linear(self.model["norm"](x), self.model["embed_tokens"].weight)

    def forward(self, ids: Tensor, positions: Tensor, mask: Tensor) -> Tensor:
        """Return the final residual stream, [batch, time, width]: `logits` of it is left to the caller."""
        return self.residuals(ids, positions, mask)[-1]


def causal(documents: Tensor) -> Tensor:
    """Return the mask [batch, 1, time, time]: earlier tokens of the same document (ids [batch, time]).

    Padding is document -1; a padded position sees itself only, so that its softmax is finite.
    """
    time = documents.shape[1]
    same = documents[:, :, None] == documents[:, None, :]
    past = torch.ones(time, time, dtype=torch.bool, device=documents.device).tril()
    itself = torch.eye(time, dtype=torch.bool, device=documents.device)
    return ((same & past & (documents >= 0)[:, :, None]) | itself)[:, None]
