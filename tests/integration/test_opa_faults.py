"""Whatever an OPA answers, or does not: only a whole decision that says true allows.

A raw socket stands in for the OPA. Each fault is met twice, times `KKP_TEST_SCALE`. From 100 times on, which
is a scale of 50 (`KKP_TEST_ROUNDS=100` once said so), the time each refusal took is judged as well; that is
what an idle machine is for.
"""

from __future__ import annotations

import asyncio
import gzip
import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from kkp.authz.opa import OPAPolicy, Rule
from kkp.authz.opa_address import read_address
from kkp.authz.opa_client import OPAClient
from kkp.authz.opa_http import MAX_ANSWER_BYTES, MAX_CONNECTIONS
from kkp.errors import PolicyUnavailableError
from kkp.model import Decision, PolicyInput
from tests.promises import Recorder
from tests.scale import SCALE

pytestmark = pytest.mark.promise(19)

ROUNDS = 2 * SCALE
BAR_ROUNDS = 100
BAR_SECONDS = 0.1  # beyond the timeout
SHORT_SECONDS = 0.15  # where waiting for it is the test
LONG_SECONDS = 10.0  # where an answer comes, on a machine as busy as it likes
AT_ONCE = 10

QUESTION = PolicyInput(b'{"action":"encrypt"}')
PROVENANCE = {"version": "1.22.2", "bundles": {"kkp": {"revision": "7"}}}
ALLOW = {"allow": True, "reasons": ["a.b"], "obligations": {}}
DENY = {"allow": False, "reasons": ["a.c"], "obligations": {}}

Fault = Callable[[asyncio.StreamWriter], Awaitable[None]]


def whole(result: Any, **more: Any) -> bytes:
    """Return the JSON of an answer that is right but for what is given."""
    return json.dumps({"provenance": PROVENANCE, "result": result, **more}).encode()


GOOD = whole(ALLOW)


def response(
    body: bytes, *headers: str, status: str = "200 OK", content_type: str | None = "application/json"
) -> bytes:
    lines = [f"HTTP/1.1 {status}", *headers]
    if content_type is not None:
        lines.append(f"Content-Type: {content_type}")
    if not any(line.startswith(("Content-Length", "Transfer-Encoding")) for line in headers):
        lines.append(f"Content-Length: {len(body)}")
    return "\r\n".join([*lines, "", ""]).encode() + body


def says(raw: bytes) -> Fault:
    """Answer with these bytes and keep the connection."""

    async def fault(writer: asyncio.StreamWriter) -> None:
        writer.write(raw)
        await writer.drain()

    return fault


def says_and_closes(raw: bytes) -> Fault:
    async def fault(writer: asyncio.StreamWriter) -> None:
        writer.write(raw)
        writer.close()

    return fault


def repeats(raw: bytes, seconds: float) -> Fault:
    """Answer with these bytes again and again."""

    async def fault(writer: asyncio.StreamWriter) -> None:
        while not writer.is_closing():
            writer.write(raw)
            await writer.drain()
            await asyncio.sleep(seconds)

    return fault


def drips(raw: bytes) -> Fault:
    async def fault(writer: asyncio.StreamWriter) -> None:
        for byte in raw:
            writer.write(bytes([byte]))
            await asyncio.sleep(SHORT_SECONDS / 3)

    return fault


async def resets(writer: asyncio.StreamWriter) -> None:
    writer.transport.abort()


def chunked(raw: bytes) -> bytes:
    return response(raw, "Transfer-Encoding: chunked")


def altered(old: bytes, new: bytes) -> bytes:
    assert GOOD.count(old) == 1
    return response(GOOD.replace(old, new))


BIG = b'{"padding":"%s",%s' % (b"x" * 10_000_000, GOOD[1:])
DEEP = b'{"provenance":{},"result":%s%s}' % (b"[" * 20_000, b"]" * 20_000)
TWICE = GOOD[:-1] + b',"result":' + json.dumps(ALLOW).encode() + b"}"

