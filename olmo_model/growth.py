"""How activations and gradients grow from layer to layer at initialisation (OLMo 2 report, section 3.2, Figures 5 and 6)."""

import math
from collections.abc import Iterable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from olmo_model.model import Olmo2


@dataclass(frozen=True)
class Growth:
    """2-norms of the mean vector at the outputs of the first and of the last layer, and the number of layers."""

    first: float
    last: float
    n_layers: int

    @property
    def exponent(self) -> float:
        """The report's growth exponent, log(last / first) / n_layers: 0 where the scale stays, above 0 where it grows with depth."""
        return math.log(self.last / self.first) / self.n_layers


def growth(model: Olmo2, documents: Iterable[Tensor]) -> tuple[Growth, Growth]:
    """Growth of the activations, and of the loss's gradients with respect to them, from the first layer's output to the last's.

    Args:
        model: an unsharded model, as a rule freshly initialised; it is left as it is.
        documents: token ids, int64 of shape (T,) each with T >= 2, on the model's device; the report takes 50 documents of The Pile.

    Each document goes through by itself; its loss is the mean over its targets. Activations and gradients are averaged over all documents
    and positions to one vector of length d_model each, and only then is the norm taken. Raises ValueError where there is no document.
    """
    layers = model.model.layers
    sums = torch.zeros(2, 2, model.config.d_model, dtype=torch.float64, device=model.lm_head.weight.device)
    positions = 0
    for ids in documents:
        for which, tensors in enumerate(_activations_and_gradients(model, layers[0], layers[-1], ids)):
            sums[which] += torch.stack([tensor.double().sum((0, 1)) for tensor in tensors])
        positions += len(ids)
    if not positions:
        raise ValueError("growth is measured on documents, and there was none; give token ids of at least one")
    norms = torch.linalg.vector_norm(sums / positions, dim=-1).tolist()
    activations, gradients = (Growth(first, last, len(layers)) for first, last in norms)
    return activations, gradients


def _activations_and_gradients(model: Olmo2, first: nn.Module, last: nn.Module, ids: Tensor) -> tuple[list[Tensor], list[Tensor]]:
    """Outputs of two layers for one document, and the loss's gradients with respect to them, all [1, T, D]."""
    outputs: list[Tensor] = []
    hooks = [layer.register_forward_hook(lambda module, inputs, output: outputs.append(output)) for layer in (first, last)]
    try:
        logits = model(ids[None])
    finally:
        for hook in hooks:
            hook.remove()
    loss = F.cross_entropy(logits[0, :-1].float(), ids[1:])
    return outputs, list(torch.autograd.grad(loss, outputs))
