"""`kkp dev`: serve on this machine, with emulated backends."""

from __future__ import annotations

import argparse
import asyncio
import signal

from kkp import __version__, app
from kkp.cli.common import OK, collect_garbage_rarely, settings
from kkp.config import Address, Settings
from kkp.ways import DEV
from kkp.web.metrics import serving_metrics
from kkp.web.routes import make_application
from kkp.web.server import serving

_BANNER = """\
KKP {version}: a development server. Its KMS backends are emulated and its keys lie in {data_dir}.
Do not put real secrets into it, and do not let other machines reach it.

Listening on {url}. It decides by {policy}.{trial}
"""
_TRIAL = """ Try, from this directory:

  KEY=$(cat {root_key})
  TOKEN=$(curl -sS {url}/token -H "Authorization: Bearer $KEY" --json \\
    '{{"audience":"orders-db","backend":"aws","key_id":"alias/orders","ops":["encrypt","decrypt"]}}' |
    python3 -c 'import json,sys; a = json.load(sys.stdin); print(a["token"] if "token" in a else a)')
  curl -sS {url}/envelope/encrypt -H "Authorization: Bearer $TOKEN" --json \\
    '{{"backend":"aws","key_id":"alias/orders","plaintext":"hello"}}' > sealed.json
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
        serving(
            make_application(services),
            chosen.listen,
            observe=services.metrics.request if services.metrics is not None else None,
        ) as address,
        serving_metrics(services, chosen.metrics_listen),
    ):
        _print_banner(chosen, address)
        await stopped.wait()


def _print_banner(chosen: Settings, address: Address) -> None:
    url = f"http://{address}"
    trial = _TRIAL.format(url=url, root_key=chosen.data_dir / "root.key")
    text = _BANNER.format(
        version=__version__,
        data_dir=chosen.data_dir,
        url=url,
        policy=chosen.policy_path or "the bundled policy",
        trial=trial if chosen.policy_path is None else "",  # another policy may well refuse root
    )
    print(text, flush=True)
