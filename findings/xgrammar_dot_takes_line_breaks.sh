#!/usr/bin/env bash
# xgrammar 0.2.9 and llguidance 1.9.1, two engines that vLLM offers for structured output, read one regular expression
# apart.
#
# Seen (which texts can be written in full; re: re.fullmatch):
#                                              re     xgrammar   llguidance
#   Answer: .+    "Answer: 4\nor 5"            no     yes        no
#   \w+           "café", "日本"                yes    no         yes
#   \W+           "é"                          no     yes        no
#   \d+           three Arabic digits          yes    no         yes
#   \AYES         "YES"                        yes    no         yes
#   \AYES         "AYES"                       no     yes        no       (xgrammar prints a warning)
# xgrammar's grammar has every character for a dot, line break included, and ASCII letters, digits and _ for \w. That
# is neither Python's reading nor JavaScript's, whose dot stops at a line break too.
# From memory one would say: a dot is any character but a line break, and an escape that an engine does not know is
# refused.
# What it costs: under xgrammar a model that is held to "Answer: .+" may write lines until its tokens run out, and one
# that is held to \w+ cannot write a word with an accent.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q torch==2.13.0+cpu 2>/dev/null ||  # else from the index of its CPU builds
  "$folder/venv/bin/pip" install -q --extra-index-url https://download.pytorch.org/whl/cpu torch==2.13.0+cpu
"$folder/venv/bin/pip" install -q transformers==5.24.0 llguidance==1.9.1 apache-tvm-ffi==0.1.15.post2 \
  numpy==2.3.5 pydantic==2.14.4
"$folder/venv/bin/pip" install -q --no-deps xgrammar==0.2.9  # without Triton
"$folder/venv/bin/python" - <<'PYTHON'
import re

import llguidance
import xgrammar

END = 256
BYTES = [bytes([n]) for n in range(256)] + [b"</s>"]


class Bytes:
    """A tokenizer with one token per byte."""

    eos_token_id, bos_token_id, special_token_ids, tokens = END, None, [END], BYTES

    def __call__(self, text):
        return list(text if isinstance(text, bytes) else text.encode())


compiler = xgrammar.GrammarCompiler(
    xgrammar.TokenizerInfo(BYTES, vocab_type=xgrammar.VocabType.RAW, stop_token_ids=[END])
)
tokenizer = llguidance.LLTokenizer(llguidance.TokenizerWrapper(Bytes()))


def by_xgrammar(pattern, text):
    matcher = xgrammar.GrammarMatcher(compiler.compile_regex(pattern))
    return all(matcher.accept_token(token) for token in [*text.encode(), END])


def by_llguidance(pattern, text):
    matcher = llguidance.LLMatcher(tokenizer, llguidance.LLMatcher.grammar_from_regex(pattern))
    assert not matcher.is_error(), matcher.get_error()
    ids = list(text.encode())
    return matcher.validate_tokens(ids) == len(ids) and matcher.consume_tokens(ids) and matcher.is_accepting()


PLAIN = [("Answer: .+", "Answer: 4"), (r"\w+", "cafe"), (r"\d+", "42"), (r"a\.b|c?", "a.b"), ("[^x]+", "é\n")]
APART = [  # pattern, text, whether Python and llguidance take it; xgrammar does the contrary
    ("Answer: .+", "Answer: 4\nor 5", False), (r"\w+", "café", True), (r"\w+", "日本", True), (r"\W+", "é", False),
    (r"\d+", "\u0663\u0664\u0665", True), (r"\AYES", "YES", True), (r"\AYES", "AYES", False),
]
for pattern, text, python, other in [(*pair, True, True) for pair in PLAIN] + [(*case, not case[2]) for case in APART]:
    seen = bool(re.fullmatch(pattern, text)), by_xgrammar(pattern, text), by_llguidance(pattern, text)
    print(f"{pattern:12} {text!r:20} re, xgrammar, llguidance: {seen}")
    assert seen == (python, other, python), (pattern, text)
print(xgrammar.Grammar.from_regex(r".\w"))
assert r"[\0-\U0010ffff] [a-zA-Z0-9_]" in str(xgrammar.Grammar.from_regex(r".\w"))
PYTHON
