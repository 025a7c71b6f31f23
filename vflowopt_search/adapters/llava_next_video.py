"""LLaVA-NeXT-Video: images as LLaVA-NeXT; the patches of a video's frames are pooled.

Shape suffixes: T = frames, P = patches of a frame.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor
from torch.nn.functional import avg_pool2d

from vflowopt_search.adapters.base import ALL_SCORES, Family
from vflowopt_search.adapters.llava import pixels_of, refuse_other_selection
from vflowopt_search.adapters.llava_next import LlavaNextAdapter, frames
from vflowopt_search.importance.signals import ImageGeometry


class LlavaNextVideoAdapter(LlavaNextAdapter):
    """`llava_next_video`: any-resolution images and videos."""

    family = Family(
        model_type="llava_next_video",
        inputs=("image (any resolution)", "several images", "video"),
        positions=("original", "packed"),
        scores=ALL_SCORES,
        limits="none known",
    )

    @property
    def video_token_id(self) -> int:
        """Token id of the placeholder of one visual token of a video."""
        return int(self.config.video_token_id)

    def videos(self, call: Mapping[str, Any]) -> tuple[ImageGeometry, ...]:
        """One tile per frame; a token's value is the mean of the patches that it was pooled of.

        So it is too where the features are pooled by their maximum or by a learned kernel, which
        have no like for a map of importance.
        """
        refuse_other_selection(self.config, call)
        pixels = pixels_of(call, "pixel_values_videos", "pixel_values")
        count, num_frames = pixels.shape[:2]
        side, stride = self.side, int(self.config.spatial_pool_stride)

        def pack(map_TP: Tensor) -> Tensor:
            return avg_pool2d(map_TP.reshape(-1, 1, side, side), stride).flatten()

        grid = frames(num_frames, side // stride, pixels.device)
        return (ImageGeometry(num_frames, side**2, grid, pack),) * count
