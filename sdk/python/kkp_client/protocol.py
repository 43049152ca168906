"""What the client says to KKP, what it makes of the answers, and what it does next: without I/O.

Each call is a generator of *steps*: it gives what is to be done (`Send`, `Wait`, `AskCredential` or
`AskToken`), is sent what came of it, and returns the call's result or raises its error. `kkp_client.client`
walks the steps in asyncio, `kkp_client.sync_client` in threads; a rule that holds for both stands here or in
`kkp_client.token_cache`.

Rules that hold here:
- Without a DPoP key the credential is the bearer, and beside it, in the body, stands the token where KKP
  wants one; a batch of envelopes shows the token alone. With a DPoP key everything about envelopes shows a
  bound token and a proof, and a token that is not bound is refused.
- Only 503, 429 and a connection that was never made are repeated, after what `Retry-After` says or after a
  random part of 0.1 * 2^n s. A wait that would reach the deadline is not begun. A token that KKP refuses is
  forgotten and asked for once more; a nonce for proofs that KKP demands is used once.
- An approval that KKP spent on what then failed is refused when the request is repeated: the failure is the
  error.
- An answer is distrusted: its length, its form, and whether it is about what was asked.
- Errors hold no token, key, proof, plaintext or piece of an answer. They are raised outside of handlers, so
  that nothing hangs from them that holds one.
- A client that was used is of one process. A fork of it has the same connections, and either process could
  read the other's answer. So it refuses to send anything.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from copy import copy
from dataclasses import dataclass, field, replace
from functools import partial
from random import SystemRandom
from ssl import CERT_REQUIRED, SSLContext
from typing import Any, Final, Generic, NamedTuple, Protocol, TypeAlias, TypedDict, TypeVar, final

from kkp_client import envelope as envelopes
from kkp_client import messages, strict_json
from kkp_client.envelope import DetachedEnvelope, Document, JSONObject
from kkp_client.errors import ConfigurationError, KKPError, ProblemError, TransportCode, TransportError
from kkp_client.messages import EncryptItem, Key, KeyRequest, MessageKey, Op, Opened, Scope, encoded
from kkp_client.token_cache import HeldToken, TokenCache
from kkp_client.urls import checked_url
from kkp_client.version import USER_AGENT

ResultT = TypeVar("ResultT")

MAX_ITEMS: Final = 1000  # of one request
MAX_ITEMS_BYTES: Final = 7 * 1024 * 1024
_SPARE_ANSWER_BYTES: Final = 256 * 1024
_SPARE_ITEM_BYTES: Final = 64 * 1024
_ANSWER_FACTOR: Final = 8  # a plaintext of control characters comes back six times as long, and in base64
_BACKOFF_SECONDS: Final = 0.1
_OK: Final = 200
_UNAUTHORISED: Final = 401
_UNAVAILABLE: Final = 503
_REPEATED: Final = frozenset({429, _UNAVAILABLE})
_SPENT: Final = "approval_invalid"
_REFUSED_TOKEN: Final = frozenset({"token_invalid", "token_expired"})
_NONCE: Final = re.compile(r"[\x21-\x7e]{1,256}")
_SECONDS: Final = re.compile(r"[0-9]{1,6}")
_CREDENTIAL: Final = re.compile(r"(?=.{1,8192}\Z)[A-Za-z0-9._~+/-]+=*")
_WHITE_SPACE: Final = re.compile(r"\s")
_random: Final = SystemRandom()


class MakesProofs(Protocol):
    """A key that signs DPoP proofs (`kkp_client.dpop`)."""

    def proof(
        self, *, method: str, url: str, now: float, token: str | None = None, nonce: str | None = None
    ) -> str:
        """Return a proof for one request."""
        ...


@dataclass(frozen=True, slots=True)
class Send:
    """A POST, which is answered with an `Answer`, or with what it `Failed` of."""

    url: str
    headers: Mapping[str, str] = field(repr=False)
    body: bytes = field(repr=False)
    max_answer_bytes: int
    deadline: float


@dataclass(frozen=True, slots=True)
class Answer:
    """What came back; the names of headers are in small letters."""

    status: int
    headers: Mapping[str, str] = field(repr=False)
    body: bytes = field(repr=False)


class Failed(NamedTuple):
    """Nothing came back that could be read.

    Attributes:
        code: Of the error that it is.
        what: What went wrong, for a log.
        was_sent: Whether KKP may have seen any of the request.
    """

    code: TransportCode
    what: str
    was_sent: bool = True


class Wait(NamedTuple):
    """Let so much time pass."""

    seconds: float


class AskCredential(NamedTuple):
    """Get the caller's own credential, until the deadline where that can be cut short."""

    deadline: float


