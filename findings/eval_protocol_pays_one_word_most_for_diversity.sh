#!/usr/bin/env bash
# eval-protocol 0.3.33, the reward functions diversity_reward and repetition_penalty_reward, with their defaults.
#
# Seen: diversity_reward is 0.2, 0.3 and 0.5 times the shares of distinct 1-, 2- and 3-grams. Where a text has no n-grams of a
# size, that size counts 1.0 instead of its weight: "Yes" has 2.2, "Yes indeed" 1.5, and a sentence of nine
# different words 1.0. "no no" has 1.4. repetition_penalty_reward of "no no no no no no" is 0.625: at most half is
# ever taken away.
# From memory one would say: a weighted mean of shares is between 0 and 1, and a text too short for a size leaves it out.
# What it costs: a policy that is paid for diversity learns to answer in one word.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q --no-deps --target "$folder/packages" eval-protocol==0.3.33
PACKAGES="$folder/packages" "$folder/venv/bin/python" - <<'PYTHON'
import importlib.util
import os
import sys
import types
from pathlib import Path

# The two files below import the clients of model servers; the reward functions take from them the record of a result only.
for name, members in {"models": ("EvaluateResult", "MetricResult", "Message", "ChatCompletionContentPartParam",
                                 "ChatCompletionContentPartTextParam"), "typed_interface": ()}.items():
    module = types.ModuleType(f"eval_protocol.{name}")
    for member in members:
        setattr(module, member, type(member, (types.SimpleNamespace,), {}))
    sys.modules[module.__name__] = module
sys.modules["eval_protocol.typed_interface"].reward_function = lambda function: function
path = Path(os.environ["PACKAGES"], "eval_protocol/rewards/repetition.py")
spec = importlib.util.spec_from_file_location("eval_protocol.rewards.repetition", path)
repetition = importlib.util.module_from_spec(spec)
for name in ("eval_protocol", "eval_protocol.rewards"):
    sys.modules[name] = types.ModuleType(name)
spec.loader.exec_module(repetition)


def scored(function, text):
    return round(function(messages=[{"role": "assistant", "content": text}]).score, 3)


sentence = "The quick brown fox jumps over a lazy dog."
for text, expected in {"Yes": 2.2, "Yes indeed": 1.5, "no no": 1.4, sentence: 1.0}.items():
    print(f"diversity of {text!r}: {scored(repetition.diversity_reward, text)}")
    assert scored(repetition.diversity_reward, text) == expected, text
repeated = scored(repetition.repetition_penalty_reward, "no no no no no no")
print("repetition_penalty_reward of 'no' six times:", repeated)
assert repeated == 0.625, repeated
PYTHON
