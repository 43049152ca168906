"""What is wrong with the tables of backends in `kkp.toml`, each by the name of its table.

```
[backends.aws]                 uri = "aws-kms://eu-west-1"
[backends.both]                uri = "all-of://"
[backends.both.keys.payroll]   members = ["aws:alias/payroll", "gcp:payroll"]   former = ["azure:payroll"]
```

It looks at the form alone: what a URI, a member or a key's name must be, the adaptors know. Names are
repeated, as whoever mends the file needs them; values are not, since a URI may hold a credential.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Final

from kkp.model import JSON

BACKEND_NAME: Final = re.compile(r"[a-z0-9][a-z0-9_-]{0,31}\Z")
COMPOSITES: Final = frozenset({"any-of", "all-of"})

_OF_A_BACKEND: Final = ("uri", "keys")
_OF_A_KEY: Final = ("members", "former")


def problems(backends: JSON) -> Iterator[str]:
    """Yield everything that is wrong with the member `backends`, a text or tables, each with its cure."""
    if isinstance(backends, dict):
        for name, table in backends.items():
            yield from _of_backend(name, table)
    elif not isinstance(backends, str):
        yield '`backends` is one string, or a table for each backend: [backends.NAME] with uri = "SCHEME://…"'


def _of_backend(name: str, table: JSON) -> Iterator[str]:
    title = f"[backends.{name}]"
    if not BACKEND_NAME.match(name):
        yield f"{title}: a backend's name is 1 to 32 of a-z, 0-9, - and _, and begins with a letter or digit"
    if not isinstance(table, dict):
        yield f'[backends] {name}: a backend is a table of its own; write {title} with uri = "SCHEME://…"'
        return
    uri = table.get("uri")
    scheme, separator, _ = uri.partition("://") if isinstance(uri, str) else ("", "", "")
    if uri is None:
        yield f'{title} has no uri; give uri = "SCHEME://…"'
    elif not separator:
        yield f'{title} uri: it is one string, "SCHEME://…"'
        scheme = ""  # a text without one may be anything
    for member in table:
        if member not in _OF_A_BACKEND:
            yield f"{title} {member}: {_placed(name, scheme, member)}"
    if "keys" in table:
        yield from _of_keys(name, scheme, table["keys"])


def _placed(name: str, scheme: str, member: str) -> str:
    """Say where a member belongs that stands beside `uri`."""
    if member in _OF_A_KEY:
        return f"it belongs to a key; write it under [backends.{name}.keys.NAME]"
    if scheme == "all-of":
        return "all-of:// takes no options, because every member must do its part; take it out"
    return f'options go into the uri: uri = "{scheme or "SCHEME"}://…?{member}=…"'


def _of_keys(name: str, scheme: str, keys: JSON) -> Iterator[str]:
    if scheme and scheme not in COMPOSITES:
        titles = [f"[backends.{name}.keys.{key}]" for key in keys] if isinstance(keys, dict) else []
        for title in titles or [f"[backends.{name}] keys"]:
            yield f"{title}: only any-of:// and all-of:// have keys; take it out, or make the uri one of them"
    elif not isinstance(keys, dict):
        yield f"[backends.{name}] keys: each key is a table, [backends.{name}.keys.NAME] with members = […]"
    else:
        for key, table in keys.items():
            yield from _of_key(f"[backends.{name}.keys.{key}]", name, table)


def _of_key(title: str, backend: str, table: JSON) -> Iterator[str]:
    if not isinstance(table, dict):
        yield f'{title}: it is a table; write members = ["BACKEND:KEY_ID", …] under it'
        return
    if "members" not in table:
        yield f'{title} has no members; give members = ["BACKEND:KEY_ID", …]'
    for member, value in table.items():
        if member not in _OF_A_KEY:
            yield (
                f"{title} {member}: a key has members and former alone; options hold for all keys, "
                f"and go into the uri of [backends.{backend}]"
            )
        elif not isinstance(value, list) or not all(isinstance(text, str) for text in value):
            yield f'{title} {member}: it is a list of strings, such as ["aws:alias/orders"]'
