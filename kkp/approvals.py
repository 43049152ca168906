"""An operation that somebody else must approve: what that is bound to, who may not, and the release. Pure.

What is approved is a digest over the *decisive* members of the policy input, as policy was asked it:

```
digest    SHA-256(document), in lowercase hex
document  JSON, its members sorted, without spaces:
          {"action", "caller": {"id", "issuer", "kind", "method"}, "claims", "request"}
```

`claims` and `request` are whole, but that `iat`, `nbf`, `exp` and `jti` of the claims are left out where a
token is what the caller shows, or what would be signed: a fresh one that says the same is as good, since the
first has expired when somebody finds the time. It says the same only if it is bound to the same key, and if
the same rule with the same attributes made its subject a caller. Where the operation is about one token, as
when it is introspected or revoked, they stay. The rest of the input is what policy is asked anew when the
approval is used: roles, grants, attributes, the time and the address. No plaintext, token, key or ciphertext
is in a policy input, so none is in the document.

Nobody approves what they are behind, and callers that share a name are one person. A caller's names are its
own, that of its attribute `person` and, of an account, the address; and where one of these is an identity's
or an account's, the names of that too. A row has those that a credential says; whose an identity or an
account is, is looked up when somebody approves: no name is used again, and whose it is does not change.
Names are compared as `one_spelling` writes them: where that takes two persons for one, one of them can't
approve; where it took one for two, they could alone.

A release is a JWS in compact form with the `typ` of RELEASE_TYPE, over `ReleaseClaims`. It is no token, and
no token is a release. Evolution: members are added to neither; another meaning comes with another `typ`.
"""

from __future__ import annotations

import hashlib
import unicodedata
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Final, Protocol

import msgspec

from kkp.model import JSON, Action, ApprovalDemand, Caller

RELEASE_TYPE: Final = "kkp-approval+jwt"
MAX_REASON_CHARACTERS: Final = 256
# Whoever has this attribute is the person of that name, by whatever name it calls.
PERSON: Final = "person"

# Neither is seen: controls, and what only formats; and the spaces.
_UNSEEN: Final = frozenset({"Cc", "Cf", "Zs", "Zl", "Zp"})
_OF_CALLER: Final = ("id", "issuer", "kind", "method")
_OF_ONE_TOKEN: Final = frozenset({"iat", "nbf", "exp", "jti"})
_BY_SCOPE: Final = frozenset(
    {
        Action.ISSUE_TOKEN,
        Action.ENCRYPT,
        Action.DECRYPT,
        Action.REWRAP,
        Action.GENERATE_DATA_KEY,
        Action.RELEASE_DATA_KEY,
    }
)
_encoder: Final = msgspec.json.Encoder(order="deterministic")


