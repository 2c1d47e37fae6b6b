"""Graders written for other tools, each a kind of part under `rewards:`.

openai_grader   OpenAI's grader JSON: string_check, text_similarity, score_model, label_model, python, multi
trl_reward      a file with a reward function of TRL's signature: (prompts, completions, **columns) -> list
verl_score      a file with verl's compute_score(data_source, solution_str, ground_truth, extra_info)
open_instruct   a file with a verifier class of open-instruct: (tokenized_prediction, prediction, label, query)
prime_rubric    the rewards of a Prime Intellect environment, in its own interpreter

grader_part.py     GraderPart: calls a grader in chunks with a deadline, and again row by row where a chunk fails
grader_kinds.py    the YAML's fields of each kind -> GraderPart
openai_graders.py  grader JSON -> a tree that grades rows
item_templates.py  {{ item.x }} and {{ sample.output_text }}
formula.py         the formula of a multi grader, parsed and never eval'ed
similarity.py      the metrics of text_similarity
model_graders.py   score_model and label_model over an OpenAI-compatible endpoint
prime_rubric.py    calls an environment's rewards over the bridge
hosted.py          runs other people's Python: in the sandbox, or in a process of its own
grader_guest.py    what runs there; standard library only
grader_check.py    a grader as a verifier, for the conformance kit
"""

from rewards.graders.grader_kinds import GRADER_KINDS, GraderFields, columns_needed, files_of, grader_part
from rewards.graders.grader_part import Grade, Grader, GraderPart, GraderRow

__all__ = ["GRADER_KINDS", "Grade", "Grader", "GraderFields", "GraderPart", "GraderRow", "columns_needed", "files_of",
           "grader_part"]  # fmt: skip
