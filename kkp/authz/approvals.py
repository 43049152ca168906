"""What waits for approval, and what was approved and waits for its one use, in memory as of an epoch.

`kkp.approvals` says what an approval is bound to, and what a release is. Every change bumps the epoch in its
own transaction, so a request that waits is known on every process from its next request on.

Rules that hold here:
- A release is used up by deleting its row, which one of all who try does, on whatever replica. It is used
  right before the operation: what fails afterwards takes another approval, so that nothing is done twice.
- Whoever has used one knows an epoch that a database restored to before then does not have, and ends
  (`kkp.rollback`). A restored database that is accepted forgets all approvals.
- One request waits for each thing that a caller wants, however often it asks; at most SHARE of each caller,
  and as many of its emergencies. There are at most MAX_ROWS in all, of which the last EMERGENCY_ROWS are for
  emergencies: whoever can be many callers can't keep those from being asked for by having others wait.
- What nobody approved or used in time is recorded, and then deleted. Several processes may do so at the same
  moment: it may be recorded twice, never not at all.

Every row carries an HMAC under the subkey `kkp/approvals/v1`, over the RFC 8785 canonical JSON of
`["approval", id, caller, behind, digest, document, break_glass, valid_seconds, asked_at, expires_at,
decided_by, decided_at, reason]`. Another layout gets another purpose name. A row that was altered by hand
makes all of them untrusted. One that was deleted is not noticed; one that was put back is good for its caller
and its operation until its release expires.
"""

from __future__ import annotations

import asyncio
import logging
import math
import os
from base64 import urlsafe_b64encode
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Final, Protocol, final

import msgspec
import rfc8785

from kkp import tokens
from kkp.approvals import RELEASE_TYPE, Approval, ReleaseClaims, Wanted, digest_of
from kkp.clock import Clock
from kkp.errors import (
    ApprovalInvalidError,
    ApprovalRequiredError,
    ConflictError,
    NotFoundError,
    RateLimitedError,
    StateUntrustedError,
    TokenInvalidError,
    described,
)
from kkp.live_state import Loaded, View
from kkp.master_key import MasterKey
from kkp.renewal import Signed
from kkp.rows import ApprovalRow, ApprovalSnapshot

MAX_ROWS: Final = 1024
EMERGENCY_ROWS: Final = 128
SHARE: Final = 8
SWEEP_SECONDS: Final = 10.0
_PURPOSE: Final = "kkp/approvals/v1"
_ATTEMPTS: Final = 3
_NONE_SUCH: Final = "No such request waits: it was denied, was used, is over, or never was."
_UNTRUSTED: Final = "A stored approval failed its authentication."
_log = logging.getLogger(__name__)
_claims_decoder = msgspec.json.Decoder(ReleaseClaims, strict=True)
_names_decoder = msgspec.json.Decoder(tuple[str, ...])
_document_decoder = msgspec.json.Decoder(dict[str, object])


class ApprovalStore(Protocol):
    """Keeps the rows. Every method raises KeyringUnavailableError when the database can't be used."""

    async def load_approvals(self) -> ApprovalSnapshot:
        """Return every row."""

    async def insert_approval(self, row: ApprovalRow, *, now: float, share: int, at_most: int) -> None:
        """Add a request, and bump the epoch.

        StaleProposalError if the same one waits already, RateLimitedError if as many wait as may.
        """

    async def replace_approval(self, row: ApprovalRow, *, former_mac: bytes) -> bool:
        """Write a row in the place of the one with this MAC, and bump the epoch; False if that is gone."""

    async def take_approval(self, row: ApprovalRow) -> bool:
        """Take exactly this row out, and bump the epoch; False if it is gone."""

    async def delete_approvals(self, ids: Sequence[str]) -> None:
        """Delete rows that are over."""


class PublicKeys(Protocol):
    """The ring's published public keys."""

    def public_keys(self, now: float) -> Mapping[str, bytes]:
        """Return 32 raw bytes by kid."""


Expired = Callable[[str, str], Awaitable[None]]


class _Known(msgspec.Struct, frozen=True):
    """A row, and what it says."""

    row: ApprovalRow
    approval: Approval


class _View(View, frozen=True):
    by_id: Mapping[str, _Known] = {}


