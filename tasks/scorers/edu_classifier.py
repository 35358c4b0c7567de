"""Neural quality classifier with one regression output, such as FineWeb-Edu's (report section 4.1; Penedo et al., 2024): its scoring side.

The score is the model's raw output, a float; FineWeb-Edu's integer score is `round(clip(score, 0, 5))`, which a filter computes from the
column (`rounded: true`), since the report does not say which of the two its thresholds 2 and 3 mean.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
from pydantic import BaseModel, ConfigDict, Field

from tasks.errors import UserError

# Documents are padded to a multiple of this, so that a batch holds documents of one length class only.
LENGTH_STEP = 64


class EduClassifierConfig(BaseModel):
    """Score of a text by a Hugging Face sequence classifier with one regression output."""

    model_config = ConfigDict(extra="forbid", protected_namespaces=())

    type: Literal["edu"] = "edu"
    column: str = Field("edu", description="Name of the score's column.", min_length=1)
    model: str | None = Field(
        None, description="Folder, or name on the Hugging Face hub, of the model; leave it out where the recipe trains one."
    )
    revision: str | None = Field(None, description="Commit of a model on the hub; without it, the newest.")
    max_tokens: int = Field(512, ge=8, description="Tokens of a document that the model reads; never more than the model can.")
    batch_tokens: int = Field(8192, ge=512, description="Tokens that the model reads at once, padding included; more for a GPU.")
    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="Where to compute; auto takes the GPU if there is one.")
    dtype: Literal["float32", "bfloat16"] = Field("float32", description="Type of the weights; bfloat16 is faster on a GPU and coarser.")


class EduClassifier:
    """Scores texts with a classifier. `columns`: the raw output, float32. `provenance`: device class and dtype, which sway its last bits.

    A document is padded to a length of its own (the next multiple of 64 tokens) and batches of one length always have the same number of
    rows, if need be blank ones. So the same kernels see the same shapes whatever the neighbours are, and no document looks at another: on
    one CPU with one number of threads a document's score has been the same to the bit in any batch. Torch promises no more than equality to
    within rounding, and across devices, dtypes and versions of torch there is only that.

    Raises:
        UserError: the model cannot be loaded, has no safetensors weights, lacks weights, or has not exactly one output.
    """

    def __init__(self, config: EduClassifierConfig, model: str | Path) -> None:
        import torch

        self.config = config
        self.columns: dict[str, pa.DataType] = {config.column: pa.float32()}
        device = config.device
        if device == "auto":
            device = "cuda" if torch.cuda.is_available() else "cpu"
        elif device == "cuda" and not torch.cuda.is_available():
            raise UserError("the scorer asks for device cuda, but torch sees no GPU here: set device to auto or cpu")
        self.device = device
        self.provenance = {"device": device, "dtype": config.dtype}
        self.tokenizer, loaded = _load(str(model), config)
        self.model = loaded.to(device=device, dtype=getattr(torch, config.dtype))
        # A tokenizer that knows no limit says 1e30; position embeddings are the model's own limit, where it has them.
        positions = getattr(loaded.config, "max_position_embeddings", None)
        self.max_tokens = int(min(config.max_tokens, self.tokenizer.model_max_length, positions or config.max_tokens))

    def score(self, texts: list[str]) -> dict[str, np.ndarray]:
        """One float32 a text, in the texts' order. Give it thousands at once: each length class ends in a part-filled batch."""
        scores = np.empty(len(texts), np.float32)
        if not texts:
            return {self.config.column: scores}
        encoded = self.tokenizer(texts, truncation=True, max_length=self.max_tokens)["input_ids"]
        lengths = np.array([len(ids) for ids in encoded])
        padded = np.minimum(-(-lengths // LENGTH_STEP) * LENGTH_STEP, self.max_tokens)
        for length in np.unique(padded):
            rows = max(1, self.config.batch_tokens // int(length))
            members = np.flatnonzero(padded == length)
            for start in range(0, len(members), rows):
                batch = members[start : start + rows]
                scores[batch] = self._forward([encoded[i] for i in batch], rows, int(length))
        return {self.config.column: scores}

    def _forward(self, encoded: list[list[int]], rows: int, length: int) -> np.ndarray:
        """Raw outputs, float32[len(encoded)], of documents laid out as a batch of `rows` rows of `length` tokens."""
        import torch

        ids = np.full((rows, length), self.tokenizer.pad_token_id or 0, np.int64)
        mask = np.zeros((rows, length), np.int64)
        mask[len(encoded) :, 0] = 1  # a blank row that attends to nothing at all would be NaN
        for row, document in enumerate(encoded):
            ids[row, : len(document)] = document
            mask[row, : len(document)] = 1
        with torch.inference_mode():
            output = self.model(
                input_ids=torch.from_numpy(ids).to(self.device), attention_mask=torch.from_numpy(mask).to(self.device)
            ).logits
        return output[: len(encoded), 0].float().cpu().numpy()


def _load(name: str, config: EduClassifierConfig) -> tuple[Any, Any]:
    """Tokenizer and model. Only safetensors weights are read: the other format is a pickle, which may run code."""
    from transformers import AutoModelForSequenceClassification, AutoTokenizer, logging

    logging.disable_progress_bar()  # one for each shard's process would fill the logs
    try:
        tokenizer = AutoTokenizer.from_pretrained(name, revision=config.revision)
        model, report = AutoModelForSequenceClassification.from_pretrained(
            name, revision=config.revision, use_safetensors=True, output_loading_info=True
        )
    except Exception as error:  # OSError, ValueError, KeyError, SafetensorError, ...: the libraries raise what comes
        cause = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise UserError(
            f"the classifier {name} cannot be loaded: give a folder that save_pretrained wrote (safetensors weights, tokenizer) "
            f"or a name on the Hugging Face hub that can be reached from here ({cause})"
        ) from error
    if model.config.num_labels != 1:
        raise UserError(f"the classifier {name} has {model.config.num_labels} outputs: give one with a single regression output")
    if report["missing_keys"]:
        raise UserError(f"the classifier {name} lacks the weights {', '.join(sorted(report['missing_keys']))}: give a trained classifier")
    return tokenizer, model
