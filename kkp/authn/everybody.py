"""Everybody whom KKP itself knows: local identities and people, as those see them who need no difference."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, final


class Directory(Protocol):
    """Some of them."""

    def disabled_since(self, moment: float) -> Sequence[str]:
        """Return the names of those that were disabled at this moment or later."""

    def check_trusted(self) -> None:
        """Raise StateUntrustedError if they can't be believed."""

    def person_of(self, name: str) -> str | None:
        """Return whose one of them is; None where that is not known, or none is called so."""


@final
class Everybody:
    """All of several directories.

    Args:
        directories: Whose names differ.
    """

    def __init__(self, *directories: Directory) -> None:
        self._directories = directories

    def disabled_since(self, moment: float) -> Sequence[str]:
        """See `Directory`."""
        return [name for each in self._directories for name in each.disabled_since(moment)]

    def check_trusted(self) -> None:
        """See `Directory`."""
        for each in self._directories:
            each.check_trusted()

    def person_of(self, name: str) -> str | None:
        """See `Directory`."""
        found = (each.person_of(name) for each in self._directories)
        return next((person for person in found if person is not None), None)
