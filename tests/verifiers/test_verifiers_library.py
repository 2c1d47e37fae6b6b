"""The smaller verifiers against oracles of their own: Python's arithmetic, hand counts, a second database."""

from __future__ import annotations

import random
import subprocess
import sys
from collections.abc import Mapping
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest

import verifiers
from verifiers import countdown, instructions, json_schema
from verifiers._languages import language_of


def status(name: str, completion: str, task: Mapping[str, Any]) -> str:
    (verdict,) = verifiers.load(name).grade([completion], [task])
    return verdict.status


# -- countdown


def test_countdown_evaluates_as_python_does() -> None:
    rng = random.Random(0)

    def grow(depth: int) -> str:
        if depth == 0 or rng.random() < 0.2:
            return str(rng.randint(0, 9))
        inner = f"{grow(depth - 1)}{rng.choice([' + ', '-', '*', '/'])}{grow(depth - 1)}"
        return f"({inner})" if rng.random() < 0.6 else inner

    for _ in range(500):
        text = grow(3)
        exact = "".join(f"Fraction({c})" if c.isdigit() else c for c in text)
        try:
            expected = eval(exact, {"Fraction": Fraction})
        except ZeroDivisionError:
            with pytest.raises(ValueError, match="division by zero"):
                countdown.evaluate(text)
            continue
        assert countdown.evaluate(text)[0] == expected, text


def test_every_generated_puzzle_uses_its_numbers_and_is_the_same_for_its_seed() -> None:
    rows = list(countdown.generate(200, 3))
    assert rows == list(countdown.generate(200, 3)) != list(countdown.generate(200, 4))
    assert {status("countdown", row["completion"], row["task"]) for row in rows} == {"pass"}


# -- json_schema

DRAFT_4, DRAFT_7 = "http://json-schema.org/draft-04/schema#", "http://json-schema.org/draft-07/schema"
DRAFT_2019 = "https://json-schema.org/draft/2019-09/schema"


@pytest.mark.parametrize(
    ("left", "right", "same"),
    [(1, 1.0, True), (1, True, False), ([1], [True], False), ({"a": 1}, {"a": 1.0}, True), ("1", 1, False),
     ({"a": 1, "b": 2}, {"b": 2, "a": 1}, True), ([1, 2], [2, 1], False), (None, False, False), ({}, [], False)],
)  # fmt: skip
def test_json_equality_is_jsons_and_not_pythons(left: Any, right: Any, same: bool) -> None:
    assert json_schema.same(left, right) is same is json_schema.same(right, left)


def test_a_reference_outside_the_schema_is_never_fetched() -> None:
    task = {"schema": {"$ref": "http://127.0.0.1:9/schema.json"}}
    (verdict,) = verifiers.load("json_schema").grade(["{}"], [task])
    assert verdict.status == "error" and "127.0.0.1" in verdict.detail


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "strnig"},
        {"pattern": "("},
        {"pattern": "\\Z"},
        {"$schema": "http://example.org/mine"},
        {"unevaluatedProperties": False, "patternProperties": {"(a+)+": {}}},
    ],
)
def test_a_schema_that_cannot_be_used_is_an_error_of_the_task(schema: dict) -> None:
    assert status("json_schema", "{}", {"schema": schema}) == "error"


