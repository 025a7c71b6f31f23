"""`apply` on every kind of prompt: no image, several, extreme sizes, videos, a system prompt."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from tests.command import World, make_world, run
from vflowopt_search.calibration.samples import Mark, Turn, Video
from vflowopt_search.cli import apply
from vflowopt_search.cli.apply import asked
from vflowopt_search.errors import CalibrationError
from vflowopt_search.resources import studies_folder
from vflowopt_search.strategy import Importance, Stage, Strategy


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    made = make_world(tmp_path_factory.mktemp("world"))
    stages = (Stage(layer=1, keep_ratio=0.5),)
    strategy = Strategy(name="half", importance=Importance(score="uniform"), stages=stages)
    strategy.save(made.model.with_name("half.json"))
    return made


def command(world: World, *more: str | Path) -> list[str | Path]:
    question: list[str | Path] = ["--prompt", "how many objects", "--max-new-tokens", "2"]
    return ["apply", world.model.with_name("half.json"), "--model", world.model, *question, *more]


def told(world: World, *more: str | Path) -> dict[str, Any]:
    answer: dict[str, Any] = json.loads(run(*command(world, *more), "--json").stdout)
    return answer


def test_a_prompt_without_an_image_runs_and_says_so(world: World) -> None:
    answer = told(world)
    assert answer["unpruned"]["tokens_per_layer"] == answer["pruned"]["tokens_per_layer"] == []
    assert answer["unpruned"]["text"] == answer["pruned"]["text"]
    assert run(*command(world)).stdout.count("no visual tokens, nothing to prune") == 2


def test_an_answer_without_words_is_said_to_be_empty(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    silent = apply.Answer("", 0.5, [])
    monkeypatch.setattr(apply, "answers", lambda *_: (silent, silent))
    assert run(*command(world)).stdout.count("(empty)") == 2
    assert told(world)["pruned"]["text"] == ""


def test_the_shipped_model_has_a_question_of_its_own(tmp_path: Path) -> None:
    """As the example says, once the quickstart is there."""
    run_folder = tmp_path / "quickstart"
    run_folder.mkdir()
    shutil.copy(studies_folder() / "quickstart" / "strategy.json", run_folder)
    result = run("apply", run_folder, "--max-new-tokens", "4")
    assert result.exit_code == 0, result.stderr
    first, *lines = result.stdout.splitlines()
    assert "(right: " in first
    right = first.partition("(right: ")[2].removesuffix(")")
    [whole] = [line.split() for line in lines if line.startswith("unpruned")]
    assert whole[1] == right
    told = json.loads(run("apply", run_folder, "--max-new-tokens", "4", "--json").stdout)
    assert told["right"] == told["unpruned"]["text"] == right and told["prompt"] in first
    assert 0 < sum(told["pruned"]["tokens_per_layer"]) < sum(told["unpruned"]["tokens_per_layer"])


@pytest.mark.parametrize("more", [[], ["--image", "0.png"]])
def test_other_models_and_pictures_need_a_question(more: list[str], world: World) -> None:
    files = [str(world.image) if word == "0.png" else word for word in more]
    model = "testbed" if more else world.model
    result = run("apply", world.model.with_name("half.json"), "--model", model, *files)
    assert result.exit_code == 2
    assert "nothing is asked; only the bundled model" in " ".join(
        result.stderr.replace("│", " ").split()
    )


def test_several_images(world: World) -> None:
    answer = told(world, "--image", world.image, "--image", world.image)
    assert answer["unpruned"]["tokens_per_layer"] == [32] * 6
    assert answer["pruned"]["tokens_per_layer"] == [32] + [16] * 5


@pytest.mark.parametrize("size", [(1, 1), (1, 2000), (4000, 30)])
def test_images_of_extreme_sizes(size: tuple[int, int], world: World, tmp_path: Path) -> None:
    Image.new("LA", size).save(tmp_path / "a.png")
    answer = told(world, "--image", tmp_path / "a.png")
    assert answer["pruned"]["tokens_per_layer"] == [16] + [8] * 5


def test_videos_and_the_system_prompt_reach_the_model(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: list[Any] = []
    whole = apply.Answer("words", 0.5, [])

    def answers(loaded: Any, strategy: Strategy, sample: Any, tokens: int) -> Any:
        given.append(sample)
        return whole, whole

    monkeypatch.setattr(apply, "answers", answers)
    for number in range(5):
        Image.new("RGB", (8, 6)).save(tmp_path / f"{number}.png")
    told(world, "--video", tmp_path, "--frames", "3", "--system", "be kind")
    (sample,) = given
    assert [len(video.frames) for video in sample.videos] == [3]
    assert sample.turns[0] == Turn("system", ("be kind",))
    assert sample.turns[1] == Turn("user", (Mark.VIDEO, "how many objects"))


def test_marks_say_where_images_belong() -> None:
    one, two = Image.new("RGB", (1, 1)), Image.new("RGB", (2, 2))
    assert asked("which?", (one, two)).turns == ()
    assert asked("<image> or <image>?", (one,)).turns == ()
    inside = asked("is <image> in <video>?", (one,), (Video((two,)),))
    parts = ("is ", Mark.IMAGE, " in ", Mark.VIDEO, "?")
    assert inside.turns == (Turn("user", parts),)
    assert inside.prompt == "is  in ?"
    with pytest.raises(CalibrationError, match="the prompt '<image>' has no words; ask something"):
        asked("<image>", (one,))


@pytest.mark.parametrize(
    ("prompt", "sentence"),
    [
        ("is it in <video>?", "says where videos belong but no --video is given; give one, or"),
        ("<image>\nwhich?", "says where images belong but no --image is given; give one, or"),
    ],
)
def test_marks_for_what_is_not_given_are_refused(prompt: str, sentence: str) -> None:
    given = Image.new("RGB", (1, 1))
    images, videos = ((given,), ()) if "video" in prompt else ((), (Video((given,)),))
    with pytest.raises(CalibrationError, match=sentence):
        asked(prompt, images, videos)


@pytest.mark.parametrize(
    ("more", "sentence"),
    [
        (["--frames", "3", "--fps", "2"], "3 frames and 2 frames per second were both asked for"),
        (["--video", "none.mp4"], "none.mp4 is no readable video (No such file or directory)"),
        (["--image", "none.png"], "none.png is no readable image (No such file or directory)"),
    ],
)
def test_what_cannot_be_read_is_one_sentence(
    more: list[str], sentence: str, world: World, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    result = run(*command(world, *more))
    assert result.exit_code == 1
    assert sentence in result.stderr
    assert result.stderr.count("\n") == 1


def test_a_model_without_videos_refuses_one(world: World) -> None:
    result = run(*command(world, "--video", world.image.parent))
    assert result.exit_code == 1
    assert "LlavaProcessor has no video processor here" in result.stderr


@pytest.mark.parametrize(("option", "value"), [("--frames", "3"), ("--fps", "2")])
def test_frames_of_no_video_are_wrong_usage(world: World, option: str, value: str) -> None:
    result = run(*command(world, option, value))
    assert result.exit_code == 2
    told = " ".join(result.stderr.replace("│", " ").split())
    assert f"{option}: it chooses frames of a video but no --video is given; give one, or" in told
