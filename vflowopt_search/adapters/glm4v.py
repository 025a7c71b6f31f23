"""GLM-4.1V, GLM-4.5V (with experts), GLM-4.6V, and what is built as they are."""

from __future__ import annotations

from vflowopt_search.adapters.base import ALL_SCORES, Family
from vflowopt_search.adapters.merged_patches import MergedPatchesAdapter

INPUTS = ("image (any resolution)", "several images", "video")
POSITIONS = ("original",)
LIMITS = "3-D positions cannot be packed; a batch holds images or videos, not both"


class Glm4vAdapter(MergedPatchesAdapter):
    """`glm4v`: a video's tokens are image placeholders between marks of its beginning and end.

    transformers itself takes images or videos in one batch, not both.
    """

    family = Family("glm4v", INPUTS, POSITIONS, ALL_SCORES, LIMITS)

    @property
    def video_token_id(self) -> int | None:
        """The image placeholder: the config's video token never reaches the model."""
        return self.image_token_id


class Glm4vMoeAdapter(Glm4vAdapter):
    """`glm4v_moe`: `glm4v` whose decoder layers hold experts."""

    family = Family("glm4v_moe", INPUTS, POSITIONS, ALL_SCORES, LIMITS)


class Glm46VAdapter(Glm4vAdapter):
    """`glm46v`: built as `glm4v`."""

    family = Family("glm46v", INPUTS, POSITIONS, ALL_SCORES, LIMITS)


class GlmOcrAdapter(Glm4vAdapter):
    """`glm_ocr`: a small `glm4v`, whose vision attention has norms of its own."""

    family = Family("glm_ocr", INPUTS, POSITIONS, ALL_SCORES, LIMITS)


class GlmgaAdapter(Glm4vAdapter):
    """`glmga`: run by the classes of `glm46v`."""

    family = Family("glmga", INPUTS, POSITIONS, ALL_SCORES, LIMITS)