class AskToken(NamedTuple):
    """Get a token, from the cache or from a flight, until the deadline."""

    scope: bytes
    deadline: float


Step: TypeAlias = Send | Wait | AskCredential | AskToken
Steps: TypeAlias = Generator[Step, Any, ResultT]


class Options(TypedDict, total=False):
    """What a client may be made with beside KKP's URL and a credential: see `Settings`."""

    issuer: str | None
    audience: str | None
    dpop_key: MakesProofs | None
    deadline_seconds: float
    repeats: int
    allow_http: bool
    ssl_context: SSLContext | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What a client is made with.

    Attributes:
        url: Where KKP is.
        issuer: What KKP calls itself, which proofs name; None where that is the URL.
        audience: Whom tokens are for, where a call does not say.
        dpop_key: What tokens are bound to; None for bearer tokens.
        deadline_seconds: How long a call may take, with its token and its repeats.
        repeats: How often a request is repeated that KKP could not serve.
        allow_http: Whether `http:` is taken for other machines than this one.
        ssl_context: Whose certificates are trusted, and which one is shown; None for the usual authorities.

    Raises:
        ConfigurationError: It can't be used.
    """

    url: str
    issuer: str | None = None
    audience: str | None = None
    dpop_key: MakesProofs | None = None
    deadline_seconds: float = 10.0
    repeats: int = 2
    allow_http: bool = False
    ssl_context: SSLContext | None = None

    def __post_init__(self) -> None:
        checked_url(self.url, allow_http=self.allow_http)
        if self.issuer is not None:
            checked_url(self.issuer, allow_http=True)
        if not self.deadline_seconds > 0 or self.repeats < 0:  # not a number is no deadline, either
            raise ConfigurationError("A deadline is more than 0 s, and repeats are 0 or more.")
        context = self.ssl_context
        if context is not None and not (context.check_hostname and context.verify_mode is CERT_REQUIRED):
            raise ConfigurationError("The SSL context does not verify who answers.")

    @property
    def is_bound(self) -> bool:
        """Whether tokens are bound to a key."""
        return self.dpop_key is not None

    def url_of(self, path: str) -> str:
        """Return where a request is sent."""
        return self.url.rstrip("/") + path

    def htu_of(self, path: str) -> str:
        """Return what a proof calls that."""
        return (self.issuer or self.url).rstrip("/") + path


@dataclass(frozen=True, slots=True)
class _Shown:
    """What a request shows; `token` is what a proof names, where there is one."""

    authorization: str = field(repr=False)
    has_proof: bool = False
    token: str | None = field(default=None, repr=False)


@dataclass(frozen=True, slots=True)
class _Item(Generic[ResultT]):
    """One of many: its place, the key that it is about, what is sent, and what reads its answer."""

    place: int
    key: Key
    body: bytes = field(repr=False)
    read: Callable[[JSONObject], ResultT]


@final
class Core:
    """One client's side of every conversation.

    Args:
        settings: What it was made with.
        monotonic: Tells time passing, in seconds.
        wall: Tells Unix seconds, which proofs name.
        uniform: Gives a random number between two.
    """

    def __init__(
        self,
        settings: Settings,
        *,
        monotonic: Callable[[], float] = time.monotonic,
        wall: Callable[[], float] = time.time,
        uniform: Callable[[float, float], float] = _random.uniform,
    ) -> None:
        self.tokens = TokenCache()
        self.monotonic = monotonic
        self._settings = settings
        self._wall = wall
        self._uniform = uniform
        self._nonce: str | None = None
        self._is_closed = False
        self._pid: int | None = None  # of the first use

    def close(self) -> None:
        """Keep no token, and let nobody wait for one; what is asked for from now on is refused."""
        self._is_closed = True
        self.tokens.close(closed())

    @property
    def is_inherited(self) -> bool:
        """Whether another process, of which this one is a fork, has used the client."""
        return self._pid not in {None, os.getpid()}

    def deadline(self) -> float:
        """Return until when a call that begins now may take.

        Raises:
            ConfigurationError: The client was used before a fork.
        """
        if self.is_inherited:
            raise ConfigurationError("The client was used before a fork: make one in each process.")
        self._pid = os.getpid()
        return self.monotonic() + self._settings.deadline_seconds

    def token(self, scope: Scope, *, anew: bool = False) -> Steps[HeldToken]:
        """Get a token; anew, past the cache, where more is shown than whoever else wants one would show."""
        if scope.backend is None or scope.key_id is None:
            raise ConfigurationError("A token is for a key: name its backend and its id.")
        asked = self._scope(scope, "decrypt", (scope.backend, scope.key_id))
        if not anew:
            return (yield from _token(asked, self.deadline()))
        held = yield from self.fetch_token(asked)
        self.tokens.keep(asked, held)
        return held

    def fetch_token(self, scope: bytes) -> Steps[HeldToken]:
        """Ask KKP for a token, past the cache."""
        since, deadline = self.monotonic(), self.deadline()
        credential = yield from _credential(deadline)
        shown = replace(credential, has_proof=self._settings.is_bound)
        answer = yield from self._exchange("/token", scope, shown, deadline)
        return self._issued(answer, since)

    def introspect(self, token: str) -> Steps[JSONObject]:
        """Ask what KKP knows of a token."""
        return (yield from self._about("/token/introspect", token))

    def revoke(self, token: str) -> Steps[None]:
        """Have KKP take a token from nobody any more."""
        self.tokens.forget(token)
        yield from self._about("/token/revoke", token)

    def encrypt(self, item: EncryptItem, scope: Scope) -> Steps[JSONObject]:
        """Have a plaintext sealed."""
        body, key = encoded(item.body()), (item.backend, item.key_id)
        return messages.sealed((yield from self._seal("/envelope/encrypt", body, key, scope)), item)

    def decrypt(self, document: Document, scope: Scope, policy_context: JSONObject) -> Steps[Opened]:
        """Have an envelope opened."""
        envelope = envelopes.parse(document)
        members = messages.opening(envelope, policy_context)
        answer = yield from self._open("decrypt", "/envelope/decrypt", members, envelope.detached, scope)
        return messages.opened(answer, envelope)

    def rewrap(
        self, document: Document, target: Key, scope: Scope, policy_context: JSONObject
    ) -> Steps[JSONObject]:
        """Have an envelope moved to another key."""
        envelope = envelopes.parse_any(document)
        members = {**messages.opening(envelope, policy_context), **messages.labels(target)}
        answer = yield from self._open("rewrap", "/envelope/rewrap", members, envelope.detached, scope)
        return messages.moved(answer, envelope, target)

    def data_key(self, request: KeyRequest, scope: Scope) -> Steps[MessageKey]:
        """Get an envelope without a payload, and the key of its one message."""
        body, key = encoded(request.body()), (request.backend, request.key_id)
        return messages.begun((yield from self._seal("/envelope/data-key", body, key, scope)), request)

    def message_key(
        self, envelope: DetachedEnvelope, scope: Scope, policy_context: JSONObject
    ) -> Steps[bytes]:
        """Get the key of an envelope's one message."""
        members = messages.opening(envelope, policy_context)
        answer = yield from self._open("decrypt", "/envelope/data-key/unwrap", members, envelope, scope)
        return messages.message_key(answer)

    def encrypt_many(self, items: Sequence[EncryptItem], scope: Scope) -> Steps[list[JSONObject | KKPError]]:
        """Have many plaintexts sealed."""
        asked = [
            _Item(
                place, (item.backend, item.key_id), encoded(item.body()), partial(messages.sealed, item=item)
            )
            for place, item in enumerate(items)
        ]
        call = partial(self._seal, "/envelope/encrypt/batch", scope=scope)
        return (yield from _many(asked, {}, call, by_key=self._settings.is_bound))

    def decrypt_many(
        self, documents: Sequence[Document], scope: Scope, policy_context: JSONObject
    ) -> Steps[list[Opened | KKPError]]:
        """Have many envelopes opened."""
        read, refused = messages.parsed(documents, envelopes.parse)
        asked = [
            _Item(
                place,
                messages.key_of(envelope.detached),
                encoded(messages.opening(envelope, policy_context)),
                partial(messages.opened, envelope=envelope),
            )
            for place, envelope in read.items()
        ]
        call = partial(self._call_with_token_alone, "decrypt", "/envelope/decrypt/batch", scope=scope)
        return (yield from _many(asked, refused, call, by_key=True))

    def rewrap_many(
        self, documents: Sequence[Document], target: Key, scope: Scope, policy_context: JSONObject
    ) -> Steps[list[JSONObject | KKPError]]:
        """Have many envelopes moved to another key."""
        read, refused = messages.parsed(documents, envelopes.parse_any)
        asked = [
            _Item(
                place,
                messages.key_of(envelope.detached),
                encoded({**messages.opening(envelope, policy_context), **messages.labels(target)}),
                partial(messages.moved, envelope=envelope, target=target),
            )
            for place, envelope in read.items()
        ]
        call = partial(self._call_with_token_alone, "rewrap", "/envelope/rewrap/batch", scope=scope)
        return (yield from _many(asked, refused, call, by_key=True))

    def _about(self, path: str, token: str) -> Steps[JSONObject]:
        """Call what tells or ends something of a token, and does not use it."""
        deadline = self.deadline()
        shown = yield from _credential(deadline)
        return (yield from self._exchange(path, encoded({"token": token}), shown, deadline))

    def _seal(self, path: str, body: bytes, key: Key, scope: Scope) -> Steps[JSONObject]:
        """Call what takes a grant to encrypt, or a token that is bound."""
        if self._settings.is_bound:
            return (yield from self._call_with_token_alone("encrypt", path, body, key, scope))
        deadline = self.deadline()
        shown = yield from _credential(deadline)
        return (yield from self._exchange(path, body, shown, deadline))

    def _open(
        self, op: Op, path: str, members: JSONObject, envelope: DetachedEnvelope, scope: Scope
    ) -> Steps[JSONObject]:
        """Call what always takes a token: one that is bound, or else in the body, beside the credential."""
        key = messages.key_of(envelope)
        if self._settings.is_bound:
            return (yield from self._call_with_token_alone(op, path, encoded(members), key, scope))
        deadline = self.deadline()

        def call(held: HeldToken) -> Steps[JSONObject]:
            shown = yield from _credential(deadline)
            body = encoded({**members, "token": held.token})
            return (yield from self._exchange(path, body, shown, deadline))

        return (yield from self._with_token(self._scope(scope, op, key), call, deadline))

    def _call_with_token_alone(
        self, op: Op, path: str, body: bytes, key: Key, scope: Scope
    ) -> Steps[JSONObject]:
        deadline = self.deadline()

        def call(held: HeldToken) -> Steps[JSONObject]:
            shown = _Shown(f"{held.token_type} {held.token}", self._settings.is_bound, held.token)
            return (yield from self._exchange(path, body, shown, deadline))

        return (yield from self._with_token(self._scope(scope, op, key), call, deadline))

    def _with_token(
        self, scope: bytes, call: Callable[[HeldToken], Steps[JSONObject]], deadline: float
    ) -> Steps[JSONObject]:
        """Call, and once more with another token where KKP refuses the first."""
        held = yield from _token(scope, deadline)
        try:
            return (yield from call(held))
        except ProblemError as error:
            if error.status != _UNAUTHORISED or error.code not in _REFUSED_TOKEN:
                raise
        self.tokens.forget(held.token)
        held = yield from _token(scope, deadline)
        return (yield from call(held))

    def _exchange(self, path: str, body: bytes, shown: _Shown, deadline: float) -> Steps[JSONObject]:
        """Send a request, again where that is right, until it is answered or has failed."""
        repeated, has_new_nonce = 0, False
        failed: KKPError | None = None
        while True:
            if self._is_closed:
                raise closed()
            nonce = self._nonce
            send = self._request(path, body, shown, deadline)
            came: Answer | Failed = yield send
            self._take_nonce(came)
            read = _read(came, send.url)
            if not isinstance(read, KKPError):
                return read
            is_demand = read.code == "use_dpop_nonce" and shown.has_proof
            if is_demand and self._nonce != nonce and not has_new_nonce:
                has_new_nonce = True
                continue
            wait = self._wait_seconds(read, repeated)
            is_over = repeated == self._settings.repeats or self.monotonic() + wait >= deadline
            if is_over or not _may_repeat(came):
                raise failed if failed is not None and read.code == _SPENT else read
            failed = read if read.status == _UNAVAILABLE else failed
            yield Wait(wait)
            repeated += 1

    def _wait_seconds(self, error: KKPError, repeated: int) -> float:
        if error.retry_after_seconds is not None:
            return error.retry_after_seconds
        return self._uniform(0.0, _BACKOFF_SECONDS * 2.0**repeated)

    def _request(self, path: str, body: bytes, shown: _Shown, deadline: float) -> Send:
        """Return the request, with a proof of its own where one is shown."""
        headers = {
            "Accept": "application/json, application/problem+json",
            "Accept-Encoding": "identity",
            "Authorization": shown.authorization,
            "Content-Type": "application/json",
            "User-Agent": USER_AGENT,
        }
        key = self._settings.dpop_key
        if shown.has_proof and key is not None:
            headers["DPoP"] = key.proof(
                method="POST",
                url=self._settings.htu_of(path),
                now=self._wall(),
                token=shown.token,
                nonce=self._nonce,
            )
        items = MAX_ITEMS if path.endswith("/batch") else 0
        limit = _SPARE_ANSWER_BYTES + _ANSWER_FACTOR * len(body) + items * _SPARE_ITEM_BYTES
        return Send(self._settings.url_of(path), headers, body, limit, deadline)

    def _take_nonce(self, came: Answer | Failed) -> None:
        """Keep the nonce for the next proof, where an answer has one."""
        nonce = came.headers.get("dpop-nonce", "") if isinstance(came, Answer) else ""
        if _NONCE.fullmatch(nonce) is not None:
            self._nonce = nonce

    def _scope(self, scope: Scope, op: Op, key: Key) -> bytes:
        """Return what `/token` is sent, which is what tells scopes apart."""
        audience = scope.audience or self._settings.audience
        if audience is None:
            raise ConfigurationError("A token is for an audience: name one, for the client or for the call.")
        members = {
            "audience": audience,
            "backend": scope.backend or key[0],
            "key_id": scope.key_id or key[1],
            "ops": sorted({op} if scope.ops is None else set(scope.ops)),
            "ttl_seconds": scope.ttl_seconds,
            "policy_claims": messages.pairs_of("policy_claims", scope.policy_claims),
            "context": messages.pairs_of("context", scope.context),
            "subject": scope.subject,
            "request_context": messages.members_of("request_context", scope.request_context),
            "binding": "dpop" if self._settings.is_bound else None,
        }
        return encoded(messages.present(members))

    def _issued(self, answer: JSONObject, since: float) -> HeldToken:
        token, expires_at = answer.get("token"), answer.get("expires_at")
        life = messages.life_seconds(token) if isinstance(token, str) else None
        wanted = "DPoP" if self._settings.is_bound else "Bearer"
        if not isinstance(token, str) or life is None or answer.get("token_type") != wanted:
            raise messages.bad_answer()
        if type(expires_at) is not int or not isinstance(answer.get("kid"), str):
            raise messages.bad_answer()
        return HeldToken.lasting(token, wanted, expires_at=expires_at, life_seconds=life, since=since)


