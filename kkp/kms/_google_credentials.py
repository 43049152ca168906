"""Access tokens for Google Cloud, out of its default chain of credentials.

google-auth finds the credentials and makes the tokens; what is here decides when. A token is renewed before
it ends, on a thread, once for all who wait, and calls go on with the old token as long as that one is good.
gRPC's own plug-in for this is not used: it takes a thread for each call, and turns whatever went wrong with
the token into UNAVAILABLE and a line in the log.

Rules: a refusal is KMSDeniedError only where the token's issuer says so with an OAuth code (RFC 6749 section
5.2); everything else is an outage. No proxy of the environment is used and no redirect followed. An answer is
read to 64 KiB and no further, and nothing of it gets into an error.
"""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import Callable, Sequence
from io import BytesIO
from typing import Any, Protocol, final

import google.auth
import requests
from google.auth.credentials import TokenState
from google.auth.exceptions import GoogleAuthError
from google.auth.transport import requests as google_requests

from kkp.errors import (
    ClockSkewError,
    ConfigError,
    CredentialsExpiredError,
    KMSDeniedError,
    KMSUnavailableError,
)
from kkp.kms._futures import look_at
from kkp.outbound import MAX_ANSWER_BYTES

_REQUEST_SECONDS = 5.0
# What google-auth's errors begin with where the issuer said that it is us.
_REFUSALS = re.compile(
    r"(?:Error code )?(?:invalid_grant|invalid_client|unauthorized_client|access_denied|invalid_scope)\b"
)
# And what it says of their times.
_EXPIRED = "Token has been expired or revoked"
_OUT_OF_TIME = "reasonable timeframe"

# At level DEBUG it logs what it sends and gets.
logging.getLogger(google_requests.__name__).disabled = True


class Credentials(Protocol):
    """What is used of google-auth's credentials."""

    @property
    def token_state(self) -> TokenState: ...

    def refresh(self, request: Any) -> None: ...  # noqa: ANN401  google-auth's transport has no type

    def apply(self, headers: dict[str, str]) -> None: ...


class _Session(requests.Session):
    """Takes no answer that is encoded or larger than MAX_ANSWER_BYTES; asks no proxy of the environment."""

    def __init__(self) -> None:
        super().__init__()
        self.trust_env = False
        self.headers["Accept-Encoding"] = "identity"

    def send(self, request: requests.PreparedRequest, **options: Any) -> requests.Response:  # noqa: ANN401  as inherited
        response = super().send(request, **{**options, "stream": True})
        body = response.raw.read(MAX_ANSWER_BYTES + 1, decode_content=False)
        if len(body) > MAX_ANSWER_BYTES or "Content-Encoding" in response.headers:
            response.close()
            raise requests.exceptions.ContentDecodingError
        response.raw = BytesIO(body)
        return response


class _Transport(google_requests.Request):
    """google-auth's way to an issuer: bounded answers, no redirect, and it gives up in time."""

    def __init__(self) -> None:
        super().__init__(_Session())

    def __call__(self, *args: Any, **options: Any) -> Any:  # noqa: ANN401  as inherited
        options.setdefault("timeout", _REQUEST_SECONDS)
        options["allow_redirects"] = False  # it would take what is shown to the issuer elsewhere
        return super().__call__(*args, **options)  # type: ignore[no-untyped-call]  # google-auth's has no types


@final
class AccessTokens:
    """The headers that say who is calling.

    Args:
        credentials: They make the tokens.
        request: How they reach the issuer; it has a timeout.
    """

    def __init__(self, credentials: Credentials, request: Callable[..., Any]) -> None:
        self._credentials = credentials
        self._request = request
        self._renewal: asyncio.Task[None] | None = None
        self._refused = False

    @classmethod
    async def default(cls, scopes: Sequence[str]) -> AccessTokens:
        """Find the default credentials; this reads files and may ask the machine's metadata server.

        Raises:
            ConfigError: There are none, or they can't be used.
        """
        request = _Transport()
        try:
            credentials, _ = await asyncio.to_thread(google.auth.default, scopes=scopes, request=request)
        except Exception:  # noqa: BLE001  a file of another form makes google-auth raise all sorts
            cure = "name a credentials file in GOOGLE_APPLICATION_CREDENTIALS, or run on Google Cloud"
            raise ConfigError([f"no Google Cloud credentials can be used; {cure}"]) from None
        return cls(credentials, request)

    async def headers(self) -> Sequence[tuple[str, str]]:
        """Return what a call carries, as gRPC metadata.

        Raises:
            KMSDeniedError: The issuer refused the credentials.
            KMSUnavailableError: There is no token to be had at the moment.
        """
        state = TokenState.INVALID if self._refused else self._credentials.token_state
        if state is not TokenState.FRESH:
            renewal = self._renew()
            if state is TokenState.INVALID:
                await asyncio.shield(renewal)
        headers: dict[str, str] = {}
        self._credentials.apply(headers)
        return [(name.lower(), value) for name, value in headers.items()]

    def refused(self) -> None:
        """Take it that the present token is no good, whatever its age."""
        self._refused = True

    async def close(self) -> None:
        """Stop waiting for a token."""
        if self._renewal is not None:
            self._renewal.cancel()

    def _renew(self) -> asyncio.Task[None]:
        if self._renewal is None or self._renewal.done():
            self._renewal = asyncio.create_task(self._refresh())
            self._renewal.add_done_callback(look_at)  # the next call tries again
        return self._renewal

    async def _refresh(self) -> None:
        try:
            await asyncio.to_thread(self._credentials.refresh, self._request)
        except Exception as error:  # noqa: BLE001  as does an answer of another form
            # Chained to nothing: an error of google-auth may hold all that the issuer answered.
            raise _translated(error) from None
        self._refused = False


def _translated(error: Exception) -> KMSDeniedError | KMSUnavailableError:
    final_word = isinstance(error, GoogleAuthError) and not error.retryable
    text = str(error.args[0] if error.args else "")
    if final_word and _REFUSALS.match(text):
        if _EXPIRED in text:
            return CredentialsExpiredError("Google Cloud refused KKP's own credentials: they have expired.")
        if _OUT_OF_TIME in text:
            return ClockSkewError("Google Cloud refused KKP's own credentials: this machine's clock is off.")
        return KMSDeniedError("Google Cloud refused KKP's own credentials.")
    return KMSUnavailableError("Google Cloud gave KKP no access token.")
