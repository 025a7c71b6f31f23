"""What the model gets right: whole, with the wrong image, and with visual tokens left out.

Shape suffixes: B = images, T = tiles, P = patches of a tile, D = width, V = visual tokens,
K = kept visual tokens, H = heads.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import LlavaOnevisionForConditionalGeneration, ProcessorMixin

from vflowopt_search.testbed.data import AskedScene
from vflowopt_search.testbed.questions import Question
from vflowopt_search.testbed.scenes import COLOURS, SHAPES
from vflowopt_search.testbed.vocabulary import ASSISTANT, EOS, USER, VOCABULARY, word_ids

LlavaModel = LlavaOnevisionForConditionalGeneration
Keeper = Callable[[Tensor, int], Tensor]
"""Pixels of one image (T, C, H, W) and the number to keep -> kept visual tokens, ascending."""


def prompt_of(processor: ProcessorMixin, question: str) -> str:
    """The chat prompt of a question about one image."""
    content = [{"type": "image"}, {"type": "text", "text": question}]
    chat: Any = [{"role": "user", "content": content}]
    prompt: str = processor.apply_chat_template(chat, add_generation_prompt=True)
    return prompt


@torch.inference_mode()
def generated_right(
    model: LlavaModel, processor: ProcessorMixin, scenes: Sequence[AskedScene], shift: int = 0
) -> list[bool]:
    """Which questions `generate` answers exactly; `shift` shows the image so many scenes later."""
    right: list[bool] = []
    for number, asked in enumerate(scenes):
        image = scenes[(number + shift) % len(scenes)].image
        inputs = processor(
            images=[image] * len(asked.questions),
            text=[prompt_of(processor, q.text) for q in asked.questions],
            padding=True,
            return_tensors="pt",
        )
        answers = processor.tokenizer.batch_decode(
            _generated_ids(model, inputs), skip_special_tokens=True
        )
        right += [a == q.answer for a, q in zip(answers, asked.questions, strict=True)]
    return right


def _generated_ids(model: Any, inputs: Any) -> Tensor:
    ids: Tensor = model.generate(**inputs)
    return ids[:, inputs["input_ids"].shape[1] :]


@torch.inference_mode()
def pruned_right(
    model: LlavaModel,
    processor: ProcessorMixin,
    scenes: Sequence[AskedScene],
    keep: float,
    keeper: Keeper,
) -> list[bool]:
    """Which questions are answered exactly when only some visual tokens enter the model.

    Survivors keep their positions. One forward over question and answer decides: greedy decoding
    gives the answer exactly when every token of it, and the end, is the likeliest.
    """
    right: list[bool] = []
    for asked in scenes:
        encoded = processor.image_processor([asked.image], return_tensors="pt")
        features = model.model.get_image_features(encoded["pixel_values"], encoded["image_sizes"])
        visual_VD = features.pooler_output[0]
        num_kept = max(1, round(keep * len(visual_VD)))
        kept_K = keeper(encoded["pixel_values"][0], num_kept)
        right += _answered_right(model, visual_VD, kept_K, asked.questions)
    return right


def _answered_right(
    model: LlavaModel, visual_VD: Tensor, kept_K: Tensor, questions: Sequence[Question]
) -> list[bool]:
    num_visual, num_kept = len(visual_VD), len(kept_K)
    texts = [_text_ids(q) for q in questions]
    ids = pad_sequence(texts, batch_first=True)
    embed = model.get_input_embeddings()
    user = embed(torch.full((len(ids), 1), VOCABULARY[USER]))
    visual = visual_VD[kept_K].expand(len(ids), -1, -1)
    places = torch.cat([torch.zeros(1), 1 + kept_K, 1 + num_visual + torch.arange(ids.shape[1])])
    lengths = torch.tensor([1 + num_kept + len(text) for text in texts])
    hidden = model.model.language_model(
        inputs_embeds=torch.cat([user, visual, embed(ids)], dim=1),
        # An explicit mask: without one, gaps in the positions are read as packed sequences.
        attention_mask=(torch.arange(len(places)) < lengths[:, None]).long(),
        position_ids=places.long().expand(len(ids), -1),
        use_cache=False,
    ).last_hidden_state
    likeliest = model.lm_head(hidden[:, 1 + num_kept :]).argmax(-1)
    return [
        _ends_right(row[: len(text)], text, q)
        for row, text, q in zip(likeliest, texts, questions, strict=True)
    ]


def _text_ids(question: Question) -> Tensor:
    words = [*word_ids(question.text), VOCABULARY[ASSISTANT], *word_ids(question.answer)]
    return torch.tensor(words)


def _ends_right(likeliest: Tensor, text: Tensor, question: Question) -> bool:
    num_words = len(question.answer.split())
    wanted = [*text[-num_words:].tolist(), VOCABULARY[EOS]]
    return likeliest[-num_words - 1 :].tolist() == wanted


def random_keeper(seed: int, num_visual: int) -> Keeper:
    """Keep tokens at random, another choice for each image."""
    rng = np.random.default_rng(seed)

    def keep(pixels: Tensor, num_kept: int) -> Tensor:
        return torch.from_numpy(np.sort(rng.permutation(num_visual)[:num_kept]))

    return keep


def attention_keeper(model: LlavaModel) -> Keeper:
    """Keep the patches that receive most attention in the last vision layer; row ends go first."""

    def keep(pixels_TCHW: Tensor, num_kept: int) -> Tensor:
        scores_V = _in_sequence(received_attention(model, pixels_TCHW))
        return scores_V.topk(num_kept).indices.sort().values

    return keep


def received_attention(model: LlavaModel, pixels_TCHW: Tensor) -> Tensor:
    """Attention each patch receives in the last vision layer, mean over heads, shape (T, P)."""
    tower = model.model.vision_tower
    layer = tower.encoder.layers[-1]
    inputs: list[Tensor] = []
    hook = layer.layer_norm1.register_forward_hook(lambda _m, _a, output: inputs.append(output))
    try:
        tower(pixels_TCHW)
    finally:
        hook.remove()
    attention = layer.self_attn
    q_THPD, k_THPD = (
        project(inputs[0]).unflatten(-1, (attention.num_heads, -1)).transpose(1, 2)
        for project in (attention.q_proj, attention.k_proj)
    )
    weights = (q_THPD @ k_THPD.mT * attention.scale).softmax(-1)
    received_TP: Tensor = weights.mean(1).sum(1)
    return received_TP


def _in_sequence(scores_TP: Tensor) -> Tensor:
    """Scores of base tile and 2x2 tiles in the order of the visual tokens; row ends score -1."""
    side = int(scores_TP.shape[1] ** 0.5)
    grid = scores_TP[1:].view(2, 2, side, side).transpose(1, 2).reshape(2 * side, 2 * side)
    with_ends = torch.cat([grid, torch.full((2 * side, 1), -1.0)], dim=1)
    return torch.cat([scores_TP[0], with_ends.flatten()])


def blind_right(questions: Iterable[Question]) -> list[bool]:
    """Which questions the commonest answer to their template gets right.

    The commonest answer is taken from these same questions, so this flatters the baseline.
    """
    asked = [(_template(q.text), q.answer) for q in questions]
    counts = Counter(asked)
    best: dict[str, str] = {}
    for (template, answer), _ in reversed(counts.most_common()):
        best[template] = answer
    return [best[template] == answer for template, answer in asked]


def _template(text: str) -> str:
    slots = {**dict.fromkeys(COLOURS, "C"), **dict.fromkeys(SHAPES, "S")}
    return " ".join("0" if word.isdigit() else slots.get(word, word) for word in text.split())
