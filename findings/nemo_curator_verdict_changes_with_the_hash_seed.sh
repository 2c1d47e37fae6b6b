#!/usr/bin/env bash
# nemo-curator 1.4.0: RepeatingTopNGramsFilter keeps or drops the same document, by the hash seed of the process.
#
# Seen, for one document of 67 words with the library's own thresholds for 4-grams (0.16): its score is 0.056, 0.061,
# 0.167 or 0.243 in processes that differ in PYTHONHASHSEED only, so it is kept in some and dropped in others. Several
# n-grams occur equally often, the filter takes the first of them in a set of tuples of strings, and they differ in
# length. Two sentences of 19 words without any repetition are also dropped by some processes and kept by others.
# A second thing: the n-gram is joined by spaces and searched in the text, so n-grams across line breaks are not
# found. 30 times "yes no" has the score 0.861 when it is written with spaces, and 0.0, which is kept, with line
# breaks.
# From memory one would say: a heuristic filter is a function of the text; "most frequent n-gram" means the largest
# share or the first one, and n-grams of words do not depend on the kind of white space.
# What it costs: the same command on the same data writes another data set each time (Python draws a seed for each
# process), and a list with one word a line passes as text without repetition.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q loguru==0.7.3
"$folder/venv/bin/pip" install -q --no-deps --target "$folder/packages" nemo-curator==1.4.0  # its filters need no Ray
cat > "$folder/score.py" <<'PYTHON'
import importlib
import os
import sys
import types

# packages without their __init__, which imports Ray
for name in ("nemo_curator", "nemo_curator.stages", "nemo_curator.stages.text", "nemo_curator.stages.text.filters",
             "nemo_curator.stages.text.filters.heuristic", "nemo_curator.stages.text.utils"):
    sys.modules[name] = types.ModuleType(name)
    sys.modules[name].__path__ = [os.path.join(os.environ["PACKAGES"], *name.split("."))]
repetition = importlib.import_module("nemo_curator.stages.text.filters.heuristic.repetition.repetition")
MINUTES = (
    "The Parliamentary Subcommittee on Intergovernmental Administration met on Monday. It is up to the members to "
    "vote. "
    "The Parliamentary Subcommittee on Intergovernmental Administration then met on Thursday. It is up to the chair to "
    "count the votes. A report will follow in spring, after both houses have had time to read the draft and to send in "
    "their written comments on it, as they did last year."
)
SENTENCES = (
    "Photosynthesis turns carbon dioxide and water into glucose, "
    "and it gives off oxygen that animals and people breathe in.",
    "The cat sat on the mat, and after a while it fell asleep there in the warm afternoon sun.",
)
for n, limit, text in [(4, 0.16, text) for text in (MINUTES, *SENTENCES)] + [
    (2, 0.2, " ".join(["yes no"] * 30)),
    (2, 0.2, "\n".join(["yes", "no"] * 30)),
]:
    this = repetition.RepeatingTopNGramsFilter(n, limit)
    score = this.score_document(text)
    print(f"{score:.3f}", "kept" if this.keep_document(score) else "dropped", end=", ")
print()
PYTHON
export PACKAGES="$folder/packages"
grep -A 3 RepeatingTopNGramsFilter "$PACKAGES/nemo_curator/config/text/heuristic_filter_english_pipeline.yaml"
for seed in 0 1 2 3 4 5 6 7; do
  PYTHONHASHSEED=$seed "$folder/venv/bin/python" "$folder/score.py" | sed "s/^/seed $seed: /"
done | tee "$folder/seen"
for field in 1 2 3; do  # the document and the two sentences: both verdicts occur
  cut -d, -f$field "$folder/seen" | grep -q kept
  cut -d, -f$field "$folder/seen" | grep -q dropped
done
[ "$(cut -d, -f4 "$folder/seen" | grep -c dropped)" = 8 ]  # with spaces
[ "$(cut -d, -f5 "$folder/seen" | grep -c '0.000 kept')" = 8 ]  # with line breaks
PYTHONHASHSEED=3 "$folder/venv/bin/python" "$folder/score.py" > "$folder/one"
PYTHONHASHSEED=3 "$folder/venv/bin/python" "$folder/score.py" | cmp - "$folder/one"  # it is the seed, nothing else