@pytest.mark.parametrize(
    ("text", "schema", "expected"),
    [
        ("1.1", {"multipleOf": 0.1}, "pass"),
        ("0.3", {"multipleOf": 0.1}, "pass"),
        ("19.99", {"multipleOf": 0.01}, "pass"),
        ("19.995", {"multipleOf": 0.01}, "fail"),
        ("1e308", {"multipleOf": 1e-300}, "pass"),
        ('"٣"', {"pattern": r"^\d$"}, "fail"),
        ('"é"', {"pattern": r"^\w$"}, "fail"),
        ('"é"', {"pattern": r"^[^\W]$"}, "fail"),
        ('"\\ufeff"', {"pattern": r"^\s$"}, "pass"),
        ('"ab\\n"', {"pattern": "^a.$"}, "fail"),
        ('"a\\rb"', {"pattern": "^a.b$"}, "fail"),
        ('"a[b"', {"pattern": "^[a-z[]+$"}, "pass"),
        ('"(abc){e}"', {"pattern": r"^\(abc\){e}$"}, "pass"),
        ('"🐲"', {"pattern": r"^\ud83d\udc32$"}, "pass"),
        ('"Ж"', {"pattern": r"^\p{Script=Cyrillic}$"}, "pass"),
        ('{"b1": 1}', {"patternProperties": {"^b\\d$": {"type": "string"}}}, "fail"),
        ('{"b1": "x", "c": 1}', {"patternProperties": {"^b": {}}, "additionalProperties": False}, "fail"),
        ('{"b1": "x", "c": 1}', {"patternProperties": {"^b": {}}, "additionalProperties": {"type": "integer"}}, "pass"),
        ('{"' + "a" * 40 + '!": 1}', {"patternProperties": {"^(a+)+$": False}}, "pass"),
        ('{"multipleOf": 2}', {"properties": {"multipleOf": {"const": 2}, "$ref": True, "format": {}}}, "pass"),
        ('"2024-02-30"', {"format": "date"}, "fail"),
        ('"2024-02-29T23:59:60Z"', {"format": "date-time"}, "pass"),
        ('"a@b"', {"format": "email"}, "pass"),
        ('"@b"', {"format": "email"}, "fail"),
        ('"anything"', {"format": "mine"}, "pass"),
        ("7", {"format": "date"}, "pass"),
        ("3", {"$schema": DRAFT_4, "maximum": 3, "exclusiveMaximum": True}, "fail"),
        ("[1, 2]", {"$schema": DRAFT_7, "items": [{}], "additionalItems": False}, "fail"),
        ('{"a": 1}', {"$schema": DRAFT_2019, "dependentRequired": {"a": ["b"]}}, "fail"),
        ('```json5\n{"a": 1}\n```', {"type": "object"}, "pass"),
        ('{"a": "<answer>1</answer>"}', {"type": "object"}, "pass"),
        ('{"a": 1}\n```', {"type": "object"}, "pass"),
        ('json\n{"a": 1}\n```\nIt fits.', {"type": "object"}, "pass"),
        ('\ufeff{"a": 1}', {"type": "object"}, "pass"),
    ],
)  # fmt: skip
def test_a_schema_means_what_its_dialect_says(text: str, schema: dict, expected: str) -> None:
    assert status("json_schema", text, {"schema": schema}) == expected


def test_formats_can_be_annotations() -> None:
    task = {"schema": {"format": "date"}, "formats": False}
    assert status("json_schema", '"2024-02-30"', task) == "pass"


# -- instructions


