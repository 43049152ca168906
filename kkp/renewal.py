"""What a rotation of the master key renews: rows that are signed or sealed under one of its subkeys.

Each room says of its own rows how their bytes are made, in a `Signed` or a `Sealed` beside the code that
writes them, and `kkp.app` lists them all. A row is renewed only if it is genuine under the former key: a row
that somebody planted or altered must not become one of ours by a rotation.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final, TypeAlias

from kkp.errors import StateUntrustedError
from kkp.master_key import KEPT_PURPOSE, RootKey

_FAILED: Final = "It failed its authentication."


@dataclass(frozen=True, slots=True)
class Signed:
    """Rows with an HMAC in their column `mac`.

    Attributes:
        table: Their table.
        row: Makes the row from its columns; the last of its fields is `mac`.
        columns: Those fields, but for the HMAC.
        identified_by: The columns that tell one row from another.
        purpose: Of the subkey.
        signed: Returns the bytes of a row that the HMAC covers.
        beside: No other table.
        column: What is renewed.
    """

    table: str
    row: Callable[..., Any]
    columns: tuple[str, ...]
    identified_by: tuple[str, ...]
    purpose: str
    signed: Callable[[Any], bytes]
    beside: str = ""
    column: str = "mac"

    def renew(
        self,
        values: Sequence[Any],
        stored: Any,  # noqa: ANN401  SQLite keeps any type in any column
        present: RootKey,
        former: RootKey,
    ) -> bytes | None:
        """Return the HMAC that takes the stored one's place; None if it is under the present key.

        Args:
            values: Of the columns.
            stored: Of the one that is renewed.
            present: The key that it is to be under.
            former: The key that it may be under.

        Raises:
            StateUntrustedError: It is under neither of them.
        """
        try:
            data = self.signed(self.row(*values, stored))
            if present.verify_mac(self.purpose, data, stored):
                return None
            if former.verify_mac(self.purpose, data, stored):
                return present.mac(self.purpose, data)
        except (AttributeError, TypeError, ValueError) as error:  # SQLite keeps any type in any column
            raise StateUntrustedError(_FAILED) from error
        raise StateUntrustedError(_FAILED)


@dataclass(frozen=True, slots=True)
class Sealed:
    """Rows with a sealed blob in their column `sealed`.

    Attributes:
        table: Their table.
        identified_by: The columns that tell one row from another.
        columns: What `place` is called with.
        purpose: Of the subkey.
        place: Returns the associated data.
        beside: A table of the same key that has the other columns; empty for none.
        column: What is renewed.
    """

    table: str
    identified_by: tuple[str, ...]
    columns: tuple[str, ...]
    purpose: str
    place: Callable[..., bytes]
    beside: str = ""
    column: str = "sealed"

    def renew(
        self,
        values: Sequence[Any],
        stored: Any,  # noqa: ANN401  SQLite keeps any type in any column
        present: RootKey,
        former: RootKey,
    ) -> bytes | None:
        """Return the blob that takes the stored one's place; see `Signed.renew`.

        Raises:
            StateUntrustedError: It is under neither key.
        """
        try:
            place = self.place(*values)
            if _opens(present, self.purpose, stored, place):
                return None
            return present.seal(self.purpose, former.open(self.purpose, stored, place), place)
        except (AttributeError, TypeError, ValueError) as error:  # SQLite keeps any type in any column
            raise StateUntrustedError(_FAILED) from error


def _opens(key: RootKey, purpose: str, sealed: bytes, place: bytes) -> bool:
    try:
        key.open(purpose, sealed, place)
    except StateUntrustedError:
        return False
    return True


Renewable: TypeAlias = Signed | Sealed
KEPT_SECRETS = Sealed("kept_secrets", ("name",), ("name",), KEPT_PURPOSE, str.encode)
