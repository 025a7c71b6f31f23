"""Image-text models of transformers that cannot be pruned this way, and why."""

from __future__ import annotations

_ENCODER_DECODER = "it is an encoder-decoder: image tokens are no part of the decoder's sequence"
_CROSS_ATTENTION = "its decoder sees images by cross-attention: they are no part of its sequence"
_RECURRENT = (
    "its linear-attention layers carry a state that each token changes, so that a token's "
    "removal is not the same as its being unseen"
)
_CONVOLUTION = (
    "convolutions in its decoder mix each token with those just before it, so that a token's "
    "removal is not the same as its being unseen"
)
_THINKER = "it is several models: prune the one that sees and answers, its `thinker`"
_Q_FORMER = (
    "a Q-Former has summed up each image in a few tokens (32 by default), which lie nowhere on it"
)
_INSIDE = (
    "its text model puts image features at places of the unpruned sequence and adds positions "
    "to them itself"
)

UNSUPPORTED: dict[str, str] = {
    "blip": _CROSS_ATTENTION,
    "blip-2": _Q_FORMER,
    "chameleon": (
        "the module that turns images into codes of the vocabulary is the decoder itself: there is "
        "no place between, where tokens could be taken out"
    ),
    "diffusion_gemma": "it writes a block of tokens at once, by diffusion",
    "ernie4_5_vl_moe": (
        "its layers choose experts by a list of token types as long as the unpruned prompt"
    ),
    "evolla": "it reads proteins, not images, and by cross-attention",
    "florence2": _ENCODER_DECODER,
    "fuyu": "it has no vision encoder: patches of pixels enter the decoder as they are",
    "gemma3n": (
        "each of its decoder layers is given embeddings of its own for every token of the unpruned "
        "prompt, and layers share keys"
    ),
    "git": "it puts images before the text itself: the prompt has no placeholders of their tokens",
    "glm5_next": _RECURRENT,
    "granite4_vision": (
        "its decoder adds image features before many of its layers, at places of the unpruned "
        "sequence"
    ),
    "idefics": _CROSS_ATTENTION,
    "inkling2": _CONVOLUTION,
    "inkling_mm_model": _CONVOLUTION,
    "instructblip": _Q_FORMER,
    "instructblipvideo": _Q_FORMER,
    "kosmos-2": _INSIDE,
    "kosmos-2.5": _INSIDE,
    "lfm2_vl": _CONVOLUTION,
    "lfm3_vl": _CONVOLUTION,
    "minicpm_ocr": _RECURRENT,
    "minicpmv4_6": _RECURRENT,
    "minicpmv4_7": _RECURRENT,
    "minimax_m3_vl": (
        "its sparse attention compares position ids with places in the cache, from which removed "
        "tokens are missing"
    ),
    "mistral4": "it is a text decoder and sees no images (a mistral3 model may hold it)",
    "mistral_large4": (
        "its sparse attention hands the keys it picked, by their places, from layer to layer"
    ),
    "mllama": _CROSS_ATTENTION,
    "nemotron_h_omni": "its Mamba layers carry a state that each token changes",
    "pi0": "it answers with movements of a robot, not with text",
    "pix2struct": _ENCODER_DECODER,
    "pp_formulanet": _ENCODER_DECODER,
    "qwen2_5_omni": _THINKER,
    "qwen3_5": _RECURRENT,
    "qwen3_5_moe": _RECURRENT,
    "qwen3_omni_moe": _THINKER,
    "qwen4_exp": _RECURRENT,
    "t5gemma2": _ENCODER_DECODER,
    "udop": _ENCODER_DECODER,
    "unlimited_ocr": (
        "transformers' table of masks has no entry for its reference_sliding_attention"
    ),
    "vision-encoder-decoder": _ENCODER_DECODER,
}
"""`config.model_type` to the reason, a clause."""
