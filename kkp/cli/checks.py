"""What `kkp doctor` looks at. Nothing here writes to the database, or makes a file.

A check is an async function of what is examined and a line in `CHECKS`. It returns what it found; a KKPError
that it raises is a failure, whose cure is the one in the table unless the error brings its own.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple, final

from kkp import app, data_dir
from kkp.audit.checkpoint_files import CheckpointFile
from kkp.audit.sinks import is_gone
from kkp.audit.verify import UnreadableError
from kkp.audit.verify_log import verify_log
from kkp.authn.accounts import AccountDirectory
from kkp.authn.identities import IdentityDirectory
from kkp.authn.revocations import Revocations
from kkp.authz.approvals import Approvals
from kkp.authz.embedded import EmbeddedPolicy, default_policy_path
from kkp.authz.opa import OPAPolicy
from kkp.certificates import GENERAL
from kkp.cli.findings import Finding, Result, Status, problem
from kkp.cli.probes import Means, probe_all, probe_key
from kkp.cli.stored_log import read_log
from kkp.clock import SteadyClock
from kkp.config import Settings
from kkp.errors import ConfigError, KKPError
from kkp.issuers import Issuer
from kkp.jwk import of_members, read_set
from kkp.keyring.rotation import Keyring
from kkp.kms.base import Resources
from kkp.kms.stateless import without_state
from kkp.master_key import MasterKey
from kkp.model import Grant, Identity
from kkp.store.accounts import AccountStore
from kkp.store.approvals import ApprovalStore
from kkp.store.base import Database
from kkp.store.identities import IdentityStore
from kkp.store.local_keys import LocalKeyStore
from kkp.store.opening import open_read_only
from kkp.store.revocations import RevocationStore
from kkp.store.ring import RingStore
from kkp.store.sqlite import SQLiteDatabase
from kkp.unlock import unlock
from kkp.web.authorities import expiry_of, load_authorities
from kkp.web.tls import read_certificate

_NO_PROBES: Mapping[str, Sequence[str]] = MappingProxyType({})
_WRAP_BY_A_PUBLIC_KEY = frozenset({"azure-keyvault"})
_UNNAMED = Result(
    Status.WARN,
    "anybody can wrap for this key, so whoever writes the database can put a master key of their own there",
    "set KKP_MASTER_KEY_CHECK to what `kkp master status` says",
)
_EXPIRES_SOON_SECONDS = 7 * 86400
_BEHIND = (
    "if a backup was restored: docs/runbooks/replicas.md; "
    "if not, run: kkp audit verify; treat it as an intrusion"
)
_RESTORE = "restore a backup taken before that; the audit log names what was done since"
_ASK_ANEW = "stop every KKP and empty the table `approvals`; what waited is asked for anew"


@final
@dataclass(slots=True)
class Examined:
    """What is examined; the database is there for the checks after the one that opens it."""

    settings: Settings
    stack: AsyncExitStack
    probes: Mapping[str, Sequence[str]]
    master_key: MasterKey | None = None
    database: Database | None = None


class Check(NamedTuple):
    """A line of the table.

    Attributes:
        name: What it is about.
        run: Looks.
        cure: What to do where an error does not say so itself.
        needs_database: Whether it is passed over where the database could not be opened.
    """

    name: str
    run: Callable[[Examined], Awaitable[Result | list[Result]]]
    cure: str
    needs_database: bool = False


async def examine(settings: Settings, probes: Mapping[str, Sequence[str]] = _NO_PROBES) -> list[Finding]:
    """Run every check.

    Args:
        settings: What is examined.
        probes: By backend, keys to try besides those of the grants.
    """
    findings: list[Finding] = []
    async with AsyncExitStack() as stack:
        examined = Examined(settings, stack, probes)
        for check in CHECKS:
            findings += [Finding(check.name, *result) for result in await _run(check, examined)]
    return findings


async def _run(check: Check, examined: Examined) -> list[Result]:
    if check.needs_database and examined.database is None:
        return [Result(Status.WARN, "not looked at, because the database could not be opened")]
    try:
        found = await check.run(examined)
    except ConfigError as error:
        return [problem(text, check.cure) for text in error.problems]
    except KKPError as error:
        return [Result(Status.FAIL, str(error), check.cure)]
    except OSError as error:
        return [Result(Status.FAIL, f"{error.filename}: {error.strerror}", check.cure)]
    return found if isinstance(found, list) else [found]


async def _files(examined: Examined) -> list[Result]:
    settings = examined.settings
    directory = settings.data_dir
    if not directory.is_dir():
        return [Result(Status.WARN, f"{directory} does not exist yet", "start KKP once: it makes it")]
    exposed = [(path, 0o600) for path in sorted(_files_of(settings)) if data_dir.is_exposed(path.stat())]
    if data_dir.is_open_to_others(directory.stat().st_mode):
        exposed.insert(0, (directory, 0o700))
    found = [
        Result(Status.FAIL, f"others can get at {path}", f"run: chmod {mode:o} {path}")
        for path, mode in exposed
    ]
    return found or [Result(Status.OK, f"{directory} and what is in it are their owner's alone")]


def _files_of(settings: Settings) -> set[Path]:
    inside = {path for path in settings.data_dir.iterdir() if path.is_file()}
    elsewhere = {settings.master_key_file}
    if settings.postgres is None:
        elsewhere.add(settings.database_path)
    return inside | {path for path in elsewhere if path.is_file()}


async def _master_key(examined: Examined) -> Result | list[Result]:
    settings = examined.settings
    if settings.master_key is not None:
        examined.master_key = MasterKey(settings.master_key)
        return Result(Status.OK, "given by KKP_MASTER_KEY")
    if settings.master_key_kms is not None:
        is_anybody_s = settings.master_key_kms.scheme in _WRAP_BY_A_PUBLIC_KEY
        unnamed = [_UNNAMED] if is_anybody_s and not settings.master_key_checks else []
        return [*await probe_key(settings.master_key_kms, settings.backend_limits), *unnamed]
    path = settings.master_key_file
    is_file = settings.postgres is None
    if not path.exists() and is_file and not settings.database_path.exists():
        return Result(Status.WARN, f"{path} does not exist yet", "start KKP once: it makes it")
    examined.master_key = MasterKey(data_dir.master_key(path, may_create=False))
    return Result(Status.OK, f"read from {path}")


async def _database(examined: Examined) -> Result:
    master_key = examined.master_key
    if examined.settings.postgres is None and not examined.settings.database_path.exists():
        path = examined.settings.database_path
        return Result(Status.WARN, f"{path} does not exist yet", "start KKP once: it makes it")
    if master_key is None and examined.settings.master_key_kms is None:
        return Result(Status.WARN, "not looked at, because there is no master key")
    if examined.settings.postgres is not None:
        check = (await _unlocked(examined)).check_value()
        examined.database = await open_read_only(examined.settings, master_key_check=check)
        examined.stack.push_async_callback(examined.database.close)
        return Result(Status.OK, "PostgreSQL answers, keeps what it is given, and is of this master key")
    return await _database_file(examined, examined.settings.database_path)


async def _unlocked(examined: Examined) -> MasterKey:
    unlocked = await unlock(examined.settings, create=False, now=time.time())
    examined.master_key = unlocked.master_key
    return unlocked.master_key


async def _database_file(examined: Examined, path: Path) -> Result:
    if _exists_beside(path, "-wal") and not _exists_beside(path, "-shm"):
        # To read such a database is to make its index, and to make a file is not the doctor's.
        return Result(
            Status.WARN, f"{path} was left in the middle of its work", "start KKP once: it mends it"
        )
    master_key = await _unlocked(examined)
    database = await SQLiteDatabase.open_read_only(path, master_key_check=master_key.check_value())
    examined.stack.push_async_callback(database.close)
    faults = await database.quick_check()
    if faults:
        return Result(Status.FAIL, f"{path} is damaged: {faults[0][:200]}", _RESTORE)
    examined.database = database
    return Result(Status.OK, f"{path} is whole and of this master key")


def _exists_beside(path: Path, suffix: str) -> bool:
    real = path.resolve()
    return real.with_name(real.name + suffix).exists()


async def _clock(examined: Examined) -> Result:
    snapshot = await RingStore(_database_of(examined)).load_ring()
    clock = await app.clock_of(examined.settings, _database_of(examined))
    behind, drift = snapshot.clock_high_water - clock.now(), clock.drift_seconds()
    cure = "set the clock, and keep it with NTP"
    if drift > examined.settings.ring_times.clock_error:
        detail = f"this machine's clock and the database's are {drift:.0f} s apart"
        return Result(Status.FAIL, detail, f"{cure}, on both machines")
    if behind > examined.settings.ring_times.clock_error:
        return Result(Status.FAIL, f"the clock is {behind:.0f} s behind the time in the database", cure)
    return Result(Status.OK, "not behind the time in the database")


async def _signing_keys(examined: Examined) -> Result:
    store, times = RingStore(_database_of(examined)), examined.settings.ring_times
    keyring = Keyring(store, _master_key_of(examined), times, SteadyClock())
    await keyring.load()
    return Result(Status.OK, f"{len(keyring.view.ring.keys)} rows, all of them genuine")


async def _identities(examined: Examined) -> list[Result]:
    store, clock = IdentityStore(_database_of(examined)), SteadyClock()
    directory = IdentityDirectory(store, _master_key_of(examined), clock)
    await directory.load()
    identities = directory.all()
    ending = [identity.id for identity in identities if _ends_soon(identity, clock.now())]
    results = [Result(Status.OK, f"{len(identities)} rows, all of them genuine")]
    if ending:
        detail = f"expired, or within 7 days to be, are the service keys of {', '.join(ending)}"
        cure = "run: kkp identity rotate-key NAME, with --overlap TIME if its key still works"
        results.append(Result(Status.WARN, detail, cure))
    return results


async def _root_key(examined: Examined) -> Result:
    path = examined.settings.data_dir / "root.key"
    if not path.exists():
        return Result(Status.OK, f"{path} is not kept here")
    directory = IdentityDirectory(
        IdentityStore(_database_of(examined)), _master_key_of(examined), SteadyClock()
    )
    await directory.load()
    if app.opens_root(directory, data_dir.read_secret(path, "root.key")):
        return Result(Status.OK, f"{path} is a working key of {app.ROOT}")
    cure = f"put the present key into it; if that is lost: kkp identity rotate-key {app.ROOT}"
    return Result(Status.WARN, f"{path} is no working key of {app.ROOT}", cure)


def _ends_soon(identity: Identity, now: float) -> bool:
    expires_at = identity.service_keys[0].expires_at
    return (
        identity.disabled_at is None and expires_at is not None and expires_at < now + _EXPIRES_SOON_SECONDS
    )


async def _revocations(examined: Examined) -> Result:
    store = RevocationStore(_database_of(examined))
    times = examined.settings.ring_times
    await Revocations(store, _master_key_of(examined), SteadyClock(), times).load()
    return Result(Status.OK, "all rows are genuine")


async def _accounts(examined: Examined) -> Result:
    await AccountDirectory(AccountStore(_database_of(examined)), _master_key_of(examined)).load()
    return Result(Status.OK, "all rows are genuine")


async def _approvals(examined: Examined) -> Result:
    settings, clock, master_key = examined.settings, SteadyClock(), _master_key_of(examined)
    approvals = Approvals(
        ApprovalStore(_database_of(examined)),
        master_key,
        Keyring(RingStore(_database_of(examined)), master_key, settings.ring_times, clock),
        clock,
        issuer=settings.issuer,
        clock_error_seconds=settings.ring_times.clock_error,
        expired=_leave_expired,
    )
    await approvals.load()
    return Result(Status.OK, "all rows are genuine")


async def _leave_expired(_approval_id: str, _state: str) -> None:
    """Record nothing: what is over is swept by who serves."""


async def _audit(examined: Examined) -> Result:
    sink = examined.settings.checkpoint_sink
    try:
        has_file = sink.kind == "file" and sink.path.exists()
        checkpoints = [CheckpointFile(sink.path)] if has_file else []
        verdict = await asyncio.to_thread(
            read_log, examined.settings, lambda opened: verify_log(opened.log, checkpoints)
        )
    except UnreadableError as error:
        return Result(Status.FAIL, str(error), _RESTORE)
    if verdict.findings:
        detail = f"{len(verdict.findings)} findings, the first: {verdict.findings[0]}"
        return Result(Status.FAIL, detail, "run: kkp audit verify; treat it as an intrusion")
    if is_gone(sink):
        detail = f"the checkpoint sink {sink.path} does not exist; it was deleted, or KKP never wrote to it"
        return Result(
            Status.FAIL, detail, "put it back; if nobody of yours deleted it, treat it as an intrusion"
        )
    if verdict.disagreements:
        detail = f"it disagrees with a checkpoint: {verdict.disagreements[0]}"
        return Result(Status.FAIL, detail, _BEHIND)
    known = f"{verdict.evidence.count} checkpoints"
    return Result(Status.OK, f"{verdict.records} records in {verdict.chains} chains, unbroken; {known}")


async def _tls(examined: Examined) -> Result:
    path, now = examined.settings.tls_cert_file, time.time()
    if path is None:
        return Result(Status.OK, "KKP has no certificate of its own")
    certificate = read_certificate(path)
    expiry = certificate.expiry(now)
    if expiry is None:
        return Result(Status.OK, f"{path} is {certificate}")
    status = Status.FAIL if certificate.has_expired(now) else Status.WARN
    return Result(
        status, expiry.rstrip("."), f"put a new one into {path}; a running server takes it by itself"
    )


async def _client_certificates(examined: Examined) -> list[Result]:
    settings = examined.settings
    if not settings.client_ca_files:
        return [Result(Status.OK, "none are asked for")]
    how = "required" if settings.requires_client_certificate else "optional"
    where = [
        *(["in TLS"] if settings.tls_cert_file is not None else []),
        *(["forwarded by trusted proxies"] if settings.takes_forwarded_certificates else []),
    ]
    rules = sum(len(table.rules) for table in settings.certificates.values())
    told = f"they are {how}, {' and '.join(where)}; {rules} rules make callers of them"
    bundles = [_bundle(name, file) for name, file in settings.client_ca_files.items()]
    return [Result(Status.OK, told), *bundles]


def _bundle(name: str, file: Path) -> Result:
    authorities, now = load_authorities({name: file}), time.time()
    ends, expiry = [end for _, end in authorities.times()], expiry_of(authorities, now)
    if expiry is None:
        whom = f"[certificates.{name}]" if name != GENERAL else "every table without its own"
        return Result(Status.OK, f"{file}: {len(ends)} authorities, for {whom}")
    status = Status.FAIL if now > max(ends) else Status.WARN
    cure = f"put new ones into {file}; a running server takes them by itself"
    return Result(status, f"{file}: {expiry.rstrip('.')}", cure)


async def _policy(examined: Examined) -> Result:
    if examined.settings.opa_url is not None:
        return await _opa(examined.settings, examined.settings.opa_url)
    path = examined.settings.policy_path
    policy = EmbeddedPolicy.load(path or default_policy_path(), {})
    await policy.ping()
    await policy.close()
    return Result(Status.OK, f"{path or 'the bundled policy'} loads, and answers an empty question")


async def _opa(settings: Settings, url: str) -> Result:
    policy = await OPAPolicy.connect(
        url,
        timeout_seconds=settings.opa_timeout_seconds,
        ca_file=settings.opa_ca_file,
        rule=settings.policy_rule,
    )
    try:
        await policy.ping()
    finally:
        await policy.close()
    return Result(Status.OK, "OPA answers an empty question")


async def _issuers(examined: Examined) -> list[Result]:
    found = examined.settings.issuers
    if not found:
        return [Result(Status.OK, "there is none")]
    from kkp.authn.jwks_client import JWKSClient, tls_context  # noqa: PLC0415  HTTP is slow to import

    client = JWKSClient()

    async def fetch(name: str, issuer: Issuer) -> bytes:
        return await client.fetch(issuer, tls_context(name, issuer.ca_file))

    try:
        return [*await asyncio.gather(*(_issuer(name, issuer, fetch) for name, issuer in found.items()))]
    finally:
        await client.close()


async def _issuer(name: str, issuer: Issuer, fetch: Callable[[str, Issuer], Awaitable[bytes]]) -> Result:
    """Tell which keys an issuer has; those that are fetched, by fetching them once."""
    title, rules = f"{name} ({issuer.who})", f"{len(issuer.rules)} rules"
    if not issuer.jwks_url:
        return Result(Status.OK, f"{title}: {len(of_members(issuer.keys))} keys were given; {rules}")
    try:
        keys = read_set(await fetch(name, issuer))
    except ConfigError as error:
        return Result(*problem(error.problems[0]))
    except (KKPError, ValueError) as error:
        cure = "see whether its jwks_url is right, and can be reached from here"
        return Result(Status.FAIL, f"{title}: its keys can't be fetched: {error}", cure)
    used = sum(not key.algorithms.isdisjoint(issuer.algorithms) for key in keys.values())
    if not used:
        cure = "see which algorithms it signs with, and name them in its algorithms"
        return Result(Status.FAIL, f"{title}: none of its {len(keys)} keys is for its algorithms", cure)
    return Result(Status.OK, f"{title}: {used} keys can be used; {rules}")


async def _backends(examined: Examined) -> list[Result]:
    granted = await _grants(examined)
    resources, limits = None, examined.settings.backend_limits
    if examined.database is not None:
        resources = Resources(_master_key_of(examined), LocalKeyStore(examined.database), limits)
    elif examined.master_key is not None:
        resources = without_state(limits, examined.master_key)
    has_database = examined.database is not None
    found = Means(examined.settings.backends, resources, has_database=has_database, limits=limits)
    return await probe_all(found, examined.probes, granted)


async def _grants(examined: Examined) -> list[Grant]:
    """Return what identities may use; nothing where they can't be believed, which their own check tells."""
    if examined.database is None:
        return []
    directory = IdentityDirectory(IdentityStore(examined.database), _master_key_of(examined), SteadyClock())
    with suppress(KKPError):
        await directory.load()
    return [grant for found in directory.all() if found.disabled_at is None for grant in found.grants]


