"""Training of a small regression classifier of its own, in the manner of FineWeb-Edu's (report section 4.1; Penedo et al., 2024).

FineWeb-Edu's classifier is a linear head on a large frozen encoder, trained on scores from 0 to 5 that a language model gave. This one is a
tiny BERT with a vocabulary of its own, trained from nothing in seconds, so that a recipe can be run whole without a download. It is saved
as any classifier is, and `EduClassifier` scores with either.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

from tasks.errors import UserError

SPECIAL_TOKENS = ["[PAD]", "[CLS]", "[SEP]"]


def train_regressor(
    examples: Iterable[tuple[str, float]],
    out: Path,
    *,
    epochs: int = 5,
    lr: float = 1e-3,
    batch_examples: int = 16,
    vocab_size: int = 4096,
    hidden_size: int = 64,
    layers: int = 2,
    max_tokens: int = 256,
    seed: int = 0,
) -> dict[str, float]:
    """Trains a BERT with one output on (text, score in [0, 5]) pairs by mean squared error and saves it in the folder `out`.

    AdamW, learning rate falling linearly to 0. Computed on the CPU by one thread, so that neither the number of cores nor the order of sums
    changes a bit: on one kind of CPU the same examples in the same order give the same files. About 40 seconds for 1,000
    texts of 200 tokens.

    Returns the number of examples and the mean squared error on them after training (`examples`, `mean_squared_error`).

    Raises:
        UserError: no examples, or a score outside [0, 5].
    """
    import torch
    from transformers import PreTrainedTokenizerFast, logging

    pairs = list(examples)
    if not pairs:
        raise UserError("a classifier cannot be trained on no examples: give some texts with their scores")
    texts, scores = [text for text, _ in pairs], np.array([score for _, score in pairs], np.float32)
    if not (np.isfinite(scores) & (scores >= 0) & (scores <= 5)).all():
        bad = int(np.flatnonzero(~((scores >= 0) & (scores <= 5)))[0])
        raise UserError(f"the score of example {bad} is {scores[bad]}, outside the range from 0 to 5: mend the annotations")
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=train_vocabulary(texts, vocab_size),
        model_max_length=max_tokens,
        pad_token="[PAD]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        model_input_names=["input_ids", "attention_mask"],
    )
    encoded = tokenizer(texts, truncation=True, max_length=max_tokens)["input_ids"]
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model = _new_model(len(tokenizer), hidden_size, layers, max_tokens, float(scores.mean()))
            _fit(model, encoded, scores, epochs, lr, batch_examples, seed)
        error = float(np.mean((_predict(model, encoded, batch_examples) - scores) ** 2))
    finally:
        torch.set_num_threads(threads)
    logging.disable_progress_bar()
    model.save_pretrained(out)
    tokenizer.save_pretrained(out)
    return {"examples": len(pairs), "mean_squared_error": error}


def train_vocabulary(texts: list[str], vocab_size: int) -> Tokenizer:
    """A lower-casing byte-level BPE tokenizer with a vocabulary made from the texts; `[CLS]` and `[SEP]` enclose a text, as BERT expects.

    Not WordPiece: its trainer numbers the letters in the order of a hash map, so that each process makes another vocabulary.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Lowercase()])
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        min_frequency=2,
        special_tokens=SPECIAL_TOKENS,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    special = [(token, tokenizer.token_to_id(token)) for token in ("[CLS]", "[SEP]")]
    tokenizer.post_processor = processors.TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=special)
    return tokenizer


def _new_model(vocab_size: int, hidden_size: int, layers: int, max_tokens: int, mean: float) -> Any:
    """A BERT with one output, whose bias starts at the mean score: what is left to learn is what tells texts apart."""
    import torch
    from transformers import BertConfig, BertForSequenceClassification

    config: Any = BertConfig(
        vocab_size=vocab_size,
        hidden_size=hidden_size,
        num_hidden_layers=layers,
        num_attention_heads=max(1, hidden_size // 32),
        intermediate_size=4 * hidden_size,
        max_position_embeddings=max_tokens,
        problem_type="regression",
        initializer_range=0.1,  # at BERT's 0.02 so narrow a model hardly moves at first
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,  # with it, torch's attention on the CPU takes a path several times slower
        pad_token_id=SPECIAL_TOKENS.index("[PAD]"),
    )
    config.num_labels = 1
    model = BertForSequenceClassification(config)
    torch.nn.init.constant_(model.classifier.bias, mean)
    return model


def _fit(model: Any, encoded: list[list[int]], scores: np.ndarray, epochs: int, lr: float, batch_examples: int, seed: int) -> None:
    import torch

    order = np.random.default_rng(seed)
    steps = epochs * -(-len(encoded) // batch_examples)
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / steps)
    model.train()
    for _ in range(epochs):
        shuffled = order.permutation(len(encoded))
        for start in range(0, len(encoded), batch_examples):
            batch = shuffled[start : start + batch_examples]
            ids, mask = _pad([encoded[i] for i in batch])
            output = model(input_ids=ids, attention_mask=mask).logits[:, 0]
            loss = torch.nn.functional.mse_loss(output, torch.from_numpy(scores[batch]))
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()


def _predict(model: Any, encoded: list[list[int]], batch_examples: int) -> np.ndarray:
    """The model's outputs, float32[n]."""
    import torch

    model.eval()
    outputs = []
    with torch.inference_mode():
        for start in range(0, len(encoded), batch_examples):
            ids, mask = _pad(encoded[start : start + batch_examples])
            outputs.append(model(input_ids=ids, attention_mask=mask).logits[:, 0].numpy())
    return np.concatenate(outputs)


def _pad(encoded: list[list[int]]) -> tuple[Any, Any]:
    """Token ids and attention mask, int64[n, longest]."""
    import torch

    ids = np.zeros((len(encoded), max(map(len, encoded))), np.int64)  # [PAD] is 0
    mask = np.zeros_like(ids)
    for row, document in enumerate(encoded):
        ids[row, : len(document)] = document
        mask[row, : len(document)] = 1
    return torch.from_numpy(ids), torch.from_numpy(mask)
