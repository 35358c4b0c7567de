"""What OLMo-0424 had where OLMo 2 is otherwise (OLMo 2 report, Table 3 and section 3.3), as changes to a model that is built.

So `model.py` shows OLMo 2 and nothing else. The scaled initialisation of section 3.2 is in `init.py`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch.nn.functional as F
from torch import Tensor, nn

if TYPE_CHECKING:
    from olmo_model.model import RotaryTable, Trunk

_CLIP = 8.0  # report, Table 3


class NonparametricNorm(nn.Module):
    """LayerNorm without gain and bias (section 3.3.1), in fp32 whatever the input."""

    def __init__(self, eps: float) -> None:
        super().__init__()
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        return F.layer_norm(x.float(), x.shape[-1:], eps=self.eps).to(x.dtype)


class ClippedLinear(nn.Linear):
    """A projection without bias whose outputs are held within +-8."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).clamp(-_CLIP, _CLIP)


class InputNormLayer(nn.Module):
    """One block with its norms on the inputs: h = x + attention(norm(x)), then h + mlp(norm(h)) (section 3.3.2).

    Made of the parts of ``layer``; its norms are named as in Hugging Face's LlamaForCausalLM.
    """

    def __init__(self, layer: Any) -> None:
        super().__init__()
        self.self_attn = layer.self_attn
        self.mlp = layer.mlp
        self.input_layernorm = layer.post_attention_layernorm
        self.post_attention_layernorm = layer.post_feedforward_layernorm

    def forward(self, x: Tensor, rope: RotaryTable) -> Tensor:
        h = x + self.self_attn(self.input_layernorm(x), rope)
        return h + self.mlp(self.post_attention_layernorm(h))


def apply_ablations(trunk: Trunk) -> None:
    """Changes a freshly built OLMo 2 in place into the model that its config describes. QK-norm is an RMSNorm in any case."""
    config = trunk.config
    layer: Any  # a ModuleList does not tell what it holds
    for n, layer in enumerate(trunk.layers):
        attention = layer.self_attn
        if config.qkv_normalization != "qk_norm":
            attention.q_norm, attention.k_norm = nn.Identity(), nn.Identity()
        if config.qkv_normalization == "clip":
            for name in ("q_proj", "k_proj", "v_proj"):
                plain = getattr(attention, name)
                setattr(attention, name, ClippedLinear(plain.in_features, plain.out_features, bias=False))
        if config.layer_norm == "nonparametric":
            layer.post_attention_layernorm = NonparametricNorm(config.norm_eps)
            layer.post_feedforward_layernorm = NonparametricNorm(config.norm_eps)
        if config.layer_norm_applied_to == "inputs":
            trunk.layers[n] = InputNormLayer(layer)
    if config.layer_norm == "nonparametric":
        trunk.norm = NonparametricNorm(config.norm_eps)  # type: ignore[assignment]
