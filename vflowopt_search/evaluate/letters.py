"""The letter of the option that an answer names, whatever it is wrapped in."""

from __future__ import annotations

import re

_MARKUP = re.compile(r"\\(?:boxed|text\w*|mathrm|mathbf)\b|[*_\"`$\[\]{}]")
_JOINT = r",|/|&|\bor\b|\band\b|\bvs\b\.?|\bversus\b"
_JOINING = rf"\s*(?:(?:{_JOINT})\s*)+"  # each blank in one way only: `A, , , ,` takes no time
_GOES_ON = frozenset(
    {"is", "was", "and", "or", "vs", "versus", "because", "since", "as"}
    | {"seems", "looks", "must", "should", "fits"}
)
"""Words that may follow a letter which is an option, and no word of its own."""
_TOGETHER = frozenset(("are", "were", "both", "all", "could", "can", "may", "might", "would"))
"""Words that may follow the last of several options, `A` and `I` too."""
_WRONG = r"\s+(?:is|was|are)(?:n't|\s+not\b|\s+(?:wrong|incorrect|false)\b)"
_ALL_WRONG = r"\)?\s+(?:are|were)(?:n't|\s+not\b|\s+(?:both\s+|all\s+)?(?:wrong|incorrect|false)\b)"
_NOT = re.compile(
    r"(?:\bnot|n't|\bnever|\bneither|\bnor|\bthan|\bexcept)(?:\s+\w+){0,2}\s*\(?$", re.I
)


def letter_named(text: str, letters: str) -> str | None:
    """The one letter that an answer chooses; None where it chooses none, or several.

    `B`, `(b)`, `**B**`, `B. words`, `Answer: B`, `the answer is (B)`, `... option B`, one letter
    that stands alone, or on the first line, with an explanation below; every letter is read as
    every other, though A and I are words too. In a sentence `a` and `i` are never letters.

    Args:
        text: the answer.
        letters: those of the options, in capitals.
    """
    lines = [" ".join(line.split()) for line in _MARKUP.sub("", text).splitlines()]
    lines = [line for line in lines if re.search(r"\w", line)]
    one = f"[{letters}{letters.lower()}]"
    lone = [re.fullmatch(rf"\W*({one})\W*", line) for line in lines]
    if lone and lone[0]:
        return _only({found[1].upper() for found in lone if found})
    plain = "\n".join(lines)
    if _is_list(plain, one):
        return _only({each.upper() for each in re.findall(rf"\b{one}\b", plain)})
    if not _begins_with_several(plain, letters):
        for pattern in (rf"\(({one})\)\s.*", rf"({one})[.):,]\s.*"):
            if found := re.fullmatch(pattern, plain, re.S):
                return found[1].upper()
    return _answered(plain, letters) or _alone(plain, letters)


def _either_case(letters: str) -> str:
    """The letters, and in lower case those which are no words."""
    return letters + "".join(each for each in letters.lower() if each not in "ai")


def _is_list(plain: str, one: str) -> bool:
    """Whether there is nothing but letters and what joins them."""
    before, *joints = re.split(rf"\b{one}\b", plain)
    parted = [re.subn(_JOINT, " ", joint, flags=re.I) for joint in joints[:-1]]
    others = " ".join([before, *(rest for rest, _ in parted), *joints[-1:]])
    return bool(parted) and all(count for _, count in parted) and not re.search(r"\w", others)


def _begins_with_several(plain: str, letters: str) -> bool:
    """Whether the first words are several letters, as in `A, B and C are correct`."""
    groups = _groups(plain, _either_case(letters))
    start = plain[: groups[0][0].start()] if groups else plain
    return len(groups) > 0 and len(groups[0]) > 1 and re.search(r"\w", start) is None


def _answered(plain: str, letters: str) -> str | None:
    """The letter behind the last `answer is`, `option` or `choice`; `a cat` names none."""
    letter = rf"(\([{letters}{letters.lower()}]\)|[{_either_case(letters)}])(?!\w)"
    said = rf"\b(?:[Aa]nswer|[Oo]ption|[Cc]hoice)(?:\s+is)?\s*:?\s*{letter}"
    places = [
        one
        for one in re.finditer(said, plain)
        if not _is_denied(plain, one) and (not one[1].islower() or _is_option(plain, one))
    ]
    if not places:
        return None
    last = places[-1]
    named = {last[1].strip("()").upper()}
    for one in places[:-1]:
        if re.fullmatch(_JOINING, plain[one.end() : last.start()]):
            named.add(one[1].strip("()").upper())
    behind = rf"{_JOINING}\(?([{_either_case(letters)}])(?![\w'])"
    if joined := re.match(behind, plain[last.end() :]):
        named.add(joined[1].upper())
    return _only(named)


def _alone(plain: str, letters: str) -> str | None:
    """The one letter that stands alone and is not denied."""
    groups = [
        group
        for group in _groups(plain, letters)
        if len(group) == 1 or not re.match(_ALL_WRONG, plain[group[-1].end() :])
    ]
    return _only({one[1] for group in groups for one in group if not _is_denied(plain, one)})


def _groups(plain: str, letters: str) -> list[list[re.Match[str]]]:
    """The options that stand alone; those which are joined, as in `A or B`, together."""
    groups: list[list[re.Match[str]]] = []
    for one in re.finditer(rf"(?<![\w'])([{letters}])(?![\w'])", plain):
        joint = plain[groups[-1][-1].end() : one.start()] if groups else ""
        if re.fullmatch(rf"\)?{_JOINING}\(?", joint) and _goes_with(plain, one, joint):
            groups[-1].append(one)
        elif _is_option(plain, one):
            groups.append([one])
    return groups


def _goes_with(plain: str, found: re.Match[str], joint: str) -> bool:
    """Whether a letter that is joined to an option is one too; `B, I think` and `B, a cat` not."""
    if re.match(r"-\w|\.\w\.", plain[found.end() :]):  # a T-shirt, the U.S.
        return False
    if found[1] not in "AI" or _is_option(plain, found):
        return True
    follows = re.match(r" (\w+)", plain[found.end() :])
    together = follows is not None and follows[1].lower() in _TOGETHER
    return together and not (found[1] == "I" and joint.strip() == ",")


def _is_option(plain: str, found: re.Match[str]) -> bool:
    """Whether a letter is no word of the sentence, as in `A cat` and `I think`."""
    if found[1].islower() and re.match(r"[-'\u2019]\w", plain[found.end() :]):
        return False
    follows = re.match(r" (\w+)", plain[found.end() :])
    return follows is None or len(follows[1]) == 1 or follows[1].lower() in _GOES_ON


def _is_denied(plain: str, found: re.Match[str]) -> bool:
    """Whether it is said not to be this one."""
    before, behind = plain[: found.start(1)], plain[found.end() :]
    return _NOT.search(before) is not None or re.match(_WRONG, behind) is not None


def _only(named: set[str]) -> str | None:
    return named.pop() if len(named) == 1 else None
