"""`kkp ready`: ask the server of these settings whether it is ready; what a container's health check runs.

It asks where the server listens, on this machine, and prints what `/readyz` answers. It reads the settings
and nothing else, needs no credential, and changes nothing.

Exit codes: 0 it is ready; 1 it is not, or does not answer; 2 the settings can't be used.
"""

from __future__ import annotations

import argparse
import ssl
import sys
from contextlib import closing
from http.client import HTTPConnection, HTTPException, HTTPSConnection
from typing import Final

from kkp.cli.common import OK, REFUSED, settings
from kkp.config import Address, Settings
from kkp.errors import ConfigError

_DEADLINE_SECONDS: Final = 5.0
_LONGEST_ANSWER_BYTES: Final = 64 * 1024
_READY: Final = 200
# Whoever listens everywhere is asked on loopback.
_EVERYWHERE: Final = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104  compared, not listened on


def register(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command to the parser."""
    ready = commands.add_parser("ready", help="ask the server on this machine whether it is ready")
    ready.set_defaults(command=_ready)


def _ready(_options: argparse.Namespace) -> int:
    chosen = settings()
    if chosen.listen.port == 0:
        raise ConfigError(
            ["KKP_LISTEN_ADDR: port 0 is another one at each start; give the server's own port"]
        )
    try:
        status, answer = _ask(_connection(chosen))
    except (OSError, HTTPException) as error:
        print(f"kkp: {chosen.listen} gives no answer: {error!r}", file=sys.stderr)
        return REFUSED
    print(answer)
    return OK if status == _READY else REFUSED


def _ask(connection: HTTPConnection) -> tuple[int, str]:
    with closing(connection):
        connection.request("GET", "/readyz")
        response = connection.getresponse()
        return response.status, response.read(_LONGEST_ANSWER_BYTES).decode("utf-8", "replace")


def _connection(chosen: Settings) -> HTTPConnection:
    address = Address(_EVERYWHERE.get(chosen.listen.host, chosen.listen.host), chosen.listen.port)
    if chosen.tls_cert_file is None:
        return HTTPConnection(address.host, address.port, timeout=_DEADLINE_SECONDS)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    # The certificate is for the name in the issuer and may have expired, and is served all the same. Nothing
    # secret is said, and whoever can answer at this machine's own port is the server or has taken its place.
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return HTTPSConnection(address.host, address.port, timeout=_DEADLINE_SECONDS, context=context)
