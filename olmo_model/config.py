"""Sizes of an OLMo 2 model, and what follows from them. No torch here, so that a form or a command line opens at once."""

from dataclasses import dataclass, fields
from math import prod
from typing import Any, Literal

# The settings of ModelConfig that the report ablates; their defaults are OLMo 2.
ABLATIONS = ("layer_norm", "layer_norm_applied_to", "qkv_normalization", "init")


@dataclass(frozen=True)
class ModelConfig:
    """The shape of an OLMo 2 model (OLMo 2 report, section 2.2, Tables 3 and 4). Raises ValueError where the sizes do not fit each other.

    Attributes:
        d_model: width of the residual stream.
        n_layers: layers, each of attention and MLP.
        n_heads: attention heads, of d_model / n_heads each.
        n_kv_heads: key and value heads; fewer than n_heads is grouped-query attention.
        mlp_hidden: width inside SwiGLU.
        vocab_size: padded size of the vocabulary, the height of both embedding matrices.
        max_sequence_length: longest sequence that the model is meant for; no weight depends on it.
        rope_theta: base of the rotary embedding's angles.
        norm_eps: epsilon of all norms.
        init_std: standard deviation of the truncated normal that every matrix starts from (section 3.2).

    The others are what OLMo-0424 had otherwise, so that the report's ablations can be run again; `OLMO_0424` holds its choices:

        layer_norm: RMSNorm, or LayerNorm without parameters (section 3.3.1).
        layer_norm_applied_to: norms on the outputs of attention and MLP, or on their inputs (section 3.3.2).
        qkv_normalization: QK-norm, or "clip": queries, keys and values held within +-8 (Table 3), or nothing.
        init: "scaled" goes by width and depth instead of ``init_std`` (section 3.2; `init.scaled_std`).
    """

    d_model: int
    n_layers: int
    n_heads: int
    n_kv_heads: int
    mlp_hidden: int
    vocab_size: int
    max_sequence_length: int = 4096
    rope_theta: float = 5e5
    norm_eps: float = 1e-6
    init_std: float = 0.02
    layer_norm: Literal["rms", "nonparametric"] = "rms"
    layer_norm_applied_to: Literal["outputs", "inputs"] = "outputs"
    qkv_normalization: Literal["qk_norm", "clip", "none"] = "qk_norm"
    init: Literal["normal", "scaled"] = "normal"

    def __post_init__(self) -> None:
        for name in ("d_model", "n_layers", "n_heads", "n_kv_heads", "mlp_hidden", "vocab_size", "max_sequence_length"):
            if getattr(self, name) < 1:
                raise ValueError(f"model: {name} is {getattr(self, name)}; give a whole number of 1 or more")
        for name in ("rope_theta", "norm_eps", "init_std"):
            if not getattr(self, name) > 0:
                raise ValueError(f"model: {name} is {getattr(self, name)}; give a number above 0")
        if self.d_model % (2 * self.n_heads):
            raise ValueError(
                f"model: d_model {self.d_model} must be an even multiple of n_heads {self.n_heads}, since RoPE turns pairs within a head"
            )
        if self.n_heads % self.n_kv_heads:
            raise ValueError(f"model: n_heads {self.n_heads} must be a multiple of n_kv_heads {self.n_kv_heads}")

    @property
    def head_dim(self) -> int:
        """Width of one attention head."""
        return self.d_model // self.n_heads

    def ablations(self) -> dict[str, str]:
        """The settings in which this model is another than OLMo 2; empty for OLMo 2 itself."""
        return {
            each.name: getattr(self, each.name)
            for each in fields(self)
            if each.name in ABLATIONS and getattr(self, each.name) != each.default
        }

    def parameter_shapes(self) -> dict[str, tuple[int, ...]]:
        """Name and shape of every parameter, in the model's own order; the names are those of Hugging Face's Olmo2ForCausalLM.

        Norms on the inputs are named as in Hugging Face's LlamaForCausalLM.
        """
        d, kv = self.d_model, self.n_kv_heads * self.head_dim
        first, second = "post_attention_layernorm", "post_feedforward_layernorm"
        if self.layer_norm_applied_to == "inputs":
            first, second = "input_layernorm", "post_attention_layernorm"
        qk_norms = {"self_attn.q_norm": (d,), "self_attn.k_norm": (kv,)}
        layer: dict[str, tuple[int, ...]] = {
            "self_attn.q_proj": (d, d),
            "self_attn.k_proj": (kv, d),
            "self_attn.v_proj": (kv, d),
            "self_attn.o_proj": (d, d),
            **(qk_norms if self.qkv_normalization == "qk_norm" else {}),
            "mlp.gate_proj": (self.mlp_hidden, d),
            "mlp.up_proj": (self.mlp_hidden, d),
            "mlp.down_proj": (d, self.mlp_hidden),
            **({first: (d,), second: (d,)} if self.layer_norm == "rms" else {}),
        }
        shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (self.vocab_size, d)}
        for n in range(self.n_layers):
            shapes |= {f"model.layers.{n}.{name}.weight": shape for name, shape in layer.items()}
        if self.layer_norm == "rms":
            shapes["model.norm.weight"] = (d,)
        return shapes | {"lm_head.weight": (self.vocab_size, d)}

    def num_parameters(self) -> int:
        """All parameters, both embeddings included."""
        return sum(prod(shape) for shape in self.parameter_shapes().values())

    def num_parameters_without_input_embedding(self) -> int:
        """The parameters that take part in a matrix product for every token (and the norms' gains)."""
        return self.num_parameters() - self.vocab_size * self.d_model

    def flops_per_token(self, sequence_length: int) -> int:
        """Model FLOPs to train on one token, forward and backward, as PaLM counts them (PaLM, appendix B; no causal discount)."""
        return 6 * self.num_parameters_without_input_embedding() + 12 * self.n_layers * self.d_model * sequence_length

    def kaplan_flops_per_token(self) -> int:
        """FLOPs to train on one token as the report's Figure 1 and Table 6 approximate them: 6 x parameters (Kaplan et al., 2020)."""
        return 6 * self.num_parameters()


# Vocabulary of 100278 ids, padded to a multiple of 128.
_VOCAB_SIZE = 100352

# 7B and 13B: OLMo 2 report, Table 4; 1B and 32B came after it, from their public configurations, as does what the table leaves out
# (the 13B's mlp_hidden). The 32B alone has grouped queries.
PRESETS: dict[str, ModelConfig] = {
    "1b": ModelConfig(d_model=2048, n_layers=16, n_heads=16, n_kv_heads=16, mlp_hidden=8192, vocab_size=_VOCAB_SIZE),
    "7b": ModelConfig(d_model=4096, n_layers=32, n_heads=32, n_kv_heads=32, mlp_hidden=11008, vocab_size=_VOCAB_SIZE),
    "13b": ModelConfig(d_model=5120, n_layers=40, n_heads=40, n_kv_heads=40, mlp_hidden=13824, vocab_size=_VOCAB_SIZE),
    "32b": ModelConfig(d_model=5120, n_layers=64, n_heads=40, n_kv_heads=8, mlp_hidden=27648, vocab_size=_VOCAB_SIZE),
}

# What OLMo-0424 had in place of OLMo 2's choices (report, Table 3 and section 3.2): `dataclasses.replace(PRESETS["7b"], **OLMO_0424)`.
OLMO_0424: dict[str, Any] = {
    "rope_theta": 1e4,
    "norm_eps": 1e-5,
    "layer_norm": "nonparametric",
    "layer_norm_applied_to": "inputs",
    "qkv_normalization": "clip",
    "init": "scaled",
}
