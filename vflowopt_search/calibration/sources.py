"""Where rows come from: a file, a folder, or a data set of the hub; one access to all of them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from vflowopt_search.adapters.hub import hub_answers, hub_errors, offline_wanted
from vflowopt_search.adapters.quiet import switched_off
from vflowopt_search.errors import CalibrationError, first_line

if TYPE_CHECKING:
    from datasets import Dataset

FILES = (".json", ".jsonl", ".parquet")
# what `datasets` and pyarrow raise for sources that are absent or damaged
_REFUSALS = (OSError, ValueError, RuntimeError, TypeError, KeyError)


class Rows(Protocol):
    """Rows by number; reading one decodes no image."""

    @property
    def column_names(self) -> Sequence[str]:
        """Names of the columns, in their order."""

    def __len__(self) -> int: ...

    def row(self, index: int) -> dict[str, Any]:
        """One row by column name."""


class ListRows:
    """Rows that are mappings already, or the reason why one cannot be read."""

    def __init__(self, rows: Sequence[Mapping[str, Any] | CalibrationError]) -> None:
        self._rows = rows
        whole = (row for row in rows if isinstance(row, Mapping))
        self.column_names = list(dict.fromkeys(name for row in whole for name in row))

    def __len__(self) -> int:
        return len(self._rows)

    def row(self, index: int) -> dict[str, Any]:
        """One row; a column that it lacks is absent. Raises `CalibrationError` for a broken one."""
        row = self._rows[index]
        if isinstance(row, CalibrationError):
            raise row
        return dict(row)


class ArrowRows:
    """Rows of a `datasets.Dataset`, read below its decoding of images."""

    def __init__(self, dataset: Dataset) -> None:
        self._table: Any = dataset.with_format("arrow")
        self._classes = {
            name: feature.names
            for name, feature in (dataset.features or {}).items()
            if hasattr(feature, "names") and hasattr(feature, "int2str")
        }
        self.column_names = list(dataset.column_names)

    def __len__(self) -> int:
        return len(self._table)

    def row(self, index: int) -> dict[str, Any]:
        """One row; class labels by their names."""
        row: dict[str, Any] = self._table[index : index + 1].to_pylist()[0]
        for name, classes in self._classes.items():
            if isinstance(row[name], int) and 0 <= row[name] < len(classes):
                row[name] = classes[row[name]]
        return row


def as_rows(dataset: Any) -> Rows:
    """Rows of a `datasets.Dataset` or of a list of mappings.

    Raises:
        CalibrationError: it has several splits, or its rows have no numbers.
    """
    if isinstance(dataset, Sequence) and not isinstance(dataset, str | bytes):
        return ListRows(dataset)
    if isinstance(dataset, Mapping):
        raise CalibrationError(
            f"a data set with the splits {', '.join(map(str, dataset))} was given; choose one"
        )
    if not (hasattr(dataset, "with_format") and hasattr(dataset, "__len__")):
        raise CalibrationError(
            f"a {type(dataset).__name__} cannot be chosen from by number; give a datasets.Dataset "
            f"(streaming off) or a list of rows"
        )
    return ArrowRows(dataset)


def open_rows(source: str | Path, split: str | None) -> tuple[Rows, Path | None]:
    """The rows of `source`, and the folder that relative image paths start from.

    `source` is a .json, .jsonl or .parquet file, a folder (`save_to_disk`, data files, or images),
    or a hub data set as "owner/name" or "owner/name:configuration". Raises `CalibrationError`.
    """
    path = Path(source).expanduser()
    if path.is_file():
        return _open_file(path), path.parent
    if path.is_dir():
        return _open_folder(path, split), path
    name = str(source)
    if isinstance(source, Path) or name.startswith((".", "/", "~")) or path.suffix in FILES:
        raise CalibrationError(f"{source} does not exist; give a file, a folder or a hub name")
    return _open_hub(name, split), None


def _open_file(path: Path) -> Rows:
    if path.suffix not in FILES:
        raise CalibrationError(f"{path} is not one of {', '.join(FILES)}; convert it to one")
    if path.suffix == ".parquet":
        return as_rows(_only(_load("parquet", data_files=str(path)), None, path))
    return ListRows(_parse_lines(path) if path.suffix == ".jsonl" else _parse_json(path))


def _open_folder(path: Path, split: str | None) -> Rows:
    if (path / "state.json").is_file() or (path / "dataset_dict.json").is_file():
        from datasets import load_from_disk

        try:
            with _without_bars():
                saved = load_from_disk(str(path))
            return as_rows(_only(saved, split, path))
        except _REFUSALS as error:
            raise CalibrationError(f"{path} is a damaged saved data set ({error})") from error
    described = {"metadata.jsonl", "dataset_infos.json", "dataset_info.json"}
    texts = {
        file.stem: file
        for file in sorted(path.iterdir())
        if file.suffix in (".json", ".jsonl") and file.name not in described
    }
    if texts and not any(path.rglob("*.parquet")):
        return _open_file(_only(texts, split, path))
    return as_rows(_only(_load(str(path)), split, path))


def _open_hub(name: str, split: str | None) -> Rows:
    if not offline_wanted() and not hub_answers():
        raise CalibrationError(
            f"{name} is neither a file nor a folder here, and the hub does not answer; give a "
            f"local one, or set HF_HUB_OFFLINE=1 to use a copy in the hub's local cache"
        )
    repository, _, configuration = name.partition(":")
    loaded = _load(repository, name=configuration or None, split=split)
    return as_rows(_only(loaded, None, name))


def _load(kind: str, **options: Any) -> Any:
    from datasets import load_dataset
    from datasets.exceptions import DatasetsError

    is_here = "data_files" in options or Path(kind).is_dir()
    try:
        with _without_bars() if is_here else nullcontext():
            return load_dataset(kind, **options)
    except (*_REFUSALS, *hub_errors(), DatasetsError) as error:
        where = options.get("data_files", kind)
        reason = first_line(error.__cause__ or error)
        raise CalibrationError(
            f"{where} cannot be read as a data set ({reason}); give a JSON, JSONL or Parquet file, "
            f"a folder of data or of images, or a hub name"
        ) from error


def _without_bars() -> AbstractContextManager[None]:
    """Let `datasets` draw no bar over files at hand."""
    import datasets

    return switched_off(
        datasets.are_progress_bars_disabled,
        datasets.disable_progress_bars,
        datasets.enable_progress_bars,
    )


def _only(splits: Any, split: str | None, source: object) -> Any:
    """The split that was asked for, or the only one there is."""
    if not isinstance(splits, Mapping):
        return splits
    if split in splits:
        return splits[split]
    if split is None and len(splits) == 1:
        return next(iter(splits.values()))
    known = ", ".join(map(str, splits))
    raise CalibrationError(
        f"{source} has the splits {known} and {split or 'none'} was asked for; name one of them"
    )


def _parse_lines(path: Path) -> list[dict[str, Any] | CalibrationError]:
    """The object in each line, or what is wrong with it."""
    lines = enumerate(_read_text(path).split("\n"), start=1)  # splitlines() cuts within strings
    rows = [_parse_line(line, f"{path} line {number}") for number, line in lines if line.strip()]
    broken = [row for row in rows if isinstance(row, CalibrationError)]
    if broken and len(broken) == len(rows):
        raise broken[0]
    return rows


def _parse_line(line: str, where: str) -> dict[str, Any] | CalibrationError:
    try:
        row = _parse(line, where)
    except CalibrationError as error:
        return error
    if not isinstance(row, dict):
        return CalibrationError(f"{where} is not an object; give one object per sample")
    return row


def _parse_json(path: Path) -> list[dict[str, Any]]:
    parsed = _parse(_read_text(path), str(path))
    if isinstance(parsed, dict):  # {"data": [...]}
        lists = [value for value in parsed.values() if isinstance(value, list)]
        parsed = lists[0] if len(lists) == 1 else parsed
    return _require_objects(parsed, path)


def _read_text(path: Path) -> str:
    try:
        return path.read_text("utf-8-sig")
    except UnicodeDecodeError as error:
        raise CalibrationError(f"{path} is not UTF-8 ({error}); save it as such") from error


def _parse(text: str, where: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise CalibrationError(f"{where} is not JSON ({error}); correct it") from error


def _require_objects(rows: Any, path: Path) -> list[dict[str, Any]]:
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise CalibrationError(f"{path} is not a list of objects; give one object per sample")
    return rows
