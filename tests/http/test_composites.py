"""Envelopes that any of several clouds opens, and that all of them must: real SDKs, and clouds that fail."""

from __future__ import annotations

import base64
import json
from collections.abc import AsyncIterator, Callable, Mapping
from itertools import combinations
from pathlib import Path
from typing import Any, NamedTuple

import grpc
import pytest

from tests.emulators import aws, azure
from tests.emulators.gcp import CloudKMS, cloud_kms
from tests.harness import KKP, Answer, grant, running

CLOUDS = ("aws", "gcp", "azure")
MEMBERS = "key.orders=aws:alias/orders&key.orders=gcp:orders&key.orders=azure:orders"
CONTEXT = {"table": "orders"}

Envelope = dict[str, Any]


class Sky(NamedTuple):
    """The three clouds, and how each fails."""

    aws: aws.AWSEmulator
    gcp: CloudKMS
    azure: azure.Azure

    def backends(self, **composites: str) -> str:
        """Return what KKP is configured with."""
        clouds = {"aws": self.aws.uri, "gcp": self.gcp.uri, "azure": azure.URI}
        return ",".join(f"{name}={uri}" for name, uri in {**composites, **clouds}.items())

    def lose(self, *clouds: str) -> None:
        """Take these away, and have all others back."""
        self.aws.fault = aws.refusing("KMSInternalException", 500) if "aws" in clouds else None
        self.azure.fault = azure.failing(500) if "azure" in clouds else None
        self.gcp.recover()
        if "gcp" in clouds:
            self.gcp.refuse(grpc.StatusCode.UNAVAILABLE)


@pytest.fixture
async def sky(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Sky]:
    async with (
        aws.emulated() as amazon,
        cloud_kms(tmp_path, monkeypatch) as google,
        azure.running(tmp_path, monkeypatch) as microsoft,
    ):
        yield Sky(amazon, google, microsoft)


async def token_for(kkp: KKP, backend: str) -> str:
    """Mint as a service whose grant is for the composite, and for none of its members."""
    key = await kkp.add_identity(f"orders-{backend}", grant("orders", backend=backend))
    return await kkp.token(key, backend=backend, key_id="orders")


async def seal(kkp: KKP, token: str, backend: str) -> Envelope:
    return await kkp.seal(token, backend=backend, key_id="orders", context=CONTEXT)


async def opened(kkp: KKP, token: str, envelope: Envelope) -> Answer:
    return await kkp.post("/envelope/decrypt", {"envelope": envelope, "token": token})


async def assert_opens(kkp: KKP, token: str, envelope: Envelope) -> None:
    answer = await opened(kkp, token, envelope)
    assert (answer.status, answer.json.get("plaintext")) == (200, "hello"), answer.raw


async def assert_is_away(kkp: KKP, token: str, envelope: Envelope) -> None:
    answer = await opened(kkp, token, envelope)
    assert (answer.status, answer.problem()) == (503, "kms_unavailable")


@pytest.mark.promise(27)
async def test_an_any_of_three_clouds_opens_with_any_two_of_them_down(sky: Sky, tmp_path: Path) -> None:
    backends = sky.backends(multi=f"any-of://?{MEMBERS}")
    async with running(tmp_path, KKP_BACKENDS=backends) as kkp:
        token = await token_for(kkp, "multi")
        envelope = await seal(kkp, token, "multi")
        for away in combinations(CLOUDS, 2):
            sky.lose(*away)
            await assert_opens(kkp, token, envelope)

        sky.lose(*CLOUDS)
        await assert_is_away(kkp, token, envelope)
        sky.lose()
        await assert_opens(kkp, token, envelope)


@pytest.mark.promise(27)
async def test_an_all_of_three_clouds_opens_only_if_every_one_answers(sky: Sky, tmp_path: Path) -> None:
    backends = sky.backends(vault=f"all-of://?{MEMBERS}")
    async with running(tmp_path, KKP_BACKENDS=backends) as kkp:
        token = await token_for(kkp, "vault")
        envelope = await seal(kkp, token, "vault")
        for number in (1, 2, 3):
            for away in combinations(CLOUDS, number):
                sky.lose(*away)
                await assert_is_away(kkp, token, envelope)

        sky.lose()
        await assert_opens(kkp, token, envelope)


