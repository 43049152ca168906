"""`kkp doctor` on real data directories: what it shows, what it finds, and that it leaves all as it was."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import time
from argparse import Namespace
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from kkp import kms
from kkp.cli.doctor import _doctor
from kkp.config import _SETTINGS
from kkp.errors import ConfigError
from tests.client_certificates import Authority
from tests.emulators.listener import Listener, Said, always
from tests.http.certificates import new_pair
from tests.integration.process import database, environment, kkp, names, serving
from tests.integration.test_start import (
    another_master_key,
    broken_policy,
    foreign_database,
    garbage_database,
    lose_master_key,
    nothing,
    open_database,
    open_directory,
    open_master_key,
)
from tests.issuer import FakeIssuer

Change = Callable[[Path], None]


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The data directory of a server that has run, minted, and was stopped."""
    directory = tmp_path_factory.mktemp("original")

    async def serve() -> None:
        async with serving(directory) as server:
            await server.add("orders")
            await server.token()
            assert await server.stop() == 0

    asyncio.run(serve())
    return directory / ".kkp"


@pytest.fixture
def stopped(original: Path, tmp_path: Path) -> Path:
    """A directory with a copy of it to spoil."""
    shutil.copytree(original, tmp_path / ".kkp")
    return tmp_path


def contents(directory: Path) -> dict[str, bytes]:
    """Return every file; of the index that processes share while they read, only that it is there."""
    files = [path for path in directory.rglob("*") if path.is_file()]
    return {str(path): b"" if path.name.endswith("-shm") else path.read_bytes() for path in files}


@dataclass
class Doctor:
    """The command in this process, run as in its own; it leaves no trace."""

    monkeypatch: pytest.MonkeyPatch
    capsys: pytest.CaptureFixture[str]

    def report(self, directory: Path, *, probes: Sequence[str] = (), **environ: str) -> dict[str, Any]:
        """Return what `--json` prints, having compared the exit code with it."""
        code, text = self._run(directory, environ, probes, as_json=True)
        report: dict[str, Any] = json.loads(text)
        assert code == (1 if report["status"] == "FAIL" else 0)
        return report

    def table(self, directory: Path, **environ: str) -> str:
        """Return what it prints for people; something fails."""
        code, text = self._run(directory, environ, (), as_json=False)
        assert code == 1
        return text

    def _run(
        self, directory: Path, environ: Mapping[str, str], probes: Sequence[str], *, as_json: bool
    ) -> tuple[int, str]:
        before = contents(directory)
        with self.monkeypatch.context() as patched:
            patched.chdir(directory)
            patched.setattr(os, "environ", environment(environ))
            code = _doctor(Namespace(json=as_json, way=None, probe=probes))
        assert contents(directory) == before
        printed = self.capsys.readouterr()
        return code, printed.out + printed.err


