#!/usr/bin/env bash
# verl 0.9.1, default_compute_score for the data source taco without a sandbox service (its prime_code; apps,
# codecontests and codeforces take the same branch).
#
# Seen, a program that squares a number, with twenty tests:
#   right in all twenty, or only in the first nineteen, fifteen or ten: 1.0; only in the first nine: 0.9, in the first
#     five: 0.5; only in the last ten: 0.0
# All tests are run first. When one fails, tests are run again one by one, only the first ten, and the share of these
# that pass is the reward, also where the failing ones come later.
# Seen, one test: 100000 for 100001 has 0.0, but the lines 100000 and 0.5 for 100001 and 0.5 have 1.0, and so has
# 123456.9 for 123456.10. Where a line is no integer, all lines are compared as floats with a relative tolerance of
# 1e-5.
# From memory one would say: a program that fails a test has less than the full reward; the reward is the share of all
# tests that pass; an integer has to be equal.
# What it costs: tests after the tenth, often the large ones, teach nothing, and a program that is right in the small
# cases alone is paid as a right one.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q numpy==2.4.6
"$folder/venv/bin/pip" install -q --no-deps verl==0.9.1  # without its trainers; only the reward functions are imported
cat > "$folder/scores.py" <<'PYTHON'
import json
import sys
import sysconfig
import types

for name in ("verl", "verl.utils"):  # not initialised, for they import the trainers
    package = types.ModuleType(name)
    package.__path__ = ["/".join([sysconfig.get_paths()["purelib"], *name.split(".")])]
    sys.modules[name] = package

from verl.utils.reward_score import default_compute_score


def reward(title, program, tests):
    inputs, outputs = zip(*tests)
    text = f"```python\nn = int(input())\n{program}\n```"
    found = default_compute_score("taco", text, json.dumps({"inputs": inputs, "outputs": outputs}))
    print(f"{title:44} {found}")
    return found


if __name__ == "__main__":
    squares = [(f"{n}\n", f"{n * n}\n") for n in range(1, 21)]
    for last, wanted in {20: 1.0, 19: 1.0, 15: 1.0, 10: 1.0, 9: 0.9, 5: 0.5}.items():
        program = f"print(n * n if n <= {last} else 0)"
        assert reward(f"right in the first {last} of twenty tests", program, squares) == wanted
    assert reward("right in the last ten of twenty tests", "print(n * n if n > 10 else 0)", squares) == 0.0
    assert reward("100000 for 100001", "print(100000)", [("1\n", "100001\n")]) == 0.0
    two = reward("100000 and 0.5 for 100001 and 0.5", "print(100000, 0.5, sep='\\n')", [("1\n", "100001\n0.5\n")])
    assert two == 1.0
    assert reward("123456.9 for 123456.10", "print(123456.9)", [("1\n", "123456.10\n")]) == 1.0
    assert reward("123459.9 for 123456.10", "print(123459.9)", [("1\n", "123456.10\n")]) == 0.0
PYTHON
OMP_NUM_THREADS=1 "$folder/venv/bin/python" "$folder/scores.py"
