"""The composition root: builds every service, hands each what it needs, and owns every lifetime.

One AsyncExitStack holds everything that has to be closed, so a start that fails half-way closes what it had
opened.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Coroutine, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from functools import partial
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, final

from kkp import data_dir, kms
from kkp.audit import sealing
from kkp.audit.base import ApprovalExpired, RollbackAccepted
from kkp.audit.checkpointer import Checkpointer
from kkp.audit.checkpoints import CheckpointSigner
from kkp.audit.failures import FailedAuthentications, RateLimitedRequests
from kkp.audit.log import AuditLog
from kkp.audit.reserve import SpaceReserve
from kkp.audit.sinks import CheckpointSink, open_sink
from kkp.authn import accounts, identities, revocations
from kkp.authn.accounts import AccountDirectory
from kkp.authn.anonymous import ANONYMOUS, Anonymous
from kkp.authn.assertions import Assertions, Trusted
from kkp.authn.authenticator import Authenticator
from kkp.authn.base import Method
from kkp.authn.dpop import Nonces, Proofs
from kkp.authn.everybody import Everybody
from kkp.authn.federation import Federation
from kkp.authn.identities import IdentityDirectory, is_service_key, new_service_key
from kkp.authn.jwks import FetchedKeys, GivenKeys
from kkp.authn.kkp_tokens import TokenVerifier
from kkp.authn.mtls import CertificateCallers
from kkp.authn.operator import LocalOperator
from kkp.authn.passwords import Passwords
from kkp.authn.revocations import Revocations
from kkp.authn.service_keys import ServiceKeys
from kkp.authn.sessions import Sessions
from kkp.authz import approvals
from kkp.authz.approvals import Approvals
from kkp.authz.base import ExplainingEngine
from kkp.authz.embedded import default_policy_path
from kkp.authz.grouping import GroupingPolicy
from kkp.authz.opa import OPAPolicy
from kkp.authz.opa_address import check_opa
from kkp.authz.operator import OperatorPolicy
from kkp.authz.reloading import ReloadingPolicy
from kkp.clock import Clock, DatabaseClock, SteadyClock, steady_seconds
from kkp.config import Check, KMSKey, Settings
from kkp.errors import ConfigError, KeyringUnavailableError, PolicyLoadError
from kkp.issuers import Issuer
from kkp.jwk import of_members
from kkp.keyring import rotation
from kkp.keyring.revocation_list import RevocationList
from kkp.keyring.rotation import Keyring
from kkp.kms import KMSRegistry, local
from kkp.kms.base import Resources
from kkp.kms.caching import DataKeyCache
from kkp.kms.local import ensure_default_key
from kkp.limits import ConnectionLimit, GuessLimits, RateLimits
from kkp.live_state import LiveState, Loads
from kkp.mappings import Source
from kkp.master_key import MasterKey
from kkp.model import Credentials
from kkp.operations.accounts import ChangePassword, LogIn, LogOut, SignUp
from kkp.operations.approvals import DecideApproval, ListApprovals
from kkp.operations.audit import ReadAudit
from kkp.operations.data_keys import GenerateDataKey, ReleaseDataKey
from kkp.operations.envelopes import Decrypt, Encrypt, Rewrap
from kkp.operations.explaining import ExplainPolicy
from kkp.operations.identities import (
    AddIdentity,
    DisableIdentity,
    IdentityRequest,
    KnownNames,
    ListIdentities,
    RotateServiceKey,
)
from kkp.operations.revocations import LiftRevocation, ListRevocations, Revoke
from kkp.operations.signing_keys import RevokeSigningKey, RotateSigningKey
from kkp.operations.token_life import IntrospectToken, RevokeToken
from kkp.operations.tokens import IssueToken
from kkp.pacing import Pace
from kkp.pipeline import Authenticates, Origin, Pipeline
from kkp.renewal import KEPT_SECRETS, Renewable
from kkp.store.accounts import AccountStore
from kkp.store.approvals import ApprovalStore, forget_approvals
from kkp.store.audit import AuditStore
from kkp.store.base import Database, TellsOfChanges, raise_epoch
from kkp.store.checkpoints import CheckpointStore
from kkp.store.database_time import read_time
from kkp.store.identities import IdentityStore
from kkp.store.local_keys import LocalKeyStore
from kkp.store.master_keys import MasterKeyStore, insert_first_rows
from kkp.store.opening import open_database, peek_older
from kkp.store.replays import ReplayStore
from kkp.store.revocations import RevocationStore
from kkp.store.ring import RingStore
from kkp.unlock import HeldMasterKey, Unlocked, open_given, unlock
from kkp.web.authorities import check_authorities
from kkp.web.tls import check_tls

if TYPE_CHECKING:
    from kkp.metrics import Metrics
    from kkp.web.public import PublicDocuments
    from kkp.web.routes import Services

ROOT = "root"
_log = logging.getLogger(__name__)
_DEV_POLICY_SETTINGS = {"bearer_tokens": "any"}
# Everything that is signed or sealed under the master key, and what a rotation of it renews.
UNDER_THE_MASTER_KEY: tuple[Renewable, ...] = (
    KEPT_SECRETS,
    rotation.ROWS,
    rotation.PRIVATE_KEYS,
    identities.ROWS,
    accounts.ROWS,
    revocations.TOKEN_ROWS,
    revocations.ROWS,
    approvals.ROWS,
    local.ROWS,
    sealing.INPUT_KEYS,
)
_NO_WARNINGS: Mapping[str, Callable[[], str | None]] = MappingProxyType({})


def _backend_problems(uris: Mapping[str, str]) -> list[str]:
    known = {name: uri for name, uri in uris.items() if uri.partition("://")[0] in kms.SCHEMES}
    try:
        kms.check(known, others=uris)
    except ConfigError as error:
        return [f"KKP_BACKENDS: {problem}" for problem in error.problems]
    return []


def _master_key_problems(key: KMSKey | None) -> list[str]:
    problems = () if key is None else kms.problems_of(key.uri)
    return [f"KKP_MASTER_KEY_KMS: {problem}" for problem in problems]


# What the rooms know of a setting, for `config.load`; nothing is connected to.
PRODUCTION_CHECKS = (
    Check(("KKP_OPA_URL", "KKP_OPA_CA_FILE"), check_opa),
    Check(("KKP_BACKENDS",), _backend_problems),
    Check(("KKP_MASTER_KEY_KMS",), _master_key_problems),
    Check(("KKP_TLS_CERT_FILE", "KKP_TLS_KEY_FILE"), check_tls),
    Check(("KKP_CLIENT_CA_FILE", "KKP_CERTIFICATES"), check_authorities),
)


@final
@dataclass(frozen=True, slots=True)
class Foundation:
    """What the server and the command line both stand on.

    Attributes:
        settings: As loaded.
        clock: One for everything.
        master_keys: The root of every subkey, as it is now.
        database: Open, laid out, and of this master key.
        directory: The identities, loaded.
        audit: This boot's chain, open.
        checkpoints: Of the whole log; the database is not behind the newest.
        reserve: What must be free for anything new to be done.
        pace: How fast requests get through, for whoever holds them up.
    """

    settings: Settings
    clock: Clock
    master_keys: HeldMasterKey
    database: Database
    directory: IdentityDirectory
    audit: AuditLog
    checkpoints: Checkpointer
    reserve: SpaceReserve
    pace: Pace

    @property
    def master_key(self) -> MasterKey:
        """The root of every subkey."""
        return self.master_keys.master_key

    def keyring(self) -> Keyring:
        """Return the signing keyring, not read yet."""
        return Keyring(
            RingStore(self.database, self.master_keys), self.master_key, self.settings.ring_times, self.clock
        )

    def revocations(self) -> Revocations:
        """Return what is revoked, not read yet."""
        members = {name: _member_keys(uri) for name, uri in self.settings.backends.items()}
        store, times = RevocationStore(self.database, self.master_keys), self.settings.ring_times
        return Revocations(store, self.master_key, self.clock, times, members, self._canonical, self.pace)

    def approvals(self, keyring: Keyring) -> Approvals:
        """Return what waits for approval, not read yet."""

        async def expired(approval_id: str, state: str) -> None:
            await self.audit.commit_approval_expired(ApprovalExpired(approval_id, state))

        return Approvals(
            ApprovalStore(self.database, self.master_keys),
            self.master_key,
            keyring,
            self.clock,
            issuer=self.settings.issuer,
            clock_error_seconds=self.settings.ring_times.clock_error,
            expired=expired,
        )

    def _canonical(self, backend: str, key_id: str) -> str:
        # A backend that was taken out of the configuration may be revoked still.
        return kms.canonical(self.settings.backends.get(backend, ""), key_id)

    def accounts(self) -> AccountDirectory:
        """Return the people, not read yet."""
        return AccountDirectory(AccountStore(self.database, self.master_keys), self.master_key)

    def sessions(self, keyring: Keyring, revoked: Revocations, people: AccountDirectory) -> Sessions:
        """Return what tells good sessions from others."""
        return Sessions(
            keyring,
            people,
            revoked,
            self.clock,
            issuer=self.settings.issuer,
            clock_error_seconds=self.settings.ring_times.clock_error,
        )

    def federation(self) -> Federation:
        """Return the callers that no identity stands for."""
        issuers, certificates = self.settings.issuers.items(), self.settings.certificates.items()
        of_tokens = [Source(name, "jwt", issuer.rules) for name, issuer in issuers]
        return Federation([*of_tokens, *(Source(name, "mtls", table.rules) for name, table in certificates)])

    def authenticator(
        self,
        keyring: Keyring,
        revoked: Revocations,
        people: AccountDirectory,
        further: Sequence[Method] = (),
    ) -> Authenticator:
        """Return what tells callers, and good tokens, from others.

        Args:
            keyring: Of our own tokens.
            revoked: What is revoked.
            people: Those who may have a session.
            further: The ways to prove who is calling besides service keys and sessions.
        """
        verifier = TokenVerifier(
            keyring,
            revoked,
            self.clock,
            issuer=self.settings.issuer,
            clock_error_seconds=self.settings.ring_times.clock_error,
        )
        federation = self.federation()
        methods: list[Method] = [
            ServiceKeys(self.directory),
            self.sessions(keyring, revoked, people),
            *further,
        ]
        if self.settings.client_ca_files:
            methods.append(CertificateCallers(self.settings.certificates, federation))  # last, as it says
        return Authenticator(self.directory, verifier, revoked, federation, self._proofs(), methods, people)

    def nonces(self) -> Nonces | None:
        """Return the nonces that DPoP proofs must have; None where they need none."""
        return Nonces(self.master_key, self.clock) if self.settings.dpop_nonce else None

    def _proofs(self) -> Proofs:
        return Proofs(
            self.clock,
            issuer=self.settings.issuer,
            clock_error_seconds=self.settings.ring_times.clock_error,
            nonces=self.nonces(),
        )

    def operator_pipeline(self) -> Pipeline:
        """Return the road as the person at the machine walks it."""
        return Pipeline(
            state=LiveState(self.database.epoch, [self.directory]),
            authenticator=LocalOperator(),
            policy=OperatorPolicy(),
            audit=self.audit,
            failures=FailedAuthentications(self.audit),
            clock=self.clock,
        )


def _member_keys(uri: str) -> Mapping[str, Collection[tuple[str, str]]]:
    """Return the members, former ones too, of each key that a backend makes of others' keys."""
    return {name: (*names.current, *names.former) for name, names in kms.member_keys(uri).items()}


