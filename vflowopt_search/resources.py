"""Where the files that come with the package are, in an installed wheel and in a checkout."""

from __future__ import annotations

from pathlib import Path

from vflowopt_search.errors import VFlowOptError

_PACKAGE = Path(__file__).resolve().parent


def search_spaces_folder() -> Path:
    """Folder of the shipped search spaces (`*.yaml`)."""
    return _shipped_folder("search_spaces")


def studies_folder() -> Path:
    """Folder of the shipped study recipes (`*.yaml`) and of results worth keeping."""
    return _shipped_folder("studies")


def _shipped_folder(name: str) -> Path:
    for folder in (_PACKAGE / "data" / name, _PACKAGE.parent / name):
        if folder.is_dir():
            return folder
    raise VFlowOptError(
        f"the folder {name!r} that comes with vflowopt-search is not in {_PACKAGE / 'data'}; "
        f"install the package again"
    )


def find_shipped(name_or_path: str | Path, folder: Path, refusal: type[VFlowOptError]) -> Path:
    """The YAML file that a short name (`vflowopt`) or a path (`spaces/mine.yaml`) means.

    Raises:
        refusal: neither a shipped name nor an existing file.
    """
    shipped = folder / f"{name_or_path}.yaml"
    if Path(name_or_path).name == str(name_or_path) and shipped.is_file():
        return shipped
    if Path(name_or_path).is_file():
        return Path(name_or_path)
    known = ", ".join(sorted(file.stem for file in folder.glob("*.yaml")))
    raise refusal(
        f"{str(name_or_path)!r} is neither a shipped name ({known}) nor an existing file; "
        f"give one of these names or the path of a YAML file"
    )
