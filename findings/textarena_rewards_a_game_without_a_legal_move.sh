#!/usr/bin/env bash
# TextArena 0.7.4: what a game pays that ends because the player never made a legal move.
#
# Seen, for "I do not know." sent until the game is over (twice): Bandit-v0 pays -1, Blackjack-v0 0, 2048-v0 1/2048 (the share
# of the goal that the start tiles are), and Countdown-v0 and Cryptarithm-v0 pay a string: `close()` returns
# {0: "Invalid action format. ..."} as the reward and "Invalid Move: 0.568..." as the reason, which is the progress towards the
# target that the untouched numbers have. TicTacToe-v0, with two players, pays -1 and gives the other one +1.
# From memory one would say: rewards are numbers, and an illegal move that ends a game costs the same, -1, in all games.
# What it costs: a mean over games raises TypeError, and a policy that breaks the format at once earns 0.57 of Countdown
# where the reason is read as the reward.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q textarena==0.7.4
cd "$folder"
"$folder/venv/bin/python" - <<'PYTHON' 2>&1 | grep -v nltk_data
import textarena


def rewards_of(name, players=1):
    game = textarena.make(name)
    game.reset(num_players=players, seed=7)
    over = turns = 0
    while not over:
        game.get_observation()
        over, _ = game.step(action="I do not know.")
        turns += 1
    rewards, info = game.close()
    print(name, turns, rewards, info[0]["reason"])
    return turns, rewards, info[0]["reason"]


assert rewards_of("Bandit-v0-raw")[:2] == (2, {0: -1.0})
assert rewards_of("Blackjack-v0-raw")[:2] == (2, {0: 0.0})
assert rewards_of("2048-v0-raw")[:2] == (2, {0: 1 / 2048})
turns, rewards, reason = rewards_of("Countdown-v0-raw")
assert rewards[0].startswith("Invalid action format.") and 0.5 < float(reason.removeprefix("Invalid Move: ")) < 0.6
turns, rewards, reason = rewards_of("Cryptarithm-v0-raw")
assert rewards[0].startswith("Bad action format.") and reason == "Invalid Move: 0.0"
assert rewards_of("TicTacToe-v0-raw", players=2)[1] == {0: -1, 1: 1}
print("as described")
PYTHON