@asynccontextmanager
async def foundation(
    settings: Settings, *, clock: Clock | None = None, create: bool
) -> AsyncIterator[Foundation]:
    """Open the data directory and what is in it.

    Args:
        settings: As loaded.
        clock: The clock to use; by default the database's, where it has one, or a new SteadyClock.
        create: Whether a missing directory, master key and database are made.

    Raises:
        ConfigError: Something can't be opened or does not fit together; every problem has its cure.
        KKPError: The stored state can't be believed.
    """
    _data_dir(settings, create=create)
    sink = open_sink(settings.checkpoint_sink)  # before a key and a database are made
    async with AsyncExitStack() as stack:
        master_key, database = await _unlocked(settings, create=create, now=(clock or SteadyClock()).now())
        stack.push_async_callback(database.close)
        clock = clock or await clock_of(settings, database)
        if isinstance(clock, DatabaseClock):  # from now on: what follows may take longer than P
            await stack.enter_async_context(running(clock.run(settings.ring_times.poll)))
        held = HeldMasterKey(
            master_key,
            MasterKeyStore(database).read,
            partial(open_given, settings),
            settings.master_key_checks,
        )
        directory = IdentityDirectory(IdentityStore(database, held), master_key, clock)
        await directory.load()
        checkpoints = _checkpointer(settings, sink, database, master_key, clock)
        accepted = await checkpoints.check_start(settings.accept_rollback)
        if accepted is not None:  # whoever remembers the epoch that was lost, as verifiers do, is to go on
            await database.write(forget_approvals)  # what was used after the snapshot is there again, unused
            await database.write(partial(raise_epoch, beyond=accepted.epoch))
        audit = AuditLog(AuditStore(database, held), master_key, clock)
        await audit.start()
        stack.push_async_callback(checkpoints.close)  # after the audit, so that it covers the last record
        stack.push_async_callback(audit.close)
        if accepted is not None:
            await audit.commit_rollback_accepted(RollbackAccepted(accepted.hash))
            await checkpoints.write()
        directory_of_file = settings.database_path.parent if settings.postgres is None else None
        reserve = SpaceReserve(directory_of_file, settings.audit_min_free_bytes)
        yield Foundation(settings, clock, held, database, directory, audit, checkpoints, reserve, Pace())


