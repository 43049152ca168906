"""`kkp doctor` tries backends: what each kind of failure is called, and that none outlasts its deadline.

The backends are the vendors' emulators, spoken to by their unchanged SDKs.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import grpc
import pytest
from aiohttp import web

from kkp import kms
from kkp.cli import probes
from kkp.cli.findings import Result, Status
from kkp.cli.probes import MAX_KEYS, Means, probe_all
from kkp.kms.base import Resources, WrappedKey
from kkp.model import Grant
from tests.emulators import aws, azure, gcp, vault
from tests.emulators.clouds import CLOUDS, Cloud, Emulated, aws_kms, cloud_kms, key_vault, vault_transit
from tests.fakes.absent_kms import AbsentKMS


def grant(key_id: str = "orders", backend: str = "cloud") -> Grant:
    return Grant(backend, key_id, ("encrypt", "decrypt"))


async def probed(
    uri: str, *key_ids: str, named: Sequence[str] = (), grants: Sequence[Grant] = ()
) -> list[Result]:
    """Try one backend, called cloud, by the keys that grants name."""
    means = Means({"cloud": uri}, None, has_database=False)
    return await probe_all(means, {"cloud": named}, [*map(grant, key_ids), *grants])


@pytest.mark.parametrize("emulated", CLOUDS.values(), ids=list(CLOUDS))
async def test_a_backend_that_works_wraps_and_unwraps_and_without_a_key_it_answers(
    emulated: Emulated, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with emulated(tmp_path, monkeypatch) as cloud:
        (tried,) = await probed(cloud.uri, cloud.key)
        (pinged,) = await probed(cloud.uri)
    scheme = cloud.uri.partition(":")[0]
    assert tried == (Status.OK, f"cloud ({scheme}) wraps and unwraps under {cloud.key}", "")
    assert pinged == (Status.OK, f"cloud ({scheme}) answers", "")


def _of_aws(fault: aws.Fault) -> Callable[[Cloud, pytest.MonkeyPatch], None]:
    return lambda cloud, _environ: setattr(cloud.emulator, "fault", fault)


def _nothing(_cloud: Cloud, _environ: pytest.MonkeyPatch) -> None:
    """Spoil nothing."""


def _no_credentials(_cloud: Cloud, environ: pytest.MonkeyPatch) -> None:
    environ.delenv("AWS_ACCESS_KEY_ID")


def _no_extra(_cloud: Cloud, environ: pytest.MonkeyPatch) -> None:
    environ.setitem(sys.modules, "boto3", None)
    environ.delitem(sys.modules, "kkp.kms.aws", raising=False)


def _a_fault_of_google(description: str) -> Callable[[Cloud, pytest.MonkeyPatch], None]:
    async def answer() -> web.Response:
        document = {"error": "invalid_grant", "error_description": description}
        return web.json_response(document, status=400)

    return lambda cloud, _environ: setattr(cloud.emulator.issuer, "fault", answer)


def _a_fault_of_entra(code: str) -> Callable[[Cloud, pytest.MonkeyPatch], None]:
    fault = azure.answering(lambda: azure.entra_error(401, "invalid_client", f"{code}: no"))
    return lambda cloud, _environ: setattr(cloud.emulator, "login_fault", fault)


def _a_skewed_signature(_operation: str, _answer: Callable[[], aws.Reply]) -> aws.Reply:
    message = "Signature expired: 20260101T000000Z is now earlier than 20260101T000500Z"
    return aws.error("InvalidSignatureException", 403, message)


FAR = "arn:aws:kms:us-east-1:123456789012:alias/orders"
FAILURES: dict[str, tuple[Emulated, Callable[[Cloud, pytest.MonkeyPatch], None], str, str]] = {
    "no such key": (aws_kms, _nothing, "alias/nobody", "make the key"),
    "a disabled key": (aws_kms, _nothing, "alias/disabled-key", "enable the key"),
    "no permission": (aws_kms, _of_aws(aws.refusing("AccessDeniedException")), "", "least permissions"),
    "throttled": (aws_kms, _of_aws(aws.refusing("ThrottlingException")), "", "quota"),
    "unavailable": (aws_kms, _of_aws(aws.refusing("KMSInternalException", 500)), "", "see whether it is up"),
    "a key that is not ready": (
        aws_kms,
        lambda cloud, _environ: cloud.emulator.set_state("alias/orders", "Unavailable"),
        "",
        "in which state",
    ),
    "another region": (aws_kms, _nothing, FAR, "of this backend's own region"),
    "another vault": (key_vault, _nothing, "https://far.vault.azure.net/keys/orders", "ring or vault"),
    "another ring": (
        cloud_kms,
        _nothing,
        f"{gcp.RING.replace('europe-west3', 'global')}/cryptoKeys/orders",
        "of this backend's own region, ring",
    ),
    "expired credentials": (
        aws_kms,
        _of_aws(aws.refusing("ExpiredTokenException")),
        "",
        "renew the credentials",
    ),
    "a login at Google that has expired": (
        cloud_kms,
        _a_fault_of_google("Token has been expired or revoked."),
        "",
        "renew the credentials",
    ),
    "an expired secret at Entra": (
        key_vault,
        _a_fault_of_entra("AADSTS7000222"),
        "",
        "renew the credentials",
    ),
    "a token that Vault forgot": (
        vault_transit,
        lambda cloud, _environ: cloud.emulator.tokens.clear(),
        "",
        "renew the credentials",
    ),
    "a clock that is off": (aws_kms, _of_aws(_a_skewed_signature), "", "set this machine's clock"),
    "a request of another time": (aws_kms, _of_aws(aws.refusing("RequestExpired")), "", "machine's clock"),
    "a clock that is off by Google's": (
        cloud_kms,
        _a_fault_of_google("Invalid JWT: Token must be a short-lived token in a reasonable timeframe."),
        "",
        "set this machine's clock",
    ),
    "a clock that is off by Entra's": (key_vault, _a_fault_of_entra("AADSTS700024"), "", "machine's clock"),
    "no credentials": (aws_kms, _no_credentials, "", "give the process a role"),
    "no SDK": (aws_kms, _no_extra, "", "requirements.lock brings it"),
    "Google refuses": (
        cloud_kms,
        lambda cloud, _environ: cloud.emulator.refuse(grpc.StatusCode.PERMISSION_DENIED),
        "",
        "least permissions",
    ),
}


@pytest.mark.parametrize(
    ("emulated", "spoil", "key", "cure"), FAILURES.values(), ids=[name.replace(" ", "-") for name in FAILURES]
)
async def test_each_kind_of_failure_has_its_own_cure(  # noqa: PLR0913, PLR0917  the table's columns
    emulated: Emulated,
    spoil: Callable[[Cloud, pytest.MonkeyPatch], None],
    key: str,
    cure: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with emulated(tmp_path, monkeypatch) as cloud:
        spoil(cloud, monkeypatch)
        (failed,) = await probed(cloud.uri, key or cloud.key)
    assert failed.status is Status.FAIL
    assert cure in failed.cure
    for secret in ("endpoint", "role/kkp", "secret-of-the-emulated-role", "kkp-token"):
        assert secret not in failed.detail


# --- which keys


async def tried(*arguments: str, **options: Any) -> list[str]:
    async with aws.emulated() as emulator:
        for number in range(MAX_KEYS + 2):
            emulator.add_key(f"alias/key-{number:02}")
        results = await probed(emulator.uri, *arguments, **options)
    return [result.detail.removeprefix("cloud (aws-kms)").strip() for result in results]


async def test_keys_of_grants_are_tried_once_and_prefixes_and_other_backends_keys_not() -> None:
    grants = [grant("alias/orders"), grant("alias/*"), grant("alias/key-*"), grant("elsewhere", "other")]
    assert await tried("alias/orders", "alias/billing", grants=grants) == [
        "wraps and unwraps under alias/billing",
        "wraps and unwraps under alias/orders",
        ": 2 of the grants' keys are prefixes, which name no key; --probe tries a key by name",
    ]


async def test_a_backend_with_prefixes_alone_is_pinged() -> None:
    assert (await tried("alias/*"))[0] == "answers"


async def test_keys_that_were_asked_for_come_first() -> None:
    assert await tried("alias/billing", named=["alias/orders", "alias/billing"]) == [
        "wraps and unwraps under alias/orders",
        "wraps and unwraps under alias/billing",
    ]


@pytest.mark.parametrize("more", [0, 1])
async def test_no_more_keys_are_tried_than_the_limit(more: int) -> None:
    found = await tried(*(f"alias/key-{number:02}" for number in range(MAX_KEYS + more)))
    assert sum("wraps and unwraps" in detail for detail in found) == MAX_KEYS
    assert any(detail.startswith(": 1 more keys were not tried") for detail in found) is (more > 0)


async def test_a_probe_of_a_backend_that_there_is_not_is_a_failure() -> None:
    (answer, unknown) = await probe_all(
        Means({"emulated": "memory://aws"}, None, has_database=False), {"nobody": ["k"]}, ()
    )
    assert answer.status is Status.WARN  # there is no master key
    assert unknown == (Status.FAIL, "--probe names 'nobody'", "name one of emulated")


async def test_a_cloud_is_tried_without_a_master_key_and_what_needs_one_is_not() -> None:
    async with aws.emulated() as emulator:
        uris = {"cloud": emulator.uri, "emulated": "memory://aws", "local": "local://"}
        results = await probe_all(Means(uris, None, has_database=False), {}, ())
    assert [result.status for result in results] == [Status.OK, Status.WARN, Status.WARN]


# --- composites, and the members that they are made of


async def composed(composite: str, *grants: Grant, clouds: Mapping[str, str]) -> list[Result]:
    """Try a composite called multi and its clouds, by default by its key orders."""
    means = Means({"multi": composite, **clouds}, None, has_database=False)
    return await probe_all(means, {}, grants or [grant("orders", "multi")])


def _refusing(*operations: str, code: str = "AccessDeniedException") -> aws.Fault:
    """Refuse to do some things, and do all others."""
    refuse = aws.refusing(code)
    return lambda asked, answer: refuse(asked, answer) if asked in operations else answer()


async def test_a_member_that_can_not_unwrap_is_found_although_its_any_of_opens() -> None:
    async with aws.emulated() as one, vault.emulated() as other:
        two = "any-of://?key.orders=other:orders&key.orders=one:alias/orders"
        one.fault = _refusing("Decrypt")
        multi, found, well = await composed(two, clouds={"one": one.uri, "other": other.uri})
    assert multi == (Status.OK, "multi (any-of) wraps and unwraps under orders", "")
    assert found.status is Status.FAIL
    assert found.detail.startswith("one (aws-kms) does not wrap and unwrap under alias/orders: ")
    assert "least permissions" in found.cure
    assert well == (Status.OK, "other (vault-transit) wraps and unwraps under orders", "")


async def test_a_member_is_tried_by_each_of_its_keys_once_and_not_for_keys_that_nobody_has() -> None:
    composite = "any-of://?key.a=one:alias/orders&key.b=one:alias/billing&key.b=one:alias/orders&key.c=one:c"
    grants = [grant("a", "multi"), grant("b", "multi"), grant("*", "multi"), grant("alias/orders", "one")]
    async with aws.emulated() as one:
        results = await composed(composite, *grants, clouds={"one": one.uri})
    assert [result.detail for result in results if result.detail.startswith("one")] == [
        "one (aws-kms) wraps and unwraps under alias/orders",
        "one (aws-kms) wraps and unwraps under alias/billing",
    ]
    assert {result.status for result in results} == {Status.OK}


ONLY_WRAPS = ("GenerateDataKey", "Encrypt")
FORMER: dict[str, tuple[aws.Fault | None, Status, str, str]] = {
    "that wraps and unwraps": (None, Status.OK, "wraps and unwraps under alias/orders", ""),
    "that may not wrap": (
        _refusing(*ONLY_WRAPS),
        Status.WARN,
        "whether it unwraps was not tried",
        "let KKP wrap under it",
    ),
    "that may not unwrap": (
        _refusing("Decrypt"),
        Status.FAIL,
        "does not wrap and unwrap under alias/orders",
        "least permissions",
    ),
    "that may do nothing": (
        aws.refusing("AccessDeniedException"),
        Status.FAIL,
        "does not wrap and unwrap under alias/orders",
        "least permissions",
    ),
    "whose credentials have expired": (
        aws.refusing("ExpiredTokenException"),
        Status.FAIL,
        "does not wrap and unwrap under alias/orders",
        "renew the credentials",
    ),
    "whose key is disabled": (
        _refusing(*ONLY_WRAPS, "Decrypt", code="DisabledException"),
        Status.FAIL,
        "does not wrap and unwrap under alias/orders",
        "enable the key",
    ),
}


@pytest.mark.parametrize(
    ("fault", "status", "detail", "cure"), FORMER.values(), ids=[name.replace(" ", "-") for name in FORMER]
)
async def test_a_former_member_need_not_wrap(
    fault: aws.Fault | None, status: Status, detail: str, cure: str
) -> None:
    async with aws.emulated() as one, vault.emulated() as other:
        one.fault = fault or one.fault
        composite = "any-of://?key.orders=other:orders&former.orders=one:alias/orders"
        multi, found, _ = await composed(composite, clouds={"one": one.uri, "other": other.uri})
    assert multi.status is Status.OK
    assert found.status is status
    assert detail in found.detail
    assert cure in found.cure


async def test_who_is_former_to_one_key_and_current_to_another_must_wrap() -> None:
    composite = "any-of://?key.a=one:alias/orders&key.b=other:orders&former.b=one:alias/orders"
    async with aws.emulated() as one, vault.emulated() as other:
        one.fault = _refusing(*ONLY_WRAPS)
        clouds = {"one": one.uri, "other": other.uri}
        results = await composed(composite, grant("a", "multi"), grant("b", "multi"), clouds=clouds)
    (found,) = (result for result in results if result.detail.startswith("one"))
    assert found.status is Status.FAIL


async def test_members_are_no_more_than_the_limit_and_come_behind_keys_that_were_asked_for() -> None:
    members = "&".join(f"key.{number}=one:alias/key-{number:02}" for number in range(MAX_KEYS))
    grants = [grant(str(number), "multi") for number in range(MAX_KEYS)]
    async with aws.emulated() as one:
        for number in range(MAX_KEYS):
            one.add_key(f"alias/key-{number:02}")
        uris = {"multi": f"any-of://?{members}", "one": one.uri}
        means = Means(uris, None, has_database=False)
        results = await probe_all(means, {"one": ["alias/orders"]}, grants)
    found = [result.detail.removeprefix("one (aws-kms)") for result in results[MAX_KEYS:]]
    assert found[0] == " wraps and unwraps under alias/orders"
    assert found[MAX_KEYS:] == [": 1 more keys were not tried; --probe tries a key by name"]


async def test_a_member_that_can_not_be_made_is_named_where_its_composite_fails(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with aws.emulated() as one, vault.emulated() as other:
        _no_extra(Cloud(one.uri, "", one), monkeypatch)
        composite = "any-of://?key.orders=other:orders&key.orders=one:alias/orders"
        multi, found, well = await composed(composite, clouds={"one": one.uri, "other": other.uri})
    assert multi.status is Status.FAIL
    assert multi.detail.startswith(
        "multi (any-of) does not wrap and unwrap under orders: its member one can't be used: aws-kms:// needs"
    )
    assert multi.cure == "see what is said of that member here, and how to mend it"
    assert (found.status, "requirements.lock brings it" in found.cure) == (Status.FAIL, True)
    assert well.status is Status.OK


async def test_a_composite_that_can_not_be_read_is_told_once_and_tries_nobody() -> None:
    async with vault.emulated() as other:
        clouds = {"other": other.uri}
        wrong, well = await composed("any-of://?key.orders=other:orders&hedge_ms=x", clouds=clouds)
    assert (wrong.status, well) == (Status.FAIL, (Status.OK, "other (vault-transit) answers", ""))
    assert "hedge_ms" in wrong.detail


async def test_a_composite_of_a_composite_is_told() -> None:
    async with vault.emulated() as other:
        clouds = {"inner": "any-of://?key.a=other:orders", "other": other.uri}
        wrong, *_ = await composed("any-of://?key.orders=inner:a", clouds=clouds)
    assert wrong.status is Status.FAIL
    assert "its member inner is itself a composite" in wrong.detail


# --- deadlines, and answers that can't be right


async def test_a_backend_that_hangs_ends_with_its_deadline_and_holds_up_no_other(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(probes, "_PROBE_SECONDS", 0.5)
    async with aws.emulated() as hung, vault.emulated() as well:
        hung.fault = hung.hang
        uris = {"hung": hung.uri, "well": well.uri}
        means = Means(uris, None, has_database=False)
        grants = [grant("alias/orders", "hung"), grant("orders", "well")]
        late, good = await probe_all(means, {}, grants)
    assert (late.status, good.status) == (Status.FAIL, Status.OK)
    assert late.detail == "hung (aws-kms) does not wrap and unwrap under alias/orders in time"
    assert "see whether it is up" in late.cure


class Forgetful(AbsentKMS):
    """Unwraps something else than it wrapped."""

    @classmethod
    async def connect(cls, uri: str, resources: Resources) -> Self:  # noqa: ARG003  the adaptor's form
        return cls()

    async def wrap(self, _key_id: str, _data_key: bytes, context: Mapping[str, str]) -> WrappedKey:
        assert context == {"kkp": "doctor"}
        return WrappedKey(b"wrapped", "1")

    async def unwrap(self, _key_id: str, _wrapped: WrappedKey, _context: Mapping[str, str]) -> bytes:
        return bytes(32)


async def test_a_backend_that_unwraps_something_else_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kms, "SCHEMES", {**kms.SCHEMES, "far": f"{__name__}:Forgetful"})
    (failed,) = await probed("far://canary", "orders")
    assert failed.status is Status.FAIL
    assert "What it unwrapped is not what it had wrapped." in failed.detail
    assert "canary" not in failed.detail
    assert "did not open what it had wrapped" in failed.cure
