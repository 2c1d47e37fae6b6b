#!/usr/bin/env bash
# datasets 5.2.0: shuffling a stream mixes its shards row by row, even with a buffer of one.
#
# Seen: 12 rows in 2 shards, shuffle(seed=0, buffer_size=1): 0 6 1 7 2 8 3 9 4 10 5 11. Unshuffled, the shards follow one
# another: 0 to 11. With 3 shards their order is drawn too, and rows are then taken from each shard in turn.
# From memory one would say: shuffle draws the order of the shards, reads them one after the other, and the buffer alone
# mixes rows; with buffer_size=1 each shard comes out whole.
# So a shuffled stream holds all shards open at once, and a buffer far smaller than a shard mixes better than it used to.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q datasets==5.2.0
"$folder/venv/bin/python" - <<'PYTHON'
import datasets

datasets.disable_progress_bars()
assert datasets.__version__ == "5.2.0", datasets.__version__
stream = datasets.Dataset.from_dict({"i": list(range(12))}).to_iterable_dataset(num_shards=2)
plain = [row["i"] for row in stream]
mixed = [row["i"] for row in stream.shuffle(seed=0, buffer_size=1)]
print(f"datasets {datasets.__version__}: {plain} shuffled with a buffer of one: {mixed}")
assert plain == list(range(12)) and mixed == [0, 6, 1, 7, 2, 8, 3, 9, 4, 10, 5, 11]
PYTHON
