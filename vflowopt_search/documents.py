"""What every file of ours has in common: frozen values, and one sentence when a value is wrong."""

from __future__ import annotations

import hashlib
import json
import os
import re
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from errno import EISDIR
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError
from pydantic_core import ErrorDetails

from vflowopt_search.errors import VFlowOptError
from vflowopt_search.resources import find_shipped

ValueT = TypeVar("ValueT", bound="Value")
DIGITS = 16
"""Of a SHA-256, in hex: enough to tell things of one kind apart."""


class Value(BaseModel):
    """A frozen value that refuses unknown fields, loose types, NaN and infinity."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        strict=True,
        allow_inf_nan=False,
        use_attribute_docstrings=True,
    )
    refusal: ClassVar[type[VFlowOptError]] = VFlowOptError

    def __init__(self, /, **fields: Any) -> None:
        try:
            super().__init__(**fields)
        except ValidationError as error:
            raise self.refusal(f"{type(self).__name__}: {complaint(error)}") from None

    # pydantic builds parts of a file past __init__, so that one error names the whole path.
    __init__.__pydantic_base_init__ = True  # type: ignore[attr-defined]


def complaint(error: ValidationError) -> str:
    """The first thing that is wrong, as one sentence: field path, value, rule, way out."""
    first = error.errors()[0]
    path = field_path(first["loc"])
    if first["type"] == "value_error":
        told = str(first["ctx"]["error"])
        return f"`{path}`: {told}" if path else told
    if first["type"] in ("extra_forbidden", "invalid_key"):
        return (
            f"`{path}` is not a known field; remove or correct it, or upgrade vflowopt-search "
            f"if a newer version wrote it"
        )
    if first["type"] == "missing":
        return f"`{path}` is missing; add it"
    subject = f"`{path}`" if path else "the content"
    return f"{subject} is {_shown(first['input'])} but {_rule(first)}; correct it"


def field_path(loc: tuple[int | str, ...]) -> str:
    """`("stages", 1, "keep_ratio")` as `stages[1].keep_ratio`."""
    path = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in loc)
    return path.removeprefix(".")


def _rule(error: ErrorDetails) -> str:
    if error["type"] in ("model_type", "model_attributes_type", "dict_type"):
        return "must be a mapping of field names to values"
    rule = re.sub(r"^\w+ should ", "must ", error["msg"])
    return rule.replace("valid tuple", "list").replace("valid dictionary", "mapping")


def _shown(value: object) -> str:
    try:
        text = repr(value)
    except ValueError:  # Python declines to print integers of thousands of digits
        text = f"{type(value).__name__} too long to print"
    return text if len(text) <= 80 else f"{text[:77]}..."


def digest(content: Any) -> str:
    """A short fingerprint of plain values."""
    text = json.dumps(content, sort_keys=True, ensure_ascii=False, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:DIGITS]


def parse_json(text: str) -> Any:
    """Plain values of a JSON text.

    Raises:
        ValueError: not JSON, a key given twice, or NaN or infinity, which JSON does not have.
    """
    try:
        return json.loads(
            text, object_pairs_hook=_distinct_keys, parse_constant=_no_special_numbers
        )
    except RecursionError as error:
        raise ValueError("nested too deeply") from error


def _distinct_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    keys = [key for key, _ in pairs]
    for key in keys:
        if keys.count(key) > 1:
            raise ValueError(f"key {key!r} is given twice")
    return dict(pairs)


def _no_special_numbers(name: str) -> float:
    raise ValueError(f"{name} is not a number of JSON")


class _DistinctKeyLoader(yaml.SafeLoader):
    """PyYAML's safe loader, which by itself lets a second `key:` silently replace the first."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """A mapping of a YAML file; raises ValueError when a key is given twice."""
        keys = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
        for key in keys:
            if keys.count(key) > 1:
                line = node.start_mark.line + 1
                raise ValueError(f"key {key!r} is given twice in the mapping at line {line}")
        return super().construct_mapping(node, deep=deep)


def read_yaml(path: Path, refusal: type[VFlowOptError]) -> Any:
    """Plain values of a YAML file, read by a safe loader.

    Raises:
        refusal: the file cannot be read, is not YAML, or gives a key twice.
    """
    try:
        # A subclass of SafeLoader: it builds plain values only, as yaml.safe_load does.
        return yaml.load(path.read_text(encoding="utf-8"), Loader=_DistinctKeyLoader)
    except OSError as error:
        raise refusal(f"{path} cannot be read ({error.strerror}); check the path") from error
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise refusal(
            f"{path} is not readable YAML ({_reason(error)}); correct the file"
        ) from error


def _reason(error: Exception) -> str:
    """Where and why; not the names that YAML's reader gives to what it reads."""
    if isinstance(error, yaml.MarkedYAMLError) and error.problem_mark is not None:
        mark = error.problem_mark
        return f"{error.problem}, line {mark.line + 1}, column {mark.column + 1}"
    return " ".join(str(error).split())


def load_shipped(kind: type[ValueT], name_or_path: str | Path, folder: Path) -> ValueT:
    """The value in a YAML file that is shipped in `folder` by that name, or lies at that path.

    Raises:
        kind.refusal: no such file, or a wrong one; names file, field and rule.
    """
    path = find_shipped(name_or_path, folder, kind.refusal)
    try:
        return kind.model_validate(read_yaml(path, kind.refusal))
    except ValidationError as error:
        raise kind.refusal(f"{path}: {complaint(error)}") from None


def replace_atomically(target: Path, content: str | bytes) -> None:
    """Write beside `target`, flush to disk, then rename over it; text becomes UTF-8."""
    with draft_of(target) as draft:
        draft.write_bytes(content.encode() if isinstance(content, str) else content)


@contextmanager
def draft_of(target: Path) -> Iterator[Path]:
    """A file to be written beside `target`; when the block ends well, it takes its place.

    Every draft has a name of its own, so that two processes may write the same file: one of the
    two is then there, whole.
    """
    if target.is_dir():  # nor has `.` a name to draft beside
        raise IsADirectoryError(EISDIR, os.strerror(EISDIR), str(target))
    draft = target.with_name(f".{target.name}.{secrets.token_hex(4)}.tmp")
    try:
        yield draft
        with draft.open("rb+") as file:
            os.fsync(file.fileno())
        draft.replace(target)
    finally:
        draft.unlink(missing_ok=True)
