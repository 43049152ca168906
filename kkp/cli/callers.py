"""What the commands share that call a running KKP from outside: options, exit codes, and their client.

The client is a package of its own, kkp-client, which is not installed beside every server. It is loaded as
one of these commands runs, with `kkp.cli.calling`, and by nothing else.
"""

from __future__ import annotations

import argparse
import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Final

from kkp.errors import ConfigError

CREDENTIAL: Final = (
    "The credential is the service key in KKP_SERVICE_KEY, or in the file of KKP_SERVICE_KEY_FILE."
)
CODES: Final = (
    "Exit codes: 0 done; 1 what was to be opened is no stream, was altered or cut, or is not this key's; 2 "
    "what was given can't be used; 3 KKP can't be reached, fails or asks to wait, or what answers is no KKP; "
    "4 KKP refused, as policy says or for the credential; 5 the backend or its key does not exist, or is "
    "disabled; 7 the output could not be written; 8 a fault of KKP's; 130 interrupted; 141 who reads the "
    "output went away."
)
_MODULE: Final = "kkp.cli.calling"


def calling(name: str) -> Callable[[argparse.Namespace], int]:
    """Return a command, which loads the client as it runs."""

    def command(options: argparse.Namespace) -> int:
        try:
            module = importlib.import_module(_MODULE)
        except ModuleNotFoundError as error:
            cure = "in a checkout of KKP, `pip install ./sdk/python` brings it"
            raise ConfigError([f"this needs kkp-client, and there is no {error.name}; {cure}"]) from error
        run: Callable[[argparse.Namespace], int] = getattr(module, name)
        return run(options)

    return command


def add_kkp(command: argparse.ArgumentParser) -> None:
    """Add the options that say which KKP is called."""
    command.add_argument("--url", metavar="URL", help="where KKP is; default: KKP_URL")
    command.add_argument(
        "--ca-file",
        metavar="FILE",
        help="the authorities of its TLS certificate, in PEM; default: KKP_CA_FILE, else those of the system",
    )
    command.add_argument(
        "--approval",
        metavar="RELEASE",
        help="where somebody else must approve this first: what they were given for the id that the refusal "
        "tells; it is good for this caller alone, and not for a token on the way",
    )


def add_key(command: argparse.ArgumentParser) -> None:
    """Add the options that name a key."""
    command.add_argument("--backend", required=True, metavar="NAME", help="the key's backend")
    command.add_argument("--key-id", required=True, metavar="ID", help="the key")


def add_audience(command: argparse.ArgumentParser, told: str) -> None:
    """Add the option that says whom a token is for."""
    command.add_argument("--audience", metavar="NAME", help=f"{told}; default: KKP_AUDIENCE")


def add_pairs(command: argparse.ArgumentParser, option: str, told: str) -> None:
    """Add an option that may be given several times, each with a name and a value."""
    command.add_argument(
        option, action="append", default=[], metavar="NAME=VALUE", help=f"{told}; may be given several times"
    )


def add_files(command: argparse.ArgumentParser, beside: str) -> None:
    """Add the options of what makes one file of another."""
    command.add_argument("file", type=Path, metavar="FILE", help="the file; - is standard input")
    command.add_argument(
        "-o",
        "--output",
        type=Path,
        metavar="OUT",
        help=f"the file to write, mode 0600; - is standard output; default: {beside}, and - for -",
    )
    command.add_argument("--force", action="store_true", help="overwrite it if it is there")