@asynccontextmanager
async def development(settings: Settings, *, clock: Clock | None = None) -> AsyncIterator[Services]:
    """Build and run everything that `kkp dev` serves, but for the listener.

    Raises:
        ConfigError: See `foundation`.
    """
    async with AsyncExitStack() as stack:
        policy = _policy(settings)
        engine = GroupingPolicy(policy)
        stack.push_async_callback(engine.close)
        base = await stack.enter_async_context(foundation(settings, clock=clock, create=True))
        await _ensure_root(base)
        warnings = {"policy": lambda: policy.warning}
        # Another policy may know a role all the same that it does not keep where the bundled one does.
        roles = _no_roles if settings.policy_path is not None else lambda: policy.roles
        services = await stack.enter_async_context(_running_services(base, engine, warnings, roles))
        await stack.enter_async_context(running(policy.run()))
        yield services


@asynccontextmanager
async def production(
    settings: Settings,
    *,
    clock: Clock | None = None,
    warnings: Mapping[str, Callable[[], str | None]] = _NO_WARNINGS,
) -> AsyncIterator[Services]:
    """Build and run everything that `kkp serve` serves, but for the listener.

    No master key, identity or database is made. An OPA that does not answer yet leaves KKP unready, and is no
    reason not to start: the two are started side by side.

    Args:
        settings: As loaded.
        clock: The clock to use; by default the database's, where it has one, or a new SteadyClock.
        warnings: What the listener adds to those of /readyz.

    Raises:
        ConfigError: See `foundation`.
    """
    if settings.opa_url is None:
        raise ConfigError(["KKP_OPA_URL: nobody decides without it; give OPA's address"])
    async with AsyncExitStack() as stack:
        policy = await OPAPolicy.connect(
            settings.opa_url,
            timeout_seconds=settings.opa_timeout_seconds,
            ca_file=settings.opa_ca_file,
            rule=settings.policy_rule,
        )
        stack.push_async_callback(policy.close)
        base = await stack.enter_async_context(foundation(settings, clock=clock, create=False))
        # The policy's roles are known to OPA alone.
        yield await stack.enter_async_context(_running_services(base, policy, warnings, _no_roles))


