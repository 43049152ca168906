"""Makes the golden data of a release: `python -m tests.golden.make`, once, before a release of a new layout.

What `golden.json` tells stands in `kkp.db`, and in `postgresql.sql` for a PostgreSQL: the same requests, made
of a KKP on each, under the master key of `MASTER_KEY`. The clock stands at `NOW`, so that whoever reads it
later can be at any time after it. Nothing in it is secret.
"""

from __future__ import annotations

import asyncio
import base64
import json
import shutil
import sqlite3
import tempfile
from contextlib import closing
from pathlib import Path
from typing import Any, Final

from kkp.store.schema import SCHEMA_VERSION
from kkp.tokens import read_unverified
from tests import postgres
from tests.fakes.clock import FakeClock
from tests.harness import KKP, grant, running

GOLDEN: Final = Path(__file__).parent
MASTER_KEY: Final = base64.urlsafe_b64encode(bytes(range(32))).decode()
NOW: Final = 1_750_000_000.0
SEALED: Final = {"aws alias/orders": {}, "local default": {"backend": "local", "key_id": "default"}}


def data_dir(directory: Path) -> Path:
    """Make a data directory under the master key, and return it."""
    made = directory / ".kkp"
    made.mkdir(mode=0o700)
    key = made / "master.key"
    key.write_text(f"{MASTER_KEY}\n")
    key.chmod(0o600)
    return made


async def fill(kkp: KKP) -> dict[str, Any]:
    """Do a little of everything that leaves something behind, and tell of it."""
    orders = await kkp.add_identity("orders", grant(), grant("default", backend="local"))
    gone = await kkp.add_identity("gone", grant())
    assert (await kkp.post("/identities/gone/disable", credential=kkp.root_key)).status == 200
    token, revoked = await kkp.token(orders), await kkp.token(orders)
    assert (await kkp.post("/token/revoke", {"token": revoked}, credential=orders)).status == 200
    context = {"tenant": "acme"}
    envelopes = {name: await kkp.seal(orders, context=context, **key) for name, key in SEALED.items()}
    signs = read_unverified(token)[0]
    published = {key["kid"] for key in (await kkp.get("/keys/jwks")).json["keys"]}
    (ended,) = published - {signs}  # the next one: nothing was signed with it
    assert (await kkp.post(f"/keys/jwks/{ended}/revoke", credential=kkp.root_key)).status == 200
    return {
        "service_keys": {"orders": orders, "gone": gone},
        "token": token,
        "revoked_token": revoked,
        "envelopes": envelopes,
        "signs": signs,
        "revoked_kid": ended,
        "records": await kkp.records(),
    }


async def make(directory: Path, server: postgres.PostgreSQL) -> None:
    """Make the data, in both kinds of database."""
    told: dict[str, Any] = {}
    name = server.create_database()
    urls = {"sqlite": "", "postgresql": server.url(name)}
    for kind, url in urls.items():
        with tempfile.TemporaryDirectory() as place:
            made = data_dir(Path(place))
            async with running(Path(place), clock=FakeClock(NOW), KKP_DATABASE_URL=url) as kkp:
                told[kind] = {"root_key": kkp.root_key, **await fill(kkp)}
            if kind == "sqlite":
                with closing(sqlite3.connect(made / "kkp.db")) as connection:
                    connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
                shutil.copy(made / "kkp.db", directory / "kkp.db")
    (directory / "postgresql.sql").write_text(server.dump(name))
    (directory / "golden.json").write_text(json.dumps(told, indent=1) + "\n")


if __name__ == "__main__":
    found = postgres.binaries()
    if found is None:
        raise SystemExit(postgres.NO_BINARIES)
    target = GOLDEN / f"layout-{SCHEMA_VERSION}"
    target.mkdir()  # what was released is never made anew
    with postgres.running(found) as running_server:
        asyncio.run(make(target, running_server))