def _credential(deadline: float) -> Steps[_Shown]:
    credential: object = yield AskCredential(deadline)
    return _Shown(f"Bearer {checked_credential(credential)}")


def checked_credential(credential: object, what: str = "credential") -> str:
    """Return a credential, or whatever else is a secret word, that a header can hold.

    Raises:
        ConfigurationError: It can't be held by one. The message repeats nothing of it.
    """
    if not isinstance(credential, str):
        raise ConfigurationError(f"The {what} is not text, but {type(credential).__name__}.")
    if not credential:
        raise ConfigurationError(f"The {what} is empty.")
    if _WHITE_SPACE.search(credential) is not None:
        raise ConfigurationError(f"The {what} has white space or a line break in it: strip it.")
    if _CREDENTIAL.fullmatch(credential) is None:
        raise ConfigurationError(f"The {what} is too long, or has characters that no bearer has.")
    return credential


def _token(scope: bytes, deadline: float) -> Steps[HeldToken]:
    held: HeldToken = yield AskToken(scope, deadline)
    return held


def _many(
    items: Sequence[_Item[ResultT]],
    refused: Mapping[int, KKPError],
    call: Callable[[bytes, Key], Steps[JSONObject]],
    *,
    by_key: bool,
) -> Steps[list[ResultT | KKPError]]:
    """Send items in as few requests as there may be; each has its own result or error, in order."""
    results: dict[int, ResultT | KKPError] = dict(refused)
    for part in _parts(items, by_key=by_key):
        body = b'{"items":[%b]}' % b",".join(item.body for item in part)
        try:
            answer: JSONObject | KKPError = yield from call(body, part[0].key)
        except ConfigurationError:
            raise  # it is the client's, and no request's
        except KKPError as error:
            answer = error
        outcomes = _results(part, answer)
        for item, outcome in zip(part, outcomes, strict=True):
            results[item.place] = outcome
    return [results[place] for place in sorted(results)]