def _no_roles() -> Collection[str]:
    return ()


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class _Parts:
    """What the services are made of: each is built once, and shared by all who need it.

    Attributes:
        base: What the command line stands on, too.
        policy: Decides.
        registry: The backends.
        data_keys: Those of the backends' that are kept; None where none are.
        keyring: Signs.
        revoked: What is revoked.
        people: Those who have an account.
        everybody: These and the identities.
        waiting: What waits for approval.
        state: Has all that decisions rest on as of the database's epoch.
        passwords: Compares people's.
        failures: Counts failed authentications.
        limited: Counts requests over a limit.
        metrics: None where none are measured.
        authenticator: Tells callers from others.
        names: What a new identity may name.
        warnings: What /readyz adds to its checks.
    """

    base: Foundation
    policy: ExplainingEngine
    registry: KMSRegistry
    data_keys: DataKeyCache | None
    keyring: Keyring
    revoked: Revocations
    people: AccountDirectory
    everybody: Everybody
    waiting: Approvals
    state: LiveState
    passwords: Passwords
    failures: FailedAuthentications
    limited: RateLimitedRequests
    metrics: Metrics | None
    authenticator: Authenticator
    names: KnownNames
    warnings: Mapping[str, Callable[[], str | None]]

    def count_over_limit(self, caller: str) -> None:
        """Count a request over its caller's limit."""
        self.limited.count(caller)
        if self.metrics is not None:
            self.metrics.over_limit("caller")


@asynccontextmanager
async def _running_services(
    base: Foundation,
    policy: ExplainingEngine,
    warnings: Mapping[str, Callable[[], str | None]],
    roles: Callable[[], Collection[str]],
) -> AsyncIterator[Services]:
    async with _parts(base, policy, warnings, roles) as parts:
        services = _services(parts)
        async with running(*_background(parts)):
            yield services