@pytest.fixture
def doctor(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Doctor:
    return Doctor(monkeypatch, capsys)


def statuses(report: dict[str, Any]) -> dict[str, str]:
    """Return the worst status of each check."""
    worst: dict[str, str] = {}
    for check in report["checks"]:
        worst[check["check"]] = min(check["status"], worst.get(check["check"], "warn"))
    return worst


def test_all_is_well_after_a_clean_stop(stopped: Path, doctor: Doctor) -> None:
    report = doctor.report(stopped)
    assert report["status"] == "ok"
    assert set(statuses(report)) == {
        "settings", "files", "master key", "database", "clock", "signing keys", "identities",
        "root key", "revocations", "accounts", "approvals", "audit", "tls", "client certificates", "policy",
        "issuers", "backends",
    }  # fmt: skip
    assert {check["status"] for check in report["checks"]} == {"ok"}


def test_before_the_first_start_it_says_what_is_to_come_and_makes_nothing(
    tmp_path: Path, doctor: Doctor
) -> None:
    report = doctor.report(tmp_path)
    assert report["status"] == "warn"
    assert statuses(report)["files"] == "warn"
    assert not names(tmp_path)


async def test_all_is_well_beside_a_server_and_after_it_was_killed(tmp_path: Path) -> None:
    async with serving(tmp_path) as server:
        await server.token()
        before = names(server.data_dir)
        running = await kkp(tmp_path, "doctor", "--json")
        assert names(server.data_dir) == before
        await server.token()
        await server.kill()
        killed = await kkp(tmp_path, "doctor", "--json")
        assert names(server.data_dir) == before
    for finished in (running, killed):
        assert (finished.code, finished.err) == (0, "")
        assert json.loads(finished.out)["status"] == "ok"


def test_every_setting_is_shown_with_its_source(stopped: Path, doctor: Doctor) -> None:
    (stopped / "kkp.toml").write_text('fetch_secs = 9\n\n[backends.aws]\nuri = "memory://aws"\n')
    report = doctor.report(stopped, KKP_TOKEN_TTL_SECS="200")
    shown = {row["name"]: (row["value"], row["source"]) for row in report["settings"]}
    assert shown.keys() == _SETTINGS.keys()
    assert shown["KKP_TOKEN_TTL_SECS"] == ("200", "environment")
    assert shown["KKP_FETCH_SECS"] == ("9", "kkp.toml")
    assert shown["KKP_BACKENDS"] == ("aws=memory://aws", "kkp.toml")
    assert shown["KKP_KEY_TTL_SECS"] == ("1800", "default")
    assert shown["KKP_DATABASE_URL"] == ("sqlite:///.kkp/kkp.db", "default")
    assert shown["KKP_MASTER_KEY"] == ("not set", "default")


def test_every_rule_of_the_ring_is_shown_with_both_numbers_and_their_margin(
    stopped: Path, doctor: Doctor
) -> None:
    report = doctor.report(stopped)
    rules = [(r["name"], r["low"], r["high"], r["margin"]) for r in report["rules"]]
    assert rules == [
        ("V1", 675, 900, 225), ("V2", 430, 900, 470), ("V5", 4, 5, 1), ("V6", 30, 300, 270),
        ("V6", 300, 600, 300), ("V7", 15, 60, 45), ("V9", 60, 300, 240),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("uri", "shown"),
    [
        ("aws-kms://eu-west-1?role_arn=x", "aws-kms://eu-west-1…"),
        ("local://", "local://"),
        (
            "any-of://?key.o=aws:alias/o&key.o=local:default&former.o=gcp:o&min_members=1&hedge_ms=20",
            "any-of://?key.o=aws:alias/o&key.o=local:default&former.o=gcp:o&min_members=1&hedge_ms=20",
        ),
        (
            "all-of://?key.o=aws:alias/o@1&key.o=local:default",
            "all-of://?key.o=aws:alias/o@1&key.o=local:default",
        ),
        ("any-of://u:canary@h?key.o=aws:a&password=canary", "any-of://…?key.o=aws:a&…"),
        ("any-of://?key.o=aws:a&min_members=1#canary", "any-of://?key.o=aws:a&…"),
    ],
)
def test_a_backend_is_shown_for_itself_and_those_after_it_too(
    stopped: Path, doctor: Doctor, uri: str, shown: str
) -> None:
    report = doctor.report(stopped, KKP_BACKENDS=f"first={uri},second=memory://aws?x=canary,last=local://")
    (row,) = (row for row in report["settings"] if row["name"] == "KKP_BACKENDS")
    assert row["value"] == f"first={shown},second=memory://aws…,last=local://"


def test_a_setting_that_is_not_taken_is_shown_where_it_is_set(stopped: Path, doctor: Doctor) -> None:
    report = doctor.report(stopped, KKP_MASTER_KEY_KMS="aws-kms://eu-west-1?endpoint=x#alias/kkp")
    (row,) = (row for row in report["settings"] if row["name"] == "KKP_MASTER_KEY_KMS")
    assert row["value"] == "aws-kms://eu-west-1…"
    (told,) = (check for check in report["checks"] if check["detail"].startswith("KKP_MASTER_KEY_KMS"))
    assert told["status"] == "FAIL"


SECRETS = {
    "a master key": {"KKP_MASTER_KEY": "canarycanary"},
    "a password in a backend": {"KKP_BACKENDS": "aws=memory://user:canary@host,b=local://"},
    "a password with an at sign and a slash": {"KKP_BACKENDS": "aws=memory://user:c@/canary@host"},
    "a password with a comma": {"KKP_BACKENDS": "aws=memory://user:a,canary@host"},
    "a password of a composite": {
        "KKP_BACKENDS": "both=any-of://user:a?canary@host?key.o=a:b,local=local://"
    },
    "a password in a composite's query": {"KKP_BACKENDS": "both=any-of://?key.o=a:b&password=canary"},
    "a password in a query": {"KKP_BACKENDS": "aws=memory://aws?password=canary"},
    "a password in an issuer": {"KKP_ISSUER": "https://user:canary@host"},
    "a password in a database's URL": {"KKP_DATABASE_URL": "postgresql://user:canary@host/kkp?x=canary"},
    "a password in an address": {"KKP_DATABASE_URL": "postgresql://host/#canary"},
}


@pytest.mark.parametrize("case", SECRETS)
def test_it_does_not_show(tmp_path: Path, case: str, doctor: Doctor) -> None:
    text = doctor.table(tmp_path, **SECRETS[case])
    assert next(iter(SECRETS[case])) in text
    assert "canary" not in text


def test_a_master_key_of_the_environment_is_shown_as_set(stopped: Path, doctor: Doctor) -> None:
    key = (stopped / ".kkp/master.key").read_text().strip()
    report = doctor.report(stopped, KKP_MASTER_KEY=key)
    assert report["status"] == "ok"
    (shown,) = (row for row in report["settings"] if row["name"] == "KKP_MASTER_KEY")
    assert (shown["value"], shown["source"]) == ("set", "environment")
    assert key not in json.dumps(report)


def by_hand(statement: str, *parameters: Any, rows: int = 1) -> Change:
    """Return what somebody with write access to the file does."""

    def change(directory: Path) -> None:
        with database(directory / ".kkp/kkp.db", "rw") as connection:
            assert connection.execute(statement, parameters).rowcount >= rows
        for companion in (directory / ".kkp").glob("kkp.db-*"):
            companion.chmod(0o600)

    return change


def damaged_header(directory: Path) -> None:
    content = bytearray((directory / ".kkp/kkp.db").read_bytes())
    content[36:40] = (5).to_bytes(4)
    (directory / ".kkp/kkp.db").write_bytes(content)


def garbage_checkpoints(directory: Path) -> None:
    (directory / ".kkp/checkpoints.jsonl").write_bytes(b"garbage\n")


UNREACHABLE = {
    "issuer": "https://issuer.example",
    "jwks_url": "http://127.0.0.1:1/keys",
    "rules": {"all": {"match": {"sub": "*"}, "roles": ["service"]}},
}
FAILURES: dict[str, tuple[Change, dict[str, str], str, str]] = {
    "a setting that can't be read": (nothing, {"KKP_POLL_SECS": "soon"}, "settings", "a number of seconds"),
    "times that do not fit": (nothing, {"KKP_POLL_SECS": "30"}, "settings", ""),
    "a directory that others can enter": (open_directory, {}, "files", "chmod 700 .kkp"),
    "a database that others can read": (open_database, {}, "files", "chmod 600 .kkp/kkp.db"),
    "a key file that others can read": (open_master_key, {}, "files", "chmod 600 .kkp/master.key"),
    "a master key that is gone": (lose_master_key, {}, "master key", "put the key back"),
    "another master key": (another_master_key, {}, "database", "give that key"),
    "another program's database": (
        foreign_database,
        {"KKP_DATABASE_URL": "sqlite:///foreign.db"},
        "database",
        "name another file",
    ),
    "a file that is no database": (garbage_database, {}, "database", "give the right KKP_DATABASE_URL"),
    "a database that is damaged": (damaged_header, {}, "database", "restore a backup"),
    "a clock that is behind": (
        by_hand("UPDATE state SET clock_high_water = ?", time.time() + 3600),
        {},
        "clock",
        "set the clock",
    ),
    "a planted signing key": (
        by_hand("UPDATE ring_keys SET activate_at = activate_at - 1"),
        {},
        "signing keys",
        "delete the rows",
    ),
    "an identity changed by hand": (
        by_hand("UPDATE identities SET document = replace(document, 'service', 'admin') WHERE id = 'orders'"),
        {},
        "identities",
        "restore a backup",
    ),
    "a planted account": (
        by_hand("INSERT INTO accounts (id, epoch, sealed) VALUES ('user:0000000000000000', 1, x'00')"),
        {},
        "accounts",
        "restore a backup",
    ),
    "a planted approval": (
        by_hand("INSERT INTO approvals VALUES ('a', 'a', '[]', 'a', '{}', 0, 60, 1, 9e9, 'b', 2, '', x'00')"),
        {},
        "approvals",
        "empty the table `approvals`",
    ),
    "an audit record changed by hand": (
        by_hand("UPDATE audit_records SET body = x'00' WHERE position = 2"),
        {},
        "audit",
        "kkp audit verify",
    ),
    "a database that is behind its checkpoints": (
        by_hand("DELETE FROM audit_records WHERE position = (SELECT max(position) FROM audit_records)"),
        {},
        "audit",
        "if a backup was restored: docs/runbooks/replicas.md",
    ),
    "an audit log that is gone": (
        by_hand("DROP TABLE audit_records", rows=-1),
        {},
        "database",
        "restore a backup",
    ),
    "a trigger": (
        by_hand("CREATE TRIGGER t AFTER INSERT ON audit_records BEGIN SELECT RAISE(IGNORE); END", rows=-1),
        {},
        "database",
        "treat it as an intrusion, and restore a backup",
    ),
    "checkpoints that can't be read": (
        garbage_checkpoints,
        {},
        "audit",
        "restore a backup",
    ),
    "a policy that does not load": (
        broken_policy,
        {"KKP_POLICY_PATH": "broken.rego"},
        "policy",
        "mend the policy",
    ),
    "an issuer whose keys can't be fetched": (
        nothing,
        {"KKP_ISSUERS": json.dumps({"k8s": UNREACHABLE})},
        "issuers",
        "see whether its jwks_url is right",
    ),
    "a backend that there is not": (
        nothing,
        {"KKP_BACKENDS": "aws=memory://nope,local=local://"},
        "backends",
        "write memory://aws",
    ),
}


@pytest.mark.parametrize("case", FAILURES)
def test_found_with_its_cure_is(stopped: Path, case: str, doctor: Doctor) -> None:
    change, environ, check, cure = FAILURES[case]
    change(stopped)
    report = doctor.report(stopped, **environ)
    failed = [found for found in report["checks"] if found["status"] == "FAIL"]
    assert {found["check"] for found in failed} >= {check}
    assert any(cure in found["cure"] for found in failed if found["check"] == check)


def test_issuers_are_shown_and_the_keys_of_each_fetched_once(stopped: Path, doctor: Doctor) -> None:
    issuer = FakeIssuer({"1": "P-256", "2": "Ed25519"})
    rules = UNREACHABLE["rules"]
    with Listener(always(Said(200, issuer.jwks(), {"Content-Type": "application/json"}))) as place:
        fetched = {"jwks_url": f"{place.url}/keys?secret=canary", "rules": rules}
        tables = {
            "k8s": {**fetched, "issuer": "https://k8s.example"},
            "github": {**fetched, "issuer": "https://github.example", "algorithms": ["RS256"]},
            "spire": {"trust_domain": "example.org", "keys": issuer.jwk_list(), "rules": rules},
            "far": {**fetched, "issuer": "https://far.example", "jwks_ca_file": "none.crt"},
        }
        report = doctor.report(stopped, KKP_ISSUERS=json.dumps(tables))
        assert len(place.requests) == 2
    shown = next(each["value"] for each in report["settings"] if each["name"] == "KKP_ISSUERS")
    assert shown == (
        "k8s=https://k8s.example,github=https://github.example,spire=spiffe://example.org,"
        "far=https://far.example"
    )
    found = [(each["status"], each["detail"]) for each in report["checks"] if each["check"] == "issuers"]
    assert found == [
        ("ok", "k8s (https://k8s.example): 1 keys can be used; 1 rules"),
        ("FAIL", "github (https://github.example): none of its 2 keys is for its algorithms"),
        ("ok", "spire (spiffe://example.org): 2 keys were given; 1 rules"),
        ("FAIL", "[issuers.far] jwks_ca_file: none.crt can't be read as certificates"),
    ]
    assert all(each["cure"] for each in report["checks"] if each["status"] == "FAIL")
    assert "canary" not in json.dumps(report)


def test_issuers_that_can_not_be_read_are_set_and_not_shown(stopped: Path, doctor: Doctor) -> None:
    report = doctor.report(stopped, KKP_ISSUERS='{"canary"')
    assert next(each["value"] for each in report["settings"] if each["name"] == "KKP_ISSUERS") == "set"
    assert "canary" not in json.dumps(report)


@pytest.mark.parametrize(
    ("adaptor", "problem"),
    [
        ("AbsentKMS", "does not answer: The backend could not be reached."),
        ("SilentKMS", "does not answer in time"),
    ],
)
def test_a_backend_that_is_away_is_found_and_its_uri_not_shown(
    stopped: Path, doctor: Doctor, monkeypatch: pytest.MonkeyPatch, adaptor: str, problem: str
) -> None:
    monkeypatch.setattr(kms, "SCHEMES", {**kms.SCHEMES, "far": f"tests.fakes.absent_kms:{adaptor}"})
    if adaptor == "SilentKMS":  # of the other there is to be an answer, however often it is asked again
        monkeypatch.setattr("kkp.cli.probes._PROBE_SECONDS", 0.1)
    report = doctor.report(stopped, KKP_BACKENDS="cloud=far://canary,local=local://")
    cloud, local = (check for check in report["checks"] if check["check"] == "backends")
    assert (cloud["status"], local["status"]) == ("FAIL", "ok")
    assert cloud["detail"] == f"cloud (far) {problem}"
    assert cloud["cure"]


def test_a_granted_key_is_tried_and_one_that_is_named(stopped: Path, doctor: Doctor) -> None:
    report = doctor.report(stopped, probes=("gcp:missing-key", "azure:orders"))
    found = [(check["status"], check["detail"]) for check in report["checks"] if check["check"] == "backends"]
    assert found == [
        ("ok", "aws (memory) wraps and unwraps under alias/orders"),
        ("FAIL", found[1][1]),
        ("ok", "azure (memory) wraps and unwraps under orders"),
        ("ok", "local (local) answers"),
    ]
    assert found[1][1].startswith("gcp (memory) does not wrap and unwrap under missing-key: ")


def test_a_probe_without_a_key_is_wrong_usage(stopped: Path, doctor: Doctor) -> None:
    for text in ("aws", "aws:", ""):
        with pytest.raises(ConfigError, match="give BACKEND:KEY"):
            doctor.report(stopped, probes=(text,))


def test_grants_that_can_not_be_believed_are_not_tried(stopped: Path, doctor: Doctor) -> None:
    by_hand("UPDATE identities SET document = replace(document, 'orders', 'planted') WHERE id = 'orders'")(
        stopped
    )
    details = [check["detail"] for check in doctor.report(stopped)["checks"]]
    assert not any("planted" in detail for detail in details)


@pytest.mark.parametrize(
    ("members", "status"),
    [
        ("key.orders=one:alias/a&key.orders=local:default", "ok"),
        ("key.orders=one:alias/a&key.orders=far:a", "FAIL"),
    ],
)
def test_a_composite_answers_as_its_members_do(
    stopped: Path, doctor: Doctor, monkeypatch: pytest.MonkeyPatch, members: str, status: str
) -> None:
    monkeypatch.setattr(kms, "SCHEMES", {**kms.SCHEMES, "far": "tests.fakes.absent_kms:AbsentKMS"})
    backends = f"multi=any-of://?{members},one=memory://aws,local=local://,far=far://x"
    report = doctor.report(stopped, KKP_BACKENDS=backends)
    told = {check["detail"].split()[0]: check for check in report["checks"] if check["check"] == "backends"}
    assert (told["one"]["status"], told["far"]["status"], told["multi"]["status"]) == ("ok", "FAIL", status)
    assert told["multi"]["detail"].startswith("multi (any-of) ")


def test_a_composite_of_a_backend_that_can_not_be_made_does_not_answer(
    stopped: Path, doctor: Doctor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kms, "SCHEMES", {**kms.SCHEMES, "far": "tests.fakes.absent_kms:UnmadeKMS"})
    report = doctor.report(stopped, KKP_BACKENDS="multi=any-of://?key.a=far:a,far=far://x")
    details = [check["detail"] for check in report["checks"] if check["check"] == "backends"]
    nobody = "There is nobody to ask for credentials."
    assert details == [
        f"multi (any-of) does not answer: its member far can't be used: {nobody}",
        f"far (far): {nobody}",
    ]


def test_what_may_not_be_entered_is_named(unprivileged: Path, doctor: Doctor) -> None:
    (unprivileged / ".kkp").mkdir(mode=0)
    report = doctor.report(unprivileged)
    (failed,) = (check for check in report["checks"] if check["check"] == "files")
    assert failed["status"] == "FAIL"
    assert failed["detail"] == ".kkp: Permission denied"


CERTIFICATES: dict[str, tuple[timedelta, str]] = {
    "expired": (timedelta(minutes=-1), "FAIL"),
    "about to expire": (timedelta(days=14, minutes=-1), "warn"),
    "good for longer than 14 days": (timedelta(days=14, minutes=1), "ok"),
}


@pytest.mark.parametrize(("lasts", "status"), CERTIFICATES.values(), ids=CERTIFICATES.keys())
def test_a_certificate_is_judged_that_is(
    stopped: Path, doctor: Doctor, lasts: timedelta, status: str
) -> None:
    new_pair(lasts=lasts).write(stopped)
    report = doctor.report(
        stopped,
        KKP_OPA_URL="unix:///nowhere/opa.sock",
        KKP_BACKENDS="local=local://",
        KKP_CHECKPOINT_SINK="command:/bin/true",
        KKP_TLS_CERT_FILE="tls.crt",
        KKP_TLS_KEY_FILE="tls.key",
    )
    (found,) = (check for check in report["checks"] if check["check"] == "tls")
    assert found["status"] == status
    assert ("put a new one into tls.crt" in found["cure"]) is (status != "ok")


AUTHORITIES: dict[str, tuple[timedelta, str]] = {
    "expired": (timedelta(minutes=-1), "FAIL"),
    "about to expire": (timedelta(days=14, minutes=-1), "warn"),
    "good for longer than 14 days": (timedelta(days=14, minutes=1), "ok"),
}


@pytest.mark.parametrize(("left", "status"), AUTHORITIES.values(), ids=AUTHORITIES.keys())
def test_authorities_of_client_certificates_are_judged_that_are(
    stopped: Path, doctor: Doctor, left: timedelta, status: str
) -> None:
    new_pair().write(stopped)
    ago = timedelta(days=90)
    (stopped / "ca.pem").write_bytes(Authority.new(ago=ago, lives=ago + left).pem)
    rule = {"match": {"spiffe_id": "spiffe://example.org/*"}, "roles": ["service"]}
    report = doctor.report(
        stopped,
        KKP_OPA_URL="unix:///nowhere/opa.sock",
        KKP_BACKENDS="local=local://",
        KKP_CHECKPOINT_SINK="command:/bin/true",
        KKP_TLS_CERT_FILE="tls.crt",
        KKP_TLS_KEY_FILE="tls.key",
        KKP_CLIENT_CA_FILE="ca.pem",
        KKP_CERTIFICATES=json.dumps({"mesh": {"trust_domain": "example.org", "rules": {"all": rule}}}),
    )
    how, bundle = (check for check in report["checks"] if check["check"] == "client certificates")
    assert how["detail"] == "they are optional, in TLS; 1 rules make callers of them"
    assert bundle["status"] == status
    assert ("put new ones into ca.pem" in bundle["cure"]) is (status != "ok")
    shown = {setting["name"]: setting["value"] for setting in report["settings"]}
    assert (shown["KKP_CERTIFICATES"], shown["KKP_CLIENT_CA_FILE"]) == ("mesh=example.org", "ca.pem")


def test_the_table_says_what_to_do(stopped: Path, doctor: Doctor) -> None:
    open_master_key(stopped)
    lines = doctor.table(stopped).splitlines()
    (failed,) = (number for number, line in enumerate(lines) if line.startswith("  FAIL  files "))
    assert lines[failed + 1] == "        cure: run: chmod 600 .kkp/master.key"


@pytest.fixture
def with_keys_that_end(tmp_path: Path) -> Path:
    """A directory whose identities `soon` and `later` have keys that end within 7 days, and after."""

    async def serve() -> None:
        async with serving(tmp_path) as server:
            for name, days in (("soon", 6), ("later", 8)):
                document = {"id": name, "roles": ["service"], "key_ttl_seconds": days * 86400}
                assert (await server.post("/identities", document, credential=server.root_key)).status == 201
            assert await server.stop() == 0

    asyncio.run(serve())
    return tmp_path


def test_keys_that_end_soon_are_a_warning(with_keys_that_end: Path, doctor: Doctor) -> None:
    report = doctor.report(with_keys_that_end)
    (warned,) = (check for check in report["checks"] if check["status"] == "warn")
    assert warned["detail"].endswith("service keys of soon")
    assert report["status"] == "warn"


def test_a_log_without_its_index_is_left_as_it_is(stopped: Path, doctor: Doctor) -> None:
    (stopped / ".kkp/kkp.db-wal").touch(0o600)
    report = doctor.report(stopped)
    assert statuses(report)["database"] == "warn"
