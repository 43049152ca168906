from __future__ import annotations

import json
import os
import ssl
from collections.abc import Callable
from typing import Any

import pytest

from kkp_client import envelope as envelopes
from kkp_client.client import KKPClient
from kkp_client.dpop import DPoPKey
from kkp_client.errors import ConfigurationError, EnvelopeInvalidError, ProblemError, TransportError
from kkp_client.messages import DEFAULT_SCOPE, EncryptItem, KeyRequest, Scope
from kkp_client.protocol import Answer, AskCredential, AskToken, Core, Failed, Send, Settings, Step, Wait
from kkp_client.sync_client import SyncKKPClient
from kkp_client.token_cache import HeldToken
from tests.scripted_kkp import CLAIMS
from tests.test_envelope import DETACHED, WHOLE

ITEM = EncryptItem(backend="aws", key_id="alias/orders", plaintext=b"1234")
UNMADE = Failed("unreachable", "No connection.", was_sent=False)
BROKEN = Failed("unreachable", "It broke.")
HELD = HeldToken.lasting("t.t.t", "Bearer", expires_at=0, life_seconds=300, since=0)


UNVERIFYING = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)


class Clock:
    """Stands still unless a step takes time."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def answered(document: Any, status: int = 200, **headers: str) -> Answer:
    kind = "application/json" if status == 200 else "application/problem+json"
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return Answer(status, {"content-type": kind, **named}, json.dumps(document).encode())


def refused(status: int, code: str, **headers: str) -> Answer:
    return answered({"status": status, "code": code}, status, **headers)


def sealed(item: EncryptItem = ITEM, **members: Any) -> Answer:
    """Return the answer that is right for an item, with other members where a test wants them."""
    detached = envelopes.parse_detached(
        {
            **DETACHED["envelope"],
            "context": dict(item.context),
            "associated_data": item.associated_data,
            "encoding": item.encoding,
            "backend": item.backend,
            "key_id": item.key_id,
        }
    )
    return answered(
        {"envelope": {**envelopes.seal(detached, bytes(32), item.plaintext).document(), **members}}
    )


class Told:
    """One call, whose steps are answered in turn: requests by a list, all else by what is right."""

    def __init__(self, *answers: Answer | Failed | Callable[[], Answer], **options: Any) -> None:
        self.clock = Clock()
        self.core = Core(
            Settings(url="https://kkp.example/door/", audience="orders-db", **options),
            monotonic=self.clock,
            wall=lambda: 1_700_000_000.0,
            uniform=lambda _, most: most,
        )
        self.answers = list(answers)
        self.steps: list[Step] = []

    def call(self, steps: Any) -> Any:
        try:
            step = next(steps)
            while True:
                self.steps.append(step)
                step = steps.send(self._came_of(step))
        except StopIteration as end:
            return end.value

    def encrypt(self, item: EncryptItem = ITEM) -> Any:
        return self.call(self.core.encrypt(item, DEFAULT_SCOPE))

    def decrypt(self, envelope: Any = WHOLE) -> Any:
        return self.call(self.core.decrypt(envelope, DEFAULT_SCOPE, {}))

    @property
    def sent(self) -> list[Send]:
        return [step for step in self.steps if isinstance(step, Send)]

    @property
    def waits(self) -> list[float]:
        return [step.seconds for step in self.steps if isinstance(step, Wait)]

    def _came_of(self, step: Step) -> Any:
        match step:
            case Send():
                answer = self.answers.pop(0)
                return answer() if callable(answer) else answer
            case Wait(seconds):
                self.clock.now += seconds
                return None
            case AskCredential():
                return "kkp_sk_secret"
            case AskToken():
                return HELD


@pytest.mark.parametrize(
    "context", [None, "table=orders", [("table", "orders")], {"table": 7}, {7: "orders"}]
)
def test_a_context_that_is_no_mapping_of_text_is_refused_before_anything_is_sent(context: Any) -> None:
    told = Told()
    item = EncryptItem(backend="aws", key_id="k", plaintext=b"1234", context=context)
    request = KeyRequest(backend="aws", key_id="k", context=context)
    for steps in (
        told.core.encrypt(item, DEFAULT_SCOPE),
        told.core.data_key(request, DEFAULT_SCOPE),
        told.core.decrypt(WHOLE, Scope(context=context), {}),
        told.core.decrypt(WHOLE, Scope(policy_claims=context), {}),
    ):
        with pytest.raises(
            ConfigurationError, match=r"What was given as (context|policy_claims) is no mapping"
        ):
            told.call(steps)
    assert told.steps == []


@pytest.mark.parametrize("told_policy", [None, "text", {"at": object()}, {"at": float("nan")}, {"at": b"1"}])
def test_what_policy_is_told_is_json_or_nothing_is_sent(told_policy: Any) -> None:
    told = Told()
    item = EncryptItem(backend="aws", key_id="k", plaintext="secret", policy_context=told_policy)
    for steps in (
        told.core.encrypt(item, DEFAULT_SCOPE),
        told.core.decrypt(WHOLE, Scope(request_context=told_policy), {}),
        told.core.rewrap(WHOLE, ("gcp", "orders"), DEFAULT_SCOPE, told_policy),
    ):
        with pytest.raises(ConfigurationError) as failed:
            told.call(steps)
        assert "secret" not in str(failed.value)
        assert (failed.value.__context__, failed.value.__cause__) == (None, None)
    assert not told.sent


async def an_envelope() -> Any:
    return WHOLE


@pytest.mark.parametrize("kind", ["coroutine", "NoneType", "int", "list"])
def test_what_can_be_no_envelope_is_the_callers_mistake(kind: str) -> None:
    unawaited = an_envelope()
    document: Any = {"coroutine": unawaited, "NoneType": None, "int": 7, "list": [WHOLE]}[kind]
    told = Told()
    for steps in (
        told.core.decrypt(document, DEFAULT_SCOPE, {}),
        told.core.rewrap(document, ("gcp", "orders"), DEFAULT_SCOPE, {}),
    ):
        with pytest.raises(ConfigurationError, match=f"and not {kind}"):
            told.call(steps)
    (each,) = told.call(told.core.decrypt_many([document], DEFAULT_SCOPE, {}))
    assert isinstance(each, ConfigurationError)
    assert told.steps == []
    unawaited.close()


@pytest.mark.parametrize("last", [sealed(), refused(403, "policy_denied")])
@pytest.mark.parametrize(
    "busy",
    [refused(503, "kms_unavailable"), refused(429, "rate_limited"), UNMADE, Answer(503, {}, b"<html>")],
)
def test_what_could_not_be_served_is_sent_again_after_longer_and_longer_waits(
    busy: Answer | Failed, last: Answer
) -> None:
    told = Told(busy, busy, last)
    if last.status == 200:
        assert told.encrypt()["backend"] == "aws"
    else:
        with pytest.raises(ProblemError, match="policy_denied"):
            told.encrypt()
    assert told.waits == [0.1, 0.2]
    assert len({(send.url, send.body) for send in told.sent}) == 1


@pytest.mark.parametrize(("repeats", "sent"), [(0, 1), (2, 3), (5, 6)])
def test_it_is_sent_again_so_often_and_not_more_often(repeats: int, sent: int) -> None:
    told = Told(*[refused(503, "overloaded")] * 9, repeats=repeats)
    with pytest.raises(ProblemError) as failed:
        told.encrypt()
    assert (failed.value.code, failed.value.status, len(told.sent)) == ("overloaded", 503, sent)


@pytest.mark.parametrize(
    "answer",
    [
        refused(400, "invalid_request"),
        refused(401, "unauthenticated"),
        refused(401, "token_expired"),
        refused(500, "internal"),
        refused(502, "kms_denied"),
        answered({}, 504),
        Answer(302, {"location": "https://elsewhere.example"}, b""),
        BROKEN,
        Failed("timeout", "Too late."),
    ],
)
def test_nothing_else_is_sent_twice(answer: Answer | Failed) -> None:
    told = Told(answer)
    with pytest.raises((ProblemError, TransportError)):
        told.encrypt()
    assert len(told.sent) == 1


@pytest.mark.parametrize(("after", "waits"), [("0", [0.0]), ("3", [3.0]), ("9", [9.0])])
def test_retry_after_says_how_long_to_wait(after: str, waits: list[float]) -> None:
    told = Told(refused(429, "rate_limited", retry_after=after), sealed())
    told.encrypt()
    assert told.waits == waits


@pytest.mark.parametrize("after", ["10", "3600"])
def test_a_wait_that_would_reach_the_deadline_is_not_begun(after: str) -> None:
    told = Told(refused(503, "overloaded", retry_after=after))
    with pytest.raises(ProblemError) as failed:
        told.encrypt()
    assert failed.value.retry_after_seconds == float(after)
    assert told.waits == []


@pytest.mark.parametrize("after", ["", "-1", "1.5", "soon", "Wed, 21 Oct 2026 07:28:00 GMT", "9999999", "²"])
def test_a_retry_after_of_another_form_says_nothing(after: str) -> None:
    told = Told(refused(503, "overloaded", retry_after=after), sealed())
    told.encrypt()
    assert told.waits == [0.1]


def test_the_deadline_is_that_of_the_whole_call() -> None:
    told = Told(refused(503, "overloaded", retry_after="4"), UNMADE, sealed(), deadline_seconds=5)
    told.encrypt()
    assert {send.deadline for send in told.sent} == {1005.0}


def test_a_refused_token_is_forgotten_and_asked_for_once_more() -> None:
    for code in ("token_invalid", "token_expired"):
        told = Told(*[refused(401, code)] * 2)
        with pytest.raises(ProblemError, match=code):
            told.decrypt()
        kinds = [type(step) for step in told.steps]
        assert kinds == [AskToken, AskCredential, Send] * 2


def test_another_refusal_is_not_the_tokens_fault() -> None:
    for answer in (refused(401, "unauthenticated"), refused(403, "token_invalid"), refused(403, "revoked")):
        told = Told(answer)
        with pytest.raises(ProblemError):
            told.decrypt()
        assert len(told.sent) == 1


def test_without_a_dpop_key_the_credential_is_shown_and_the_token_in_the_body_where_one_is_wanted() -> None:
    told = Told(sealed())
    told.encrypt()
    (send,) = told.sent
    assert send.url == "https://kkp.example/door/envelope/encrypt"
    assert send.headers["Authorization"] == "Bearer kkp_sk_secret"
    assert json.loads(send.body) == {"backend": "aws", "key_id": "alias/orders", "plaintext_b64": "MTIzNA=="}
    told = Told(refused(403, "policy_denied"))
    with pytest.raises(ProblemError):
        told.decrypt()
    (send,) = told.sent
    assert send.headers["Authorization"] == "Bearer kkp_sk_secret"
    assert json.loads(send.body) == {"envelope": WHOLE, "token": "t.t.t"}
    assert "DPoP" not in send.headers


def test_a_batch_shows_the_token_alone() -> None:
    told = Told(answered({"items": [{}]}))
    told.call(told.core.decrypt_many([WHOLE], DEFAULT_SCOPE, {}))
    (send,) = told.sent
    assert send.headers["Authorization"] == "Bearer t.t.t"
    assert "token" not in json.loads(send.body)


def test_a_scope_is_all_that_is_asked_for() -> None:
    told = Told()
    same = Scope(backend="aws", key_id="alias/orders")
    others = [
        Scope(backend="aws", key_id="alias/orders", audience="another"),
        Scope(backend="gcp", key_id="alias/orders"),
        Scope(backend="aws", key_id="alias/others"),
        Scope(backend="aws", key_id="alias/orders", ops=["encrypt"]),
        Scope(backend="aws", key_id="alias/orders", ops=[]),
        Scope(backend="aws", key_id="alias/orders", ttl_seconds=60),
        Scope(backend="aws", key_id="alias/orders", policy_claims={"a": "b"}),
        Scope(backend="aws", key_id="alias/orders", context={"a": "b"}),
        Scope(backend="aws", key_id="alias/orders", subject="another"),
        Scope(backend="aws", key_id="alias/orders", request_context={"a": ["b"]}),
    ]
    for scope in (same, same, *others):
        told.call(told.core.token(scope))
    asked = [step.scope for step in told.steps if isinstance(step, AskToken)]
    assert asked[0] == asked[1]
    assert len(set(asked)) == 1 + len(others)
    assert json.loads(asked[0]) == {
        "audience": "orders-db", "backend": "aws", "key_id": "alias/orders", "ops": ["decrypt"],
    }  # fmt: skip
    assert json.loads(asked[6])["ops"] == []


def test_the_order_of_pairs_and_operations_makes_no_other_scope() -> None:
    told = Told()
    for ops, claims in (
        (["encrypt", "decrypt"], {"a": "1", "b": "2"}),
        (["decrypt", "encrypt"], {"b": "2", "a": "1"}),
    ):
        told.call(told.core.token(Scope(backend="aws", key_id="k", ops=ops, policy_claims=claims)))  # type: ignore[arg-type]
    first, second = [step.scope for step in told.steps if isinstance(step, AskToken)]
    assert first == second


def test_a_token_needs_a_key_and_an_audience() -> None:
    told = Told()
    for scope in (Scope(), Scope(backend="aws"), Scope(key_id="k")):
        with pytest.raises(ConfigurationError, match="for a key"):
            told.call(told.core.token(scope))
    core = Core(Settings(url="https://kkp.example"))
    with pytest.raises(ConfigurationError, match="audience"):
        next(core.decrypt(WHOLE, DEFAULT_SCOPE, {}))


def token_answer(**members: Any) -> Answer:
    token = "e30.eyJpYXQiOjEwMCwiZXhwIjo0MDB9.AAAA"  # {"iat":100,"exp":400}
    return answered({"token": token, "expires_at": 400, "kid": "k", "token_type": "Bearer", **members})


def test_a_tokens_life_is_counted_from_before_its_request() -> None:
    told = Told()

    def late() -> Answer:
        told.clock.now += 7
        return token_answer()

    told.answers = [late]
    held = told.call(told.core.fetch_token(b"{}"))
    assert (held.expires_at, held.renew_at, held.ends_at) == (400, 1240.0, 1300.0)


@pytest.mark.parametrize(
    "members",
    [
        {"token": None},
        {"token": "no token"},
        {"token": "e30.e30.AAAA"},
        {"token": "e30.eyJpYXQiOjQwMCwiZXhwIjo0MDB9.AAAA"},
        {"token": "e30.eyJpYXQiOjEwMCwiZXhwIjo0MDB9.AAAA" + "A" * 8192},
        {"token": "e30.e.AAAA"},
        {"token": "e30.MTIz.AAAA"},
        {"expires_at": "400"},
        {"expires_at": True},
        {"token_type": "DPoP"},
        {"token_type": None},
        {"kid": None},
    ],
)
def test_an_answer_that_is_no_token_is_refused(members: Any) -> None:
    told = Told(token_answer(**members))
    with pytest.raises(TransportError) as failed:
        told.call(told.core.fetch_token(b"{}"))
    assert failed.value.code == "bad_answer"


def proof_of(send: Send) -> Any:
    from kkp_client.encoding import from_base64url  # noqa: PLC0415  one use

    return json.loads(from_base64url(send.headers["DPoP"].split(".")[1]))


def test_with_a_dpop_key_each_request_has_a_proof_of_its_own_that_names_the_issuer() -> None:
    told = Told(refused(503, "overloaded"), sealed(), dpop_key=DPoPKey.generate(), issuer="https://kkp.test/")
    told.encrypt()
    first, second = told.sent
    assert first.headers["Authorization"] == "Bearer t.t.t"  # as the token's own type says
    proofs = [proof_of(first), proof_of(second)]
    assert {proof["htu"] for proof in proofs} == {"https://kkp.test/envelope/encrypt"}
    assert {(proof["htm"], proof["iat"]) for proof in proofs} == {("POST", 1_700_000_000)}
    assert len({proof["jti"] for proof in proofs}) == 2
    assert all("ath" in proof for proof in proofs)


def test_a_bound_token_is_asked_for_with_a_proof_and_a_bearer_is_refused_in_its_place() -> None:
    told = Told(token_answer(token_type="DPoP"), dpop_key=DPoPKey.generate())
    assert told.call(told.core.fetch_token(b"{}")).token_type == "DPoP"
    assert "ath" not in proof_of(told.sent[0])
    told = Told(token_answer(), dpop_key=DPoPKey.generate())
    with pytest.raises(TransportError):
        told.call(told.core.fetch_token(b"{}"))
    told = Told(dpop_key=DPoPKey.generate())
    told.call(told.core.token(Scope(backend="aws", key_id="k")))
    (asked,) = told.steps
    assert isinstance(asked, AskToken)
    assert json.loads(asked.scope)["binding"] == "dpop"


def test_a_nonce_that_is_demanded_is_used_at_once_and_no_repeat() -> None:
    demand = refused(401, "use_dpop_nonce", dpop_nonce="n-1")
    told = Told(demand, refused(503, "overloaded"), sealed(), dpop_key=DPoPKey.generate(), repeats=1)
    told.encrypt()
    assert ["nonce" in proof_of(send) for send in told.sent] == [False, True, True]
    assert len(told.waits) == 1


def test_the_newest_nonce_of_any_answer_is_used() -> None:
    told = Told(sealed(), sealed(), dpop_key=DPoPKey.generate())
    told.answers[0] = Answer(200, {**told.answers[0].headers, "dpop-nonce": "n-7"}, told.answers[0].body)  # type: ignore[union-attr]
    told.encrypt()
    told.encrypt()
    assert proof_of(told.sent[1])["nonce"] == "n-7"


def test_a_nonce_that_another_call_took_up_meanwhile_is_as_good_as_ones_own() -> None:
    told = Told(dpop_key=DPoPKey.generate())
    demand = refused(401, "use_dpop_nonce", dpop_nonce="n-1")

    def after_another_call() -> Answer:
        told.answers = [demand, sealed(), *told.answers]
        told.encrypt()
        return demand

    told.answers = [after_another_call, sealed()]
    assert told.encrypt()["backend"] == "aws"


@pytest.mark.parametrize(
    "answers",
    [
        [refused(401, "use_dpop_nonce")],
        [refused(401, "use_dpop_nonce", dpop_nonce="with space")],
        [refused(401, "use_dpop_nonce", dpop_nonce="n" * 257)],
        [refused(401, "use_dpop_nonce", dpop_nonce="n-1"), refused(401, "use_dpop_nonce", dpop_nonce="n-2")],
        [refused(401, "use_dpop_nonce", dpop_nonce="n-1"), refused(401, "use_dpop_nonce", dpop_nonce="n-1")],
    ],
)
def test_a_demand_for_a_nonce_is_answered_once_and_with_a_new_one_only(answers: list[Answer]) -> None:
    told = Told(*answers, dpop_key=DPoPKey.generate())
    with pytest.raises(ProblemError, match="use_dpop_nonce"):
        told.encrypt()
    assert told.answers == []


@pytest.mark.parametrize(
    "answer",
    [
        Answer(200, {"content-type": "text/html"}, b"{}"),
        Answer(200, {}, b"{}"),
        Answer(200, {"content-type": "application/json"}, b"{"),
        Answer(200, {"content-type": "application/json"}, b"[]"),
        answered({}),
        answered({"envelope": None}),
        answered({"envelope": {}}),
        sealed(backend="gcp"),
        sealed(key_id="alias/other"),
        sealed(context={"table": "orders"}),
        sealed(associated_data="row 7"),
        sealed(encoding="utf-8"),
        sealed(ciphertext="A" * 22),
        sealed(v=2),
        Answer(404, {"content-type": "application/problem+json"}, b"{}"),
        answered({"status": 403, "code": "not_found"}, 404),
        answered({"status": 404, "code": "Not found"}, 404),
        answered({"status": 404, "code": 7}, 404),
        Answer(404, {"content-type": "application/json"}, b'{"status":404,"code":"not_found"}'),
        Failed("bad_answer", "Too long."),
    ],
)
def test_an_answer_that_is_not_about_what_was_asked_is_a_bad_answer(answer: Answer | Failed) -> None:
    with pytest.raises(TransportError) as failed:
        Told(answer).encrypt()
    assert failed.value.code == "bad_answer"


OPEN_ANSWER = {"plaintext_b64": "MTIzNA==", "claims": None}


@pytest.mark.parametrize(
    "members",
    [
        {"plaintext_b64": None},
        {"plaintext_b64": "MTIzNA"},
        {"plaintext_b64": "MTIzNB=="},
        {"plaintext_b64": "MTIz\nNA=="},
        {"plaintext_b64": "MTIzNDU="},
        {"plaintext": "1234"},
        {"claims": []},
        {"claims": {}},
        {"claims": {**CLAIMS, "sub": None}},
    ],
)
def test_a_plaintext_that_it_cant_be_is_a_bad_answer(members: Any) -> None:
    envelope = json.loads(sealed().body)["envelope"]
    assert Told(answered(OPEN_ANSWER)).decrypt(envelope).plaintext == b"1234"
    with pytest.raises(TransportError) as failed:
        Told(answered({**OPEN_ANSWER, **members})).decrypt(envelope)
    assert failed.value.code == "bad_answer"


@pytest.mark.parametrize("members", [{}, {"plaintext": "1235"}, {"plaintext_b64": "/////w=="}])
def test_a_text_that_it_cant_be_is_a_bad_answer(members: Any) -> None:
    item = EncryptItem(backend="aws", key_id="alias/orders", plaintext="1234")
    envelope = json.loads(sealed(item).body)["envelope"]
    right = {**OPEN_ANSWER, "plaintext": "1234"}
    assert Told(answered(right)).decrypt(envelope).text == "1234"
    with pytest.raises(TransportError):
        Told(answered({**OPEN_ANSWER, **members})).decrypt(envelope)


@pytest.mark.parametrize(
    "members",
    [
        {"backend": "aws"},
        {"key_id": "other"},
        {"context": {"a": "b"}},
        {"commitment": "A" * 43},
        {"nonce": "A" * 16},
    ],
)
def test_a_moved_envelope_that_is_another_is_a_bad_answer(members: Any) -> None:
    right = {**WHOLE, "backend": "gcp", "key_id": "orders", "wrap_tag": "A" * 43}
    for document, moved in ((WHOLE, right), (WHOLE, {**right, **members})):
        told = Told(answered({"envelope": moved}))
        steps = told.core.rewrap(document, ("gcp", "orders"), DEFAULT_SCOPE, {})
        if moved is right:
            assert told.call(steps) == right
        else:
            with pytest.raises(TransportError):
                told.call(steps)


def test_an_envelope_without_its_payload_is_moved_in_its_own_form() -> None:
    detached = DETACHED["envelope"]
    stream = {
        **detached, "alg": "A256GCM-HKDF-SHA512-COMMIT-STREAM", "encoding": None, "chunk_size": 4096,
    }  # fmt: skip
    for document in (detached, stream):
        right = {**document, "backend": "gcp", "key_id": "orders", "wrap_tag": "A" * 43}
        for moved in (right, {**WHOLE, "backend": "gcp", "key_id": "orders"}):
            told = Told(answered({"envelope": moved}))
            steps = told.core.rewrap(document, ("gcp", "orders"), DEFAULT_SCOPE, {})
            if moved is right:
                assert told.call(steps) == right
            else:
                with pytest.raises(TransportError):
                    told.call(steps)


@pytest.mark.parametrize(
    "members",
    [{"message_key_b64": "AAAA"}, {"message_key_b64": None}, {"envelope": WHOLE}, {"envelope": None}],
)
def test_a_message_key_of_another_form_is_a_bad_answer(members: Any) -> None:
    envelope = {**DETACHED["envelope"], "backend": "aws", "key_id": "k"}
    request = KeyRequest(
        backend="aws", key_id="k", context=envelope["context"], associated_data="row 7", encoding="utf-8"
    )
    right = {"envelope": envelope, "message_key_b64": "A" * 43 + "="}
    told = Told(answered(right))
    assert told.call(told.core.data_key(request, DEFAULT_SCOPE)).key == bytes(32)
    told = Told(answered({**right, **members}))
    with pytest.raises(TransportError):
        told.call(told.core.data_key(request, DEFAULT_SCOPE))


def test_a_malformed_envelope_is_refused_before_anything_is_sent() -> None:
    told = Told()
    with pytest.raises(EnvelopeInvalidError):
        told.decrypt({})
    assert told.steps == []


def test_a_refusal_says_what_kkp_said_and_in_no_other_form() -> None:
    document = {
        "status": 403, "code": "policy_denied", "detail": "secret", "request_id": "r-1", "decision_id": "d 1",
        "reasons": ["kkp.no_grant", 7, "with space", *["more"] * 40],
    }  # fmt: skip
    with pytest.raises(ProblemError) as failed:
        Told(answered(document, 403)).encrypt()
    error = failed.value
    assert (error.code, error.status, error.request_id, error.decision_id) == (
        "policy_denied",
        403,
        "r-1",
        None,
    )
    assert error.reasons == ("kkp.no_grant", *["more"] * 29)
    assert "secret" not in repr(vars(error)) + repr(error)
    assert str(error) == f"KKP refused: policy_denied ({', '.join(error.reasons)}; request r-1)."
    with pytest.raises(EnvelopeInvalidError) as invalid:
        Told(refused(422, "envelope_invalid")).encrypt()
    assert invalid.value.status == 422


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ({}, "KKP refused: policy_denied."),
        ({"request_id": "r-1"}, "KKP refused: policy_denied (request r-1)."),
        ({"reasons": ["a.b", "c.d"]}, "KKP refused: policy_denied (a.b, c.d)."),
        ({"reasons": ["a.b"], "request_id": "r-1"}, "KKP refused: policy_denied (a.b; request r-1)."),
        ({"reasons": ["not one"], "request_id": "not one"}, "KKP refused: policy_denied."),
    ],
)
def test_the_message_of_a_refusal_has_its_reasons_and_where_to_look_it_up(
    members: dict[str, Any], message: str
) -> None:
    with pytest.raises(ProblemError) as failed:
        Told(answered({"status": 403, "code": "policy_denied", **members}, 403)).encrypt()
    assert str(failed.value) == message


def items(*documents: Any) -> Answer:
    return answered({"items": list(documents)})


def test_each_of_many_has_its_result_or_its_error_in_order() -> None:
    wrong = {"status": 422, "code": "envelope_invalid"}
    told = Told(items({**OPEN_ANSWER}, wrong, "no object", {**OPEN_ANSWER, "plaintext_b64": ""}))
    envelope = json.loads(sealed().body)["envelope"]
    results = told.call(told.core.decrypt_many([envelope] * 2 + [{}] + [envelope] * 2, DEFAULT_SCOPE, {}))
    codes = [getattr(result, "code", "opened") for result in results]
    assert codes == ["opened", "envelope_invalid", "envelope_invalid", "bad_answer", "bad_answer"]
    assert len(json.loads(told.sent[0].body)["items"]) == 4


@pytest.mark.parametrize(
    "answer", [items(), answered({"items": None}), refused(403, "policy_denied"), BROKEN]
)
def test_what_is_wrong_with_a_whole_request_is_wrong_with_each_of_its_items(answer: Answer | Failed) -> None:
    told = Told(answer)
    first, second = told.call(told.core.encrypt_many([ITEM, ITEM], DEFAULT_SCOPE))
    assert first.code == second.code != "internal"
    assert first is not second


def test_many_are_asked_for_key_by_key_and_no_more_than_a_request_takes() -> None:
    other = {**WHOLE, "backend": "gcp"}
    told = Told(*[refused(403, "policy_denied")] * 3)
    results = told.call(told.core.decrypt_many([WHOLE, other] * 3 + [WHOLE] * 998, DEFAULT_SCOPE, {}))
    sizes = [len(json.loads(send.body)["items"]) for send in told.sent]
    assert (sizes, len(results)) == ([1000, 1, 3], 1004)
    big = EncryptItem(backend="aws", key_id="k", plaintext=bytes(3 * 1024 * 1024))
    told = Told(*[refused(403, "policy_denied")] * 3)
    told.call(told.core.encrypt_many([big, big, ITEM, ITEM], DEFAULT_SCOPE))
    assert [len(json.loads(send.body)["items"]) for send in told.sent] == [1, 3]


def test_none_of_many_is_a_request() -> None:
    told = Told()
    assert told.call(told.core.encrypt_many([], DEFAULT_SCOPE)) == []
    assert told.steps == []


def test_what_is_wrong_with_the_client_is_no_items_error() -> None:
    core = Core(Settings(url="https://kkp.example"))
    with pytest.raises(ConfigurationError):
        next(core.decrypt_many([WHOLE], DEFAULT_SCOPE, {}))


CREDENTIALS = [
    ("", "The credential is empty."),
    ("two words", "The credential has white space or a line break in it: strip it."),
    ("line\nfeed", "The credential has white space or a line break in it: strip it."),
    ("at-its-end\r\n", "The credential has white space or a line break in it: strip it."),
    ("a" * 8193, "The credential is too long, or has characters that no bearer has."),
    ("smörgås", "The credential is too long, or has characters that no bearer has."),
    (None, "The credential is not text, but NoneType."),
    (b"bytes", "The credential is not text, but bytes."),
]


@pytest.mark.parametrize("make", [KKPClient, SyncKKPClient])
@pytest.mark.parametrize(("credential", "told"), CREDENTIALS)
def test_a_client_is_not_made_with_a_credential_that_no_header_can_hold(
    make: Any, credential: Any, told: str
) -> None:
    with pytest.raises(ConfigurationError) as failed:
        make("https://kkp.example", credential)
    assert str(failed.value) == told


@pytest.mark.parametrize("credential", [given for given, _ in CREDENTIALS])
def test_a_credential_that_no_header_can_hold_is_refused_unseen(credential: Any) -> None:
    steps = Told().core.encrypt(ITEM, DEFAULT_SCOPE)
    next(steps)
    with pytest.raises(ConfigurationError) as failed:
        steps.send(credential)
    assert not credential or str(credential) not in repr(failed.value)


@pytest.mark.parametrize(
    "options",
    [
        {"url": "http://kkp.example"},
        {"url": "https://user@kkp.example"},
        {"url": "https://kkp.example?a=b"},
        {"url": "ftp://kkp.example"},
        {"url": "https://kkp.example", "issuer": "kkp"},
        {"url": "https://kkp.example", "deadline_seconds": 0},
        {"url": "https://kkp.example", "deadline_seconds": float("nan")},
        {"url": "https://kkp.example", "repeats": -1},
        {"url": "https://kkp.example", "ssl_context": UNVERIFYING},
    ],
)
def test_a_client_that_can_not_be_is_not_made(options: Any) -> None:
    with pytest.raises(ConfigurationError):
        Settings(**options)


@pytest.mark.parametrize("size", [4095, 8_388_609])
def test_chunks_of_no_stream_are_not_asked_for(size: int) -> None:
    with pytest.raises(ConfigurationError):
        KeyRequest(backend="aws", key_id="k", chunk_size=size)


def test_what_is_asked_after_the_end_is_refused() -> None:
    told = Told()
    told.core.close()
    with pytest.raises(ConfigurationError, match="closed"):
        told.encrypt()


def test_a_client_that_was_used_before_a_fork_sends_nothing_in_the_other_process(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    used, unused = Told(sealed()), Told(sealed())
    used.encrypt()
    monkeypatch.setattr(os, "getpid", lambda: 0)
    calls: list[Callable[[], object]] = [
        used.encrypt,
        used.decrypt,
        lambda: used.call(used.core.introspect("a")),
        lambda: used.call(used.core.token(Scope(backend="aws", key_id="k"))),
    ]
    for call in calls:
        with pytest.raises(ConfigurationError, match="before a fork"):
            call()
    assert len(used.sent) == 1
    unused.encrypt()
    assert len(unused.sent) == 1
