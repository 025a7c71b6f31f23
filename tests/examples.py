"""Values that several tests need."""

from __future__ import annotations

from vflowopt_search.strategy import (
    Budget,
    CalibrationIdentity,
    Importance,
    ModelIdentity,
    Objective,
    PixelScale,
    Provenance,
    Recycling,
    Stage,
    Strategy,
)

MODEL = ModelIdentity(model_type="toy", decoder_layers=8, vision_layers=6, hidden_size=128)
PIXELS = PixelScale(mean=(0.5, 0.4, 0.3), std=(0.2, 0.25, 0.26))


def full_strategy() -> Strategy:
    """A strategy that uses every field."""
    return Strategy(
        name="full",
        model=MODEL.model_copy(update={"name": "some/model", "config_sha256": "ab" * 32}),
        importance=Importance(
            vision_layer=4, context_threshold=12.5, entropy_weight=0.31, pixels=PIXELS, seed=3
        ),
        stages=(
            Stage(layer=0, keep_ratio=0.16),
            Stage(layer=3, keep_ratio=0.7, score="text_attention"),
        ),
        recycling=Recycling(cell=4.0),
        separators="keep",
        positions="packed",
        budget=Budget(mean_retained=0.1),
        provenance=Provenance(
            study="größer ≥ 0.1 ",
            trial=41,
            textbook="pyramid",
            objective=Objective(divergence=0.031, metric="last_token_cosine", held_out=0.04),
            calibration=CalibrationIdentity(name="c", samples=32, sha256="cd" * 32),
            versions={"torch": "2.13.0"},
            created="2026-01-02T03:04:05Z",
        ),
    )