ANSWERED: Mapping[str, Fault] = {
    "closes at once": says_and_closes(b""),
    "resets the connection": resets,
    "fails with status 500": says(response(GOOD, status="500 Internal Server Error")),
    "does not find the path": says(response(GOOD, status="404 Not Found")),
    "wants a credential": says(response(GOOD, status="401 Unauthorized")),
    "is unavailable": says(response(GOOD, status="503 Service Unavailable")),
    "has no content": says(response(b"", status="204 No Content")),
    "answers with another success": says(response(GOOD, status="201 Created")),
    "redirects for good": says(response(b"", "Location: /allowing", status="301 Moved Permanently")),
    "redirects for now": says(response(b"", "Location: /allowing", status="302 Found")),
    "redirects and keeps the method": says(
        response(b"", "Location: /allowing", status="307 Temporary Redirect")
    ),
    "redirects with the answer in its body": says(
        response(GOOD, "Location: /allowing", status="308 Permanent Redirect")
    ),
    "switches protocols": says(response(GOOD, "Upgrade: policy", status="101 Switching Protocols")),
    "says nothing in its body": says(response(b"")),
    "says an empty object": says(response(b"{}")),
    "says undefined": says(response(json.dumps({"provenance": PROVENANCE}).encode())),
    "says true as a text": says(response(whole("true"))),
    "says one": says(response(whole(1))),
    "says null": says(response(whole(None))),
    "says a list": says(response(whole([]))),
    "says true where a decision is asked for": says(response(whole(result=True))),
    "allows by a text": says(response(whole({**ALLOW, "allow": "true"}))),
    "allows by one": says(response(whole({**ALLOW, "allow": 1}))),
    "allows without reasons": says(response(whole({"allow": True, "obligations": {}}))),
    "allows for no reason": says(response(whole({**ALLOW, "reasons": []}))),
    "allows for a reason that is a sentence": says(response(whole({**ALLOW, "reasons": ["it is fine"]}))),
    "allows for half a character": says(altered(b'"a.b"', rb'"\ud800.b"')),
    "allows without obligations": says(response(whole({"allow": True, "reasons": ["a.b"]}))),
    "allows with a member too many": says(response(whole({**ALLOW, "more": 1}))),
    "allows inside of a list": says(response(whole([ALLOW]))),
    "allows inside of another result": says(response(whole({"result": ALLOW}))),
    "says an error beside the result": says(response(whole(ALLOW, errors=[], code="internal_error"))),
    "is not a number": says(altered(b'"obligations": {}', b'"obligations": {"max_ttl": NaN}')),
    "is more than a number": says(altered(b'"obligations": {}', b'"obligations": {"max_ttl": Infinity}')),
    "begins with a byte order mark": says(response(b"\xef\xbb\xbf" + GOOD)),
    "is not UTF-8": says(altered(b"a.b", b"a.b\xff")),
    "is UTF-16": says(response(GOOD.decode().encode("utf-16"))),
    "has two results": says(response(TWICE)),
    "denies and allows in one object": says(altered(b'"allow": true', b'"allow": false, "allow": true')),
    "goes on after its end": says(response(GOOD + b"{}")),
    "has a comment": says(response(GOOD + b"// true")),
    "is cut inside": says(response(GOOD[:-2])),
    "is nested without end": says(response(DEEP)),
    "is compressed": says(response(gzip.compress(GOOD), "Content-Encoding: gzip")),
    "is compressed in secret": says(response(gzip.compress(GOOD))),
    "says that it is compressed and is not": says(response(GOOD, "Content-Encoding: deflate")),
    "is a page": says(response(b"<html>true</html>", content_type="text/html")),
    "is JSON under another name": says(response(GOOD, content_type="text/plain")),
    "is of no type": says(response(GOOD, content_type=None)),
    "is ten megabytes": says_and_closes(response(BIG)),
    "is ten megabytes of unknown length": says_and_closes(
        chunked(b"%x\r\n%s\r\n0\r\n\r\n" % (len(BIG), BIG))
    ),
    "is one byte too long": says(response(GOOD.ljust(MAX_ANSWER_BYTES + 1))),
    "ends before its length": says_and_closes(response(GOOD[:40], f"Content-Length: {len(GOOD)}")),
    "ends before its last chunk": says_and_closes(chunked(b"%x\r\n%s\r\n" % (len(GOOD), GOOD))),
    "has chunks of no size": says(chunked(b"zz\r\n%s\r\n0\r\n\r\n" % GOOD)),
    "has a length below zero": says(response(GOOD, "Content-Length: -1")),
    "has a length that is no number": says(response(GOOD, "Content-Length: all")),
    "has two lengths": says(response(GOOD, f"Content-Length: {len(GOOD)}", "Content-Length: 2")),
    "has a huge header": says(response(GOOD, f"X-Padding: {'x' * 100_000}")),
    "has a thousand headers": says(response(GOOD, *(f"X-{number}: x" for number in range(1000)))),
    "is HTTP/0.9": says_and_closes(GOOD),
    "is another protocol": says_and_closes(b"SSH-2.0-OpenSSH_9.9\r\n"),
    "has a status that is no number": says(response(GOOD, status="OK 200")),
    "does not say by which policy": says(response(json.dumps({"result": ALLOW}).encode())),
    "says it by a list": says(response(whole(ALLOW, provenance=[]))),
    "names a policy of another type": says(response(whole(ALLOW, provenance={"bundles": {"kkp": "7"}}))),
    "names the policy by a sentence": says(
        response(whole(ALLOW, provenance={"bundles": {"kkp": {"revision": "the one of today"}}}))
    ),
    "names the policy at length": says(
        response(whole(ALLOW, provenance={"bundles": {"kkp": {"revision": "7" * 129}}}))
    ),
    "names too many policies": says(
        response(whole(ALLOW, provenance={"bundles": {f"kkp{n}": {"revision": "7"} for n in range(9)}}))
    ),
    "has a decision id that is a sentence": says(response(whole(ALLOW, decision_id="the first one"))),
    "has a long decision id": says(response(whole(ALLOW, decision_id="x" * 65))),
    "has a decision id that is a number": says(response(whole(ALLOW, decision_id=1))),
}
SILENT: Mapping[str, Fault] = {
    "says nothing": says(b""),
    "drips": drips(response(GOOD)),
    "says half of its head": says(b"HTTP/1.1 200 OK\r\nContent-Type: appl"),
    "says half of its body": says(response(GOOD[:40], f"Content-Length: {len(GOOD)}")),
    "says that it is about to": repeats(b"HTTP/1.1 100 Continue\r\n\r\n", 0.01),
    "keeps a chunk open": says(chunked(b"%x\r\n%s\r\n" % (len(GOOD), GOOD))),
    "drips spaces": repeats(b"", 1.0),
}


