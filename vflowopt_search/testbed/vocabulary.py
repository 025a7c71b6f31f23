"""The words of the testbed's language, and how a prompt is put together from them."""

from __future__ import annotations

from vflowopt_search.testbed.scenes import COLOURS, SHAPES

PAD, UNKNOWN, EOS = "<pad>", "<unk>", "<eos>"
IMAGE, VIDEO = "<image>", "<video>"
USER, ASSISTANT = "<user>", "<assistant>"
SPECIAL_TOKENS = (PAD, UNKNOWN, EOS, IMAGE, VIDEO, USER, ASSISTANT)

# fmt: off
_QUESTION_WORDS = (
    "what", "digit", "is", "on", "the", "object", "with", "colour", "shape", "which", "leftmost",
    "topmost", "how", "many", "objects", "are", "there", "a", "?", "yes", "no",
)
# fmt: on

VOCABULARY: dict[str, int] = {
    word: index
    for index, word in enumerate(
        dict.fromkeys((*SPECIAL_TOKENS, *map(str, range(10)), *COLOURS, *SHAPES, *_QUESTION_WORDS))
    )
}

CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<user>' if message['role'] == 'user' else '<assistant>' }}"
    "{% if message['content'] is string %}{{ ' ' + message['content'] }}"
    "{% else %}{% for part in message['content'] %}"
    "{{ '<image>' if part['type'] == 'image' else ' ' + part['text'] }}"
    "{% endfor %}{% endif %}"
    "{% if message['role'] == 'assistant' %}{{ ' <eos>' }}{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ ' <assistant>' }}{% endif %}"
)


def word_ids(text: str) -> list[int]:
    """Token ids of lower-case words parted by spaces."""
    return [VOCABULARY.get(word, VOCABULARY[UNKNOWN]) for word in text.split()]
