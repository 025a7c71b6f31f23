"""Write a task for lmms-eval: the shipped model's held-out questions, as data and as YAML.

Two tasks: `vflowopt_testbed` asks for words, `vflowopt_testbed_choice` for the likelihood of yes
and of no.

Example: python examples/lmms_eval/make_task.py build/lmms_eval --questions 300
    lmms-eval --model vflowopt --model_args pretrained=testbed,strategy=strategy.json
        --include_path build/lmms_eval --tasks vflowopt_testbed --batch_size 16
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import yaml

from vflowopt_search.testbed.data import evaluation_dataset

TASK, CHOICE_TASK = "vflowopt_testbed", "vflowopt_testbed_choice"
CHOICES = ["yes", "no"]


def write_tasks(folder: Path, num_questions: int, seed: int = 0) -> None:
    """The data as Parquet, images inside, and a YAML file for each task that reads them."""
    folder.mkdir(parents=True, exist_ok=True)
    questions = evaluation_dataset(num_questions, seed)
    closed = questions.filter(lambda row: row["answer"] in CHOICES)
    closed = closed.map(lambda row: {"right": CHOICES.index(row["answer"])})
    words = {
        "output_type": "generate_until",
        "doc_to_target": "answer",
        "generation_kwargs": {"max_new_tokens": 8, "temperature": 0, "do_sample": False},
        "metric_list": [_metric("exact_match", ignore_case=True, ignore_punctuation=True)],
    }
    choice = {
        "output_type": "multiple_choice",
        "doc_to_target": "right",
        "doc_to_choice": CHOICES,
        "metric_list": [_metric("acc")],
    }
    for task, data, settings in ((TASK, questions, words), (CHOICE_TASK, closed, choice)):
        file = (folder / f"{task}.parquet").resolve()
        data.to_parquet(file)
        content: dict[str, Any] = {
            "task": task,
            "dataset_path": "parquet",
            "dataset_kwargs": {"data_files": {"test": str(file)}},
            "test_split": "test",
            "doc_to_visual": "image",
            "doc_to_text": "question",
            **settings,
            "metadata": [{"version": 1}],
        }
        text = yaml.safe_dump(content, sort_keys=False)
        (folder / f"{task}.yaml").write_text(text, encoding="utf-8")


def _metric(name: str, **settings: bool) -> dict[str, Any]:
    return {"metric": name, "aggregation": "mean", "higher_is_better": True, **settings}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--questions", type=int, default=300)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    write_tasks(given.folder, given.questions, given.seed)
