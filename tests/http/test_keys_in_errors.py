"""Where keys are at hand, whatever fails shows none of them: not the answer, not the log, not what it holds.

The libraries that are handed keys are made to fail, and to quote the key in their error, as a careless one
would. The log must not quote it, and must not hold the exception either: whoever renders its frames with
their local variables, as some collectors of errors do, would find keys there.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NoReturn

import pytest
from nacl.signing import SigningKey

from tests.harness import Answer, running
from tests.http.test_no_secret_leaks import Canaries

pytestmark = pytest.mark.promise(31, 40)

REQUEST = {"audience": "orders-db", "backend": "aws", "key_id": "alias/orders"}


class Careless:
    """Fails as soon as it is handed a key, and says which."""

    def __init__(self, learned: Canaries) -> None:
        self._learned = learned

    def fail(self, key: bytes) -> NoReturn:
        self._learned.learn(f"key {len(self._learned.values)}", key)
        raise ValueError(f"can't use {key!r}, {key.hex()}")

    def cipher(self, key: bytes) -> NoReturn:
        self.fail(key)

    def derivation(self, *_: object, **__: object) -> Careless:
        return self

    def derive(self, key: bytes) -> NoReturn:
        self.fail(key)

    @property
    def sign(self) -> Callable[[SigningKey, bytes], NoReturn]:
        """A plain function, as a method that stands in for a method has to be."""

        def sign(signer: SigningKey, _: bytes) -> NoReturn:
            self.fail(bytes(signer))

        return sign


# Where it stands in, and as what.
PLACES: Mapping[str, tuple[str, str]] = {
    "a payload's key": ("kkp.envelope.AESGCM", "cipher"),
    "a data key": ("kkp.envelope.HKDF", "derivation"),
    "a backend's key, in the cipher": ("kkp.kms._aead.AESGCM", "cipher"),
    "a backend's key, in the derivation": ("kkp.kms._aead.HKDF", "derivation"),
    "what seals signing keys, in the cipher": ("kkp.master_key.AESGCM", "cipher"),
    "what seals signing keys, in the derivation": ("kkp.master_key.HKDF", "derivation"),
    "a signing key": ("nacl.signing.SigningKey.sign", "sign"),
}


@pytest.mark.parametrize("place", PLACES)
async def test_nothing_shows_a_key_when_what_fails_was_handed(
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture[str],
    place: str,
) -> None:
    caplog.set_level(logging.DEBUG)
    keys = Canaries()
    careless = Careless(keys)
    target, role = PLACES[place]
    answers: list[Answer] = []
    async with running(tmp_path) as kkp:
        token = await kkp.token(kkp.root_key)
        envelope = await kkp.seal(token)

        async def ask(path: str, document: Mapping[str, Any] | None = None) -> None:
            answers.append(await kkp.post(path, document, credential=kkp.root_key))

        with pytest.MonkeyPatch.context() as patches:
            patches.setattr(target, getattr(careless, role))
            await ask("/token", REQUEST)
            await ask("/envelope/encrypt", {"backend": "aws", "key_id": "alias/orders", "plaintext": "x"})
            await ask("/envelope/decrypt", {"envelope": envelope, "token": token})
            for key in (await kkp.get("/keys/jwks")).json["keys"]:
                await ask(f"/keys/jwks/{key['kid']}/revoke")
    assert keys.values, "it was handed nothing"
    assert [answer.problem() for answer in answers if answer.status >= 500]
    assert keys.found_in(b"\n".join(answer.raw for answer in answers)) == set()
    assert keys.found_in(caplog.text.encode()) == set()
    output = capfd.readouterr()
    assert keys.found_in(f"{output.out}{output.err}".encode()) == set()
    assert [record.getMessage() for record in caplog.records if record.exc_info is not None] == []
