"""Where a checkpoint or data set comes from: a folder here, or a name on the model hub."""

from __future__ import annotations

import json
import ssl
from dataclasses import dataclass
from functools import lru_cache
from http.client import HTTPException
from pathlib import Path
from urllib.error import HTTPError, URLError
from urllib.request import Request, urlopen

from vflowopt_search.errors import ModelError

PATIENCE = 5.0  # seconds until the hub counts as unreachable


@dataclass(frozen=True)
class Source:
    """A checkpoint by the name transformers is given, and whether the network may be asked."""

    name: str
    local_only: bool
    is_folder: bool


def find_checkpoint(name_or_path: str | Path) -> Source:
    """Decide between a folder and a hub name; a path that is not there is a `ModelError`."""
    path = Path(name_or_path).expanduser()
    if path.is_dir():
        return Source(str(path), local_only=True, is_folder=True)
    name = str(name_or_path)
    if path.exists():
        raise ModelError(f"{name} is a file; give the folder that holds the checkpoint's files")
    if isinstance(name_or_path, Path) or name.startswith((".", "/", "~")) or name.count("/") > 1:
        raise ModelError(f"{name} does not exist; give a checkpoint's folder or its hub name")
    return Source(name, local_only=not hub_answers(), is_folder=False)


@lru_cache
def hub_errors() -> tuple[type[Exception], ...]:
    """Whatever the hub's library raises, and the HTTP client below it, which changes with it."""
    from huggingface_hub import errors

    named = vars(errors).values()  # the client's base error is imported there
    own = [each for each in named if isinstance(each, type) and issubclass(each, Exception)]
    return (*own, OSError, json.JSONDecodeError)  # an answer that is no JSON, as a proxy's


def offline_wanted() -> bool:
    """Whether the user asked for no network at all (`HF_HUB_OFFLINE`)."""
    from huggingface_hub import constants

    return bool(constants.HF_HUB_OFFLINE)


def hub_answers() -> bool:
    """Whether the hub can be asked now; transformers itself retries half a minute a file."""
    from huggingface_hub import constants

    if offline_wanted():
        return False
    try:
        with urlopen(Request(constants.ENDPOINT, method="HEAD"), timeout=PATIENCE):
            return True
    except HTTPError:  # it answered, if only to complain
        return True
    except URLError as error:
        return isinstance(error.reason, ssl.SSLError)  # the certificate is the next one's business
    except (OSError, HTTPException):  # nothing, or what speaks no HTTP, as a proxy may
        return False
