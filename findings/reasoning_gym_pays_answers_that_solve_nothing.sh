#!/usr/bin/env bash
# reasoning-gym 0.1.25: what answers earn that are written without solving the task, by the scorers of three datasets.
#
# Seen, on 100 entries each (seed 3):
#   game_of_life_halting asks for 'True' or 'False': "I do not know" is 1.0 on all, and so are "True" and "False": the scorer
#     compares the truth of two non-empty texts. Only the empty answer is wrong, on all.
#   propositional_logic asks for a conclusion from premises: the first premise, copied, is 1.0 on more than half, and the
#     mean of all is above 0.7.
#   game_of_life asks for the board after some steps: a board of zeros has a mean above 0.95, since each cell counts and
#     most are empty.
# From memory one would say: the library exists to give rewards that can be verified, "awards 1.0 for a correct answer" is said of
# both game_of_life datasets, and an answer that is right by chance is right on half of a question with two answers.
# What it costs: a mixture of its datasets has one column at 1.0 from the first step, and a policy that learns to copy premises.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q reasoning-gym==0.1.25
"$folder/venv/bin/python" - <<'PYTHON'
import json

import reasoning_gym


def scores_of(name, answer):
    dataset = reasoning_gym.create_dataset(name, size=100, seed=3)
    return [dataset.score_answer(answer(entry), entry) for entry in dataset]


golds = {entry["answer"] for entry in reasoning_gym.create_dataset("game_of_life_halting", size=100, seed=3)}
assert golds == {"True", "False"}
for text, score in ("True", 1.0), ("False", 1.0), ("I do not know", 1.0), ("", 0.0):
    scores = scores_of("game_of_life_halting", lambda _, text=text: text)
    print("game_of_life_halting", repr(text), set(scores))
    assert set(scores) == {score}

scores = scores_of("propositional_logic", lambda entry: entry["metadata"]["premises"][0])
print("propositional_logic, first premise:", scores.count(1.0), "of 100 are 1.0, mean", sum(scores) / 100)
assert scores.count(1.0) > 50 and sum(scores) / 100 > 0.7

scores = scores_of("game_of_life", lambda entry: json.dumps([[0] * len(row) for row in json.loads(entry["answer"])]))
print("game_of_life, zeros: mean", sum(scores) / 100)
assert sum(scores) / 100 > 0.95
PYTHON
