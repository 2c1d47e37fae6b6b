#!/usr/bin/env bash
# transformers 5.24.0: LlamaTokenizer(vocab_file="tokenizer.model") and its like take the argument and never open the
# file.
#
# Seen, one line of text with files that hold its tokens (transformers 4.57.6, then 5.24.0):
#   LlamaTokenizer(vocab_file=...)                  the ids of sentencepiece    no token at all, a vocabulary of 3
#   Qwen2Tokenizer, GPT2Tokenizer(vocab_file=..., merges_file=...)    3 ids     no token at all, a vocabulary of 1
#   GemmaTokenizer(vocab_file=...)                  the ids of sentencepiece    one <unk> for the whole text
#   BertTokenizer(vocab_file=...)                   hello, world                [UNK], [UNK]
# No error and no warning, nor for a path that does not exist. The text of two of the classes still says that the
# vocabulary is loaded from vocab_file. The constructors now take vocab= and merges=, and without them make an empty
# tokenizer to be trained; vocab_file falls into **kwargs. from_pretrained of a folder with the same file gives the
# right ids.
# From memory one would say: vocab_file is these classes' first argument, and an argument that a class no longer has
# raises TypeError.
# What it costs: a script of 2023 that builds its tokenizer from the file trains on empty or unknown tokens, without a
# word.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
for version in 4.57.6 5.24.0; do
  python3 -m venv "$folder/$version"
  "$folder/$version/bin/pip" install -q transformers==$version sentencepiece==0.2.3 protobuf==7.36.2
done
cd "$folder"
cat > show.py <<'PYTHON'
import json
import logging
import sys
import warnings
from pathlib import Path

import sentencepiece
import transformers

old = sys.argv[1] == "4.57.6"
assert transformers.__version__ == sys.argv[1]
records = []
transformers.utils.logging.set_verbosity_warning()
keeper = type("Keeper", (logging.Handler,), {"emit": lambda _, record: records.append(record)})
logging.getLogger("transformers").addHandler(keeper())
Path("lines.txt").write_text("hello world\nworld hello\n" * 50)
sentencepiece.SentencePieceTrainer.train(
    input="lines.txt", model_prefix="made", vocab_size=30, hard_vocab_limit=False, model_type="bpe", minloglevel=2,
    pad_id=3,
)
wanted = sentencepiece.SentencePieceProcessor(model_file="made.model").encode("hello world")
Path("folder").mkdir(exist_ok=True)
Path("folder/tokenizer.model").write_bytes(Path("made.model").read_bytes())
Path("vocab.json").write_text(json.dumps({"<|endoftext|>": 0, "h": 1, "i": 2, "!": 3, "Ġ": 4}))
Path("merges.txt").write_text("#version: 0.2\n")
Path("vocab.txt").write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "hello", "world"]))
pair = {"vocab_file": "vocab.json", "merges_file": "merges.txt"}
CASES = [  # class, arguments, text, ids by 4.57.6, ids by 5.24.0, length by 5.24.0
    ("LlamaTokenizer", {"vocab_file": "made.model"}, "hello world", wanted, [], 3),
    ("GemmaTokenizer", {"vocab_file": "made.model"}, "hello world", None, [3], None),
    ("Qwen2Tokenizer", pair, "hi!", [1, 2, 3], [], 1),
    ("GPT2Tokenizer", pair, "hi!", [1, 2, 3], [], 1),
    ("BertTokenizer", {"vocab_file": "vocab.txt"}, "hello world", [5, 6], [1, 1], 5),
]
with warnings.catch_warnings(record=True) as warned:
    warnings.simplefilter("always")
    for name, files, text, by_old, by_new, length in CASES:
        tokenizer = getattr(transformers, name)(**files)
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        print(f"{transformers.__version__} {name:15} {list(files)}: {ids}, vocabulary of {len(tokenizer)}")
        if old:
            assert ids == by_old if by_old else len(ids) > 1, name
        else:
            assert ids == by_new and (length is None or len(tokenizer) == length), name
            getattr(transformers, name)(**{key: "no such file" for key in files})
if not old:
    assert not records and not [w for w in warned if "vocab" in str(w.message)], (records, warned)
    assert "loaded from `vocab_file`" in transformers.GPT2Tokenizer.__doc__
    assert "loaded from `vocab_file`" in transformers.BertTokenizer.__doc__
ids = transformers.LlamaTokenizer.from_pretrained("folder")("hello world", add_special_tokens=False)["input_ids"]
print(transformers.__version__, "LlamaTokenizer.from_pretrained:", ids)
assert ids == wanted
PYTHON
for version in 4.57.6 5.24.0; do
  "$folder/$version/bin/python" show.py $version 2>&1 | grep -v "None of PyTorch"
done
