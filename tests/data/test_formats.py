"""Rows as the data sets publish them, written here by hand."""

import json

import pytest

import verifiers
from pipeline.config.load import ConfigError
from pipeline.config.schema import Prompts
from pipeline.data import formats, prompts
from pipeline.data.decontamination import contaminated
from pipeline.data.formats.hendrycks_math import last_boxed

GSM8K = {
    "question": "Natalia sold 48 clips in April and half as many in May. How many altogether?",
    "answer": "She sold 48/2 = <<48/2=24>>24 clips in May.\nAltogether 48+24 = <<48+24=72>>72.\n#### 1,072",
}
MATH = {
    "problem": "What is one half?",
    "level": "Level 1",
    "type": "Algebra",
    "solution": r"First \boxed{7} is wrong; it is $\boxed{\frac{1}{2}}$.",
}
HH = {
    "chosen": "\n\nHuman: Hi\n\nAssistant: Hello\n\nHuman: What is 1+1?\n\nAssistant: 2",
    "rejected": "\n\nHuman: Hi\n\nAssistant: Hello\n\nHuman: What is 1+1?\n\nAssistant: No idea.\n\nReally.",
}
USER = {"role": "user", "content": "Name a colour"}
ULTRA = {
    "prompt": "Name a colour",
    "chosen": [USER, {"role": "assistant", "content": "Blue"}],
    "rejected": [USER, {"role": "assistant", "content": "Seven"}],
    "score_chosen": 8.0,
    "score_rejected": 2.0,
}
TLDR = {"prompt": "SUBREDDIT: r/x\nPOST: long\nTL;DR:", "completion": "short"}
MBPP = {
    "task_id": 11,
    "text": "Write a function to double a number.",
    "code": "def helper(x):\r\n    return x\r\ndef double(x):\r\n    return helper(x) * 2",
    "test_list": ["assert double(2) == 4", "assert double(0) == 0", "assert double(-1) == -2"],
    "test_setup_code": "",
    "challenge_test_list": [],
}
SANITIZED = {
    "prompt": "Write a function to take a root.",
    "code": "import math\ndef root(x): return math.sqrt(x)",
    "test_imports": ["import math"],
    "test_list": ["assert math.isclose(root(4), 2)"],
}
COUNTDOWN = {"target": 24, "nums": [4, 6, 1]}
TULU = {"messages": [USER], "ground_truth": "72", "dataset": "gsm8k", "constraint": None}
ARGUMENTS = (
    "N quantifier end_phrase keyword_list word forbidden_words letter i first_word postscript_marker options "
    "section_splitter original_prompt"
).split()


def ifeval(name, **given):
    truth = {"func_name": name, **dict.fromkeys(ARGUMENTS), **given}
    return {"messages": [USER], "ground_truth": json.dumps(truth), "dataset": "ifeval"}


def converted(name, row):
    return formats.convert(row, name, origin="row 1", where="prompts")


def test_gsm8k_gives_the_number_after_the_marks_and_a_demonstration_its_verifier_passes():
    row = converted("gsm8k", GSM8K)
    assert row["task"] == {"gold": "1072"} and "<<" not in row["completion"]
    assert verifiers.load("math_answer").grade([row["completion"]], [row["task"]])[0].status == "pass"


@pytest.mark.parametrize(
    ("text", "held"),
    [
        (r"\boxed{\frac{1}{2}}", r"\frac{1}{2}"),
        (r"\boxed{1} then \boxed{\{2, 3\}}", r"\{2, 3\}"),
        (r"\boxed 7.", "7"),
        (r"\fbox{x}", "x"),
        ("none", None),
        (r"\boxed{open", None),
    ],
)
def test_the_last_box_is_read_with_its_braces_balanced(text, held):
    assert last_boxed(text) == held


def test_math_takes_the_solutions_last_box():
    assert converted("math", MATH)["task"] == {"gold": r"\frac{1}{2}"}


def test_hh_transcripts_part_in_the_last_answer():
    row = converted("hh_rlhf", HH)
    assert [turn["role"] for turn in row["prompt"]] == ["user", "assistant", "user"]
    assert row["chosen"] == [{"role": "assistant", "content": "2"}]
    assert row["rejected"][0]["content"] == "No idea.\n\nReally."
    with pytest.raises(ValueError, match=r"row 1 is not of format 'hh_rlhf': its two transcripts do not part"):
        converted("hh_rlhf", {"chosen": HH["chosen"], "rejected": "\n\nHuman: Else\n\nAssistant: 2"})


def test_ultrafeedback_keeps_the_shared_turns_as_the_prompt():
    row = converted("ultrafeedback", ULTRA)
    assert row["prompt"] == [USER] and row["chosen"][0]["content"] == "Blue" and row["score_chosen"] == 8.0