@pytest.mark.parametrize(
    ("text", "rule", "kept"),
    [
        ("It's a well-known fact.", {"check": "words", "exactly": 4}, True),
        ("One. Two! Three? four", {"check": "sentences", "exactly": 4}, True),
        (
            "Dr. A. Smith et al. met e.g. Ann at 5 p.m. on Mar 3.5. They ate.",
            {"check": "sentences", "exactly": 2},
            True,
        ),
        ("He works at Acme Inc. They pay well.", {"check": "sentences", "exactly": 2}, True),
        ('She said "No." Then she left!', {"check": "sentences", "exactly": 2}, True),
        ("1. Boil water.\n2. Add tea.", {"check": "sentences", "exactly": 2}, True),
        ("It was you and I. We went.", {"check": "sentences", "exactly": 2}, True),
        ("Wait... what? Yes.", {"check": "sentences", "exactly": 3}, True),
        ("नमस्ते। आप कैसे हैं? ठीक।", {"check": "sentences", "exactly": 3}, True),
        ("a\n\nb\n \nc", {"check": "paragraphs", "exactly": 3}, True),
        ("- a\n * b\n-c\n• d", {"check": "bullets", "exactly": 3}, True),
        ("Dear [name], at [place]", {"check": "placeholders", "at_least": 2}, True),
        ("*one* and **two** but * not", {"check": "highlights", "exactly": 2}, True),
        ("*" + "long " * 60 + "*", {"check": "highlights", "exactly": 1}, True),
        ("** ** and ****", {"check": "highlights", "at_least": 1}, False),
        ("**bold** first\n* one\n\t- two", {"check": "bullets", "exactly": 2}, True),
        ("[ ] and []", {"check": "placeholders", "at_least": 1}, False),
        ("abc", {"check": "characters", "at_most": 2}, False),
        ("a\n\nb", {"check": "lines", "exactly": 2}, True),
        ("Tea, teapot, TEA", {"check": "includes", "words": ["tea"], "at_least": 2}, True),
        ("Tea, teapot", {"check": "includes", "words": ["tea"], "at_least": 2}, True),
        ("Tea, pot", {"check": "includes", "words": ["tea"], "at_least": 2}, False),
        ("Steam", {"check": "includes", "words": ["tea"], "within_words": False}, False),
        ("Tea, teapot", {"check": "frequency", "word": "tea", "exactly": 1}, True),
        ("Tea, teapot", {"check": "frequency", "word": "tea", "at_least": 2, "within_words": True}, True),
        ("Tea, tea", {"check": "frequency", "word": "tea", "at_most": 1}, False),
        ("NASA and I met ESA.", {"check": "capital_words", "exactly": 3}, True),
        ("Nasa met", {"check": "capital_words", "at_least": 1}, False),
        ("a\n***\nb\n* * *\nc", {"check": "divided", "exactly": 3}, True),
        ("***\na\n***\nb\n***", {"check": "divided", "exactly": 2}, True),
        ("a\n***\n***\nb", {"check": "divided", "exactly": 2}, False),
        ("a\n\nb", {"check": "divided", "exactly": 2}, False),
        ("One.\n\nNow, two.", {"check": "first_word", "paragraph": 2, "word": "now", "exactly": 2}, True),
        ("One.\n\n**Now** two.", {"check": "first_word", "paragraph": 2, "word": "now"}, True),
        ("One.\n\nNowhere.", {"check": "first_word", "paragraph": 2, "word": "now"}, False),
        ("One.\n\nNow.\n\nx", {"check": "first_word", "paragraph": 2, "word": "now", "exactly": 2}, False),
        ("One.", {"check": "first_word", "paragraph": 2, "word": "now"}, False),
        ("My answer is yes.", {"check": "choice", "options": ["My answer is yes.", "My answer is no."]}, True),
        ("Perhaps.", {"check": "choice", "options": ["My answer is yes.", "My answer is no."]}, False),
        ("one\n******\ntwo", {"check": "two_responses"}, True),
        ("one\n******\none", {"check": "two_responses"}, False),
        ("one\n******\ntwo\n******\nthree", {"check": "two_responses"}, False),
        ("one\n******\n", {"check": "two_responses"}, False),
        ("Das Wetter ist heute schön.", {"check": "language", "language": "de"}, True),
        ("The weather is fine, and I like it.", {"check": "language", "language": "de"}, False),
        ("今日は天気がいいです。", {"check": "language", "language": "ja"}, True),
        ("今天天气很好。", {"check": "language", "language": "ja"}, False),
        ("a.c", {"check": "includes", "words": ["a.c"]}, True),
        ("abc", {"check": "includes", "words": ["a.c"]}, False),
        ("coffees", {"check": "excludes", "words": ["coffee"]}, True),
        ("Coffee!", {"check": "excludes", "words": ["coffee"]}, False),
        ("Eleven", {"check": "letter", "letter": "e", "exactly": 3}, True),
        ("Dear you", {"check": "starts_with", "text": "Dear"}, True),
        ("so. Bye", {"check": "ends_with", "text": "Bye."}, False),
        ('so. "Bye." ', {"check": "ends_with", "text": "bye."}, True),
        ("O'Neill's 21st Well-Known NASA Day", {"check": "case", "case": "title"}, True),
        ("The end", {"check": "case", "case": "title"}, False),
        ("THE END", {"check": "case", "case": "title"}, False),
        ("ThE End", {"check": "case", "case": "title"}, False),
        ("all small 1", {"check": "case", "case": "lower"}, True),
        ("ALL but one", {"check": "case", "case": "upper"}, False),
        ("a,b", {"check": "no", "characters": ",;"}, False),
        ("see <<Title>> here", {"check": "wrapped", "open": "<<", "close": ">>"}, True),
        ("<<\nTitle>>", {"check": "wrapped", "open": "<<", "close": ">>"}, False),
        ("see << >> here", {"check": "wrapped", "open": "<<", "close": ">>"}, False),
        ('"all"', {"check": "wrapped", "open": '"', "close": '"', "whole": True}, True),
        ('"', {"check": "wrapped", "open": '"', "close": '"', "whole": True}, False),
        ("Part 1\nx\nPart 2\ny", {"check": "sections", "heading": "Part", "exactly": 2}, True),
        ("Part 1\nx\nPart 3\ny", {"check": "sections", "heading": "Part", "exactly": 2}, False),
        ('```json\n{"a": 1}\n```', {"check": "json"}, True),
        ('```JSON\n{"a": 1}```', {"check": "json"}, True),
        ('{"a": 1, "a": 2}', {"check": "json"}, False),
        ("[Infinity]", {"check": "json"}, False),
        ("7", {"check": "json"}, False),
        ("Hi\n\nP.S. Bring the cat", {"check": "postscript"}, True),
        ("Hi\n\nP.S.", {"check": "postscript"}, False),
        ("Hi\n\n## P. S. bring it\n\nBye", {"check": "postscript", "marker": "P.S."}, True),
        ("Hi\n\nP.P.S bring it", {"check": "postscript", "marker": "P.S."}, False),
        ("Hi\n\nP.P.S. bring it", {"check": "postscript", "marker": "P.P.S"}, True),
        ("Hi\n\nNote: bring it", {"check": "postscript", "marker": "Note:"}, True),
        ("GPS. Bring it", {"check": "postscript"}, False),
        ("Why? Because.", {"check": "repeats", "text": "Why?"}, True),
        ("Why?", {"check": "repeats", "text": "Why?"}, False),
        ("why? Because.", {"check": "repeats", "text": "Why?"}, True),
        ("élan vital", {"check": "language_marks", "script": "latin"}, True),
        ("élan витал", {"check": "language_marks", "script": "latin"}, False),
    ],
)
def test_each_instruction_is_counted_as_a_person_would(text: str, rule: dict, kept: bool) -> None:
    assert instructions.follows(text, rule) is kept