@pytest.mark.parametrize(
    ("options", "away", "status"),
    [("", 0, 200), ("", 1, 503), ("&min_members=2", 1, 200), ("&min_members=2", 2, 503)],
)
async def test_sealing_takes_as_many_clouds_as_are_configured(
    sky: Sky, tmp_path: Path, options: str, away: int, status: int
) -> None:
    backends = sky.backends(multi=f"any-of://?{MEMBERS}{options}")
    async with running(tmp_path, KKP_BACKENDS=backends) as kkp:
        token = await token_for(kkp, "multi")
        for lost in combinations(CLOUDS, away):
            sky.lose(*lost)
            document = {"backend": "multi", "key_id": "orders", "plaintext": "hello"}
            answer = await kkp.post("/envelope/encrypt", document, credential=token)
            assert answer.status == status, answer.raw
            if status == 200:
                # Those who sealed it open it; who was away has no part of it.
                await assert_opens(kkp, token, answer.json["envelope"])
                sky.lose(*({*CLOUDS} - {*lost}))
                if lost:
                    await assert_is_away(kkp, token, answer.json["envelope"])


HANGS: Mapping[str, Callable[[Sky], None]] = {
    "aws": lambda sky: setattr(sky.aws, "fault", sky.aws.hang),
    "gcp": lambda sky: sky.gcp.hang(),
    "azure": lambda sky: setattr(sky.azure, "fault", azure.hanging),
}


@pytest.mark.parametrize("first", CLOUDS)
async def test_a_first_cloud_that_hangs_is_overtaken_by_the_next(
    sky: Sky, tmp_path: Path, first: str
) -> None:
    members = MEMBERS.split("&")
    members.sort(key=lambda member: first not in member)
    backends = sky.backends(multi=f"any-of://?{'&'.join(members)}&hedge_ms=20")
    async with running(tmp_path, KKP_BACKENDS=backends) as kkp:
        token = await token_for(kkp, "multi")
        envelope = await seal(kkp, token, "multi")
        HANGS[first](sky)
        asked = {"aws": sky.aws.operations, "gcp": sky.gcp.calls, "azure": sky.azure.requests}[first]
        before = len(asked)

        await assert_opens(kkp, token, envelope)
        assert len(asked) == before + 1


async def test_grants_and_audit_know_the_composite_and_not_its_members(sky: Sky, tmp_path: Path) -> None:
    backends = sky.backends(multi=f"any-of://?{MEMBERS}")
    async with running(tmp_path, KKP_BACKENDS=backends) as kkp:
        token = await token_for(kkp, "multi")
        envelope = await seal(kkp, token, "multi")
        assert (envelope["backend"], envelope["key_id"]) == ("multi", "orders")
        await assert_opens(kkp, token, envelope)
        decisions = [
            record for record in await kkp.records() if record.get("action") in {"encrypt", "decrypt"}
        ]
        assert {(one["backend"], one["key_id"]) for one in decisions} == {("multi", "orders")}

        of_a_member = await kkp.token(kkp.root_key, backend="aws", key_id="alias/orders")
        answer = await opened(kkp, of_a_member, envelope)
        assert (answer.status, answer.problem()) == (403, "scope_mismatch")


@pytest.mark.promise(24)
@pytest.mark.parametrize("kind", ["any-of", "all-of"])
async def test_a_part_opens_nothing_as_an_ordinary_envelope_of_its_member(
    sky: Sky, tmp_path: Path, kind: str
) -> None:
    async with running(tmp_path, KKP_BACKENDS=sky.backends(multi=f"{kind}://?{MEMBERS}")) as kkp:
        envelope = await seal(kkp, kkp.root_key, "multi")
        for part in json.loads(azure.decode(envelope["encrypted_data_key"]))["parts"]:
            token = await kkp.token(kkp.root_key, backend=part["backend"], key_id=part["key_id"])
            wrapped = azure.encode(base64.b64decode(part["encrypted_data_key"]))
            relabelled = {**envelope, **part, "encrypted_data_key": wrapped}
            answer = await opened(kkp, token, relabelled)
            assert (answer.status, answer.problem()) == (422, "envelope_invalid")