@asynccontextmanager
async def _parts(
    base: Foundation,
    policy: ExplainingEngine,
    warnings: Mapping[str, Callable[[], str | None]],
    roles: Callable[[], Collection[str]],
) -> AsyncIterator[_Parts]:
    """Build and load whatever the services share, and close it afterwards."""
    async with AsyncExitStack() as stack:
        data_keys = _data_key_cache(base)
        registry = await _backends(base, data_keys)
        stack.push_async_callback(registry.close)
        keyring, revoked, people = base.keyring(), base.revocations(), base.accounts()
        waiting = base.approvals(keyring)
        await _start_keyring(keyring)
        for loaded in (revoked, people, waiting):
            await loaded.load()
        following: list[Loads] = [keyring, base.directory, revoked, people, waiting]
        state = LiveState(base.database.epoch, following if data_keys is None else [*following, data_keys])
        await state.refresh()
        failures, limited = FailedAuthentications(base.audit), RateLimitedRequests(base.audit)
        stack.push_async_callback(failures.flush)
        stack.push_async_callback(limited.flush)
        passwords = Passwords(partial(limited.count, ANONYMOUS.id))
        stack.push_async_callback(passwords.aclose)
        assertions, fetched = await stack.enter_async_context(_trusting(base))
        yield _Parts(
            base=base,
            policy=policy,
            registry=registry,
            data_keys=data_keys,
            keyring=keyring,
            revoked=revoked,
            people=people,
            everybody=Everybody(base.directory, people),
            waiting=waiting,
            state=state,
            passwords=passwords,
            failures=failures,
            limited=limited,
            metrics=_metrics(base, keyring, registry, data_keys, waiting),
            authenticator=base.authenticator(keyring, revoked, people, assertions),
            names=KnownNames(backends=base.settings.backends, roles=roles),
            warnings={**warnings, "issuers": partial(_first_warning, fetched)},
        )


def _background(parts: _Parts) -> list[Coroutine[Any, Any, None]]:
    """Return what goes on beside the requests."""
    base = parts.base
    tasks = [
        parts.keyring.run(),
        base.directory.run(base.settings.ring_times.poll),
        parts.failures.run(),
        parts.limited.run(),
        base.checkpoints.run(),
        base.reserve.run(),
        parts.waiting.run(),
        *_following(base, parts.state),
    ]
    return tasks if parts.data_keys is None else [*tasks, parts.data_keys.run()]


@asynccontextmanager
async def _trusting(base: Foundation) -> AsyncIterator[tuple[list[Method], list[FetchedKeys]]]:
    """Yield what tells issuers' tokens, and those of their keys that are fetched, which is done meanwhile."""
    settings, trusted = base.settings, list[Trusted]()
    async with _fetching(settings.issuers) as fetched:
        for name, issuer in settings.issuers.items():
            keys = fetched[name] if name in fetched else GivenKeys(of_members(issuer.keys))
            trusted.append(Trusted(name, issuer, issuer.audience or settings.issuer, keys))
        assertions = Assertions(
            trusted, base.federation(), base.clock, clock_error_seconds=settings.ring_times.clock_error
        )
        yield ([assertions] if trusted else []), [*fetched.values()]


@asynccontextmanager
async def _fetching(issuers: Mapping[str, Issuer]) -> AsyncIterator[Mapping[str, FetchedKeys]]:
    """Fetch the keys of issuers who have a place for them, for the duration of the block."""
    remote = {name: issuer for name, issuer in issuers.items() if issuer.jwks_url}
    if not remote:
        yield {}
        return
    from kkp.authn.jwks_client import JWKSClient, tls_context  # noqa: PLC0415  HTTP, as below

    tls = {name: tls_context(name, issuer.ca_file) for name, issuer in remote.items()}
    client = JWKSClient()
    fetched = {
        name: FetchedKeys(
            name,
            partial(client.fetch, issuer, tls[name]),
            serves_seconds=issuer.keys_secs,
            now=steady_seconds,
        )
        for name, issuer in remote.items()
    }
    try:
        async with running(*(keys.run() for keys in fetched.values())):
            yield fetched
    finally:
        await client.close()


def _first_warning(fetched: Sequence[FetchedKeys]) -> str | None:
    return next(filter(None, (keys.warning() for keys in fetched)), None)


def _following(base: Foundation, state: LiveState) -> list[Coroutine[Any, Any, None]]:
    """Return what keeps the state in memory at one with the database."""
    told, poll_seconds = asyncio.Event(), base.settings.ring_times.poll
    following: list[Coroutine[Any, Any, None]] = [state.follow(told, poll_seconds=poll_seconds)]
    if isinstance(base.database, TellsOfChanges):
        following.append(base.database.listen(told.set))
    return following