@final
class Approvals(Loaded[ApprovalSnapshot, _View]):
    """Remembers what waits.

    Args:
        store: Keeps the rows.
        master_key: Authenticates them.
        ring: Verifies releases.
        clock: What time it is.
        issuer: Whose releases are good.
        clock_error_seconds: How far clocks are apart.
        expired: Records what nobody approved (`waiting`) or used (`approved`) in time.
    """

    def __init__(  # noqa: PLR0913  none of them knows of another
        self,
        store: ApprovalStore,
        master_key: MasterKey,
        ring: PublicKeys,
        clock: Clock,
        *,
        issuer: str,
        clock_error_seconds: float,
        expired: Expired,
    ) -> None:
        super().__init__(_View(), _UNTRUSTED)
        self._store = store
        self._master_key = master_key
        self._ring = ring
        self._clock = clock
        self._issuer = issuer
        self._clock_error_seconds = clock_error_seconds
        self._expired = expired
        self._watch: Callable[[str, bool], None] = lambda _step, _is_break_glass: None
        self._using: set[str] = set()

    def watch(self, watch: Callable[[str, bool], None]) -> None:
        """Tell somebody of each step, and whether it is of an emergency.

        The steps are `asked`, `approved`, `denied`, `used` and `expired`.
        """
        self._watch = watch

    async def _read(self, since_epoch: int) -> ApprovalSnapshot:  # noqa: ARG002  there are few, and all are read
        return await self._store.load_approvals()

    def _trusted_view(self, snapshot: ApprovalSnapshot, known: _View) -> _View:
        by_id = {row.id: self._genuine(row, known.by_id.get(row.id)) for row in snapshot.rows}
        return _View(epoch=snapshot.epoch, by_id=by_id)

    # What the road asks.

    def required(self, wanted: Wanted) -> ApprovalRequiredError:
        """Return what the caller is told: the request that waits already for the same, or a new one's id."""
        for approval in self._all_waiting():
            if _is_the_same(approval, wanted):
                return ApprovalRequiredError(approval.id, approval.expires_at)
        return ApprovalRequiredError(_new_id(), self._clock.now() + wanted.demand.wait_seconds)

    async def ask(self, wanted: Wanted, required: ApprovalRequiredError) -> None:
        """Have the request wait that the caller is told of, unless it does.

        Raises:
            StaleProposalError: Another request for the same waits by now.
            RateLimitedError: As many wait as may.
            KeyringUnavailableError: The database can't be used.
        """
        if required.approval_id in self._trusted():
            return
        demand = wanted.demand
        at_most = MAX_ROWS if demand.is_break_glass else MAX_ROWS - EMERGENCY_ROWS
        self._check_space(wanted, at_most)
        row = ApprovalRow(
            id=required.approval_id,
            caller=wanted.caller,
            behind=msgspec.json.encode(wanted.behind).decode(),
            digest=wanted.digest,
            document=wanted.document.decode(),
            break_glass=int(demand.is_break_glass),
            valid_seconds=demand.valid_seconds,
            asked_at=self._clock.now(),
            expires_at=required.expires_at,
            decided_by=None,
            decided_at=None,
            reason="",
            mac=b"",
        )
        await self._store.insert_approval(self._signed(row), now=row.asked_at, share=SHARE, at_most=at_most)
        self._tell("asked", row.id, is_break_glass=demand.is_break_glass)
        await self.load_what_was_written()

    def _check_space(self, wanted: Wanted, at_most: int) -> None:
        """Refuse here what the database would refuse as well, so that a flood writes nothing."""
        kind = wanted.caller, wanted.demand.is_break_glass
        rows = [known.approval.expires_at for known in self._trusted().values()]
        own = [each.expires_at for each in self._all_waiting() if (each.caller, each.is_break_glass) == kind]
        for ends, most in ((own, SHARE), (rows, at_most)):
            if len(ends) >= most:
                raise RateLimitedError(max(1, math.ceil(min(ends) - self._clock.now())))

    def released(self, unverified_release: str, wanted: Wanted, *, used: str | None) -> str:
        """Return the id of the approval that a release is for, if it is good for what is wanted.

        Args:
            unverified_release: What the request shows.
            wanted: What it would do.
            used: The approval that this very request has used up already.

        Raises:
            ApprovalInvalidError: It is not.
        """
        approvals, now = self._trusted(), self._clock.now()
        try:
            kid, payload = tokens.read_payload(unverified_release, RELEASE_TYPE)
            tokens.check_signature(unverified_release, self._ring.public_keys(now).get(kid))
            claims = _claims_decoder.decode(payload)
        except (TokenInvalidError, msgspec.DecodeError, ValueError):
            raise ApprovalInvalidError from None
        ends = min(claims.exp, claims.iat + wanted.demand.valid_seconds)  # policy may want less by now
        is_in_time = claims.iat <= now + self._clock_error_seconds and now < ends
        is_for_this = (claims.iss, claims.sub, claims.digest) == (self._issuer, wanted.caller, wanted.digest)
        if not is_in_time or not is_for_this:
            raise ApprovalInvalidError(claims.jti)
        known = approvals.get(claims.jti)
        is_standing = known is not None and _stands(known.approval, claims, wanted)
        # What is just being used here is as good as used: a flood of it is refused at once.
        if claims.jti != used and (not is_standing or claims.jti in self._using):
            raise ApprovalInvalidError(claims.jti)
        return claims.jti

    async def use(self, approval_id: str) -> None:
        """Use up an approval; of all who try, on all replicas, one succeeds.

        Raises:
            ApprovalInvalidError: It was used, or its time is over.
            KeyringUnavailableError: The database can't be used: it may be used up, or may not.
        """
        if approval_id in self._using:  # one try at a time: a flood of them is no flood of transactions
            raise ApprovalInvalidError
        self._using.add(approval_id)
        try:
            approval = await self._take(approval_id)
        finally:
            self._using.discard(approval_id)
        self._tell("used", approval_id, is_break_glass=approval.is_break_glass)

    async def _take(self, approval_id: str) -> Approval:
        for _attempt in range(_ATTEMPTS):  # anew where a rotation of the master key has signed it anew
            known = self._trusted().get(approval_id)
            if known is None:
                break
            if await self._store.take_approval(known.row):
                return known.approval
            await self.load()
        raise ApprovalInvalidError

    # What approvers ask.

    def find(self, approval_id: str) -> Approval | None:
        """Return what waits, or was approved and waits for its use; None: there is none such.

        Raises:
            StateUntrustedError: It can't be told.
        """
        known = self._trusted().get(approval_id)
        return None if known is None else known.approval

    def waiting(self, approval_id: str) -> Approval:
        """Return what waits for approval.

        Raises:
            NotFoundError: Nothing of this id does.
            ConflictError: It was approved, or its time is over.
        """
        return self._waiting(approval_id).approval

    def page(self, after: str, limit: int) -> Sequence[Approval]:
        """Return what waits for approval, by id, behind the one named.

        Raises:
            StateUntrustedError: It can't be told.
        """
        return [approval for approval in self._all_waiting() if approval.id > after][:limit]

    def _all_waiting(self) -> Sequence[Approval]:
        """Return what waits for approval, by id."""
        now = self._clock.now()
        found = [known.approval for _, known in sorted(self._trusted().items())]
        return [each for each in found if each.decided_by is None and each.expires_at > now]

    async def approve(self, approval_id: str, *, by: str, reason: str, expires_at: int) -> None:
        """Note that somebody approved, and until when it may be done.

        Raises:
            NotFoundError: Nothing of this id waits.
            ConflictError: It was approved meanwhile, or its time is over.
        """
        for _attempt in range(_ATTEMPTS):
            known = self._waiting(approval_id)
            approved = known.row._replace(
                decided_by=by, decided_at=self._clock.now(), reason=reason, expires_at=float(expires_at)
            )
            if await self._store.replace_approval(self._signed(approved), former_mac=known.row.mac):
                self._tell("approved", approval_id, is_break_glass=known.approval.is_break_glass)
                return
            await self.load()
        raise ConflictError("The request keeps changing; try again.")

    async def deny(self, approval_id: str) -> None:
        """Have a request wait no longer, or take back an approval that was not used yet.

        Raises:
            NotFoundError: There is nothing of this id, or not any more.
            ConflictError: It keeps changing.
        """
        for _attempt in range(_ATTEMPTS):
            known = self._trusted().get(approval_id)
            if known is None:
                raise NotFoundError(_NONE_SUCH)
            if await self._store.take_approval(known.row):
                self._tell("denied", approval_id, is_break_glass=known.approval.is_break_glass)
                return
            await self.load()
        raise ConflictError("The request keeps changing; try again.")

    def _waiting(self, approval_id: str) -> _Known:
        known = self._trusted().get(approval_id)
        if known is None:
            raise NotFoundError(_NONE_SUCH)
        if known.approval.decided_by is not None or known.approval.expires_at <= self._clock.now():
            raise ConflictError("The request was approved already, or its time is over.")
        return known

    # What nobody asks.

    async def run(self) -> None:
        """Sweep regularly until cancelled."""
        while True:
            await asyncio.sleep(SWEEP_SECONDS)
            try:
                await self.sweep()
            except Exception as error:  # noqa: BLE001  nothing may end the task
                _log.warning("approvals that are over were not swept: %s", described(error))

    async def sweep(self) -> None:
        """Record what is over, and delete it.

        Raises:
            KKPError: Something of it can't be done; it is done the next time.
        """
        await self.load()
        over = self._clock.now() - 2 * self._clock_error_seconds
        expired = [known.approval for known in self._trusted().values() if known.approval.expires_at < over]
        for approval in expired:
            await self._expired(approval.id, "waiting" if approval.decided_by is None else "approved")
            await self._store.delete_approvals([approval.id])
            self._tell("expired", approval.id, is_break_glass=approval.is_break_glass)
        if expired:
            await self.load()

    def _tell(self, step: str, approval_id: str, *, is_break_glass: bool) -> None:
        self._watch(step, is_break_glass)
        if is_break_glass:
            _log.warning("break-glass: the approval %s was %s", approval_id, step)

    # Whether a row is believed, and what it says.

    def _trusted(self) -> Mapping[str, _Known]:
        self.check_trusted()
        return self._view.by_id

    def _signed(self, row: ApprovalRow) -> ApprovalRow:
        return row._replace(mac=self._master_key.mac(_PURPOSE, _row_bytes(row)))

    def _genuine(self, row: ApprovalRow, known: _Known | None) -> _Known:
        if known is not None and known.row == row:
            return known
        try:
            genuine = self._master_key.verify_mac(_PURPOSE, _row_bytes(row), row.mac)
        except (TypeError, ValueError):  # SQLite stores anything in any column
            genuine = False
        if not genuine:
            _log.critical("a row of the approvals failed its authentication: nothing is approved")
            raise StateUntrustedError(_UNTRUSTED)
        return _Known(row, _approval(row))


