"""Answers as texts: what spelling, punctuation and small words the usual benchmarks forgive."""

from __future__ import annotations

import re
import string

_ARTICLES = frozenset({"a", "an", "the"})
_COUNTED = "zero one two three four five six seven eight nine ten"
_NUMBERS = {word: str(number) for number, word in enumerate(_COUNTED.split())} | {"none": "0"}
_SPELLED = (
    "ain't aren't can't could've couldn't couldn't've didn't doesn't don't hadn't hadn't've "
    "hasn't haven't he'd he'd've he's how'd how'll how's i'd've i'm i've isn't it'd it'd've "
    "it'll let's ma'am might've mightn't mightn't've must've mustn't needn't not've o'clock "
    "oughtn't shan't she'd've she's should've shouldn't shouldn't've somebody'd somebody'll "
    "somebody's someone'd someone'll someone's something'd something'll that's there'd "
    "there'd've there're there's they'd they'd've they'll they're they've 'twas wasn't we'd've "
    "we've weren't what'll what're what's what've when's where'd where's where've who'd "
    "who'd've who'll who's who've why'll why're why's won't would've wouldn't wouldn't've "
    "y'all y'all'll y'all'd've you'd you'd've you'll you're you've"
)
_CONTRACTIONS = {word.replace("'", ""): word for word in _SPELLED.split()}
_VQA_PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'
_LONE_PERIOD = re.compile(r"\.(?!\d)")
_MINUS = re.compile(r"(?<!-)-\$?\.?$")
_POINT = re.compile(r"(?<!\.)\.$")
_BLANK_BEFORE_PER_CENT = re.compile(r"(?<=\d) (?=%)")
_COMMA_IN_NUMBER = re.compile(r"\d,\d")


def normalised(text: str) -> str:
    """Lower case, no punctuation at the ends of words, single spaces.

    A minus before a number, its decimal point and a per cent sign behind it belong to it; a text
    of nothing but punctuation stays as it is.
    """
    flat = " ".join(text.lower().split())
    words = (_bare(word) for word in _BLANK_BEFORE_PER_CENT.sub("", flat).split())
    return " ".join(word for word in words if word) or flat


def _bare(word: str) -> str:
    """A word without punctuation at its ends, but for what changes a number."""
    bare = word.strip(string.punctuation)
    if not bare:
        return ""
    before, _, behind = word.partition(bare)
    begins, ends = bare[0].isdecimal(), bare[-1].isdecimal()
    minus = "-" if begins and _MINUS.search(before) else ""
    point = "." if begins and _POINT.search(before) else ""
    return minus + point + bare + ("%" if ends and behind.startswith("%") else "")


def vqa_normalised(text: str) -> str:
    """The normalisation of the VQA challenge: punctuation, number words, articles, contractions."""
    flat = " ".join(text.split())
    words = _without_vqa_punctuation(flat).lower().split()
    digits = (_NUMBERS.get(word, word) for word in words)
    kept = (word for word in digits if word not in _ARTICLES)
    return " ".join(_CONTRACTIONS.get(word.replace("'", ""), word) for word in kept)


def _without_vqa_punctuation(text: str) -> str:
    """A mark beside a blank goes, one between two letters becomes a blank; 1,000 becomes 1000."""
    number = _COMMA_IN_NUMBER.search(text) is not None
    cleaned = text
    for mark in _VQA_PUNCTUATION:
        beside_blank = f"{mark} " in text or f" {mark}" in text
        cleaned = cleaned.replace(mark, "" if beside_blank or number else " ")
    return _LONE_PERIOD.sub("", cleaned)


def number_in(text: str) -> float | None:
    """The number that a whole text is, `12%` as 0.12 and `$1,200` as 1200; None for words."""
    plain = text.strip().lstrip("$€£").replace(",", "")
    share = plain.endswith("%")
    if not re.fullmatch(r"[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d{1,2})?", plain.rstrip("%").strip(), re.I):
        return None
    return float(plain.rstrip("%")) / (100 if share else 1)
