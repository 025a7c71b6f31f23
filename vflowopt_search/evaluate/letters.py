"""The letter of the option that an answer names, whatever it is wrapped in."""

from __future__ import annotations

import re

_MARKUP = re.compile(r"\\(?:boxed|text\w*|mathrm|mathbf)\b|[*_\"`$\[\]{}]")
_JOINING = r"(?:\s*(?:,|/|&|\bor\b|\band\b)\s*)+"
_GOES_ON = frozenset(
    ("is", "was", "and", "or", "because", "since", "as", "seems", "looks", "must", "should", "fits")
)
"""Words that may follow a letter which is an option, and no word of its own."""
_WRONG = r"\s+(?:is|was|are)(?:n't|\s+not\b|\s+(?:wrong|incorrect|false)\b)"
_NOT = re.compile(
    r"(?:\bnot|n't|\bnever|\bneither|\bnor|\bthan|\bexcept)(?:\s+\w+){0,2}\s*\(?$", re.I
)


def letter_named(text: str, letters: str) -> str | None:
    """The one letter that an answer chooses; None where it chooses none, or several.

    `B`, `(b)`, `**B**`, `B. words`, `Answer: B`, `the answer is (B)`, `... option B`, or one
    letter that stands alone; every letter is read as every other, though A and I are words too.

    Args:
        text: the answer.
        letters: those of the options, in capitals.
    """
    plain = " ".join(_MARKUP.sub("", text).split())
    one = f"[{letters}{letters.lower()}]"
    if found := re.fullmatch(rf"\W*({one})\W*", plain):
        return found[1].upper()
    if re.fullmatch(rf"\W*{one}\W*(?:{_JOINING}\W*{one}\W*)+", plain, re.I):
        return _only({each.upper() for each in re.findall(rf"\b{one}\b", plain)})
    for pattern in (rf"\(({one})\)\s.*", rf"({one})[.):,]\s.*"):
        if found := re.fullmatch(pattern, plain):
            return found[1].upper()
    return _answered(plain, letters) or _alone(plain, letters)


def _answered(plain: str, letters: str) -> str | None:
    """The letter behind the last `answer is`, `option` or `choice`; `a cat` names none."""
    letter = rf"(\([{letters}{letters.lower()}]\)|[{letters}])(?!\w)"
    said = rf"\b(?:[Aa]nswer|[Oo]ption|[Cc]hoice)(?:\s+is)?\s*:?\s*{letter}"
    places = [one for one in re.finditer(said, plain) if not _is_denied(plain, one)]
    if not places:
        return None
    last = places[-1]
    named = {last[1].strip("()").upper()}
    for one in places[:-1]:
        if re.fullmatch(_JOINING, plain[one.end() : last.start()]):
            named.add(one[1].strip("()").upper())
    if joined := re.match(rf"{_JOINING}\(?([{letters}])(?![\w'])", plain[last.end() :]):
        named.add(joined[1])
    return _only(named)


def _alone(plain: str, letters: str) -> str | None:
    """The one letter that stands alone and is not denied."""
    alone = re.finditer(rf"(?<![\w'])([{letters}])(?![\w'])", plain)
    options = [one for one in alone if _is_option(plain, one)]
    return _only({one[1] for one in options if not _is_denied(plain, one)})


def _is_option(plain: str, found: re.Match[str]) -> bool:
    """Whether a letter is no word of the sentence, as in `A cat` and `I think`."""
    follows = re.match(r"\s+(\w+)", plain[found.end() :])
    return follows is None or len(follows[1]) == 1 or follows[1].lower() in _GOES_ON


def _is_denied(plain: str, found: re.Match[str]) -> bool:
    """Whether it is said not to be this one."""
    before, behind = plain[: found.start(1)], plain[found.end() :]
    return _NOT.search(before) is not None or re.match(_WRONG, behind) is not None


def _only(named: set[str]) -> str | None:
    return named.pop() if len(named) == 1 else None
