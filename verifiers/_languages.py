"""Which language is a text in? By its script, and where languages share a script by their commonest words.

Enough to tell whether an instruction such as "answer in German" was kept, without a model or a package: a detector
trained on newspapers is random on short texts. Codes are ISO 639-1. A text of a few words in a shared script may be
undecided, and then it is in none.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter

SCRIPT_OF_ONE = {
    "BENGALI": "bn", "THAI": "th", "TAMIL": "ta", "TELUGU": "te", "HANGUL": "ko", "HEBREW": "he", "KANNADA": "kn",
    "GUJARATI": "gu", "GURMUKHI": "pa", "MALAYALAM": "ml", "GREEK": "el", "ARMENIAN": "hy", "GEORGIAN": "ka",
    "HIRAGANA": "ja", "KATAKANA": "ja", "CJK": "zh",
}  # fmt: skip
# function words, and letters that the script's other languages lack (each counts as half a word)
WORDS = {
    "LATIN": {
        "en": "the and of to is in that it for was with as on are this be by not you have from at or an but",
        "de": "der die das und ist nicht ein eine zu den mit von im für auf dem sich es auch als wie wir ich sie ß",
        "fr": "le la les et est des un une du que dans pour qui au sur avec pas ce il elle nous vous sont ç œ",
        "es": "el la los las y es en que un una del por con para se no su como más está lo al ñ ¿ ¡",
        "pt": "o a os as e é em que um uma do da não para com se por mais como dos das no na ao ã õ",
        "it": "il la i gli le e è di che un una in per non con del della sono si come più lo al nel ò",
        "nl": "de het een en van is dat niet op te zijn voor met die ook aan er maar om bij wordt ik ij",
        "sv": "och att det som en är på inte för av med den till har de ett om var jag så å",
        "da": "og at det som en er på ikke for af med den til har de et om var jeg så æ ø",
        "pl": "i w nie na się z do jest to że o jak a po co ale od za przez są tym ł ż ś ę",
        "cs": "a v je na se že to s z do o jsou by ale jako za pro i jeho však ě ř ů",
        "fi": "ja on ei se että oli hän mutta ovat myös kun niin kuin tai joka ole sen tämä mitä minä yy ää",
        "tr": "ve bir bu da de için ile çok daha olarak gibi ama en ne var olan kadar değil ı ğ ş",
        "vi": "và là của có không cho được các trong một với người này những để đã ở khi tôi ơ ư ạ",
        "id": "yang dan di untuk dengan ini itu dari tidak dalam ada pada adalah akan juga saya ke bisa kita mereka",
        "sw": "na ya wa kwa ni katika za la hii kama hiyo cha au lakini kuwa watu wake sana yake vya",
        "ro": "și de la în a cu este nu pe că din o un mai ce se sunt pentru care au ț ș",
        "hu": "a az és hogy nem is egy van de ez meg volt csak mint még már el vagy azt ki ő ű",
    },
    "CYRILLIC": {
        "ru": "и в не на что он с как это по но к из у за от так же бы для есть ы э ё",
        "uk": "і в не на що він з як це по та до у за від так але для є був її ї ґ",
        "bg": "и в не на че той с като това по но да от за се са си ще е до ъ",
    },
    "ARABIC": {
        "ar": "في من على أن إلى هذا التي عن مع كان ما لا هو هي الذي كل بعد ذلك هذه قد ة ي ك",
        "fa": "و در به از که این را با است برای آن یک هم می تا بر ها شود های خود پ گ ژ",
        "ur": "کے میں ہے کی اور سے کا کو پر نے یہ کہ ہیں ایک تھا بھی وہ اس ہو نہیں ٹ ڈ ے",
    },
    "DEVANAGARI": {
        "hi": "के है में की और से का को पर ने यह कि हैं एक था भी वह इस नहीं हो",
        "mr": "आहे आणि या च्या ते हे मी तो ती होते आहेत नाही व एक तर की केले त्या मध्ये ळ",
        "ne": "छ र को मा ले हो यो पनि छन् गर्न भएको एक तर थियो गरेको लाई का त्यो हुन्छ छैन",
    },
}
KNOWN = frozenset(SCRIPT_OF_ONE.values()) | {code for words in WORDS.values() for code in words}
MIN_SHARE = 0.6  # of the letters that must be of one script


def language_of(text: str) -> str | None:
    """The code of the language most of the text is in; None where that cannot be said."""
    letters = Counter(_script(char) for char in text if char.isalpha())
    if not letters:
        return None
    kana = letters["HIRAGANA"] + letters["KATAKANA"]
    if kana and kana + letters["CJK"] >= MIN_SHARE * letters.total():
        return "ja"
    script, count = letters.most_common(1)[0]
    if count < MIN_SHARE * letters.total():
        return None
    return SCRIPT_OF_ONE.get(script) or _by_words(text, WORDS.get(script, {}))


def _script(char: str) -> str:
    return unicodedata.name(char, "?").split()[0].split("-")[0]


def _by_words(text: str, languages: dict[str, str]) -> str | None:
    words = Counter(re.findall(r"[^\W\d_]+(?:[\u0900-\u0963]+[^\W\d_]*)*", text.casefold()))
    characters = Counter(text.casefold())
    scores = {code: _score(common.split(), words, characters) for code, common in languages.items()}
    best = sorted(scores, key=lambda code: -scores[code])
    if not best or scores[best[0]] == 0 or (len(best) > 1 and scores[best[0]] == scores[best[1]]):
        return None
    return best[0]


def _score(common: list[str], words: Counter[str], characters: Counter[str]) -> float:
    tail = common[20:] if len(common) > 20 else []
    letters = [word for word in tail if len(word) == 1 and not word.isascii()]
    return sum(words[word] for word in common) + 0.5 * sum(characters[letter] for letter in letters)