def _database_of(examined: Examined) -> Database:
    assert examined.database is not None  # noqa: S101  `_run` passes over the check otherwise
    return examined.database


def _master_key_of(examined: Examined) -> MasterKey:
    assert examined.master_key is not None  # noqa: S101  without it the database is not opened
    return examined.master_key


CHECKS: tuple[Check, ...] = (
    Check("files", _files, "see who owns the directory"),
    Check("master key", _master_key, "put the key back where it was"),
    Check("database", _database, "give the right KKP_DATABASE_URL and master key"),
    Check("clock", _clock, _RESTORE, needs_database=True),
    Check("signing keys", _signing_keys, "delete the rows that KKP did not write", needs_database=True),
    Check("identities", _identities, _RESTORE, needs_database=True),
    Check("root key", _root_key, "give the file back its mode 0600 and its content", needs_database=True),
    Check("revocations", _revocations, _RESTORE, needs_database=True),
    Check("accounts", _accounts, _RESTORE, needs_database=True),
    Check("approvals", _approvals, _ASK_ANEW, needs_database=True),
    Check("audit", _audit, _RESTORE, needs_database=True),
    Check("tls", _tls, "give KKP_TLS_CERT_FILE and KKP_TLS_KEY_FILE of one pair"),
    Check("client certificates", _client_certificates, "mend KKP_CLIENT_CA_FILE, or KKP_CERTIFICATES"),
    Check("policy", _policy, "mend the policy, or see whether OPA is up and has its bundle"),
    Check("issuers", _issuers, "mend KKP_ISSUERS, or [issuers.NAME] in kkp.toml"),
    Check("backends", _backends, "mend KKP_BACKENDS"),
)
