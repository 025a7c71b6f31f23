"""`search`: the options of the main command; `run.py` does the work."""

from __future__ import annotations

from vflowopt_search.cli import options
from vflowopt_search.cli.job import (
    DataOptions,
    Job,
    parse_columns,
    parse_devices,
    resolve_output,
    resolve_recipe,
)
from vflowopt_search.model_source import ModelSource, folder_of


def search(
    model: options.Model = None,
    calibration: options.Calibration = None,
    split: options.Split = None,
    columns: options.Columns = None,
    prompt: options.Prompt = None,
    video_column: options.VideoColumn = None,
    turns: options.ReadTurns = options.Turns.first,
    frames: options.ReadFrames = None,
    fps: options.ReadFps = None,
    strict: options.Strict = False,
    samples: options.Samples = None,
    space: options.Space = None,
    retain: options.Retain = None,
    trials: options.Trials = None,
    seed: options.Seed = None,
    metric: options.Metric = None,
    sampler: options.Sampled = options.Sampler.tpe,
    racing: options.Racing = True,
    study: options.Study = None,
    device: options.Device = "auto",
    dtype: options.Dtype = options.DtypeName.auto,
    batch_size: options.BatchSize = None,
    trials_per_batch: options.TrialsPerBatch = 1,
    workers: options.Workers = None,
    devices: options.Devices = None,
    random_init: options.RandomInit = None,
    trust_remote_code: options.TrustRemoteCode = False,
    output: options.Output = None,
    storage: options.Storage = None,
    cache: options.Cache = None,
    cache_gb: options.CacheGb = None,
    held_out: options.HeldOut = True,
    accuracy: options.Accuracy = True,
    self_check: options.SelfCheck = True,
    as_json: options.Json = False,
) -> None:
    """Find which visual tokens a model can drop at an exact budget; writes the strategy.

    The same command resumes an interrupted search, and exits at once when all trials are done.

    Example: vflowopt-search search

    Example: vflowopt-search search ./my-model --calibration questions.jsonl
    """
    from vflowopt_search.cli.run import run

    if random_init is not None and model is None:
        model = folder_of(random_init)
    typed = {
        "model": model,
        "calibration": calibration,
        "space": space,
        "retain": retain,
        "trials": trials,
        "samples": samples,
        "seed": seed,
        "metric": None if metric is None else metric.value,
    }
    recipe, places = resolve_recipe(study, typed), parse_devices(devices, device)
    first = places[0] if places else device
    job = Job(
        recipe=recipe,
        source=ModelSource(recipe.model, first, dtype.value, trust_remote_code, random_init),
        data=DataOptions(
            split, parse_columns(columns, video_column), prompt, turns.value, frames, fps, strict
        ),
        output=resolve_output(output, study, model),
        storage=storage,
        batch_size=batch_size,
        trials_per_batch=trials_per_batch,
        workers=workers or len(places) or 1,
        devices=places,
        sampler=sampler.value,
        racing=racing,
        cache=cache,
        cache_gb=cache_gb,
        held_out=held_out,
        halve=held_out and samples is None and study is None,  # nobody asked for a number
        accuracy=accuracy,
        self_check=self_check,
    )
    run(job, as_json=as_json)