def _services(parts: _Parts) -> Services:
    from kkp.web.routes import Services  # noqa: PLC0415  HTTP: commands do not need it, and would wait for it

    base, keyring, revoked, people = parts.base, parts.keyring, parts.revoked, parts.people
    settings, clock, directory = base.settings, base.clock, base.directory
    guesses = GuessLimits(time.monotonic, partial(parts.count_over_limit, ANONYMOUS.id))
    return Services(
        pipeline=_road(parts, parts.authenticator, _caller_limits(parts), parts.waiting),
        # Nobody has a limit in common with all the others who are nobody (see `GuessLimits`), and there is
        # nobody who could be given what somebody else approves.
        doorstep=_road(parts, Anonymous(), limits=None, waiting=None),
        clock=clock,
        addresses=_address_limits(parts),
        connections=_connection_limit(parts),
        public=_public_documents(parts),
        issue_token=_issue_token(parts),
        encrypt=Encrypt(parts.registry),
        decrypt=Decrypt(parts.registry),
        rewrap=Rewrap(parts.registry),
        generate_data_key=GenerateDataKey(parts.registry),
        release_data_key=ReleaseDataKey(parts.registry),
        rotate_signing_key=RotateSigningKey(keyring),
        revoke_signing_key=RevokeSigningKey(keyring),
        introspect_token=IntrospectToken(parts.authenticator),
        revoke_token=RevokeToken(parts.authenticator, revoked),
        add_identity=AddIdentity(directory, clock, parts.names),
        list_identities=ListIdentities(directory),
        disable_identity=DisableIdentity(directory, clock),
        rotate_service_key=RotateServiceKey(directory, clock),
        revoke=Revoke(revoked, (directory, base.federation(), people), settings.backends),
        lift_revocation=LiftRevocation(revoked),
        list_revocations=ListRevocations(revoked),
        read_audit=ReadAudit(AuditStore(base.database)),
        decide_approval=DecideApproval(
            parts.waiting, keyring, clock, parts.everybody, issuer=settings.issuer
        ),
        list_approvals=ListApprovals(parts.waiting),
        explain_policy=ExplainPolicy(parts.policy, directory.look_up, clock),
        sign_up=SignUp(people, parts.passwords, limits=guesses, clock=clock, is_open=settings.open_signup),
        log_in=_log_in(parts, guesses),
        log_out=LogOut(base.sessions(keyring, revoked, people), revoked),
        change_password=ChangePassword(people, parts.passwords, guesses),
        max_plaintext_bytes=settings.max_plaintext_bytes,
        max_held_body_bytes=settings.max_held_body_bytes,
        nonces=base.nonces(),
        metrics=parts.metrics,
    )


def _issue_token(parts: _Parts) -> IssueToken:
    settings = parts.base.settings
    return IssueToken(
        parts.keyring,
        parts.base.clock,
        issuer=settings.issuer,
        max_ttl_seconds=settings.ring_times.token_ttl,
        backends=frozenset(settings.backends),
    )


def _log_in(parts: _Parts, guesses: GuessLimits) -> LogIn:
    settings = parts.base.settings
    return LogIn(
        parts.people,
        parts.passwords,
        limits=guesses,
        signer=parts.keyring,
        revoked=parts.revoked,
        clock=parts.base.clock,
        issuer=settings.issuer,
        ttl_seconds=settings.session_ttl_seconds,
    )


def _public_documents(parts: _Parts) -> PublicDocuments:
    from kkp.web import openapi  # noqa: PLC0415  HTTP, as above
    from kkp.web.public import PUBLIC_ROUTES, PublicDocuments  # noqa: PLC0415  likewise
    from kkp.web.routes import ROUTES  # noqa: PLC0415  likewise

    settings = parts.base.settings
    return PublicDocuments(
        keyring=parts.keyring,
        revocation_list=_revocation_list(parts),
        issuer=settings.issuer,
        takes_certificates=bool(settings.client_ca_files),
        jwks_max_age_seconds=int(settings.ring_times.jwks_max_age),
        openapi=openapi.document(ROUTES, PUBLIC_ROUTES),
        checks=_readiness(parts),
        refresh=parts.state.refresh,
        warnings={
            **parts.warnings,
            "backends": parts.registry.warning,
            "composites": parts.registry.members_warning,
            "master_key": parts.base.master_keys.warning,
        },
    )


