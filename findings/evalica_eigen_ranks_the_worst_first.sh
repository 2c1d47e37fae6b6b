#!/usr/bin/env bash
# evalica 0.4.2: the eigenvector ranking is upside down, and one model without a win takes all Bradley-Terry scores
# away.
#
# Seen, for three models with 96, 55 and 29 wins: counting, average_win_rate, bradley_terry, newman, pagerank and elo
# put the strong one first. eigen gives weak 0.76, middle 0.57, strong 0.31, by both solvers, and the result is sorted
# from the highest score. It multiplies by the transposed matrix of wins, so a model earns what its losses are worth.
# With a fourth model that loses all of its 20 games, bradley_terry gives 1e-06 to all four, equal, by both solvers
# and after 10,000 rounds as after 100, without a warning. With one tie in these games the order is right. (The score
# without a win runs to zero, its logarithm to minus infinity, and the mean of logarithms by which all are divided
# goes with it.)
# From memory one would say: seven methods of one library agree on which end is the top when the order is that clear;
# and a maximum that lies at infinity for one model gives that model an extreme score and leaves the others their
# order.
# What it costs: a table of checkpoints made with eigen is headed by the worst. A weak baseline that never wins, which
# is usual in LLM comparisons, makes the whole Bradley-Terry table a tie.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q evalica==0.4.2
"$folder/venv/bin/python" -W error::UserWarning -W error::RuntimeWarning - <<'PYTHON'
import evalica
from evalica import Winner

GAMES = [("strong", "middle", 45, 15), ("strong", "weak", 51, 9), ("middle", "weak", 40, 20)]
METHODS = ["counting", "average_win_rate", "bradley_terry", "newman", "pagerank", "elo", "eigen"]


def rank(method, games, **more):
    left, right, winners = [], [], []
    for one, two, wins, losses, *ties in games:
        results = [Winner.X] * wins + [Winner.Y] * losses + [Winner.Draw] * sum(ties)
        left += [one] * len(results)
        right += [two] * len(results)
        winners += results
    return getattr(evalica, method)(left, right, winners, **more).scores.round(6).to_dict()


for solver in ("pyo3", "naive"):
    for method in METHODS:
        scores = rank(method, GAMES, solver=solver)
        print(f"{solver:6} {method:17} {scores}")
        order = list(scores)
        assert order == (["weak", "middle", "strong"] if method == "eigen" else ["strong", "middle", "weak"]), method
    for limit in (100, 10_000):
        scores = rank("bradley_terry", [*GAMES, ("strong", "new", 20, 0)], solver=solver, limit=limit)
        print(f"{solver:6} bradley_terry     {scores} with a model that never wins, limit {limit}")
        assert set(scores.values()) == {1e-06} and len(scores) == 4
    scores = rank("bradley_terry", [*GAMES, ("strong", "new", 19, 0, 1)], solver=solver)
    print(f"{solver:6} bradley_terry     {scores} with one tie instead")
    assert list(scores) == ["strong", "middle", "weak", "new"]
PYTHON
