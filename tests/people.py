"""People of a server that runs in this process."""

from __future__ import annotations

from typing import Final

from kkp.authn.accounts import Account, AccountDirectory, code_digest, new_account_id, new_code
from tests.harness import KKP, Answer

EMAIL: Final = "ann@example.com"
PASSWORD: Final = "seven green lamps hum"
OTHER_PASSWORD: Final = "nine blue kettles sing"
_LATER: Final = 2.0**33


def directory(kkp: KKP) -> AccountDirectory:
    """Return the people whom the server knows."""
    return kkp.services.sign_up._accounts


async def add_person(
    kkp: KKP, email: str = EMAIL, password: str = PASSWORD, roles: tuple[str, ...] = ("user",)
) -> str:
    """Add a person and return their name."""
    kept = await kkp.services.sign_up._passwords.hash(password)
    account = Account(id=new_account_id(), email=email, roles=roles, created_at=1.0, password=kept)
    await directory(kkp).add(account)
    return account.id


async def invite(
    kkp: KKP, email: str = EMAIL, roles: tuple[str, ...] = ("user",), *, expires_at: float = _LATER
) -> str:
    """Invite a person and return their code."""
    code = new_code()
    account = Account(
        id=new_account_id(),
        email=email,
        roles=roles,
        created_at=1.0,
        code=code_digest(code),
        code_expires_at=expires_at,
    )
    await directory(kkp).add(account)
    return code


async def log_in(kkp: KKP, email: str = EMAIL, password: str = PASSWORD) -> Answer:
    """Log in."""
    return await kkp.post("/login", {"email": email, "password": password})


async def session(kkp: KKP, email: str = EMAIL, password: str = PASSWORD) -> str:
    """Log in and return the session."""
    answer = await log_in(kkp, email, password)
    assert answer.status == 200, answer.raw
    value: str = answer.json["session"]
    return value
