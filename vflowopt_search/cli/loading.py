"""What the commands load models by; it lives in `model_source`, which hosts use too."""

from __future__ import annotations

from vflowopt_search.model_source import SHIPPED, ModelSource, load, load_model, load_processor

__all__ = ["SHIPPED", "ModelSource", "load", "load_model", "load_processor"]