def _new_id() -> str:
    """Return 128 random bits: whoever has not been told an id does not guess it."""
    return urlsafe_b64encode(os.urandom(16)).rstrip(b"=").decode()


def _is_the_same(approval: Approval, wanted: Wanted) -> bool:
    """Tell whether this is what is wanted, and as urgent: an emergency's is given for a reason."""
    stored = (approval.caller, approval.digest, approval.is_break_glass)
    return stored == (wanted.caller, wanted.digest, wanted.demand.is_break_glass)


def _stands(approval: Approval, claims: ReleaseClaims, wanted: Wanted) -> bool:
    is_approved = approval.decided_by is not None and approval.expires_at == claims.exp
    return is_approved and _is_the_same(approval, wanted)


def _approval(row: ApprovalRow) -> Approval:
    return Approval(
        id=row.id,
        caller=row.caller,
        behind=_names_decoder.decode(row.behind),
        digest=digest_of(row.document.encode()),
        operation=_document_decoder.decode(row.document),
        is_break_glass=bool(row.break_glass),
        valid_seconds=row.valid_seconds,
        asked_at=row.asked_at,
        expires_at=row.expires_at,
        decided_by=row.decided_by,
    )


def _row_bytes(row: ApprovalRow) -> bytes:
    return rfc8785.dumps(["approval", *row[:-1]])


ROWS: Final = Signed("approvals", ApprovalRow, ApprovalRow._fields[:-1], ("id",), _PURPOSE, _row_bytes)
