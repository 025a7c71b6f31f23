"""A chat as text: every image where the chat has it, whatever the template does by itself."""

from __future__ import annotations

from typing import Any

import pytest
from PIL import Image

from tests.tiny import CHAT_TEMPLATE, VOCABULARY, tiny_processor
from vflowopt_search.calibration.encoding import encode
from vflowopt_search.calibration.prompts import prompt_text
from vflowopt_search.calibration.samples import Mark, Sample, Turn, Video
from vflowopt_search.errors import ModelError

IMAGE, VIDEO = Mark.IMAGE, Mark.VIDEO
# images, then words, as the checkpoints of LLaVA and LLaVA-OneVision have it
IMAGES_FIRST = (
    "{% for message in messages %}{{ '[' + message['role'] + '] ' }}"
    "{% for part in message['content'] | selectattr('type', 'equalto', 'image') %}"
    "{{ '<image> ' }}{% endfor %}"
    "{% for part in message['content'] | selectattr('type', 'equalto', 'text') %}"
    "{{ part['text'] }}{% endfor %}{{ ' ' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '[assistant]' }}{% endif %}"
)
TURNS = (
    Turn("system", ("be kind",)),
    Turn("user", ("is ", IMAGE, " like ", IMAGE, "?")),
    Turn("assistant", ("no",)),
    Turn("user", (IMAGE, "and this?")),
)


def chat(*turns: Turn, num_images: int = 0, num_videos: int = 0) -> Sample:
    pictures = tuple(Image.new("RGB", (9, 9), (number, 0, 0)) for number in range(num_images))
    videos = (Video((Image.new("RGB", (9, 9)),)),) * num_videos
    return Sample("s", "words", pictures, turns=turns, videos=videos)


def processor(template: str | None) -> Any:
    made: Any = tiny_processor("llava")
    made.chat_template = template
    return made


def test_a_template_that_keeps_places() -> None:
    assert prompt_text(processor(CHAT_TEMPLATE), chat(*TURNS, num_images=3)) == (
        "ASSISTANT:  be kind USER:  is <image>  like <image> ? ASSISTANT:  no "
        "USER: <image> and this? ASSISTANT:"
    )


def test_a_template_that_moves_images_to_the_front() -> None:
    # the turn that needs no help stays as the template has it
    assert prompt_text(processor(IMAGES_FIRST), chat(*TURNS, num_images=3)) == (
        "[system] be kind [user] is <image> like <image>? [assistant] no "
        "[user] <image> and this? [assistant]"
    )
    no_token: Any = processor(IMAGES_FIRST)
    del no_token.image_token
    with pytest.raises(ModelError, match="neither a chat template that keeps places nor an image"):
        prompt_text(no_token, chat(*TURNS, num_images=3))


def test_without_a_template() -> None:
    assert prompt_text(processor(None), chat(*TURNS, num_images=3)) == (
        "be kind\nis <image> like <image>?\nno\n<image>and this?"
    )


@pytest.mark.parametrize("template", [CHAT_TEMPLATE, IMAGES_FIRST, None])
def test_tokens_stand_where_the_chat_has_images(template: str | None) -> None:
    one = chat(Turn("user", ("red ", IMAGE, " blue ", IMAGE, " green")), num_images=2)
    ids = encode(processor(template), [one])["input_ids"][0].tolist()
    places = [ids.index(VOCABULARY[word]) for word in ("red", "blue", "green")]
    image = VOCABULARY["<image>"]
    assert ids[places[0] : places[1]].count(image) == 16
    assert ids[places[1] : places[2]].count(image) == 16
    assert ids.count(image) == 32


def test_a_video_has_its_own_place() -> None:
    template = CHAT_TEMPLATE.replace(
        "'<image>' if", "part['type'] if part['type'] == 'video' else '<image>' if"
    )
    made = processor(template)
    both = chat(Turn("user", ("a ", VIDEO, " b ", IMAGE)), num_images=1, num_videos=1)
    assert prompt_text(made, both) == "USER:  a video  b <image> ASSISTANT:"
    made.chat_template = IMAGES_FIRST
    with pytest.raises(ModelError, match="keeps places nor a video token"):
        prompt_text(made, both)
    with pytest.raises(ModelError, match="leaves videos out; give the processor a template"):
        prompt_text(made, chat(Turn("user", (VIDEO, "b")), num_videos=1))


def test_a_template_that_refuses_a_role() -> None:
    strict = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system') }}{% endif %}"
    with pytest.raises(ModelError, match=r"refuses a chat of the roles system, user, .* \(no sys"):
        prompt_text(processor(strict + CHAT_TEMPLATE), chat(*TURNS, num_images=3))
