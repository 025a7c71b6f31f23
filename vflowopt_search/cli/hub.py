"""`push` and `pull`: a strategy on the model hub."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from vflowopt_search.cli.console import print_json, stdout
from vflowopt_search.cli.options import Json, StrategyPath
from vflowopt_search.cli.output import check_file

Repository = Annotated[str, typer.Argument(help="Hub repository, as owner/name.")]
Revision = Annotated[str | None, typer.Option(help="Branch, tag or commit. Default: main.")]
Filename = Annotated[
    str, typer.Option(help="The strategy's file in the repository; others keep several apart.")
]
FILENAME = "vflowopt_strategy.json"


def push(
    file: StrategyPath,
    repository: Repository,
    revision: Revision = None,
    filename: Filename = FILENAME,
    private: Annotated[
        bool, typer.Option("--private", help="If the repository is made now, keep it private.")
    ] = False,
    create_pr: Annotated[
        bool, typer.Option("--create-pr", help="Open a pull request, as where others own it.")
    ] = False,
    message: Annotated[
        str | None, typer.Option(help="Commit message. Default: the strategy's name.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Commit a strategy to a repository of the model hub.

    Beside a checkpoint, `prune(model)` finds it without a path. Log in first: hf auth login.

    Example: vflowopt-search push runs/mine me/my-model
    """
    from vflowopt_search.strategy_hub import push_strategy

    address = push_strategy(
        repository,
        file,
        revision=revision,
        filename=filename,
        private=private or None,
        create_pr=create_pr,
        commit_message=message,
    )
    if as_json:
        print_json({"address": address})
    else:
        stdout().print(address, soft_wrap=True)


def pull(
    repository: Repository,
    output: Annotated[
        Path | None,
        typer.Option(help="File to write. Default: vflowopt_strategy.json in this folder."),
    ] = None,
    revision: Revision = None,
    filename: Filename = FILENAME,
    as_json: Json = False,
) -> None:
    """Fetch a strategy from a repository of the model hub, check it and write it to a file.

    Example: vflowopt-search pull me/my-model --output strategy.json
    """
    import json

    from vflowopt_search.strategy_hub import pull_strategy

    check_file(output, "--output")
    strategy = pull_strategy(repository, revision=revision, filename=filename)
    target = output or Path(FILENAME)
    strategy.save(target)
    if as_json:
        print_json(json.loads(strategy.to_json()))
    else:
        stdout().print(f"{strategy.name} of {repository} is in {target}", soft_wrap=True)