def test_a_summary_begins_with_the_space_that_follows_tldr():
    assert converted("tldr", TLDR)["completion"] == " short"
    pair = converted("tldr", {"prompt": "p", "chosen": "a", "rejected": " b"})
    assert (pair["chosen"], pair["rejected"]) == (" a", " b")


def test_mbpp_names_the_function_its_tests_call_in_both_published_forms():
    row = converted("mbpp", MBPP)
    assert row["task"]["entry_point"] == "double" and row["task"]["tests"] == MBPP["test_list"]
    assert "assert double(2) == 4" in row["prompt"]
    sane = converted("mbpp", SANITIZED)
    assert sane["task"]["entry_point"] == "root" and sane["task"]["tests"][0].startswith("import math\nassert")


def test_countdown_and_tulu_give_what_their_verifiers_need():
    assert converted("countdown", COUNTDOWN)["task"] == {"numbers": [4, 6, 1], "target": 24}
    task = converted("tulu_rlvr", TULU)["task"]
    assert task["verifier"] == "math_answer" and task["gold"] == "72"
    assert verifiers.load("math_answer").grade(["The answer is 72."], [task])[0].status == "pass"


@pytest.mark.parametrize(
    ("name", "given", "right", "wrong"),
    [
        ("verify_keywords", {"keyword_list": ["tea", "cup"]}, "A cup of tea.", "A cup of milk."),
        ("validate_forbidden_words", {"forbidden_words": ["tea"]}, "A cup of milk.", "Tea."),
        ("verify_letter_frequency", {"letter": "z", "N": 2}, "a zigzag", "zig zag zoo"),
        ("validate_word_constraint", {"N": 3, "quantifier": "at least"}, "one two three", "one two"),
        ("validate_word_constraint", {"N": 20, "quantifier": "around"}, "word " * 22, "word " * 23),
        ("verify_sentence_constraint", {"N": 1, "quantifier": "at most"}, "One here.", "One here. Two here."),
        ("verify_sentence_constraint", {"N": 3, "quantifier": "around"}, "One here. Two here.", "One here."),
        ("verify_postscript", {"postscript_marker": "P.P.S."}, "Hi.\n\nP.P.S. Bring Bob.", "Hi.\n\nP.S. Bring Bob."),
        ("validate_placeholders", {"N": 2}, "[name] at [address]", "[name] at home"),
        ("verify_bullet_points", {"N": 2}, "* one\n* two", "* one\n* two\n* three"),
        ("validate_title", {}, "<<poem>>\nRoses", "poem\nRoses"),
        ("validate_highlighted_sections", {"N": 2}, "*one* and *two*", "*one* and two"),
        ("validate_sections", {"N": 2, "section_splitter": "Part"}, "Part 1\na\nPart 2\nb", "Part 1\na"),
        ("validate_json_format", {}, '{"a": "b"}', "a: b"),
        ("validate_repeat_prompt", {"original_prompt": "Name a colour"}, "Name a colour\nBlue", "Blue"),
        ("validate_uppercase", {}, "BLUE", "Blue"),
        ("validate_lowercase", {}, "blue", "Blue"),
        ("validate_end", {"end_phrase": "The end"}, "Blue. The end", "The end of blue"),
        ("validate_quotation", {}, '"Blue."', '"Blue".'),
        ("validate_no_commas", {}, "Blue and red.", "Blue, red."),
        ("verify_keyword_frequency", {"word": "tea", "N": 2}, "Tea or tea, no teapot", "tea and a teapot"),
        ("validate_response_language", {"language": "fr"}, "Il fait beau et chaud dans la ville.", "It is warm."),
        ("verify_paragraph_count", {"N": 2}, "one\n* * *\ntwo", "one\n\ntwo"),
        ("validate_paragraphs", {"N": 2, "first_word": "Then", "i": 2}, "One.\n\nThen two.", "One.\n\nTwo."),
        ("verify_postscript", {"postscript_marker": "P.P.S"}, "One.\n\nP.P.S two.", "One.\n\nP.S. two."),
        ("validate_choice", {"options": ["yes", "no"]}, "I say yes", "Perhaps"),
        ("validate_two_responses", {}, "one\n******\ntwo", "one\n\ntwo"),
        ("validate_frequency_capital_words", {"N": 1, "quantifier": "at most"}, "NASA won", "NASA and ESA won"),
    ],
)
def test_a_constraint_of_tulu_is_graded_by_the_verifier_that_means_the_same(name, given, right, wrong):
    task = converted("tulu_rlvr", ifeval(name, **given))["task"]
    for verifier in ("instructions", task["verifier"]):
        verdicts = verifiers.load(verifier).grade([right, wrong], [task, task])
        assert [v.status for v in verdicts] == ["pass", "fail"]


