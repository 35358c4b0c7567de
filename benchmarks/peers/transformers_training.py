"""Training steps with the Olmo2ForCausalLM of transformers and its own loss. Runs by itself:

    python benchmarks/peers/transformers_training.py CONFIG.json TOKENS.npy STEPS WARM_UP

Written as a user of transformers would for one process on a CPU: eager, `sdpa` attention, torch's fused AdamW (the default of its Trainer). It
has no z-loss, so it does less than the others. Arguments and the last line are those of `olmo_core_training.py`.
"""

import json
import sys
import time
from pathlib import Path

import numpy as np
import torch
from transformers import Olmo2Config, Olmo2ForCausalLM


def main(config_path: str, tokens_path: str, steps: int, warm_up: int) -> None:
    torch.set_num_threads(1)
    config = json.loads(Path(config_path).read_text())
    sizes, settings = config["model"], config["optimizer"]
    instances, length = config["global_batch_instances"], config["sequence_length"]
    batches = np.fromfile(tokens_path, "<u4").astype(np.int64).reshape(-1, instances, length)
    model = Olmo2ForCausalLM(
        Olmo2Config(
            hidden_size=sizes["d_model"],
            num_hidden_layers=sizes["n_layers"],
            num_attention_heads=sizes["n_heads"],
            num_key_value_heads=sizes["n_kv_heads"],
            intermediate_size=sizes["mlp_hidden"],
            vocab_size=sizes["vocab_size"],
            max_position_embeddings=sizes["max_sequence_length"],
            rms_norm_eps=sizes["norm_eps"],
            rope_parameters={"rope_type": "default", "rope_theta": sizes["rope_theta"]},
            use_cache=False,
            attn_implementation="sdpa",
        )
    ).train()
    embedding = model.get_input_embeddings().weight
    groups = [
        {"params": [each for each in model.parameters() if each is not embedding], "weight_decay": settings["weight_decay"]},
        {"params": [embedding], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, settings["learning_rate"], tuple(settings["betas"]), settings["eps"], fused=True)
    seconds, losses = [], []
    for step in range(steps):
        began = time.perf_counter()
        ids = torch.from_numpy(batches[step % len(batches)])
        output = model(input_ids=ids, labels=ids)
        output.loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), settings["max_grad_norm"])
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        losses.append(output.loss.item())
        del output
        seconds.append(time.perf_counter() - began)
    timed = seconds[warm_up:]
    print(json.dumps({"seconds": sum(timed), "tokens": instances * length * len(timed), "losses": losses}))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))
