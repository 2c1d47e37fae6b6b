#!/usr/bin/env bash
# outlines 1.3.3 with its default engine for choices, outlines-core 0.2.14: of two choices of which one begins with
# the other, the one that stands later is never given if it is the longer one.
#
# Seen, a random model that samples under Literal["1", ..., "12"]: outlines-core gives 1 to 9 and never 10, 11 or 12,
# with llguidance as the engine all twelve come. With the longest first, Literal["12", "11", "10", "9", ...], all
# twelve come from outlines-core too. In outlines-core alone, texts that re.fullmatch takes and that cannot be
# written:
#   "10" under [0-9]|10 and under the schema {"enum": [1, 10]}    "very good" for the choice good|very|very good
#   "12" under \d+?                                               "a b b" under a.*?b
# Where something must follow, as in ([0-9]|10) points, the choice is complete.
# Its index walks a DFA of regex-automata with the library's match semantics, leftmost first: where an earlier
# alternative has matched, the later ones are dropped, as a search would do. So a model can only stop there.
# From memory one would say: a constraint by a regular expression allows what matches it in full, an alternation is a
# set, and the order of the choices of a Literal has no effect.
# What it costs: a judge that is held to a scale from 1 to 10 never gives a 10, and gives a 1 in its place.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q torch==2.13.0+cpu 2>/dev/null ||  # else from the index of its CPU builds
  "$folder/venv/bin/pip" install -q --extra-index-url https://download.pytorch.org/whl/cpu torch==2.13.0+cpu
"$folder/venv/bin/pip" install -q transformers==5.24.0 outlines==1.3.3 outlines-core==0.2.14 llguidance==1.9.1
"$folder/venv/bin/python" - <<'PYTHON' 2>&1 | grep -v Warning
import json
import re
from typing import Literal

import outlines
import torch
from outlines_core import Guide, Index, Vocabulary
from outlines_core.json_schema import build_regex_from_schema
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

END = 256
BYTES = Vocabulary(END, {bytes([n]): [n] for n in range(256)})


def can_write(pattern, text):
    guide = Guide(Index(pattern, BYTES))
    for byte in text.encode():
        if byte not in guide.get_tokens():
            return False
        guide.advance(byte)
    return END in guide.get_tokens()


enum = build_regex_from_schema(json.dumps({"enum": [1, 10]}))
CASES = [  # pattern, text, whether outlines-core can write it
    ("[0-9]|10", "10", False), ("10|[0-9]", "10", True), ("([0-9]|10) points", "10 points", True),
    (enum, "10", False),
    ("good|very|very good", "very good", False), (r"\d+?", "12", False), (r"\d+", "12", True),
    ("a.*?b", "a b b", False),
]
for pattern, text, wanted in CASES:
    print(f"{pattern:22} {text:10} re {bool(re.fullmatch(pattern, text))} outlines-core {can_write(pattern, text)}")
    assert re.fullmatch(pattern, text) and can_write(pattern, text) is wanted, pattern

torch.manual_seed(0)
torch.set_num_threads(1)
ids = {character: n for n, character in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
made = Tokenizer(models.BPE(vocab=ids, merges=[]))
made.pre_tokenizer, made.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
tokenizer = PreTrainedTokenizerFast(tokenizer_object=made, eos_token="<eos>", pad_token="<pad>")
config = LlamaConfig(
    vocab_size=len(tokenizer), hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2,
    eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id,
)
model = outlines.from_transformers(LlamaForCausalLM(config).eval(), tokenizer)
scale = tuple(str(n) for n in range(1, 13))
for choices, backend, wanted in (
    (scale, None, set(scale[:9])), (scale, "llguidance", set(scale)), (scale[::-1], None, set(scale)),
):
    generate = outlines.Generator(model, Literal[choices], backend=backend)
    seen = {answer for _ in range(25) for answer in generate.batch(["Grade:"] * 16, max_new_tokens=4, do_sample=True)}
    print(f"Literal[{choices[0]} to {choices[-1]}], {backend or 'default'}: gives {sorted(seen, key=int)}")
    assert seen == wanted
PYTHON