def _parts(items: Sequence[_Item[ResultT]], *, by_key: bool) -> Iterator[Sequence[_Item[ResultT]]]:
    """Give the items of one request after the other: of one key, where that is wanted, and not too many."""
    groups: dict[Key | None, list[_Item[ResultT]]] = {}
    for item in items:
        groups.setdefault(item.key if by_key else None, []).append(item)
    for group in groups.values():
        part: list[_Item[ResultT]] = []
        size = 0
        for item in group:
            if part and (len(part) == MAX_ITEMS or size + len(item.body) > MAX_ITEMS_BYTES):
                yield part
                part, size = [], 0
            part.append(item)
            size += len(item.body)
        yield part


def _results(part: Sequence[_Item[ResultT]], answer: JSONObject | KKPError) -> Iterator[ResultT | KKPError]:
    """Give each item's result or error; an error of the whole request is that of each."""
    listed = answer.get("items") if not isinstance(answer, KKPError) else None
    if not isinstance(listed, list) or len(listed) != len(part):
        error = answer if isinstance(answer, KKPError) else messages.bad_answer()
        yield from (copy(error) for _ in part)
        return
    for item, document in zip(part, listed, strict=True):
        result = _result(item, document)
        yield result


def _result(item: _Item[ResultT], document: object) -> ResultT | KKPError:
    if not isinstance(document, dict):
        return messages.bad_answer()
    status = document.get("status")
    if "code" in document and type(status) is int:
        return messages.problem(document, status)
    try:
        return item.read(document)
    except KKPError as error:
        return error


def _read(came: Answer | Failed, url: str) -> JSONObject | KKPError:
    """Return what an answer says, or the error that it or its absence is."""
    if isinstance(came, Failed):
        return TransportError(f"POST {url}: {came.what}", code=came.code)
    if came.status == _OK:
        document = _object(came, "application/json")
        return messages.bad_answer() if document is None else document
    after = came.headers.get("retry-after", "")
    seconds = float(after) if _SECONDS.fullmatch(after) else None
    return messages.problem(_object(came, "application/problem+json"), came.status, seconds)


def _object(answer: Answer, media_type: str) -> JSONObject | None:
    if answer.headers.get("content-type", "").partition(";")[0].strip().lower() != media_type:
        return None
    try:
        document = strict_json.loads(answer.body)
    except ValueError:
        return None
    return document if isinstance(document, dict) else None


def timed_out(what: str) -> TransportError:
    """Return the error of what was waited for until the deadline."""
    return TransportError(f"The {what} did not come in time.", code="timeout")


def closed() -> ConfigurationError:
    """Return the error of a client that is used after its end."""
    return ConfigurationError("The client was closed.")


def _may_repeat(came: Answer | Failed) -> bool:
    return came.status in _REPEATED if isinstance(came, Answer) else not came.was_sent
