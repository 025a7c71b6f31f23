"""Where a strategy lives: in a file, beside a checkpoint, or in a repository of the model hub."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from vflowopt_search import run_folder
from vflowopt_search.adapters.hub import (
    Source,
    find_checkpoint,
    hub_answers,
    hub_errors,
    offline_wanted,
)
from vflowopt_search.errors import StrategyError, first_line
from vflowopt_search.strategy import Strategy

STRATEGY_FILE = "vflowopt_strategy.json"
"""Name of the strategy file beside a checkpoint, in its folder or in its hub repository."""


def find_strategy(name_or_path: str | Path, *, revision: str | None = None) -> Strategy:
    """The strategy in a file, in a folder, or in a hub repository.

    In a folder it is `vflowopt_strategy.json`, as beside a checkpoint, or else the
    `strategy.json` that a search leaves in its own. `revision` is the repository's; files and
    folders have none.

    Raises:
        StrategyError: there is none, it is wrong, or the hub cannot be asked.
    """
    path = Path(name_or_path).expanduser()
    if path.is_dir():
        return _in_folder(path, (STRATEGY_FILE, run_folder.STRATEGY))
    name = "" if isinstance(name_or_path, Path) else name_or_path
    names_a_repository = name.count("/") == 1 and not name.startswith((".", "/", "~"))
    if path.exists() or path.suffix == ".json" or not names_a_repository:
        return Strategy.load(path)
    return pull_strategy(name, revision=revision)


def strategy_beside(model: Any, *, revision: str | None = None) -> Strategy:
    """The strategy saved beside the checkpoint that `model` was loaded from.

    Args:
        model: a model from transformers.
        revision: of a hub repository; when None, the one that the model was loaded at if it
            remembers (transformers does until 5.17), else the main branch.

    Raises:
        StrategyError: the model does not say where it comes from, or there is no strategy there.
    """
    config = getattr(model, "config", None)
    name = getattr(model, "name_or_path", None) or getattr(config, "_name_or_path", None)
    if not name:
        raise StrategyError(
            f"this {type(model).__name__} does not say where it was loaded from, so that no "
            f"{STRATEGY_FILE} can be looked for; pass a strategy or the path of its file"
        )
    source = find_checkpoint(name)
    if source.is_folder:
        return _in_folder(Path(source.name), (STRATEGY_FILE,))
    loaded_at = getattr(config, "_commit_hash", None)
    return _download(source, STRATEGY_FILE, revision or loaded_at, None)


def pull_strategy(
    repo_id: str,
    *,
    revision: str | None = None,
    filename: str = STRATEGY_FILE,
    token: str | bool | None = None,
) -> Strategy:
    """The strategy in a hub repository; without network, as it is in the hub's local cache.

    Args:
        repo_id: the repository, as `owner/name`.
        revision: branch, tag or commit; the main branch when None.
        filename: the strategy's file in the repository.
        token: access token; the one of `hf auth login` when None.

    Raises:
        StrategyError: no such repository, revision or file, or it is no strategy.
    """
    source = Source(repo_id, local_only=not hub_answers(), is_folder=False)
    return _download(source, filename, revision, token)


def push_strategy(
    repo_id: str,
    strategy: Strategy | str | Path,
    *,
    revision: str | None = None,
    filename: str = STRATEGY_FILE,
    private: bool | None = None,
    create_pr: bool = False,
    commit_message: str | None = None,
    token: str | bool | None = None,
) -> str:
    """Commit a strategy to a hub repository, which is made when there is none.

    Args:
        repo_id: the repository, as `owner/name`; a model's own, or one for strategies.
        strategy: a strategy or the path of its file.
        revision: branch to commit to; the main branch when None.
        filename: its name in the repository; another one keeps several strategies apart.
        private: whether a repository that is made now is private.
        create_pr: open a pull request instead, in a repository that others own.
        commit_message: what the commit says.
        token: access token; the one of `hf auth login` when None.

    Returns:
        Address of the commit, or of the pull request.

    Raises:
        StrategyError: the strategy is wrong, or the hub does not answer or refuses.
    """
    from huggingface_hub import HfApi, constants

    strategy = strategy if isinstance(strategy, Strategy) else find_strategy(strategy)
    _check_name(repo_id)
    if not hub_answers():
        reason = "HF_HUB_OFFLINE is set" if offline_wanted() else "the hub does not answer"
        raise StrategyError(
            f"strategy {strategy.name!r} cannot be pushed to {repo_id}: {reason}; push it with "
            f"network, or copy the file"
        )
    hub, content = HfApi(endpoint=constants.ENDPOINT, token=token), strategy.to_json().encode()
    with _told(repo_id, filename, revision):
        if not create_pr:
            hub.create_repo(repo_id, private=private, exist_ok=True)
        commit = hub.upload_file(
            path_or_fileobj=content,
            path_in_repo=filename,
            repo_id=repo_id,
            revision=revision,
            create_pr=create_pr,
            commit_message=commit_message or f"Strategy {strategy.name}",
        )
    return str(commit.pr_url or commit.commit_url)


def _in_folder(folder: Path, names: tuple[str, ...]) -> Strategy:
    """The strategy in the first of these files that is there."""
    for name in names:
        if (folder / name).is_file():
            return Strategy.load(folder / name)
    raise StrategyError(
        f"{folder} holds no {' and no '.join(names)}; save one there, or pass a strategy or the "
        f"path of its file"
    )


def _check_name(repo_id: str) -> None:
    """Refuse what is not `owner/name`, before the hub is asked."""
    from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]

    with _told(repo_id, STRATEGY_FILE, None):
        validate_repo_id(repo_id)
    if repo_id.count("/") != 1:
        raise StrategyError(f"{repo_id!r} is no name of a hub repository; give owner/name")


def _download(
    source: Source, filename: str, revision: str | None, token: str | bool | None
) -> Strategy:
    from huggingface_hub import constants, hf_hub_download

    with _told(source.name, filename, revision):
        path = hf_hub_download(
            source.name,
            filename,
            revision=revision,
            local_files_only=source.local_only,
            endpoint=constants.ENDPOINT,
            token=token,
        )
    return Strategy.load(path)


@contextmanager
def _told(repo_id: str, filename: str, revision: str | None) -> Iterator[None]:
    """Whatever the hub's library raises, as one sentence."""
    from huggingface_hub import errors

    at = f"{repo_id} at {revision}" if revision else repo_id
    try:
        yield
    except errors.HFValidationError as error:
        raise StrategyError(
            f"{repo_id!r} is no name of a hub repository ({error}); give owner/name"
        ) from error
    except errors.LocalEntryNotFoundError as error:
        raise StrategyError(
            f"{filename} of {at} is not in the hub's local cache, and the hub is not asked or "
            f"does not answer; fetch it once with network, or get the file by other means"
        ) from error
    except errors.EntryNotFoundError as error:
        raise StrategyError(
            f"{at} holds no {filename}; push one there, or name another revision or repository"
        ) from error
    except errors.RevisionNotFoundError as error:
        raise StrategyError(
            f"{repo_id} has no revision {revision!r}; name a branch, a tag or a commit of it"
        ) from error
    except errors.RepositoryNotFoundError as error:
        raise StrategyError(
            f"there is no repository {repo_id} for you on the hub; check the name, and log in "
            f"(hf auth login) where it is private or gated"
        ) from error
    except hub_errors() as error:
        if isinstance(error, errors.LocalTokenNotFoundError) or _is_refusal(error):
            raise StrategyError(
                f"the hub refuses {filename} of {at} ({first_line(error)}); check your token and "
                f"its rights"
            ) from error
        raise StrategyError(
            f"what was asked of the hub for {filename} of {at} broke off ({first_line(error)}); "
            f"do it again when the hub answers, or copy the file by other means"
        ) from error


def _is_refusal(error: Exception) -> bool:
    """Whether the hub answered that it will not, and did not merely fail."""
    status = getattr(getattr(error, "response", None), "status_code", None)
    return status is not None and 400 <= status < 500
