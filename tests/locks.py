"""Writes the locks of the container image: what of requirements.lock it takes to build KKP, and to run it.

    .venv/bin/python -m tests.locks

requirements.lock pins the development tools as well, and an image needs none of them. What is needed is found
by walking from pyproject.toml along what the installed packages say that they require, on the image's Python;
the pins and hashes are those of requirements.lock, to the letter. Nothing is asked of an index.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterable, Iterator, Mapping
from importlib import metadata
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT: Final = Path(__file__).resolve().parent.parent
LOCK: Final = ROOT / "requirements.lock"
RUNTIME: Final = ROOT / "deploy/requirements.txt"
BUILD: Final = ROOT / "deploy/requirements-build.txt"
IMAGE_PYTHON: Final = "3.11"
# What else a marker asks for is as it is here: Linux and CPython.
_IMAGE: Final = {"python_version": IMAGE_PYTHON, "python_full_version": f"{IMAGE_PYTHON}.0"}
_PIN: Final = re.compile(r"^(?P<name>[^=\s]+)==[^\n]*(?:\n    --hash=[^\n]*)+", re.MULTILINE)
_HEAD: Final = "# Of requirements.lock, by `python -m tests.locks`; do not edit.\n"


def pins(text: str) -> Mapping[str, str]:
    """Return each package's pin with its hashes, by canonical name."""
    return MappingProxyType({canonicalize_name(found["name"]): found[0] for found in _PIN.finditer(text)})


def runtime(project: Mapping[str, Any]) -> list[str]:
    """Return what KKP requires when it runs, every extra included."""
    extras = project["project"]["optional-dependencies"].values()
    return [*project["project"]["dependencies"], *(text for extra in extras for text in extra)]


def build(project: Mapping[str, Any]) -> list[str]:
    """Return what makes the wheel."""
    return list(project["build-system"]["requires"])


def lock(roots: Iterable[str], text: str) -> str:
    """Return the pins of these and of all that they require."""
    known = pins(text)
    needed = sorted({canonicalize_name(each.name) for each in _closure(map(Requirement, roots))})
    return _HEAD + "".join(f"{known[name]}\n" for name in needed)


def files() -> Mapping[Path, str]:
    """Return what each lock must say."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    text = LOCK.read_text()
    return {RUNTIME: lock(runtime(project), text), BUILD: lock(build(project), text)}


def _closure(roots: Iterable[Requirement]) -> Iterator[Requirement]:
    """Yield the requirements and theirs, each with its extras once."""
    seen: set[tuple[str, str]] = set()
    waiting = list(roots)
    while waiting:
        requirement = waiting.pop()
        for extra in ("", *requirement.extras):
            if (requirement.name, extra) not in seen:
                seen.add((requirement.name, extra))
                waiting += _required_by(requirement.name, extra)
        yield requirement


def _required_by(name: str, extra: str) -> Iterator[Requirement]:
    for text in metadata.requires(name) or ():
        requirement = Requirement(text)
        if requirement.marker is None or requirement.marker.evaluate({**_IMAGE, "extra": extra}):
            yield requirement


def main() -> None:
    """Write both."""
    for path, text in files().items():
        path.write_text(text)


if __name__ == "__main__":
    main()