@pytest.mark.parametrize(
    ("code", "text"),
    [
        ("en", "This is a short answer about the weather in London."), ("de", "Das Wetter ist heute schön und warm."),
        ("fr", "Le temps est beau aujourd'hui et il fait chaud."), ("es", "El tiempo es muy bueno hoy en la ciudad."),
        ("pt", "O tempo está bom hoje e não vai chover."), ("it", "Il tempo è bello oggi e non piove."),
        ("nl", "Het weer is vandaag mooi en warm."), ("sv", "Vädret är fint idag och det är varmt."),
        ("da", "Vejret er godt i dag, og det er ikke koldt."), ("pl", "Pogoda jest dziś ładna i nie pada."),
        ("fi", "Sää on tänään hyvä, ja aurinko paistaa."), ("tr", "Bugün hava çok güzel ve sıcak."),
        ("vi", "Hôm nay thời tiết rất đẹp và không có mưa."), ("sw", "Hali ya hewa leo ni nzuri na kuna jua."),
        ("id", "Cuaca hari ini sangat baik dan tidak hujan."), ("ro", "Vremea este frumoasă astăzi și nu plouă."),
        ("hu", "Az idő ma szép, és nem esik az eső."), ("cs", "Počasí je dnes pěkné a neprší."),
        ("ru", "Сегодня хорошая погода, и не идёт дождь."), ("uk", "Сьогодні гарна погода, і не йде дощ."),
        ("bg", "Днес времето е хубаво и няма да вали."), ("ar", "الطقس اليوم جميل في هذه المدينة."),
        ("fa", "هوا امروز در این شهر خوب است."), ("ur", "آج موسم اچھا ہے اور بارش نہیں ہو رہی۔"),
        ("hi", "आज मौसम अच्छा है और बारिश नहीं हो रही है।"), ("mr", "आज हवामान चांगले आहे आणि पाऊस नाही."),
        ("ne", "आज मौसम राम्रो छ र पानी परेको छैन।"), ("ja", "今日は天気がいいです。"), ("zh", "今天天气很好。"),
        ("ko", "오늘 날씨가 좋습니다."), ("th", "วันนี้อากาศดี"), ("he", "מזג האוויר היום יפה"),
        ("bn", "আজ আবহাওয়া ভালো"), ("ta", "இன்று வானிலை நன்றாக உள்ளது"), ("te", "ఈరోజు వాతావరణం బాగుంది"),
        ("kn", "ಇಂದು ಹವಾಮಾನ ಚೆನ್ನಾಗಿದೆ"), ("ml", "ഇന്ന് കാലാവസ്ഥ നല്ലതാണ്"), ("gu", "આજે હવામાન સારું છે"),
        ("pa", "ਅੱਜ ਮੌਸਮ ਚੰਗਾ ਹੈ"), ("el", "Ο καιρός είναι καλός σήμερα."), (None, "12 + 3"), (None, "Berlin"),
    ],
)  # fmt: skip
def test_the_language_of_a_short_sentence_is_known(code: str | None, text: str) -> None:
    assert language_of(text) == code


