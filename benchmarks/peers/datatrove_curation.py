"""Curation with datatrove: read, fastText (or a published score), tokenize, repetition filter, write. Runs by itself:

    python benchmarks/peers/datatrove_curation.py INPUT_FOLDER OUTPUT_FOLDER TOKENIZER.json --model MODEL.bin --threshold 0.5

Written as a user of datatrove would who knows it well: one pass, one worker, datatrove's reader, fastText filter and token files. datatrove
has no repetition filter over tokens, so this one takes OLMo-core's function, on the ids that are written anyway. The last line is a JSON
object: seconds of the pipeline, documents read, documents and tokens written.
"""

import argparse
import json
import time
from functools import cached_property
from pathlib import Path

import numpy as np
from datatrove.data import Document
from datatrove.executor import LocalPipelineExecutor
from datatrove.pipeline.filters import FastTextClassifierFilter, LambdaFilter
from datatrove.pipeline.readers import JsonlReader
from datatrove.pipeline.tokens.tokenizer import DocumentTokenizer, TokenizedFile
from datatrove.utils.batching import batched
from fasttext.FastText import _FastText
from olmo_core.data.utils import find_periodic_sequences


class QualityFilter(FastTextClassifierFilter):
    """DCLM's manner, for which its thresholds hold: lines joined by a space, the best label only, 1 - p where that is the other one."""

    @cached_property
    def model(self):
        """datatrove's own copies the file into its cache, and goes on using the copy when the file at that path has changed."""
        return _FastText(self.model_url)

    def filter(self, doc: Document) -> bool:
        ((label, threshold),) = self.keep_labels
        labels, scores = self.model.predict(" ".join(doc.text.strip().splitlines()), k=1)
        return bool((scores[0] if labels[0] == f"__label__{label}" else 1 - scores[0]) >= threshold)


class RepetitionFilteringTokenizer(DocumentTokenizer):
    """Writes the tokens of documents in which no n-gram of 1 to 13 tokens stands 32 times in a row."""

    def write_unshuffled(self, data, filename):
        file = TokenizedFile(self.output_folder, filename, save_index=True, token_size=self.token_size, save_final_metadata=False)
        self.tokenizer.encode_special_tokens = True  # or `<|endoftext|>` in a document would become the id that ends documents
        for batch in batched(data, self.batch_size):
            for encoded in self.tokenizer.encode_batch([document.text for document in batch]):
                ids = np.array(encoded.ids)
                if any(found.times >= 32 for found in find_periodic_sequences(ids, max_period=13)):
                    self.stat_update("repeated")
                    continue
                file.write(encoded.ids, None)
                self.stat_update("tokens", value=len(encoded.ids))
                self.stat_update("documents")
        file.close()
        return file


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("input")
    parser.add_argument("output")
    parser.add_argument("tokenizer")
    parser.add_argument("--model", help="a fastText model; without it the published score in `quality` decides")
    parser.add_argument("--label", default="hq")
    parser.add_argument("--threshold", type=float, required=True)
    options = parser.parse_args()
    chosen = (
        QualityFilter(options.model, keep_labels=(options.label, options.threshold))
        if options.model
        else LambdaFilter(lambda document: document.metadata["quality"] >= options.threshold)
    )
    writer = RepetitionFilteringTokenizer(
        f"{options.output}/tokens", options.tokenizer, eos_token="<|endoftext|>", shuffle_documents=False, batch_size=1000
    )
    files = sorted(Path(options.input).glob("*.jsonl.gz"))
    executor = LocalPipelineExecutor(
        [JsonlReader(options.input, glob_pattern="*.jsonl.gz"), chosen, writer],
        tasks=len(files),
        workers=1,
        logging_dir=f"{options.output}/logs",
    )
    started = time.perf_counter()
    executor.run()
    seconds = time.perf_counter() - started
    stats = [json.loads(path.read_text()) for path in Path(options.output, "logs", "stats").glob("*.json")]
    counts = {name: sum(_count(part, name) for stat in stats for part in stat) for name in ("documents", "tokens", "repeated")}
    print(json.dumps({"seconds": seconds, **counts}))


def _count(part: dict, name: str) -> int:
    entry = part["stats"].get(name, 0) if part["name"].endswith("Writer") else 0
    return entry["total"] if isinstance(entry, dict) else entry


if __name__ == "__main__":
    main()