def test_rows_of_tulu_that_no_verifier_can_judge_are_left_out_and_reported(tmp_path, capsys):
    unknown = ifeval("validate_rhyme")
    rows = [TULU, unknown, ifeval("validate_response_language", language="xx"), unknown]
    path = tmp_path / "tulu.jsonl"
    path.write_text("\n".join(json.dumps(row) for row in [*rows, ifeval("verify_bullet_points")]))
    read = prompts.load_rows(Prompts(path=str(path), format="tulu_rlvr"), seed=1)
    assert [row["task"]["verifier"] for row in read] == ["math_answer"]
    line = "left out 4 of 5 rows, which no verifier can judge: validate_rhyme (2), validate_response_language with"
    assert line in capsys.readouterr().err
    path.write_text(json.dumps(unknown))
    with pytest.raises(ConfigError, match=r"left out 1 of 1 rows, .*: validate_rhyme \(1\)"):
        prompts.load_rows(Prompts(path=str(path), format="tulu_rlvr"), seed=1)


@pytest.mark.parametrize("name", [name for name, form in formats.FORMATS.items() if form.columns])
def test_a_row_without_its_columns_is_named(name):
    with pytest.raises(ValueError, match=f"row 7 has no column .* which format '{name}' reads; have: x"):
        formats.convert({"x": 1}, name, origin="row 7", where="prompts")


def test_a_format_is_read_from_a_file_and_an_unknown_one_is_reported(tmp_path):
    path = tmp_path / "gsm8k.jsonl"
    path.write_text(json.dumps(GSM8K) + "\n")
    rows = prompts.load_rows(Prompts(path=str(path), format="gsm8k"), seed=1)
    assert rows[0]["prompt"] == GSM8K["question"]
    with pytest.raises(ConfigError, match="no format 'gsm8'; did you mean 'gsm8k'"):
        prompts.load_rows(Prompts(path=str(path), format="gsm8"), seed=1)


def test_rows_that_share_a_run_of_words_with_a_held_out_prompt_are_dropped_and_no_others():
    rows = [{"prompt": text} for text in ("a b c d", "x, B c! y", "b d c a", "other words here")]
    source = Prompts(decontaminate=2, heldout=0.0)
    held = [{"prompt": "a b c d"}]
    split = prompts.split(rows, source, heldout=held)
    assert [r["prompt"] for r in split.train] == ["b d c a", "other words here"]
    # the held-out prompts of another file are no rows of this one
    assert [r["prompt"] for r in prompts.split(rows[1:], source, heldout=held).train] == [
        "b d c a",
        "other words here",
    ]
    brute = [i for i, t in enumerate(["q b c", "c b"]) if any(g in t.split() and "b c" in t for g in ("b",))]
    assert contaminated(["q b c", "c b"], ["a b c d"], 2).tolist() == brute == [0]


def test_the_words_of_a_template_are_no_sign_of_a_copy():
    """Nor is the end of a question together with them: the GSM8K recipes' template alone is eleven words."""
    template = "{question}\nReason step by step and put the final number in \\boxed{}."
    source = Prompts(decontaminate=13, heldout=0.0, template=template)
    copied = "Ann has three red apples and gives two of them to Bob today how many has she"
    rows = [{"question": "How many marbles does Carl have in total?"}, {"question": "So " + copied}]
    held = [{"question": "How many coins does Dora have in total?"}, {"question": copied}]
    assert prompts.split(rows, source, heldout=held).train == rows[:1]


def test_the_words_of_a_format_are_no_sign_of_a_copy():
    rows = [converted("countdown", {"target": target, "nums": [4, 6, 1]}) for target in (24, 23)]
    assert formats.own_text(rows[0]["prompt"], "countdown") == "[4, 6, 1]\n24"
    source = Prompts(format="countdown", decontaminate=13, heldout=0.0)
    assert prompts.split(rows, source, heldout=rows[:1]).train == rows[1:]
    own = formats.own_text(converted("mbpp", MBPP)["prompt"], "mbpp")
    assert own.splitlines()[0] == MBPP["text"] and own.splitlines()[1:] == MBPP["test_list"]
    assert formats.own_text("of a column of its own", "countdown") == "of a column of its own"


def test_a_text_shorter_than_the_run_matches_only_itself():
    assert contaminated(["hi there", "hi"], ["Hi, there!"], 13).tolist() == [0]
    assert not len(contaminated(["hi", ""], [], 13)) and not len(contaminated(["", "?"], ["", "hi"], 13))
