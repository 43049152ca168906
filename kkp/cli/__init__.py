"""The `kkp` command.

`kkp dev` and `kkp serve` serve; the rest are for the person at the machine. What they do to identities,
people, signing keys and revocations travels the same pipeline as a request, is recorded in a chain of its
own, and a running server notices by the epoch.

Exit codes: 0 done; 1 refused, or `audit verify` found tampering, or `token inspect` did not verify, or
`migrate --check` found an older layout; 2 wrong usage, a configuration that can't be used, or an audit log
that can't be read; 3 `audit verify` found the log behind or inconsistent with a checkpoint; 4 its newest
checkpoint is too old; 65 the database was rolled back under the process; 74 the disk lost a write to the
database (a failed fsync); 141 whoever read what is printed went away before the end, as a shell says of
SIGPIPE. Those of `envelope open`, and of `token mint`, `encrypt` and `decrypt`, are in their --help.

A command is a module with `register`, and a name in `_COMMANDS`. Only the one that is asked for is loaded:
what the servers need of HTTP takes longer to load than most of the others take to run.
"""

from __future__ import annotations

import argparse
import importlib
import logging
import os
import resource
import sys
from collections.abc import Callable, Sequence
from typing import NoReturn

from kkp import __version__
from kkp.cli.common import REFUSED, UNREAD, UNUSABLE
from kkp.errors import ConfigError, KKPError, StateUntrustedError

_KEY_OPTION = "--public-key"
_UNTRUSTED = "kkp: somebody else wrote to the database; `kkp doctor` says where, and what to do"
_COMMANDS = (
    "dev",
    "serve",
    "init",
    "migrate",
    "identity",
    "account",
    "keys",
    "revoke",
    "token",
    "audit",
    "encrypt",
    "decrypt",
    "envelope",
    "master",
    "doctor",
    "ready",
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code."""
    given = sys.argv[1:] if arguments is None else arguments
    options = _parser(*given[:1]).parse_args(_with_key_joined(given))
    os.umask(0o077)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # a core dump would hold keys
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s %(message)s")
    command: Callable[[argparse.Namespace], int] = options.command
    try:
        code = command(options)
        sys.stdout.flush()
    except BrokenPipeError:  # whoever read it has seen enough, as `head` has
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return UNREAD
    except ConfigError as error:
        for problem in error.problems:
            print(f"kkp: {problem}", file=sys.stderr)
        return UNUSABLE
    except KKPError as error:
        print(f"kkp: {error.code}: {error}", file=sys.stderr)
        if isinstance(error, StateUntrustedError):
            print(_UNTRUSTED, file=sys.stderr)
        return REFUSED
    return code


def _with_key_joined(given: Sequence[str]) -> list[str]:
    """Join a public key with its option: one key in 64 begins with a dash, and would pass for an option."""
    joined = list(given)
    if _KEY_OPTION in joined[:-1]:
        at = joined.index(_KEY_OPTION)
        joined[at : at + 2] = [f"{_KEY_OPTION}={joined[at + 1]}"]
    return joined


class _Parser(argparse.ArgumentParser):
    """Says where help is when it refuses; its commands are of its kind."""

    def error(self, message: str) -> NoReturn:
        super().error(f"{message}; see {self.prog} --help")


def _parser(asked: str = "") -> argparse.ArgumentParser:
    """Return the parser of the command that is asked for, or of all if there is no such command."""
    parser = _Parser(prog="kkp", description="The keyless KMS proxy.")
    parser.add_argument("--version", action="version", version=f"kkp {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for command in [asked] if asked in _COMMANDS else _COMMANDS:
        importlib.import_module(f"kkp.cli.{command}").register(commands)
    return parser