def _revocation_list(parts: _Parts) -> RevocationList:
    base, state = parts.base, parts.state
    return RevocationList(
        parts.keyring,
        parts.revoked,
        parts.everybody,
        base.clock,
        lambda: state.epoch,
        issuer=base.settings.issuer,
        times=base.settings.ring_times,
        lifetime_seconds=base.settings.revocation_list_seconds,
    )


def _road(
    parts: _Parts, authenticator: Authenticates, limits: RateLimits | None, waiting: Approvals | None
) -> Pipeline:
    """Return the road of requests, watched where metrics are wanted."""
    base, metrics = parts.base, parts.metrics
    return Pipeline(
        state=parts.state,
        authenticator=authenticator,
        policy=parts.policy if metrics is None else metrics.policy(parts.policy),
        audit=base.reserve.guard(base.audit if metrics is None else metrics.records(base.audit)),
        failures=parts.failures if metrics is None else metrics.failures(parts.failures),
        clock=base.clock,
        limits=limits,
        revocations=parts.revoked,
        used_once=ReplayStore(base.database, base.clock),
        approvals=waiting,
        pace=base.pace,
    )


def _caller_limits(parts: _Parts) -> RateLimits:
    settings = parts.base.settings
    rate, burst = settings.caller_rate_per_second, settings.caller_burst
    return RateLimits(rate, burst, time.monotonic, parts.count_over_limit)


def _address_limits(parts: _Parts) -> RateLimits:
    """Return how often one address may ask; nobody has asked whose a request over that is."""

    def count_refusal(address: str) -> None:
        parts.failures.count_limited(address)
        if parts.metrics is not None:
            parts.metrics.over_limit("address")

    settings = parts.base.settings
    rate, burst = settings.address_rate_per_second, settings.address_burst
    return RateLimits(rate, burst, time.monotonic, count_refusal, "address")


def _connection_limit(parts: _Parts) -> ConnectionLimit:
    def count_refusal() -> None:
        if parts.metrics is not None:
            parts.metrics.over_limit("connections")

    return ConnectionLimit(parts.base.settings.address_connections, count_refusal)


def _metrics(
    base: Foundation,
    keyring: Keyring,
    registry: KMSRegistry,
    data_keys: DataKeyCache | None,
    waiting: Approvals,
) -> Metrics | None:
    if base.settings.metrics_listen is None:
        return None
    from kkp.metrics import Metrics  # noqa: PLC0415  a library that most runs of `kkp dev` do not need

    metrics = Metrics()
    metrics.watch_keyring(keyring, base.clock)
    metrics.watch_backends(registry.guards)
    metrics.watch_composites(registry.composites)
    base.audit.watch(metrics.audit_commit)
    waiting.watch(metrics.approval)
    if data_keys is not None:
        data_keys.watch(metrics.data_key)
    return metrics


def _readiness(parts: _Parts) -> dict[str, Callable[[], Awaitable[None]]]:
    """Return whatever must be right, by its name at /readyz."""
    base, keyring = parts.base, parts.keyring
    return {
        "keyring": _asynchronous(lambda: keyring.check_ready(base.clock.now())),
        "database": base.database.check,
        "identities": _asynchronous(base.directory.check_trusted),
        "revocations": _asynchronous(parts.revoked.check_trusted),
        "accounts": _asynchronous(parts.people.check_trusted),
        "approvals": _asynchronous(parts.waiting.check_trusted),
        "policy": parts.policy.ping,
        "audit": base.audit.check_ready,
        "audit_space": base.reserve.check_ready,
        "checkpoints": base.checkpoints.check_ready,
    }


def _asynchronous(check: Callable[[], None]) -> Callable[[], Awaitable[None]]:
    async def checked() -> None:
        check()

    return checked


def _data_dir(settings: Settings, *, create: bool) -> None:
    if create:
        data_dir.prepare(settings.data_dir)
    else:
        data_dir.check(settings.data_dir)


async def _unlocked(settings: Settings, *, create: bool, now: float) -> tuple[MasterKey, Database]:
    """Return the master key and the database that is under it, also while that is being rotated."""
    unlocked = await unlock(settings, create=create, now=now)
    try:
        return unlocked.master_key, await _opened(settings, unlocked, create=create)
    except ConfigError:
        again = await unlock(settings, create=create, now=now)
        if again.master_key.check_value() == unlocked.master_key.check_value():
            raise
        return again.master_key, await _opened(settings, again, create=create)


