"""Tokenization with datatrove: its reader and its DocumentTokenizer, one worker. Runs by itself:

    python benchmarks/peers/datatrove_tokens.py INPUT_FOLDER OUTPUT_FOLDER TOKENIZER.json

The last line is a JSON object: seconds of the pipeline, documents and tokens.
"""

import argparse
import json
import time
from pathlib import Path

from datatrove.executor import LocalPipelineExecutor
from datatrove.pipeline.readers import JsonlReader
from datatrove.pipeline.tokens.tokenizer import DocumentTokenizer


class Tokenizer(DocumentTokenizer):
    def write_unshuffled(self, data, filename):
        self.tokenizer.encode_special_tokens = True  # or `<|endoftext|>` in a document would become the id that ends documents
        return super().write_unshuffled(data, filename)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("input")
    parser.add_argument("output")
    parser.add_argument("tokenizer")
    options = parser.parse_args()
    writer = Tokenizer(f"{options.output}/tokens", options.tokenizer, eos_token="<|endoftext|>", shuffle_documents=False, batch_size=1000)
    files = sorted(Path(options.input).glob("*.jsonl.gz"))
    reader = JsonlReader(options.input, glob_pattern="*.jsonl.gz")
    executor = LocalPipelineExecutor([reader, writer], tasks=len(files), workers=1, logging_dir=f"{options.output}/logs")
    started = time.perf_counter()
    executor.run()
    seconds = time.perf_counter() - started
    folder = Path(options.output, "tokens")
    documents = sum(path.stat().st_size // 8 for path in folder.glob("*.index"))
    tokens = sum(path.stat().st_size // 4 for path in folder.glob("*.ds"))
    print(json.dumps({"seconds": seconds, "documents": documents, "tokens": tokens}))


if __name__ == "__main__":
    main()