@dataclass
class FaultyOPA:
    """A socket that answers well, until it is told a fault.

    Attributes:
        fault: What to do with every question; None to answer it.
        answer: What a good answer is.
        heads: What was asked, up to the body.
    """

    path: Path
    fault: Fault | None = None
    answer: bytes = GOOD
    heads: list[str] = field(default_factory=list)
    writers: set[asyncio.StreamWriter] = field(default_factory=set)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.writers.add(writer)
        with suppress(ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
            while not writer.is_closing():
                await self._answer(reader, writer)
        self.writers.discard(writer)
        writer.close()

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        length = next(
            line.split(":")[1] for line in head.lower().splitlines() if line.startswith("content-length")
        )
        question = json.loads(await reader.readexactly(int(length)))
        self.heads.append(head)
        if "/allowing" in head or self.fault is None:
            # An empty input is a probe: what it is answered is never allowed by.
            probed = question.get("input") == {} and self.answer is GOOD
            await says(response(whole(DENY) if probed else self.answer))(writer)
        else:
            await self.fault(writer)


@asynccontextmanager
async def faulty_opa(path: Path) -> AsyncIterator[FaultyOPA]:
    """Listen on a Unix socket for the duration of the block."""
    faulty = FaultyOPA(path)
    server = await asyncio.start_unix_server(faulty.serve, faulty.path)
    yield faulty
    server.close()
    for writer in list(faulty.writers):
        writer.transport.abort()
    await asyncio.sleep(0)
    await server.wait_closed()


@pytest.fixture
async def opa(tmp_path: Path) -> AsyncIterator[FaultyOPA]:
    """Return a socket that stands in for an OPA."""
    async with faulty_opa(tmp_path / "opa.sock") as faulty:
        yield faulty


@asynccontextmanager
async def connected(
    opa: FaultyOPA, timeout_seconds: float = LONG_SECONDS, rule: Rule | None = None
) -> AsyncIterator[OPAPolicy]:
    policy = await OPAPolicy.connect(f"unix://{opa.path}", timeout_seconds=timeout_seconds, rule=rule)
    try:
        yield policy
    finally:
        await policy.close()


async def decide(policy: OPAPolicy) -> Decision | None:
    with suppress(PolicyUnavailableError):
        return await policy.decide(QUESTION)
    return None


async def allowed(policy: OPAPolicy) -> bool:
    decision = await decide(policy)
    return decision is not None and decision.allow


async def recovered(policy: OPAPolicy) -> None:
    async with asyncio.timeout(LONG_SECONDS):
        while not await allowed(policy):  # noqa: ASYNC110  it is tried, not waited for
            await asyncio.sleep(0)


async def refusals(policy: OPAPolicy, count: int, *, answered: bool = True) -> float:
    """Ask so often, see nothing but refusals, and return how long the slowest took, in seconds.

    Where OPA answered, that must be what was refused, and not its taking too long.
    """
    slowest = 0.0

    async def refuse() -> None:
        nonlocal slowest
        began = time.monotonic()
        with pytest.raises(PolicyUnavailableError) as caught:
            await policy.decide(QUESTION)
        assert ("in time" in str(caught.value)) is not answered
        slowest = max(slowest, time.monotonic() - began)

    for _ in range(0, count, AT_ONCE):
        await asyncio.gather(*(refuse() for _ in range(min(AT_ONCE, count))))
    return slowest


async def meets(
    opa: FaultyOPA, fault: Fault, timeout_seconds: float, record_promise: Recorder, *, answered: bool
) -> None:
    """Meet a fault with an engine that has decided before and one that has not; both recover."""
    async with connected(opa, timeout_seconds) as policy, connected(opa, timeout_seconds) as fresh:
        await recovered(policy)
        opa.fault = fault
        slowest = await refusals(policy, ROUNDS, answered=answered)
        assert not await allowed(fresh)
        with pytest.raises(PolicyUnavailableError):
            await fresh.ping()
        assert fresh.revision == ""
        assert not any("/allowing" in head for head in opa.heads)
        opa.fault = None
        await recovered(policy)
        await recovered(fresh)
        assert policy.revision == fresh.revision == "kkp@7"
    if ROUNDS >= BAR_ROUNDS:
        assert slowest <= timeout_seconds + BAR_SECONDS
    record_promise(19, "faulty answers", ROUNDS)


def test_there_are_enough_faults() -> None:
    assert len(ANSWERED) + len(SILENT) >= 30


@pytest.mark.parametrize("name", ANSWERED)
async def test_nothing_is_allowed_where_opa(name: str, opa: FaultyOPA, record_promise: Recorder) -> None:
    await meets(opa, ANSWERED[name], LONG_SECONDS, record_promise, answered=True)


@pytest.mark.parametrize("name", SILENT)
async def test_nothing_is_allowed_and_nobody_waits_for_ever_where_opa(
    name: str, opa: FaultyOPA, record_promise: Recorder
) -> None:
    await meets(opa, SILENT[name], SHORT_SECONDS, record_promise, answered=False)


async def test_nothing_is_allowed_where_there_is_no_opa(opa: FaultyOPA) -> None:
    elsewhere = FaultyOPA(opa.path.with_name("nobody.sock"))
    async with connected(elsewhere) as policy:
        await refusals(policy, ROUNDS)
        with pytest.raises(PolicyUnavailableError):
            await policy.ping()
        elsewhere.path.symlink_to(opa.path)
        assert await allowed(policy)


@pytest.mark.parametrize("result", ["true", "false", 1, 0, None, [], {}, [True], {"allow": True}, ALLOW])
async def test_nothing_but_a_boolean_answers_for_a_boolean_rule(result: object, opa: FaultyOPA) -> None:
    opa.answer = response_body = whole(result)
    async with connected(opa, rule="allow") as policy:
        assert await decide(policy) is None
        opa.answer = whole(result=False)
        await policy.ping()
        opa.answer = response_body
        assert await decide(policy) is None
        opa.answer = whole(result=True)
        assert await allowed(policy)


async def test_an_unknown_obligation_is_a_denial(opa: FaultyOPA) -> None:
    async with connected(opa) as policy:
        await policy.ping()
        opa.answer = whole({**ALLOW, "obligations": {"call_home": True}})
        decision = await policy.decide(QUESTION)
    assert not decision.allow
    assert decision.reasons == ("a.b", "kkp.unknown_obligation")


async def test_an_answer_that_was_given_before_answers_no_question_that_another_one_answers(
    opa: FaultyOPA,
) -> None:
    async with connected(opa) as policy:
        await policy.ping()
        asked_before = len(opa.heads)
        for answer, is_allowed in ((GOOD, True), (whole(DENY), False), (GOOD, True), (GOOD, True)):
            opa.answer = answer
            assert await allowed(policy) is is_allowed
        assert len(opa.heads) == asked_before + 4


async def test_an_answer_that_is_not_strict_json_is_none_however_often_it_comes(opa: FaultyOPA) -> None:
    async with connected(opa) as policy:
        await policy.ping()
        opa.answer = GOOD[:-1] + b',"result":' + json.dumps(ALLOW).encode() + b"}"
        assert [await decide(policy) for _ in range(3)] == [None] * 3


async def test_the_largest_answer_is_read(opa: FaultyOPA) -> None:
    async with connected(opa) as policy:
        await policy.ping()
        opa.answer = GOOD.ljust(MAX_ANSWER_BYTES)
        assert await allowed(policy)


STEPS = [
    "query:1                          Enter data.kkp.authz.decision = _",
    "policy/kkp/authz/authz.rego:20   | Enter data.kkp.authz.decision",
    "policy/kkp/authz/authz.rego:27   | | Eval __local365__ = input.caller.id",
    "policy/kkp/authz/authz.rego:30   | | | Fail data.kkp.authz.failed",
    "policy/kkp/grants/grants.rego:11 | | | Exit data.kkp.grants.names_key early",
    "/kkp/authz/authz.rego:20         | Exit data.kkp.authz.decision",
    "a folder/a file.rego:5           | | Exit data.kkp.authz.is_owner",
    'policy/x.rego:3                  | | Note "Exit data.kkp.noted"',
    'policy/x.rego:3                  | | Note "x:1 | Exit data.kkp.noted',
    'policy/x.rego:3                  | | Exit data.kkp.called("a secret")',
    "policy/x.rego:3                  | | Exit x = data.kkp.assigned",
    "query:1                          | Exit data.kkp.authz.decision = _",
]


async def test_of_the_steps_of_a_decision_only_the_rules_that_had_a_value_are_kept(opa: FaultyOPA) -> None:
    async with connected(opa) as policy:
        await policy.ping()
        opa.answer = whole(ALLOW, explanation=STEPS, decision_id="x")
        explained = await policy.explain(QUESTION)
    assert explained.rules == ("kkp.authz.decision", "kkp.authz.is_owner", "kkp.grants.names_key")
    assert (explained.decision.allow, explained.decision.policy_decision_id) == (True, "x")


@pytest.mark.promise(19)
async def test_no_faulty_answer_explains_anything(opa: FaultyOPA) -> None:
    async with connected(opa) as policy:
        await policy.ping()
        for name, fault in ANSWERED.items():
            opa.fault = fault
            with pytest.raises(PolicyUnavailableError):
                pytest.fail(f"{name}: {await policy.explain(QUESTION)}")
        opa.fault, opa.answer = None, whole(ALLOW, explanation=STEPS)
        assert (await policy.explain(QUESTION)).decision.allow


@pytest.mark.parametrize(("lines", "is_read"), [(7_000, True), (9_000, False)])
async def test_steps_of_more_than_eight_megabytes_are_not_read(
    opa: FaultyOPA, lines: int, is_read: object
) -> None:
    async with connected(opa) as policy:
        await policy.ping()
        opa.answer = whole(ALLOW, explanation=["x" * 1000] * lines)
        try:
            assert (await policy.explain(QUESTION)).decision.allow is is_read
        except PolicyUnavailableError:
            assert not is_read
        opa.answer = GOOD
        assert await allowed(policy)


async def test_the_longest_names_are_read(opa: FaultyOPA) -> None:
    revision = "7" * 18 + "-" + "x" * 109
    opa.answer = whole(ALLOW, provenance={"bundles": {"kkp": {"revision": revision}}}, decision_id="x" * 64)
    async with connected(opa) as policy:
        decision = await policy.decide(QUESTION)
    assert (decision.revision, decision.policy_decision_id) == (f"kkp@{revision}", "x" * 64)


# --- attacks on the connection


async def test_what_opa_says_unasked_answers_no_question(opa: FaultyOPA) -> None:
    """An answer too many, for example one meant for another caller, waits in the connection."""
    async with connected(opa) as policy:
        await policy.ping()
        opa.answer = whole(DENY)
        assert not await allowed(policy)
        for writer in list(opa.writers):
            writer.write(response(GOOD))  # still in the kernel when the next question is put
        assert not await allowed(policy)
        for writer in list(opa.writers):
            writer.write(response(GOOD))
        await asyncio.sleep(0.01)  # read by the loop before the next question is put
        assert not await allowed(policy)


async def test_an_answer_with_another_one_behind_it_answers_one_question(opa: FaultyOPA) -> None:
    async with connected(opa) as policy:
        await policy.ping()
        opa.fault = says(response(whole(DENY)) + response(GOOD))
        assert not await allowed(policy)
        assert not await allowed(policy)


async def test_a_late_answer_answers_no_later_question(opa: FaultyOPA) -> None:
    async with connected(opa, SHORT_SECONDS) as policy:
        await recovered(policy)
        opa.fault = SILENT["says nothing"]
        assert await decide(policy) is None
        for writer in list(opa.writers):
            writer.write(response(GOOD))
        opa.fault, opa.answer = None, whole(DENY)
        assert not await allowed(policy)


async def test_there_are_a_hundred_connections_at_most(opa: FaultyOPA) -> None:
    """Who comes when all are busy waits for one, within the deadline of a decision."""
    held = asyncio.Event()

    async def holds(writer: asyncio.StreamWriter) -> None:
        await held.wait()
        writer.write(response(GOOD))

    async with connected(opa) as policy:
        await recovered(policy)
        opa.fault = holds
        waiting = asyncio.gather(*(policy.decide(QUESTION) for _ in range(MAX_CONNECTIONS + 20)))
        while len(opa.writers) < MAX_CONNECTIONS:  # noqa: ASYNC110  the server has no event to wait for
            await asyncio.sleep(0.001)
        await asyncio.sleep(0.01)
        assert len(opa.writers) == MAX_CONNECTIONS
        held.set()
        assert all(decision.allow for decision in await waiting)
        assert len(opa.writers) == MAX_CONNECTIONS


async def test_closing_refuses_what_waits_for_an_answer(opa: FaultyOPA) -> None:
    async with connected(opa) as policy:
        await recovered(policy)
        opa.fault = SILENT["says nothing"]
        waiting = asyncio.ensure_future(policy.decide(QUESTION))
        while len(opa.heads) < 3:  # noqa: ASYNC110  the server has no event to wait for
            await asyncio.sleep(0.001)
        await policy.close()
        with pytest.raises(PolicyUnavailableError):
            await waiting


async def test_opa_is_told_nothing(opa: FaultyOPA) -> None:
    """The library could also change OPA's policies; that way is closed."""
    client = OPAClient(read_address(f"unix://{opa.path}"), None)
    for change in (client.delete_policy("kkp"), client.update_or_create_data({"roles": {}}, "kkp")):
        with pytest.raises(PolicyUnavailableError):
            await change
    assert opa.heads == []
    await client.close_connection()


async def test_a_cookie_is_not_sent_back(opa: FaultyOPA) -> None:
    opa.fault = says(response(GOOD, "Set-Cookie: session=1; Path=/"))
    async with connected(opa) as policy:
        assert await allowed(policy)
        assert await allowed(policy)
    assert len(opa.heads) == 3
    assert not any("cookie" in head.lower() for head in opa.heads)


async def test_the_question_names_a_fixed_path_and_wants_strict_errors_and_no_compression(
    opa: FaultyOPA,
) -> None:
    hostile = {"action": "../../../v1/data/other", "key_id": "?pretty#", "path": "%2e%2e\r\nX: y"}
    async with connected(opa) as policy:
        await policy.decide(PolicyInput(json.dumps(hostile).encode()))
    for head in opa.heads:
        line = "POST /v1/data/kkp/authz/decision?strict-builtin-errors=true&provenance=true HTTP/1.1"
        assert head.splitlines()[0] == line
        assert "Accept-Encoding: identity" in head.splitlines()


# --- the policy changes while it is asked


def by(revision: str, result: object) -> bytes:
    return whole(result, provenance={"bundles": {"kkp": {"revision": revision}}})


async def test_an_answer_by_another_revision_is_asked_for_again(opa: FaultyOPA) -> None:
    async with connected(opa) as policy:
        assert await allowed(policy)
        opa.answer, asked_before = by("8", DENY), len(opa.heads)
        decision = await policy.decide(QUESTION)
        assert (decision.allow, decision.revision) == (False, "kkp@8")
        assert len(opa.heads) == asked_before + 3  # the question, the look, the question
        await policy.decide(QUESTION)
        assert len(opa.heads) == asked_before + 4


async def test_a_policy_that_is_not_the_numbered_bundle_any_more_decides_nothing(opa: FaultyOPA) -> None:
    async with connected(opa) as policy:
        assert await allowed(policy)
        others: list[Any] = [{}, {"other": {"revision": "8"}}, {"kkp": {}}, {"kkp": {"revision": "7-b"}}]
        for bundles in others:
            opa.answer = whole(ALLOW, provenance={"bundles": bundles})
            assert await decide(policy) is None
        opa.answer = whole(ALLOW, provenance={"bundles": {"kkp": {"revision": "8"}, "other": {}}})
        assert (await policy.decide(QUESTION)).revision == "kkp@8,other@unversioned"


async def test_a_policy_that_changes_with_every_answer_allows_nothing(opa: FaultyOPA) -> None:
    revision = 100

    async def another(writer: asyncio.StreamWriter) -> None:
        nonlocal revision
        revision += 1
        await says(response(by(str(revision), ALLOW)))(writer)

    async with connected(opa) as policy:
        opa.fault = another
        for _ in range(5):
            assert await decide(policy) is None


NO_DECISION = response(b'{"result": {}}')
COMPILED: Mapping[str, bytes] = {
    "there is a decision": response(b'{"result": {"queries": [[{"index": 0}]]}}'),
    "nothing": response(b"{}"),
    "null": response(b'{"result": null}'),
    "a list": response(b'{"result": []}'),
    "a member too many": response(b'{"result": {}, "more": 1}'),
    "that it may not be asked": response(b'{"result": {}}', status="401 Unauthorized"),
    "too much": response(b'{"result": {}}'.ljust(MAX_ANSWER_BYTES + 1)),
}


def boolean_policy(opa: FaultyOPA, compiled: bytes, revision: str = "7") -> Fault:
    """Return an OPA that has `allow`, by this revision, and says this of whether it has a `decision`."""

    async def answer(writer: asyncio.StreamWriter) -> None:
        path = opa.heads[-1].split()[1].partition("?")[0]
        answers = {
            "/v1/data/kkp/authz/decision": response(json.dumps({"provenance": PROVENANCE}).encode()),
            "/v1/data/kkp/authz/allow": response(by(revision, result=True)),
            "/v1/compile": compiled,
        }
        await says(answers[path])(writer)

    return answer


async def test_a_boolean_is_asked_where_opa_says_that_there_is_no_decision(opa: FaultyOPA) -> None:
    opa.fault = boolean_policy(opa, NO_DECISION)
    async with connected(opa) as policy:
        assert await allowed(policy)


@pytest.mark.parametrize("says_of_decision", COMPILED)
async def test_a_boolean_is_not_asked_where_opa_says(says_of_decision: str, opa: FaultyOPA) -> None:
    opa.fault = boolean_policy(opa, COMPILED[says_of_decision])
    async with connected(opa) as policy:
        assert await decide(policy) is None
        with pytest.raises(PolicyUnavailableError):
            await policy.ping()
    assert not any("/allow" in head for head in opa.heads)


async def test_a_boolean_of_another_revision_than_the_missing_decisions_is_not_asked(opa: FaultyOPA) -> None:
    opa.fault = boolean_policy(opa, NO_DECISION, revision="8")
    async with connected(opa) as policy:
        with pytest.raises(PolicyUnavailableError, match="changed while it was looked at"):
            await policy.ping()
        assert await decide(policy) is None


async def test_many_questions_share_one_look(opa: FaultyOPA) -> None:
    async with connected(opa) as policy:
        decisions = await asyncio.gather(*(policy.decide(QUESTION) for _ in range(20)))
    assert all(decision.allow for decision in decisions)
    assert len(opa.heads) == 21


async def test_the_deadline_spans_all_that_a_decision_takes(opa: FaultyOPA) -> None:
    """Each answer comes within the time, all of them together do not."""
    revision = 100

    async def slowly(writer: asyncio.StreamWriter) -> None:
        nonlocal revision
        revision += 1
        await asyncio.sleep(SHORT_SECONDS * 0.6)
        await says(response(by(str(revision // 2), ALLOW)))(writer)

    async with connected(opa, SHORT_SECONDS) as policy:
        opa.fault = slowly
        with pytest.raises(PolicyUnavailableError, match="in time"):
            await policy.decide(QUESTION)


async def test_a_caller_that_goes_away_takes_nobody_along(opa: FaultyOPA) -> None:
    async with connected(opa) as policy:
        opa.fault = SILENT["says nothing"]
        first = asyncio.create_task(policy.decide(QUESTION))
        while not opa.heads:  # noqa: ASYNC110  an event for this one test would be more to read
            await asyncio.sleep(0)
        opa.fault = None
        second = asyncio.create_task(policy.decide(QUESTION))
        await asyncio.sleep(0)
        first.cancel()
        assert (await second).allow
        with pytest.raises(asyncio.CancelledError):
            await first


async def test_an_error_holds_neither_the_question_nor_the_answer(opa: FaultyOPA) -> None:
    canary = "canary-77e0"
    opa.answer = canary.encode()
    async with connected(opa) as policy:
        with pytest.raises(PolicyUnavailableError) as caught:
            await policy.decide(PolicyInput(json.dumps({"claims": canary}).encode()))
    assert canary not in str(caught.value)
    assert caught.value.__suppress_context__
