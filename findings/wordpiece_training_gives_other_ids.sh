#!/usr/bin/env bash
# tokenizers 0.23.3: training WordPiece twice on the same text gives the same tokens with different ids; BPE gives the same file.
#
# Seen: 2,000 lines, vocabulary of 800, four processes. BPE and WordLevel: one file each. WordPiece: four files, the same 800
# tokens, 24 to 31 of them with other ids, so that 4 words in 10 encode to other ids.
# BPE with continuing_subword_prefix="##" differs in the same way. Unigram: the same tokens, scores that differ by 1e-15.
# From memory one would say: WordPieceTrainer is BpeTrainer with a prefix, and training is deterministic for all of them.
# What it costs: a model trained with one file and served with the other reads other letters, and no check of the size or
# of the set of tokens sees it.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q tokenizers==0.23.3
cat > "$folder/train.py" <<'PYTHON'
import random
import sys

from tokenizers import Tokenizer, models, pre_tokenizers, trainers

rng = random.Random(0)
words = ["".join(rng.choice("abcdefgh") for _ in range(rng.randint(2, 7))) for _ in range(3000)]
text = [" ".join(rng.choice(words) for _ in range(12)) for _ in range(2000)]
settings = {"vocab_size": 800, "show_progress": False}
KINDS = {
    "bpe": (models.BPE(), trainers.BpeTrainer(**settings)),
    "prefixed": (models.BPE(), trainers.BpeTrainer(continuing_subword_prefix="##", **settings)),
    "wordlevel": (models.WordLevel(), trainers.WordLevelTrainer(**settings)),
    "wordpiece": (models.WordPiece(), trainers.WordPieceTrainer(**settings)),
    "unigram": (models.Unigram(), trainers.UnigramTrainer(**settings)),
}
for kind, (model, trainer) in KINDS.items():
    tokenizer = Tokenizer(model)
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.train_from_iterator(text, trainer)
    tokenizer.save(f"{sys.argv[1]}/{kind}.json")
PYTHON
for run in 1 2 3 4; do
  mkdir "$folder/$run"
  "$folder/venv/bin/python" "$folder/train.py" "$folder/$run"
done
FOLDER="$folder" "$folder/venv/bin/python" - <<'PYTHON'
import json
import os
import random
from pathlib import Path

from tokenizers import Tokenizer

folder = Path(os.environ["FOLDER"])
rng = random.Random(1)
words = ["".join(rng.choice("abcdefgh") for _ in range(rng.randint(2, 7))) for _ in range(2000)]
differing = {}
for kind in ("bpe", "wordlevel", "prefixed", "wordpiece", "unigram"):
    files = [folder / str(run) / f"{kind}.json" for run in (1, 2, 3, 4)]
    vocabularies = [Tokenizer.from_file(str(file)).get_vocab() for file in files]
    assert all(v.keys() == vocabularies[0].keys() for v in vocabularies), kind
    other_ids = max(sum(v[t] != vocabularies[0][t] for t in v) for v in vocabularies)
    differing[kind] = (len({file.read_text() for file in files}), other_ids)
    print(kind, differing[kind][0], "files of 4;", other_ids, "of", len(vocabularies[0]), "tokens with another id")
assert differing["bpe"] == differing["wordlevel"] == (1, 0)
assert differing["wordpiece"][0] > 1 and differing["wordpiece"][1] > 4
assert differing["prefixed"][0] > 1 and differing["prefixed"][1] > 4
assert differing["unigram"][0] > 1 and differing["unigram"][1] == 0
one, two = (Tokenizer.from_file(str(folder / run / "wordpiece.json")) for run in "12")
other = sum(one.encode(word).ids != two.encode(word).ids for word in words)
print(other, "of", len(words), "words encode to other ids")
assert all(one.encode(word).tokens == two.encode(word).tokens for word in words) and other > 100
scores = [dict(json.loads((folder / run / "unigram.json").read_text())["model"]["vocab"]) for run in "12"]
assert max(abs(scores[0][t] - scores[1][t]) for t in scores[0]) < 1e-12
PYTHON
