"""What lmms-eval's registry is told of us; loaded by lmms-eval alone."""

from __future__ import annotations

from lmms_eval.models.registry_v2 import ModelManifest

_HOME = "vflowopt_search.integrations.lmms_eval.model"

MANIFEST = ModelManifest(
    model_id="vflowopt",
    simple_class_path=f"{_HOME}.VFlowOpt",
    chat_class_path=f"{_HOME}.VFlowOptChat",
)
"""Two classes of one model: tasks that are messages, and with `--force_simple` all the others."""
