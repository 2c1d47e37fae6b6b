"""Constraints as IFEval and open-instruct's RLVR sets write them, graded by the rules that they are read to.

What is right and wrong follows the descriptions of arXiv:2311.07911, table 4, and the RLVR functions' own wording.
"""

import pytest

from pipeline.data.formats import ifeval_rules
from pipeline.data.formats.spec import UnsupportedRow
from verifiers import instructions

GERMAN, ENGLISH = "Das ist ein schöner Tag und wir gehen jetzt nach Hause.", "This is a nice day and we are going home."
NOW = {"num_paragraphs": 2, "nth_paragraph": 2, "first_word": "now"}
FEWER = {"capital_frequency": 2, "capital_relation": "less than"}
FUNCTIONS = [
    ("verify_keyword_frequency", {"word": "tea", "N": 2}, "Tea and tea.", "Tea."),
    ("validate_forbidden_words", {"forbidden_words": ["tea"]}, "Milk.", "A teapot."),
    ("validate_response_language", {"language": "de"}, GERMAN, ENGLISH),
    ("verify_paragraph_count", {"N": 2}, "One.\n* * *\nTwo.", "One. Two."),
    ("validate_paragraphs", {"N": 2, "first_word": "Now", "i": 2}, "One.\n\nNow two.", "Now one.\n\nTwo."),
    ("verify_postscript", {"postscript_marker": "Before I forget:"}, "Hi.\n\nBefore I forget: tea.", "Hi."),
    ("validate_choice", {"options": ["yes", "no"]}, "I say yes.", "Maybe."),
    ("validate_two_responses", {}, "Tea.\n******\nMilk.", "Tea."),
    ("validate_frequency_capital_words", {"N": 2, "quantifier": "at least"}, "TEA NOW please", "TEA please"),
]
IFEVAL = [
    ("keywords:existence", {"keywords": ["tea"]}, "tea.", "milk."),
    ("keywords:frequency", {"keyword": "tea", "frequency": 2, "relation": "at least"}, "tea tea", "tea"),
    ("keywords:forbidden_words", {"forbidden_words": ["tea"]}, "A teapot.", "Some tea."),
    ("keywords:letter_frequency", {"letter": "z", "let_frequency": 2, "let_relation": "less than"}, "z", "zz z"),
    ("language:response_language", {"language": "de"}, GERMAN, ENGLISH),
    (
        "length_constraints:number_sentences",
        {"num_sentences": 2, "relation": "at least"},
        "One here. Two here.",
        "One here.",
    ),
    ("length_constraints:number_paragraphs", {"num_paragraphs": 2}, "One.\n***\nTwo.", "One."),
    ("length_constraints:number_words", {"num_words": 3, "relation": "less than"}, "one two", "one two three"),
    (
        "length_constraints:nth_paragraph_first_word",
        {"num_paragraphs": 2, "nth_paragraph": 2, "first_word": "now"},
        "One.\n\nNow two.",
        "Now one.\n\nTwo.",
    ),
    ("detectable_content:number_placeholders", {"num_placeholders": 1}, "[name]", "name"),
    ("detectable_content:postscript", {"postscript_marker": "P.S."}, "Hi.\nP.S. Tea.", "Hi."),
    ("detectable_format:number_bullet_lists", {"num_bullets": 2}, "* a\n* b", "* a"),
    ("detectable_format:constrained_response", {}, "My answer is yes.", "Yes."),
    ("detectable_format:number_highlighted_sections", {"num_highlights": 1}, "*a* b", "a b"),
    (
        "detectable_format:multiple_sections",
        {"section_spliter": "Part", "num_sections": 2},
        "Part 1\na\nPart 2\nb",
        "Part 1\na",
    ),
    ("detectable_format:json_format", {}, '{"a": 1}', "a"),
    ("detectable_format:title", {}, "<<tea>>", "tea"),
    ("combination:two_responses", {}, "Tea.\n******\nMilk.", "Tea."),
    ("combination:repeat_prompt", {"prompt_to_repeat": "Name it"}, "Name it: tea", "Tea"),
    ("startend:end_checker", {"end_phrase": "the end"}, "Tea. The end", "The end of tea"),
    ("startend:quotation", {}, '"Tea."', "Tea."),
    (
        "change_case:capital_word_frequency",
        {"capital_frequency": 2, "capital_relation": "less than"},
        "TEA now",
        "TEA NOW",
    ),
    ("change_case:english_capital", {}, "TEA", "Tea"),
    ("change_case:english_lowercase", {}, "tea", "Tea"),
    ("punctuation:no_comma", {}, "a b", "a, b"),
]


@pytest.mark.parametrize(("name", "given", "right", "wrong"), FUNCTIONS)
def test_a_function_is_read_to_the_rule_that_means_it(name, given, right, wrong):
    (rule,) = ifeval_rules.rules({"func_name": name, "language": None, **given})
    assert instructions.follows(right, rule) and not instructions.follows(wrong, rule)


@pytest.mark.parametrize(("name", "given", "right", "wrong"), IFEVAL)
def test_an_instruction_is_read_to_the_rule_that_means_it(name, given, right, wrong):
    (rule,) = ifeval_rules.rules({"instruction_id": [name], "kwargs": [{**given, "unused": None}]})
    assert instructions.follows(right, rule) and not instructions.follows(wrong, rule)


def test_all_of_ifeval_is_covered_and_several_instructions_give_several_rules():
    assert {name for name, *_ in IFEVAL} == set(ifeval_rules.IFEVAL) and len(ifeval_rules.RLVR) == len(IFEVAL) == 25
    both = {"instruction_id": ["punctuation:no_comma", "detectable_format:title"], "kwargs": [None, {}]}
    assert [rule["check"] for rule in ifeval_rules.rules(both)] == ["no", "wrapped"]


@pytest.mark.parametrize(
    "constraint",
    [
        {"func_name": "validate_rhymes"},
        {"func_name": "verify_bullet_points"},
        {"func_name": "validate_word_constraint", "N": 3, "quantifier": "nearly"},
        {"func_name": "validate_response_language", "language": "klingon"},
        {"instruction_id": ["count:rhymes"], "kwargs": [{}]},
        {"instruction_id": ["keywords:existence"], "kwargs": [{}]},
    ],
)
def test_what_no_check_means_is_unsupported(constraint):
    with pytest.raises(UnsupportedRow):
        ifeval_rules.rules(constraint)