def test_every_check_is_tried_above() -> None:
    tried = {mark.args[1][i][1]["check"] for mark in test_each_instruction_is_counted_as_a_person_would.pytestmark  # type: ignore[attr-defined]
             for i in range(len(mark.args[1]))}  # fmt: skip
    assert tried == set(instructions.COUNTED) | set(instructions.CHECKS)


@pytest.mark.parametrize(
    "rule",
    [
        {"check": "language", "language": "xx"},
        {"check": "choice", "options": []},
        {"check": "divided"},
        {"check": "first_word", "paragraph": 0, "word": "a"},
        {"check": "frequency", "word": "a"},
        {"check": "wrods"},
        {"check": "words"},
        {"check": "case", "case": "camel"},
        {"check": "includes", "words": "a"},
    ],
)
def test_an_instruction_that_makes_no_sense_is_an_error_of_the_task(rule: dict) -> None:
    assert status("instructions", "some text", {"instructions": [rule]}) == "error"
    assert status("instructions", "some text", {"instructions": []}) == "error"


# -- numeric, multiple_choice, exact, regex


@pytest.mark.parametrize(
    ("name", "options", "to_write"),
    [
        ("numeric", {}, "`The answer is 7`"),
        ("math_answer", {"box_needed": False}, "`The answer is 7`"),
        ("math_answer", {}, r"`\boxed{7}`"),
    ],
)
def test_a_bare_number_is_malformed_and_the_detail_says_what_to_write(
    name: str, options: dict[str, Any], to_write: str
) -> None:
    for completion in ("7", " 7\n", "<think>3 and 4</think>\n7"):
        (verdict,) = verifiers.load(name).grade([completion], [{"gold": "7", **options}])
        assert verdict.status == "malformed"
        assert "a bare number" in verdict.detail and "exact" in verdict.detail and to_write in verdict.detail
    (stated,) = verifiers.load(name).grade([to_write.strip("`")], [{"gold": "7", **options}])
    assert stated.status == "pass", "what the detail tells to write is read"
    (words,) = verifiers.load(name).grade(["I found 7, then gave up"], [{"gold": "7", **options}])
    assert words.status == "malformed" and "a bare number" not in words.detail


@pytest.mark.parametrize(
    ("gold", "answer", "tolerance", "expected"),
    [
        (100, "101", {"rtol": 0.01}, "pass"),
        (100, "101.0001", {"rtol": 0.01}, "fail"),
        (0, "0.001", {"rtol": 0.5}, "fail"),
        (0, "0.001", {"atol": 0.001}, "pass"),
        (-5, "-4.9", {"atol": 0.1}, "pass"),
        ("1/3", "0.3333", {"atol": 1e-4}, "pass"),
        ("1/3", "0.3333", {}, "fail"),
        (0.1, "0.1", {}, "pass"),
        (1, "1", {"atol": -1}, "error"),
        ("many", "1", {}, "error"),
    ],
)
def test_tolerances_are_exact_at_their_edges(gold: Any, answer: str, tolerance: dict, expected: str) -> None:
    assert status("numeric", rf"\boxed{{{answer}}}", {"gold": gold, **tolerance}) == expected


@pytest.mark.parametrize("gold", ["E", "", "AB", "1"])
def test_a_gold_that_is_no_choice_is_an_error(gold: str) -> None:
    assert status("multiple_choice", "A", {"gold": gold, "choices": ["a", "b", "c", "d"]}) == "error"


def test_a_pattern_that_does_not_compile_is_an_error_and_an_empty_gold_too() -> None:
    assert status("regex", "x", {"pattern": "("}) == "error"
    assert status("exact", "x", {"gold": ""}) == status("exact", "x", {"gold": []}) == "error"


def test_no_verifier_imports_torch() -> None:
    code = "import sys, verifiers; [verifiers.load(n) for n in verifiers.available()]; sys.exit('torch' in sys.modules)"
    root = Path(verifiers.__file__).parent.parent
    assert subprocess.run([sys.executable, "-c", code], cwd=root, check=False).returncode == 0
