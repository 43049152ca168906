"""`kkp dev`: serve on this machine, with emulated backends."""

from __future__ import annotations

import argparse
import asyncio
import signal
from collections.abc import Mapping

from kkp import __version__, app
from kkp.cli.common import OK, collect_garbage_rarely, settings
from kkp.config import Address, Settings
from kkp.kms import is_composite
from kkp.ways import DEV
from kkp.web.metrics import serving_metrics
from kkp.web.routes import make_application
from kkp.web.server import edge_of, serving

_BANNER = """\
KKP {version}: a development server. {backends}, and its keys lie in {data_dir}.
Do not put real secrets into it, and do not let other machines reach it.

Listening on {url}. It decides by {policy}.{trial}
"""
# The schemes of backends that are no cloud's, and a key that each of the emulators and `local://` has.
_NOT_REAL = frozenset({"memory", "local"})
_KEYS = {
    "memory://aws": "alias/orders",
    "memory://gcp": "orders",
    "memory://azure": "orders",
    "local://": "default",
}
_TRIAL = """ Try, from this directory:

  KEY=$(cat {root_key})
  TOKEN=$(curl -sS {url}/token -H "Authorization: Bearer $KEY" --json \\
    '{{"audience":"orders-db","backend":"{backend}","key_id":"{key_id}","ops":["encrypt","decrypt"]}}' |
    python3 -c 'import json,sys; a = json.load(sys.stdin); print(a["token"] if "token" in a else a)')
  curl -sS {url}/envelope/encrypt -H "Authorization: Bearer $TOKEN" --json \\
    '{{"backend":"{backend}","key_id":"{key_id}","plaintext":"hello"}}' > sealed.json
  curl -sS {url}/envelope/decrypt -H "Authorization: Bearer $TOKEN" --json @sealed.json
  curl -sS {url}/keys/jwks"""


def register(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command to the parser."""
    dev = commands.add_parser("dev", help="serve on this machine, with emulated backends")
    dev.set_defaults(command=_dev)


def _dev(_options: argparse.Namespace) -> int:
    asyncio.run(_serve_development(settings(DEV)))
    return OK


async def _serve_development(chosen: Settings) -> None:
    collect_garbage_rarely()
    stopped = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stopped.set)
    async with (
        app.development(chosen) as services,
        serving(make_application(services), chosen.listen, edge_of(services)) as address,
        serving_metrics(services, chosen.metrics_listen) as metrics_address,
    ):
        print(_banner(chosen, address, metrics_address), flush=True)
        await stopped.wait()


def _banner(chosen: Settings, address: Address, metrics_address: Address | None) -> str:
    url = f"http://{address}"
    text = _BANNER.format(
        version=__version__,
        backends=_about(chosen.backends),
        data_dir=chosen.data_dir,
        url=url,
        policy=chosen.policy_path or "the bundled policy",
        trial=_trial(chosen, url),
    )
    return text if metrics_address is None else f"{text}\nMetrics are at http://{metrics_address}/metrics\n"


def _about(backends: Mapping[str, str]) -> str:
    real = [
        name
        for name, uri in backends.items()
        if uri.partition("://")[0] not in _NOT_REAL and not is_composite(uri)
    ]
    if not real:
        return "Its KMS backends are emulated"
    return f"Of its KMS backends these are real: {', '.join(real)}"


def _trial(chosen: Settings, url: str) -> str:
    """Return what can be tried; nothing where no key is known that is there, or that root may use."""
    if chosen.policy_path is not None:
        return ""  # another policy may well refuse root
    for name, uri in chosen.backends.items():
        if uri in _KEYS:
            root_key = chosen.data_dir / "root.key"
            return _TRIAL.format(url=url, root_key=root_key, backend=name, key_id=_KEYS[uri])
    return ""
