"""KKP's credentials at AWS, out of boto3's default chain.

botocore finds them and fetches them; what is here decides when, and who waits. Left to itself, botocore
fetches on the thread of whoever signs next, with everybody else behind one lock, so that a token service that
hangs holds every thread, one after the other.

Rules:
- One fetch at a time, on a thread of its own. A call waits for it no longer than its deadline, and nobody
  waits while the credentials from before outlast a call.
- Every request of the chain has the deadline's timeouts and one try, and goes through no proxy of the
  environment: to STS, SSO, and the metadata services of instances and containers. Where these are, the chain
  says, `AWS_ENDPOINT_URL_STS` included.
- A fetch that does not end, such as of a program that `credential_process` names, which has no deadline,
  keeps its own thread and nothing else; it does not hold up the process's end.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import Protocol, final

from botocore.config import Config  # type: ignore[import-untyped]  # the wheel carries no types
from botocore.httpsession import URLLib3Session  # type: ignore[import-untyped]  # the same
from botocore.session import Session  # type: ignore[import-untyped]  # the same

from kkp.kms._futures import look_at


class _Chain(Protocol):
    """What is used of the credentials that botocore's chain finds."""

    def get_frozen_credentials(self) -> object: ...


@final
class AWSCredentials:
    """The credentials that requests are signed with. Two methods have the names that botocore calls.

    Args:
        chain: What botocore found; it fetches.
        timeout_seconds: The longest that a call waits for a fetch, and the least that credentials must last.
    """

    def __init__(self, chain: _Chain, timeout_seconds: float) -> None:
        self._chain = chain
        self._timeout_seconds = timeout_seconds
        self._frozen: object = None
        self._fetching: asyncio.Future[None] | None = None

    async def ready(self) -> None:
        """See to it that there are credentials, and fetch new ones in good time.

        Raises:
            TimeoutError: There are none within the deadline.
            Exception: Whatever botocore raised.
        """
        if self._frozen is not None and not self._end_within(None):
            return
        if self._fetching is None or self._fetching.done():
            self._fetching = _on_a_thread(self._fetch)
        if self._frozen is None or self._end_within(self._timeout_seconds):
            async with asyncio.timeout(self._timeout_seconds):
                await asyncio.shield(self._fetching)

    def get_frozen_credentials(self) -> object:
        """Return what a request is signed with, fetched before."""
        return self._frozen

    def get_deferred_property(self, _name: str) -> Callable[[], None]:
        """Return nothing: an account's own endpoint would need it, and KMS has none."""
        return lambda: None

    def load_credentials(self) -> AWSCredentials:
        """Be the chain: these are found already."""
        return self

    def _fetch(self) -> None:
        self._frozen = self._chain.get_frozen_credentials()

    def _end_within(self, seconds: float | None) -> bool:
        """Tell whether they end within this time; None for that of botocore. Some never end."""
        refresh_needed = getattr(self._chain, "refresh_needed", None)
        return refresh_needed is not None and refresh_needed(seconds)


def session_within(region: str, timeout_seconds: float) -> Session:
    """Return a session whose every client, and whose chain, has these timeouts, one try and no proxy."""
    session = Session()
    session.set_config_variable("region", region)
    session.set_default_client_config(
        Config(
            connect_timeout=timeout_seconds,
            read_timeout=timeout_seconds,
            retries={"total_max_attempts": 1, "mode": "standard"},
            proxies={},  # not None, which would mean those of the environment
        )
    )
    metadata_seconds = min(session.get_config_variable("metadata_service_timeout"), timeout_seconds)
    session.set_config_variable("metadata_service_timeout", metadata_seconds)
    session.set_config_variable("metadata_service_num_attempts", 1)
    # The instance's metadata service would be asked through the environment's proxies.
    provider = session.get_component("credential_provider").get_provider("iam-role")
    fetcher = provider._role_fetcher  # noqa: SLF001  botocore has no setting for its proxies
    fetcher._session = URLLib3Session(timeout=metadata_seconds, proxies={})  # noqa: SLF001  likewise
    return session


def find_credentials(session: Session, timeout_seconds: float) -> AWSCredentials | None:
    """Return what the session's chain finds, which is all that it has from now on; None for nothing.

    Raises:
        BotoCoreError: They can't be used, or not be asked for.
    """
    chain = session.get_component("credential_provider").load_credentials()
    if chain is None:
        return None
    credentials = AWSCredentials(chain, timeout_seconds)
    session.register_component("credential_provider", credentials)
    return credentials


def _on_a_thread(function: Callable[[], None]) -> asyncio.Future[None]:
    """Call it on a thread that no end of a process waits for."""
    loop = asyncio.get_running_loop()
    future: asyncio.Future[None] = loop.create_future()
    future.add_done_callback(look_at)

    def settle(error: Exception | None) -> None:
        if future.cancelled():  # by the loop's end
            return
        if error is None:
            future.set_result(None)
        else:
            future.set_exception(error)

    def run() -> None:
        error = None
        try:
            function()
        except Exception as caught:  # noqa: BLE001  whatever it is, it is for those who wait
            error = caught
        with suppress(RuntimeError):  # the loop is closed: nobody waits any more
            loop.call_soon_threadsafe(settle, error)

    threading.Thread(target=run, name="aws-credentials", daemon=True).start()
    return future