@pytest.mark.promise(24)
async def test_an_any_of_envelope_is_no_all_of_envelope_of_the_same_members(sky: Sky, tmp_path: Path) -> None:
    composites = {"multi": f"any-of://?{MEMBERS}", "vault": f"all-of://?{MEMBERS}"}
    async with running(tmp_path, KKP_BACKENDS=sky.backends(**composites)) as kkp:
        for one, other in (("multi", "vault"), ("vault", "multi")):
            envelope = await seal(kkp, kkp.root_key, one)
            token = await kkp.token(kkp.root_key, backend=other, key_id="orders")
            answer = await opened(kkp, token, {**envelope, "backend": other})
            assert (answer.status, answer.problem()) == (422, "envelope_invalid")


async def test_a_cloud_is_retired_step_by_step(sky: Sky, tmp_path: Path) -> None:
    """It becomes a former member, which opens what it sealed; then its line goes, and nothing is lost."""
    (tmp_path / "kkp.toml").write_text(
        f"""
[backends.multi]
uri = "any-of://"
[backends.multi.keys.orders]
members = ["azure:orders", "gcp:orders"]
former = ["aws:alias/orders"]
[backends.aws]
uri = "{sky.aws.uri}"
[backends.gcp]
uri = "{sky.gcp.uri}"
[backends.azure]
uri = "{azure.URI}"
"""
    )
    async with running(tmp_path, KKP_BACKENDS=sky.backends(multi=f"any-of://?{MEMBERS}")) as kkp:
        token = await token_for(kkp, "multi")
        envelope = await seal(kkp, token, "multi")
    async with running(tmp_path, KKP_CONFIG=str(tmp_path / "kkp.toml")) as kkp:
        newer = await seal(kkp, token, "multi")
        sky.lose("gcp", "azure")
        await assert_opens(kkp, token, envelope)
        await assert_is_away(kkp, token, newer)
    sky.lose("aws")
    without_aws = f"multi=any-of://?key.orders=gcp:orders,gcp={sky.gcp.uri}"
    async with running(tmp_path, KKP_BACKENDS=without_aws) as kkp:
        await assert_opens(kkp, token, envelope)
        await assert_opens(kkp, token, newer)


@pytest.mark.parametrize("kind", ["any-of", "all-of"])
async def test_the_log_names_composite_and_member_once_and_the_caller_learns_neither(
    sky: Sky, tmp_path: Path, caplog: pytest.LogCaptureFixture, kind: str
) -> None:
    async with running(tmp_path, KKP_BACKENDS=sky.backends(multi=f"{kind}://?{MEMBERS}")) as kkp:
        sky.lose("gcp")
        document = {"backend": "multi", "key_id": "orders", "plaintext": "hello"}
        for _ in range(3):
            answer = await kkp.post("/envelope/encrypt", document, credential=kkp.root_key)
            assert (answer.status, answer.problem()) == (503, "kms_unavailable")
            assert not any(name in answer.raw for name in (b"multi", b"orders", b"gcp"))
        sky.lose()
        await seal(kkp, kkp.root_key, "multi")

    told = [record.getMessage() for record in caplog.records if record.name == "kkp.kms.failing"]
    assert [message.partition(" (")[0] for message in told] == [
        f"{kind} multi: member gcp:orders can't wrap",
        f"{kind} multi: member gcp:orders can wrap again",
    ]


async def test_a_logical_name_that_is_not_configured_is_an_unknown_key(sky: Sky, tmp_path: Path) -> None:
    async with running(tmp_path, KKP_BACKENDS=sky.backends(multi=f"any-of://?{MEMBERS}")) as kkp:
        document = {"backend": "multi", "key_id": "billing", "plaintext": "hello"}
        answer = await kkp.post("/envelope/encrypt", document, credential=kkp.root_key)
        assert (answer.status, answer.problem()) == (404, "unknown_key")
        assert not any(name in answer.raw for name in (b"orders", b"aws", b"gcp", b"azure"))
