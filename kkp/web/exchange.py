"""Token exchange (RFC 8693): what `POST /token` takes as a form.

```
grant_type            urn:ietf:params:oauth:grant-type:token-exchange
subject_token         the credential: whatever could stand as the bearer, and it is authenticated as one
subject_token_type    …:access_token for what KKP issued, such as a service key; …:jwt or …:id_token for a JWT
resource              urn:kkp:key:<backend>:<key id, percent-encoded>, exactly one
audience              exactly one
scope                 operations; left out, decrypt
requested_token_type  …:access_token, or …:jwt, which it is as well; left out, the former
binding               as in JSON
```

Rules that hold here:
- Nothing is asked of the client: the subject_token is the credential. A client's id is ignored, and a secret
  of a client's is refused, because nobody compares it with anything.
- `actor_token` is refused. Ignored, it would give impersonation to who asked for delegation. Who speaks for
  another asks in JSON, with `subject`, under its own credential.
- Unknown parameters are ignored (RFC 6749 section 3.2). Those of the JSON form are known, and refused:
  ignored, they would leave a token wider than meant.
- What a type says of a JWT chooses nothing: a token is verified by what it is.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import ClassVar, Final
from urllib.parse import unquote

import msgspec

from kkp.errors import (
    ClientAuthenticationError,
    InvalidRequestError,
    InvalidScopeError,
    InvalidTargetError,
    UnsupportedGrantError,
)
from kkp.model import JSON, Credentials
from kkp.names import Audience
from kkp.operations.tokens import Binding, TokenRequest
from kkp.web import schemas, shapes
from kkp.web.schemas import Asks

ACCESS_TOKEN: Final = "urn:ietf:params:oauth:token-type:access_token"  # noqa: S105  the name of a type
TOKEN_EXCHANGE = "urn:ietf:params:oauth:grant-type:token-exchange"  # noqa: S105  the name of a grant
_DOTS_OF_A_JWT = 2
_RESOURCE = "urn:kkp:key:"
_CLIENT_AUTHENTICATION = ("client_secret", "client_assertion", "client_assertion_type")
_ACTOR = ("actor_token", "actor_token_type")
_TARGET = ("resource", "audience")
_ERROR_OF: Mapping[str, type[InvalidRequestError]] = {
    "scope": InvalidScopeError,
    **dict.fromkeys(_TARGET, InvalidTargetError),
}
_MEMBER = re.compile(r"`(?:\$\.)?([a-z_]+)`\Z")  # in which the decoder's sentence ends


class ExchangeRequest(TokenRequest, frozen=True, kw_only=True):
    """What the form asks for: a token, and what it is to be called."""

    issued_token_type: shapes.RequestedTokenType


class ExchangeBody(Asks[ExchangeRequest], frozen=True, forbid_unknown_fields=False):
    """`POST /token` as a form (RFC 8693 section 2.1)."""

    example: ClassVar[Mapping[str, JSON]] = {
        "grant_type": TOKEN_EXCHANGE,
        "subject_token": f"kkp_sk_{'A' * 43}",
        "subject_token_type": ACCESS_TOKEN,
        "resource": "urn:kkp:key:aws:alias%2Forders",
        "audience": "orders-db",
        "scope": "encrypt decrypt",
    }

    grant_type: shapes.GrantType
    subject_token: shapes.SubjectToken
    subject_token_type: shapes.SubjectTokenType
    resource: shapes.Resource
    audience: Audience
    scope: shapes.Scope = "decrypt"
    requested_token_type: shapes.RequestedTokenType = ACCESS_TOKEN
    binding: Binding | None = None

    def request(self) -> ExchangeRequest:
        """Return what is asked for, checked."""
        if self.subject_token_type != ACCESS_TOKEN and self.subject_token.count(".") != _DOTS_OF_A_JWT:
            raise InvalidRequestError("A token of that type has three parts - at `$.subject_token`")
        backend, _, quoted = self.resource.removeprefix(_RESOURCE).partition(":")
        ops = tuple(self.scope.split(" "))
        if len(set(ops)) != len(ops):
            raise InvalidScopeError("An op is named twice - at `$.scope`")
        return ExchangeRequest(
            audience=self.audience,
            backend=backend,
            key_id=_key_id(quoted),
            ops=ops,
            issued_token_type=self.requested_token_type,
            binding=self.binding,
        )

    def credentials(self, credentials: Credentials) -> Credentials:
        """Return the credentials with the subject_token as the bearer, which no header may be here."""
        return msgspec.structs.replace(credentials, unverified_bearer=self.subject_token)


_OF_JSON_ALONE = frozenset(schemas.TokenBody.__struct_fields__) - frozenset(ExchangeBody.__struct_fields__)


def read_form(pairs: Sequence[tuple[str, str]]) -> ExchangeBody:
    """Return what a form asks for.

    Raises:
        ClientAuthenticationError: A client would authenticate itself as such.
        InvalidRequestError: It can't be meant; its subclass tells OAuth's clients in which way.
    """
    names = [name for name, _ in pairs]
    for name in _TARGET:
        if names.count(name) > 1:  # as RFC 8693 section 2.1 lets a client do
            raise InvalidTargetError(f"A token is for one `{name}`.")
    members = schemas.members(pairs)
    if members.get("grant_type", TOKEN_EXCHANGE) != TOKEN_EXCHANGE:
        raise UnsupportedGrantError(f"The only grant_type is {TOKEN_EXCHANGE}.")
    _refuse_what_would_be_ignored(members)
    try:
        return msgspec.convert(members, ExchangeBody)
    except msgspec.ValidationError as error:
        found = _MEMBER.search(str(error))
        kind = _ERROR_OF.get(found[1] if found is not None else "", InvalidRequestError)
        raise kind(schemas.explanation(error)) from None


def _refuse_what_would_be_ignored(members: Mapping[str, str]) -> None:
    if any(name in members for name in _CLIENT_AUTHENTICATION):
        raise ClientAuthenticationError("The subject_token is the credential: send nothing of the client's.")
    if any(name in members for name in _ACTOR):
        raise InvalidRequestError("There is no actor_token here: who speaks for another asks in JSON.")
    for name in sorted(_OF_JSON_ALONE & members.keys()):
        raise InvalidRequestError(f"`{name}` is for JSON alone, and has no meaning in a form.")


def _key_id(quoted: str) -> str:
    try:
        key_id: str = msgspec.convert(unquote(quoted), shapes.KeyId)
    except msgspec.ValidationError as error:
        raise InvalidTargetError(f"{schemas.explanation(error)} - at `$.resource`") from None
    return key_id
