"""Tokenization with the dolma toolkit, one process. Runs by itself, with the Python of an environment that holds `dolma` 1.2:

    python benchmarks/peers/dolma_tokens.py INPUT_FOLDER OUTPUT_FOLDER TOKENIZER.json

dolma pins a release of `tokenizers` that reads merges as strings only, so the tokenizer file is rewritten for it. It strips texts before it
encodes them, so its tokens are a few thousandths fewer. The last line is a JSON object: seconds of the call, documents and tokens.
"""

import argparse
import gzip
import json
import time
from pathlib import Path

from dolma.tokenizer import tokenize_in_parallel


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("input")
    parser.add_argument("output")
    parser.add_argument("tokenizer")
    options = parser.parse_args()
    out = Path(options.output)
    out.mkdir(parents=True)
    file = _for_old_tokenizers(Path(options.tokenizer), out / "tokenizer.json")
    ids = {token["content"]: token["id"] for token in json.loads(file.read_text())["added_tokens"]}
    started = time.perf_counter()
    tokenize_in_parallel(
        sources=sorted(map(str, Path(options.input).glob("*.jsonl.gz"))),
        destination=f"{out}/tokens",
        num_writers=1,
        tokenizer_name_or_path=str(file),
        eos_token_id=ids["<|endoftext|>"],
        pad_token_id=ids["<|pad|>"],
        dtype="uint32",
    )
    seconds = time.perf_counter() - started
    tokens = sum(path.stat().st_size // 4 for path in out.glob("tokens/**/*.npy"))
    documents = sum(gzip.decompress(path.read_bytes()).count(b"\n") for path in out.glob("tokens/**/*.csv.gz"))
    print(json.dumps({"seconds": seconds, "documents": documents, "tokens": tokens}))


def _for_old_tokenizers(source: Path, target: Path) -> Path:
    tokenizer = json.loads(source.read_text())
    tokenizer["model"]["merges"] = [merge if isinstance(merge, str) else " ".join(merge) for merge in tokenizer["model"]["merges"]]
    target.write_text(json.dumps(tokenizer))
    return target


if __name__ == "__main__":
    main()
