"""What a token says: KKP's claims, each of its form (docs/formats.md). Pure.

Claims that are not KKP's are passed over, whatever they hold, and are not answered. An optional claim is left
out or has its form: `null` is refused.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, Literal, NamedTuple, TypeAlias, cast

from kkp_client.keys import read_coordinate
from kkp_client.strict_json import JSON

TokenType: TypeAlias = Literal["Bearer", "DPoP"]
Members: TypeAlias = Mapping[str, JSON]

_OPS: Final = ("encrypt", "decrypt", "rewrap")
_MAX_PAIRS: Final = 32


class Actor(NamedTuple):
    """Who asked for a token that speaks for another (RFC 8693 section 4.1)."""

    sub: str


class Confirmation(NamedTuple):
    """The key that whoever shows the token must prove to have (RFC 7800); one of the two.

    Attributes:
        jkt: The RFC 7638 thumbprint of a key that signs DPoP proofs (RFC 9449 section 6.1).
        x5t_s256: The SHA-256 of a client certificate in DER, in base64url (RFC 8705 section 3.1).
    """

    jkt: str | None
    x5t_s256: str | None


class Federated(NamedTuple):
    """Who asked, where KKP knows them by another's word alone.

    Attributes:
        mapping: `<issuer's name>/<rule's name>`.
        attributes: The facts that the rule took over.
    """

    mapping: str
    attributes: Mapping[str, str]


class Claims(NamedTuple):
    """What a token says. Times are whole Unix seconds.

    Attributes:
        iss: Who signed it: KKP, by its issuer's name.
        sub: Whom it speaks for.
        aud: Whom it is meant for.
        iat: When it was issued.
        nbf: From when on it is good.
        exp: From when on it is good no more.
        jti: Tells it from every other token.
        backend: Where the key is that it is about.
        key_id: Which one.
        ops: What may be done with that at KKP: of `encrypt`, `decrypt`, `rewrap`.
        policy_claims: What policy has approved to be said of the subject.
        context: Pairs that an envelope's context must hold.
        act: Who asked, where that is not the subject.
        cnf: The key without which the token is worth nothing.
        federated: What is known of whoever asked, where no identity of KKP's is.
    """

    iss: str
    sub: str
    aud: str
    iat: int
    nbf: int
    exp: int
    jti: str
    backend: str
    key_id: str
    ops: tuple[str, ...]
    policy_claims: Mapping[str, str]
    context: Mapping[str, str]
    act: Actor | None
    cnf: Confirmation | None
    federated: Federated | None

    @property
    def token_type(self) -> TokenType:
        """How the token is shown (RFC 6749 section 7.1)."""
        return "DPoP" if self.cnf is not None and self.cnf.jkt is not None else "Bearer"

    @property
    def asked_by(self) -> str:
        """Who asked for it."""
        return self.act.sub if self.act is not None else self.sub

    def as_json(self) -> dict[str, JSON]:
        """Return the claims as JSON has them; `context` and `federated.attributes` are always there."""
        members: dict[str, JSON] = {name: getattr(self, name) for name in _PLAIN}
        members |= {"ops": list(self.ops), "policy_claims": dict(self.policy_claims)}
        members["context"] = dict(self.context)
        if self.act is not None:
            members["act"] = {"sub": self.act.sub}
        if self.cnf is not None:
            members["cnf"] = _confirmation_as_json(self.cnf)
        if self.federated is not None:
            mapping, attributes = self.federated
            members["federated"] = {"mapping": mapping, "attributes": dict(attributes)}
        return members


_PLAIN: Final = ("iss", "sub", "aud", "iat", "nbf", "exp", "jti", "backend", "key_id")


def _confirmation_as_json(confirmation: Confirmation) -> dict[str, JSON]:
    if confirmation.jkt is not None:
        return {"jkt": confirmation.jkt}
    return {"x5t#S256": confirmation.x5t_s256}


def read_claims(members: Members) -> Claims:
    """Return KKP's claims of a token.

    Raises:
        ValueError: One is missing, or has another form; the message quotes nothing of it.
    """
    claims = Claims(
        iss=read_name(members, "iss"),
        sub=read_name(members, "sub"),
        aud=read_name(members, "aud"),
        iat=read_whole(members, "iat"),
        nbf=read_whole(members, "nbf"),
        exp=read_whole(members, "exp"),
        jti=read_name(members, "jti"),
        backend=read_name(members, "backend"),
        key_id=read_name(members, "key_id"),
        ops=_ops(members.get("ops")),
        policy_claims=_pairs(members.get("policy_claims")),
        context=_pairs(members["context"]) if "context" in members else {},
        act=_actor(members["act"]) if "act" in members else None,
        cnf=_confirmation(members["cnf"]) if "cnf" in members else None,
        federated=_federated(members["federated"]) if "federated" in members else None,
    )
    if claims.iat > claims.exp or claims.nbf > claims.exp:
        raise ValueError("times that contradict each other")
    return claims


def read_name(members: Members, name: str) -> str:
    """Return a member that is a string and not empty.

    Raises:
        ValueError: It is not there, or something else.
    """
    value = members.get(name)
    if isinstance(value, str) and value:
        return value
    raise ValueError("no string, or an empty one")


def read_whole(members: Members, name: str) -> int:
    """Return a member that is a whole number, written with digits alone.

    Raises:
        ValueError: It is not there, or something else.
    """
    value = members.get(name)
    if type(value) is int:  # a bool is an int as well, and of another type
        return value
    raise ValueError("no whole number")


def _ops(value: JSON) -> tuple[str, ...]:
    if not isinstance(value, list) or len(value) > len(_OPS):
        raise ValueError("no list of operations")
    if not all(op in _OPS for op in value):
        raise ValueError("an unknown operation")
    ops = cast("list[str]", value)
    if len(set(ops)) != len(ops):
        raise ValueError("an operation twice")
    return tuple(ops)


def _pairs(value: JSON) -> Mapping[str, str]:
    if not isinstance(value, dict) or len(value) > _MAX_PAIRS:
        raise ValueError("no pairs, or too many")
    for text in value.values():
        if not isinstance(text, str):
            raise ValueError("a pair whose value is no string")  # noqa: TRY004  one kind of error
    return cast("dict[str, str]", value)


def _actor(value: JSON) -> Actor:
    if isinstance(value, dict) and value.keys() == {"sub"} and isinstance(sub := value["sub"], str):
        return Actor(sub)
    raise ValueError("no actor")


def _confirmation(value: JSON) -> Confirmation:
    if not isinstance(value, dict) or len(value) != 1:
        raise ValueError("not one key")
    ((name, digest),) = value.items()
    if not isinstance(digest, str) or read_coordinate(digest) is None:
        raise ValueError("no digest")
    if name == "jkt":
        return Confirmation(digest, None)
    if name == "x5t#S256":
        return Confirmation(None, digest)
    raise ValueError("an unknown kind of key")


def _federated(value: JSON) -> Federated:
    if not isinstance(value, dict) or not value.keys() <= {"mapping", "attributes"}:
        raise ValueError("not what is known of a caller")
    mapping = value.get("mapping")
    if not isinstance(mapping, str):
        raise ValueError("no mapping")  # noqa: TRY004  one kind of error for one kind of fault
    return Federated(mapping, _pairs(value["attributes"]) if "attributes" in value else {})
