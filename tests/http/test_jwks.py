"""The JWKS is never empty and never holds a private member, whatever becomes of the ring.

Every answer is one of two: a document of this very form with at least one key in it, which may be cached, or
a refusal, which may not.
"""

from __future__ import annotations

import random
import re
from pathlib import Path

import pytest

from kkp.errors import KKPError
from tests.databases import Place, PostgreSQLPlace, SQLitePlace
from tests.fakes.clock import FakeClock
from tests.harness import KKP, Answer, running
from tests.postgres import ROLE
from tests.promises import Recorder
from tests.scale import SCALE

pytestmark = pytest.mark.promise(12)

STEPS = 125 * SCALE
PATHS = ("/keys/jwks", "/.well-known/jwks.json")
THIRTY_TWO_BYTES = re.compile(r"[A-Za-z0-9_-]{43}")
NO_KEYS_ANY_MORE = {
    SQLitePlace: "CREATE TRIGGER none BEFORE INSERT ON ring_keys BEGIN INSERT INTO away VALUES (1); END",
    PostgreSQLPlace: f"REVOKE INSERT ON ring_keys FROM {ROLE}",
}
KEYS_AGAIN = {
    SQLitePlace: "DROP TRIGGER none",
    PostgreSQLPlace: f"GRANT INSERT ON ring_keys TO {ROLE}",
}


def judged(answer: Answer) -> int:
    """Check that an answer is one of the two that there may be; return how many keys it holds."""
    if answer.status != 200:
        assert (answer.status, answer.problem()) == (503, "keyring_unavailable")  # which checks for no-store
        assert b"keys" not in answer.raw.replace(b"keyring", b"")
        return 0
    assert answer.headers["Cache-Control"] == "private, max-age=300"
    assert set(answer.json) == {"keys"}
    for key in answer.json["keys"]:
        x, kid = key.pop("x"), key.pop("kid")
        assert key == {"kty": "OKP", "crv": "Ed25519", "use": "sig", "alg": "EdDSA"}
        assert THIRTY_TWO_BYTES.fullmatch(x)
        assert THIRTY_TWO_BYTES.fullmatch(kid)
    count = len(answer.json["keys"])
    assert count > 0
    return count


class Life:
    """What may happen to a ring, one thing at a time."""

    def __init__(self, kkp: KKP, place: Place, clock: FakeClock, chance: random.Random) -> None:
        self.kkp, self.place, self.clock, self.chance = kkp, place, clock, chance
        self.keys_can_be_made = True

    async def time_passes(self) -> None:
        self.clock.advance(self.chance.choice([1, 59, 61, 450, 900, 1800, 86_400]))

    async def the_task_has_its_turn(self) -> None:
        keyring = self.kkp.services.public.keyring
        for step in (keyring.load, keyring.ensure_keys, keyring._note_served, keyring._delete_spent):
            try:
                await step()
            except KKPError:
                continue  # as the task does

    async def somebody_rotates(self) -> None:
        await self.kkp.post("/keys/rotate", credential=self.kkp.root_key)

    async def a_key_is_revoked(self) -> None:
        (kid,) = self.chance.choice(await self.place.rows("SELECT kid FROM ring_keys ORDER BY kid"))
        await self.kkp.post(f"/keys/jwks/{kid}/revoke", credential=self.kkp.root_key)

    async def the_clock_is_stepped_or_mended(self) -> None:
        self.clock.drift = self.chance.choice([0.0, 0.0, 90.0])

    async def keys_can_not_be_made_or_can_again(self) -> None:
        what = NO_KEYS_ANY_MORE if self.keys_can_be_made else KEYS_AGAIN
        self.keys_can_be_made = not self.keys_can_be_made
        self.place.by_hand(what[type(self.place)])


async def test_whatever_becomes_of_the_ring_no_answer_is_empty_or_holds_more_than_public_keys(
    tmp_path: Path, place: Place, record_promise: Recorder
) -> None:
    clock, chance = FakeClock(), random.Random(12)
    counts: list[int] = []
    async with running(tmp_path, clock=clock, KKP_DATABASE_URL=place.url) as kkp:
        life = Life(kkp, place, clock, chance)
        turn = life.the_task_has_its_turn
        events = [
            *(life.time_passes, turn, turn, life.somebody_rotates, life.a_key_is_revoked),
            *(life.the_clock_is_stepped_or_mended, life.keys_can_not_be_made_or_can_again),
        ]
        for _ in range(STEPS):
            await chance.choice(events)()
            counts += [judged(await kkp.get(path)) for path in PATHS]
    refused = counts.count(0)
    assert refused > len(counts) / 10
    assert len(counts) - refused > len(counts) / 10
    record_promise(12, f"answers{place.where}", len(counts))


async def test_a_ring_that_was_emptied_by_hand_is_refused_and_not_to_be_cached(
    tmp_path: Path, place: Place
) -> None:
    async with running(tmp_path, KKP_DATABASE_URL=place.url) as kkp:
        keyring = kkp.services.public.keyring
        assert judged(await kkp.get("/keys/jwks")) == 2
        place.by_hand(NO_KEYS_ANY_MORE[type(place)])
        place.by_hand("DELETE FROM ring_keys")
        await keyring.load()
        for each in PATHS:
            assert judged(await kkp.get(each)) == 0
        request = {"audience": "orders-db", "backend": "aws", "key_id": "alias/orders"}
        refused = await kkp.post("/token", request, credential=kkp.root_key)
        assert refused.problem() == "keyring_unavailable"
        place.by_hand(KEYS_AGAIN[type(place)])
        await keyring.ensure_keys()
        await keyring._note_served()
        assert judged(await kkp.get("/keys/jwks")) > 0
