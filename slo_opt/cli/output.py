"""Paths of results, looked at before any work is spent on them."""

import os
from pathlib import Path

from slo_opt.domain.errors import InvalidInputError


def check_writable(path: Path) -> None:
    """Refuse a path whose folder does not exist, before an hour of work is spent.

    Raises
    ------
    InvalidInputError
        The folder is missing, or the path is a folder.
    """
    if path.is_dir():
        raise InvalidInputError(f"{path}: is a folder; name a file in it")
    folder = Path(os.path.realpath(path)).parent
    if not path.exists() and not folder.is_dir():
        raise InvalidInputError(f"{path}: the folder {folder} does not exist; create it first")


def same_file(first: Path, second: Path) -> bool:
    """Whether two paths lead to one place, also where there is no file yet."""
    return os.path.realpath(first) == os.path.realpath(second)
