"""`kkp audit`: check the audit log."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from kkp.audit.verify import UnreadableError, verify_sqlite
from kkp.cli.common import OK, REFUSED, UNUSABLE, settings


def register(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command to the parser."""
    audit = commands.add_parser("audit", help="check the audit log")
    verify = audit.add_subparsers(required=True, metavar="VERB").add_parser(
        "verify", help="find any change in the log"
    )
    verify.add_argument("file", nargs="?", type=Path, help="a database; by default the data directory's")
    verify.set_defaults(command=_audit_verify)


def _audit_verify(options: argparse.Namespace) -> int:
    path = options.file or settings().database_path
    try:
        verdict = verify_sqlite(path)
    except UnreadableError as error:
        print(f"kkp: {path}: {error}", file=sys.stderr)
        return UNUSABLE
    for finding in verdict.findings:
        print(finding)
    counted = f"records: {verdict.records}, chains: {verdict.chains}"
    print(f"tampered: {counted}" if verdict.findings else f"clean: {counted}")
    return REFUSED if verdict.findings else OK