class ReleaseClaims(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a release says. Times are whole Unix seconds.

    Attributes:
        iss: Whose it is.
        sub: The caller that asked, and may use it.
        iat: When it was approved.
        exp: From when on it is good for nothing.
        jti: The request's id.
        digest: What was approved.
    """

    iss: str
    sub: str
    iat: int
    exp: int
    jti: str
    digest: str


@dataclass(frozen=True, slots=True)
class Wanted:
    """What somebody would be let do.

    Attributes:
        caller: Who asks.
        behind: The names of everybody who is behind the request, but for those that are looked up.
        document: See above.
        demand: What policy demands for it.
    """

    caller: str
    behind: tuple[str, ...]
    document: bytes = field(repr=False)
    demand: ApprovalDemand

    @property
    def digest(self) -> str:
        """What is approved, and what a release is bound to."""
        return digest_of(self.document)


@dataclass(frozen=True, slots=True, kw_only=True)
class Approval:
    """What waits to be approved or, once it is, to be done.

    Attributes:
        id: Names it.
        caller: Who asked.
        behind: The names of everybody who is behind the request, but for those that are looked up.
        digest: What is approved.
        operation: What exactly would be done: the decisive members of the policy input.
        is_break_glass: Whether it is for emergencies.
        valid_seconds: How long it may be done from the approval on, at most.
        asked_at: When it was asked for, in Unix seconds.
        expires_at: Until when it waits; once approved, until when it may be done.
        decided_by: Who approved it; None: it waits.
    """

    id: str
    caller: str
    behind: tuple[str, ...]
    digest: str
    operation: Mapping[str, JSON]
    is_break_glass: bool
    valid_seconds: int
    asked_at: float
    expires_at: float
    decided_by: str | None

    @property
    def action(self) -> str:
        """What would be done."""
        return str(self.operation["action"])

    @property
    def backend(self) -> str | None:
        """The backend that would be used, if any."""
        backend: str | None = self.operation["request"]["backend"]
        return backend

    @property
    def key_id(self) -> str | None:
        """The key that would be used, if any."""
        key_id: str | None = self.operation["request"]["key_id"]
        return key_id


def decisive(question: bytes) -> bytes:
    """Return the decisive members of a policy input, in their one spelling."""
    asked: dict[str, JSON] = msgspec.json.decode(question)
    left_out = _OF_ONE_TOKEN if asked["action"] in _BY_SCOPE else frozenset()
    document = {
        "action": asked["action"],
        "caller": {name: asked["caller"][name] for name in _OF_CALLER},
        "claims": {name: value for name, value in asked["claims"].items() if name not in left_out},
        "request": asked["request"],
    }
    return _encoder.encode(document)


def digest_of(document: bytes) -> str:
    """Return what is approved where this would be done."""
    return hashlib.sha256(document).hexdigest()


class KnowsPersons(Protocol):
    """Knows whose an identity or an account is."""

    def person_of(self, name: str) -> str | None:
        """Return whose it is, whether or not it is disabled; None where that is not known, or nothing is."""


def names_of(caller_id: str, attributes: Mapping[str, str]) -> frozenset[str]:
    """Return the names that a caller is known by without looking anything up."""
    return frozenset({caller_id, attributes.get(PERSON, caller_id)})


def is_behind(approver: Caller, behind: Collection[str], known: KnowsPersons) -> bool:
    """Tell whether whoever would approve is, by any name that is known, behind the request.

    Raises:
        StateUntrustedError: It can't be told.
    """
    return not _all_names(names_of(approver.id, approver.attributes), known).isdisjoint(
        _all_names(behind, known)
    )


def _all_names(names: Iterable[str], known: KnowsPersons) -> set[str]:
    """Return these names and those that they stand for, each in its one spelling."""
    found: set[str] = set()
    left = list(names)
    while left:
        name = one_spelling(left.pop())
        person = None if name in found else known.person_of(name)
        found.add(name)
        left.extend(() if person is None else (person,))
    return found


def one_spelling(name: str) -> str:
    """Return a name as it is compared.

    Small or capital letters, the forms that Unicode has for one character, what is not seen, and a domain's
    two spellings in an address (RFC 5890) make no difference. An identity's or account's name stays as it is.
    Letters that only look alike differ, and so do two addresses of one mailbox.
    """
    before, at, domain = _folded(name).rpartition("@")
    return before + at + ".".join(map(_readable, domain.split("."))) if at else domain


def _folded(text: str) -> str:
    """Return a text so that what matches it without regard to case is equal (Unicode, section 3.13, D146)."""
    folded = unicodedata.normalize("NFD", text).casefold()
    folded = unicodedata.normalize("NFKD", folded).casefold()
    folded = unicodedata.normalize("NFKD", folded)
    return "".join(each for each in folded if unicodedata.category(each) not in _UNSEEN)


def _readable(label: str) -> str:
    """Return a label of a domain in the letters that `xn--…` stands for."""
    encoded = label.removeprefix("xn--")
    try:
        return label if encoded == label else _folded(encoded.encode("ascii").decode("punycode"))
    except UnicodeError:  # it stands for none
        return label
