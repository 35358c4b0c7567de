"""Training steps with OLMo-core's own model, loss, z-loss and optimizer. Runs by itself:

    python benchmarks/peers/olmo_core_training.py CONFIG.json TOKENS.npy STEPS WARM_UP

Written as a user of OLMo-core would for one process on a CPU: eager, its default attention (torch's scaled dot product), and the fused AdamW,
which is faster here than the one it takes by default. CONFIG.json is that of our trainer, for the sizes and hyperparameters; TOKENS.npy holds
little-endian uint32. The last line is a JSON object: seconds and tokens of the steps after the first WARM_UP, and every step's loss.
"""

import json
import sys
import time
from pathlib import Path

import numpy as np
import torch
from olmo_core.data.utils import get_labels
from olmo_core.nn.feed_forward import FeedForwardConfig
from olmo_core.nn.transformer import TransformerConfig
from olmo_core.nn.transformer.config import TransformerBlockType
from olmo_core.optim import AdamWConfig, OptimGroupOverride


def main(config_path: str, tokens_path: str, steps: int, warm_up: int) -> None:
    torch.set_num_threads(1)
    config = json.loads(Path(config_path).read_text())
    sizes, settings = config["model"], config["optimizer"]
    instances, length = config["global_batch_instances"], config["sequence_length"]
    batches = np.fromfile(tokens_path, "<u4").astype(np.int64).reshape(-1, instances, length)
    model = TransformerConfig.llama_like(
        d_model=sizes["d_model"],
        vocab_size=sizes["vocab_size"],
        n_layers=sizes["n_layers"],
        n_heads=sizes["n_heads"],
        n_kv_heads=sizes["n_kv_heads"],
        qk_norm=True,
        rope_theta=int(sizes["rope_theta"]),
        layer_norm_eps=sizes["norm_eps"],
        block_name=TransformerBlockType.reordered_norm,
        feed_forward=FeedForwardConfig(hidden_size=sizes["mlp_hidden"], bias=False),
    ).build(init_device="cpu")
    model.init_weights(max_seq_len=length, device=torch.device("cpu"))
    optimizer = AdamWConfig(
        lr=settings["learning_rate"],
        betas=tuple(settings["betas"]),
        eps=settings["eps"],
        weight_decay=settings["weight_decay"],
        group_overrides=[OptimGroupOverride(params=["embeddings.weight"], opts={"weight_decay": 0.0})],
        fused=True,
    ).build(model)
    seconds, losses = [], []
    for step in range(steps):
        began = time.perf_counter()
        ids = torch.from_numpy(batches[step % len(batches)])
        output = model(
            ids,
            labels=get_labels({"input_ids": ids}),
            loss_reduction="sum",
            z_loss_multiplier=settings["z_loss"],
            loss_div_factor=instances * (length - 1),
            return_logits=False,
        )
        output.loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), settings["max_grad_norm"])
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        losses.append(output.ce_loss.item())
        del output
        seconds.append(time.perf_counter() - began)
    timed = seconds[warm_up:]
    print(json.dumps({"seconds": sum(timed), "tokens": instances * length * len(timed), "losses": losses}))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))
