"""OLMo 2, a decoder-only transformer (OLMo 2 report, section 2.2: equations 1 and 2, the last column of Table 3).

Read it from top to bottom: what positions and norms are (RotaryTable, RMSNorm), the two halves of a layer (Attention, MLP), a Layer, the
Trunk of all layers, the language model (Olmo2). To one who knows Llama two things are new, both for stable training (section 3.3.2):

- an RMSNorm stands after attention and after the MLP instead of before them (reordered norm), so that what enters a half is not
  normalised and what a half adds to the residual stream is;
- queries and keys are normalised over their whole projection, before the split into heads (QK-norm), so that attention's logits stay small.

There are no biases, and the input and output embeddings are not tied. Sizes are in `config.py`, starting values in `init.py`, the loss in
`trainer/loss.py`; parallelism, precision and compilation are the trainer's business, and nothing here knows of them. What the report
compares this with (norms on the inputs, non-parametric norms, clipping) is in `ablations.py`. `docs/model.md` leads through the report.

Letters in shapes: B batch, T tokens, D model width, H heads, K key/value heads, E width of a head, V vocabulary.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from olmo_model.ablations import apply_ablations
from olmo_model.config import ModelConfig


class RotaryTable:
    """Cosines and sines of the rotary embedding (RoPE; RoFormer, equation 34), both [T, E] in fp32.

    Pair i of a head turns by position * theta^(-2i/E): the score of a query and a key then depends on how far apart they stand, not on where.

    A plain object and not a tuple of tensors: FSDP's mixed precision casts every tensor that it finds among a module's arguments
    to the parameters' dtype, and positions in the thousands do not survive bf16.
    """

    def __init__(self, length: int, config: ModelConfig, device: torch.device) -> None:
        exponents = torch.arange(0, config.head_dim, 2, dtype=torch.float32, device=device) / config.head_dim
        angles = torch.outer(torch.arange(length, dtype=torch.float32, device=device), 1.0 / config.rope_theta**exponents)
        self.cos = torch.cat((angles.cos(), angles.cos()), dim=-1)
        self.sin = torch.cat((-angles.sin(), angles.sin()), dim=-1)  # signed: x[i + E/2] is subtracted, x[i] added

    def rotate(self, x: Tensor) -> Tensor:
        """Turns each pair (x[i], x[i + E/2]) by its position's angle; x is [B, heads, T, E]. Computed in fp32, returned in x's dtype."""
        other = x.roll(x.shape[-1] // 2, dims=-1)
        return torch.addcmul(x * self.cos, other.float(), self.sin).to(x.dtype)


class RMSNorm(nn.Module):
    """gain * x / sqrt(mean(x^2) + eps) over the last dimension (Zhang and Sennrich, 2019), in fp32 whatever the input; no bias."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        wide = x.float()
        mean_square = torch.linalg.vector_norm(wide, dim=-1, keepdim=True).square() / x.shape[-1]  # backward in fewer passes than pow's
        return (self.weight * (wide * torch.rsqrt(mean_square + self.eps))).to(x.dtype)


class Attention(nn.Module):
    """Causal attention with QK-norm, RoPE and, where n_kv_heads < n_heads (the 32B), grouped queries: H / K query heads share a key head."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        kv_width = config.n_kv_heads * config.head_dim
        self.head_dim = config.head_dim
        self.grouped = config.n_kv_heads < config.n_heads
        self.q_proj = nn.Linear(config.d_model, config.d_model, bias=False)
        self.k_proj = nn.Linear(config.d_model, kv_width, bias=False)
        self.v_proj = nn.Linear(config.d_model, kv_width, bias=False)
        self.o_proj = nn.Linear(config.d_model, config.d_model, bias=False)
        self.q_norm = RMSNorm(config.d_model, config.norm_eps)
        self.k_norm = RMSNorm(kv_width, config.norm_eps)

    def _heads(self, x: Tensor) -> Tensor:
        """[B, T, heads * E] -> [B, heads, T, E]."""
        return x.unflatten(-1, (-1, self.head_dim)).transpose(1, 2)

    def forward(self, x: Tensor, rope: RotaryTable) -> Tensor:
        """[B, T, D] -> [B, T, D]."""
        q = rope.rotate(self._heads(self.q_norm(self.q_proj(x))))  # [B, H, T, E]
        k = rope.rotate(self._heads(self.k_norm(self.k_proj(x))))  # [B, K, T, E]
        v = self._heads(self.v_proj(x))  # [B, K, T, E]
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=self.grouped)
        return self.o_proj(mixed.transpose(1, 2).flatten(-2))


class MLP(nn.Module):
    """SwiGLU (Shazeer, 2020): down(silu(gate(x)) * up(x))."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(config.d_model, config.mlp_hidden, bias=False)
        self.up_proj = nn.Linear(config.d_model, config.mlp_hidden, bias=False)
        self.down_proj = nn.Linear(config.mlp_hidden, config.d_model, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class Layer(nn.Module):
    """One block: h = x + norm(attention(x)), then h + norm(mlp(h)) (report, equations 1 and 2).

    Equation 2 prints mlp(x), a misprint: every public checkpoint has mlp(h).
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.self_attn = Attention(config)
        self.mlp = MLP(config)
        self.post_attention_layernorm = RMSNorm(config.d_model, config.norm_eps)
        self.post_feedforward_layernorm = RMSNorm(config.d_model, config.norm_eps)

    def forward(self, x: Tensor, rope: RotaryTable) -> Tensor:
        h = x + self.post_attention_layernorm(self.self_attn(x, rope))
        return h + self.post_feedforward_layernorm(self.mlp(h))


class Trunk(nn.Module):
    """Everything below the output head: token ids [B, T] -> normalised hidden states [B, T, D]."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.embed_tokens = nn.Embedding(config.vocab_size, config.d_model)
        self.layers = nn.ModuleList(Layer(config) for _ in range(config.n_layers))
        self.norm = RMSNorm(config.d_model, config.norm_eps)

    def forward(self, input_ids: Tensor) -> Tensor:
        # Made anew each step, which costs next to nothing: a buffer would be garbage after the meta device, and is cast by .to(bf16).
        rope = RotaryTable(input_ids.shape[1], self.config, input_ids.device)
        x = self.embed_tokens(input_ids)
        for layer in self.layers:
            x = layer(x, rope)
        return self.norm(x)


class Olmo2(nn.Module):
    """The language model. Parameters are named as in Hugging Face's Olmo2ForCausalLM.

    Built on the meta device it takes no memory; ``olmo_model.init.init_weights`` gives the weights their starting values.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.model = Trunk(config)
        self.lm_head = nn.Linear(config.d_model, config.vocab_size, bias=False)
        if config.ablations():
            apply_ablations(self.model)

    def forward(self, input_ids: Tensor) -> Tensor:
        """Token ids [B, T] -> logits [B, T, V]; logits at position t predict token t + 1."""
        return self.lm_head(self.model(input_ids))