async def _opened(settings: Settings, unlocked: Unlocked, *, create: bool) -> Database:
    return await open_database(
        settings,
        master_key_check=unlocked.master_key.check_value(),
        create=create,
        first_rows=partial(insert_first_rows, unlocked.first_wraps, unlocked.master_key.keep()),
    )


async def clock_of(settings: Settings, database: Database) -> Clock:
    """Return the clock of whoever uses this database: its own, where it has one.

    Raises:
        KeyringUnavailableError: It can't be read, or not soon enough to tell the time.
    """
    if settings.postgres is None:
        return SteadyClock()
    times = settings.ring_times
    return await DatabaseClock.start(
        lambda: database.read(read_time),
        clock_error_seconds=times.clock_error,
        staleness_seconds=times.replica_staleness,
    )


async def master_key_of(settings: Settings) -> MasterKey:
    """Return the master key of a database, which may be of an older layout: that one is given as it is.

    Raises:
        ConfigError: There is no master key to be had, or it is not this database's.
    """
    data_dir.check(settings.data_dir)
    return (await unlock(settings, create=False, now=time.time(), look=peek_older)).master_key


async def checkpoint_signer(settings: Settings) -> CheckpointSigner:
    """Return the signer of this data directory's checkpoints.

    Raises:
        ConfigError: There is no master key to be read.
    """
    _data_dir(settings, create=False)
    return CheckpointSigner((await unlock(settings, create=False, now=time.time())).master_key)


def _checkpointer(
    settings: Settings, sink: CheckpointSink, database: Database, master_key: MasterKey, clock: Clock
) -> Checkpointer:
    interval = settings.checkpoint_interval_seconds
    store, signer = CheckpointStore(database), CheckpointSigner(master_key)
    return Checkpointer(store, signer, sink, clock, interval_seconds=interval)


def _policy(settings: Settings) -> ReloadingPolicy:
    """Load the policy, and check the backends' URIs beside it: nothing is on disk yet if either is bad."""
    problems = _backend_problems(settings.backends)
    try:
        policy = ReloadingPolicy.load(settings.policy_path or default_policy_path(), _DEV_POLICY_SETTINGS)
    except PolicyLoadError as error:
        raise ConfigError([*problems, f"KKP_POLICY_PATH: {error}"]) from error
    if problems:
        raise ConfigError(problems)
    return policy


def _data_key_cache(base: Foundation) -> DataKeyCache | None:
    limits = base.settings.data_key_cache
    return DataKeyCache(limits, base.clock, base.database.epoch) if limits is not None else None


async def _backends(base: Foundation, data_keys: DataKeyCache | None) -> KMSRegistry:
    local_keys = LocalKeyStore(base.database, base.master_keys)
    await ensure_default_key(local_keys, base.master_key, base.clock)
    resources = Resources(base.master_key, local_keys, base.settings.backend_limits)
    return await KMSRegistry.connect(base.settings.backends, resources, data_keys)


async def _start_keyring(keyring: Keyring) -> None:
    try:
        await keyring.start()
    except KeyringUnavailableError as error:
        raise ConfigError([f"keyring: {error}"]) from error


async def _ensure_root(base: Foundation) -> None:
    """Make the first identity, under a key that is on disk before it is in the database."""
    path = base.settings.data_dir / "root.key"
    is_known = any(identity.id == ROOT for identity in base.directory.all())
    if is_known and not path.exists():
        return  # whoever keeps the key elsewhere is right to
    if not path.exists():
        data_dir.write_secret(path, new_service_key())
    service_key = data_dir.read_secret(path, "root.key")
    if not is_service_key(service_key):
        raise ConfigError([f"root.key: {path} holds no service key; give it back its own, or remove it"])
    if is_known:
        if not opens_root(base.directory, service_key):
            _log.warning("%s is no working key of %s; put the present one into it", path, ROOT)
        return
    request = IdentityRequest(id=ROOT, roles=("admin",), service_key=service_key)
    origin = Origin(request_id=secrets.token_hex(16))
    operation = AddIdentity(base.directory, base.clock)
    await base.operator_pipeline().run(operation, request, Credentials(), origin)


def opens_root(directory: IdentityDirectory, unverified_key: str) -> bool:
    """Tell whether this is a working service key of the identity `root`."""
    holder = directory.by_service_key(unverified_key)
    return holder is not None and holder.id == ROOT


@asynccontextmanager
async def running(*coroutines: Coroutine[Any, Any, None]) -> AsyncIterator[None]:
    """Run background tasks for the duration of the block."""
    tasks = [asyncio.create_task(coroutine) for coroutine in coroutines]
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
