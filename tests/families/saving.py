"""A tiny family as a folder on disk, holding what a checkpoint of the hub holds."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tests.families import tiny

PARTS = ("image_processor", "tokenizer", "video_processor", "chat_template", "auto_map")


def save_family(folder: Path, name: str) -> Path:
    """Write the random model of the variant `name` and its processor into `folder`."""
    family = tiny(name)
    family.model().save_pretrained(folder)
    if family.processor is not None:
        save_processor(folder, family.processor())
    return folder


def save_processor(folder: Path, processor: Any) -> None:
    """Write the files from which a processor is loaded, with or without torchvision."""
    processor.tokenizer.save_pretrained(folder)
    image = processor.image_processor.to_dict()
    image["image_processor_type"] = image["image_processor_type"].removesuffix("Pil")
    image["processor_class"] = type(processor).__name__
    options = {key: value for key, value in processor.to_dict().items() if key not in PARTS}
    files = {
        "preprocessor_config.json": image,
        "processor_config.json": options,
        "chat_template.json": {"chat_template": processor.chat_template},
    }
    for name, content in files.items():
        if content != {"chat_template": None}:
            (folder / name).write_text(json.dumps(content, indent=2))
