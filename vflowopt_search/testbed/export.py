"""Write a trained model as an ordinary Hugging Face folder, with the hash of its weights."""

from __future__ import annotations

import copy
import shutil
import tempfile
from pathlib import Path

from transformers import LlavaOnevisionForConditionalGeneration

from vflowopt_search.testbed.integrity import HASH_FILE, WEIGHTS_FILE, file_sha256
from vflowopt_search.testbed.processor import save_processor


def export_weights(model: LlavaOnevisionForConditionalGeneration, folder: Path) -> None:
    """Write model (float16), processor and SHA256 file into `folder`, file by file.

    The files are first written beside it, so that a crash leaves the older ones whole.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent) as name:
        written = Path(name)
        half = copy.deepcopy(model).half()  # type: ignore[no-untyped-call]
        half.save_pretrained(written)
        save_processor(written)
        digest = file_sha256(written / WEIGHTS_FILE)
        (written / HASH_FILE).write_text(f"{digest}  {WEIGHTS_FILE}\n", encoding="utf-8")
        for file in sorted(written.iterdir()):
            file.chmod(0o644)  # safetensors writes for the owner alone
            shutil.move(file, folder / file.name)
