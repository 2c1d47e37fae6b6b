#!/usr/bin/env bash
# datatrove 0.10.1: its MinHash deduplication with the defaults takes exercises that differ in their numbers for duplicates.
#
# Seen: five additions in the same words, "what is 17 + 25?" and so on, all with other numbers and other answers, come out of
# the four steps as one. Before shingles are made every number becomes "0", and signs and punctuation become spaces, so the
# five signatures are equal. With TextNormConfig(norm_numbers=False) all five are kept.
# From memory one would say: normalisation lowers case and removes punctuation and white space; 5-grams that hold other
# numbers differ, so short texts with other numbers fall below the threshold.
# What it costs: templated mathematics, and tables shrink to one row for each template, and the same normaliser
# is the default of the deduplication by sentences, of the Bloom filter and of the decontamination by n-grams.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q "datatrove[processing]==0.10.1" spacy==3.8.18  # spacy splits English words; no model is needed
"$folder/venv/bin/python" - 2>/dev/null <<'PYTHON'
import tempfile

from datatrove.data import Document
from datatrove.pipeline.dedup import MinhashDedupBuckets, MinhashDedupCluster, MinhashDedupFilter, MinhashDedupSignature
from datatrove.pipeline.dedup.minhash import MinhashConfig
from datatrove.utils.text import TextNormConfig, simplify_text

numbers = [(17, 25), (3, 9), (120, 5), (64, 64), (8, -1)]
texts = [f"Question: what is {a} + {b}?\nAnswer: the sum of the two numbers is {a + b}." for a, b in numbers]


def kept(config):
    """Return the texts that the four steps keep."""
    documents = [Document(text=text, id=str(index)) for index, text in enumerate(texts)]
    with tempfile.TemporaryDirectory() as folder:
        MinhashDedupSignature(f"{folder}/signatures", config=config).run(iter(documents), 0, 1)
        for bucket in range(config.num_buckets):
            MinhashDedupBuckets(f"{folder}/signatures", f"{folder}/buckets", config=config).run(None, bucket, config.num_buckets)
        MinhashDedupCluster(f"{folder}/buckets", f"{folder}/removed", config=config).run(None, 0, 1)
        return [document.text for document in MinhashDedupFilter(f"{folder}/removed").run(iter(documents), 0, 1)]


with_defaults = kept(MinhashConfig())
with_numbers = kept(MinhashConfig(norm_config=TextNormConfig(norm_numbers=False)))
print(f"{len(set(texts))} texts, {len(with_defaults)} kept with the defaults, {len(with_numbers)} with numbers as they are")
print("normalised:", {simplify_text(text) for text in texts})
assert len(with_defaults) == 1 and len(with_numbers) == 5
PYTHON
