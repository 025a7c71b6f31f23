"""A search as the command that makes it again, every choice said."""

from __future__ import annotations

import shlex

from vflowopt_search.cli.job import Job
from vflowopt_search.database_url import without_password
from vflowopt_search.model_source import SHIPPED


def command_of(job: Job) -> str:
    """The command line of a job, without passwords; defaults are said too, for they may change."""
    recipe, data, source = job.recipe, job.data, job.source
    columns = ",".join(f"{ours}={theirs}" for ours, theirs in data.columns.items())
    # a number of samples, once said, is searched on without holding half of them out
    halves = job.halve and recipe.calibration != SHIPPED
    said = {
        "--calibration": recipe.calibration,
        "--split": data.split,
        "--columns": columns or None,
        "--prompt": data.prompt,
        "--turns": None if data.turns == "first" else data.turns,
        "--frames": data.frames,
        "--fps": data.fps,
        "--samples": None if halves else recipe.samples,
        "--space": recipe.space,
        "--retain": recipe.retain,
        "--trials": recipe.trials,
        "--seed": recipe.seed,
        "--metric": recipe.metric,
        "--sampler": None if job.sampler == "tpe" else job.sampler,
        "--batch-size": job.batch_size,
        "--trials-per-batch": None if job.trials_per_batch == 1 else job.trials_per_batch,
        "--workers": None if job.workers == 1 else job.workers,
        "--devices": ",".join(job.devices) or None,
        "--device": None if job.devices or source.device == "auto" else source.device,
        "--dtype": None if source.dtype == "auto" else source.dtype,
        "--random-init": source.random_init,
        "--storage": None if job.storage is None else without_password(job.storage),
        "--output": job.output,
    }
    words = ["vflowopt-search", "search", recipe.model]
    for option, value in said.items():
        words += [] if value is None else [option, str(value)]
    words += [] if job.racing else ["--no-racing"]
    words += [] if job.held_out else ["--no-held-out"]
    words += [] if job.accuracy else ["--no-accuracy"]
    words += [] if job.self_check else ["--no-self-check"]
    words += ["--trust-remote-code"] if source.trust_remote_code else []
    return shlex.join(words)
