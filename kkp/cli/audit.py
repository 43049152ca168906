"""`kkp audit`: check, export, prove, vouch for and shorten the audit log, and take in what was done past it.

`verify` and `export` open the database for reading only, need no key, and also run while KKP serves. Reading
this way is the right of whoever may read the file, and leaves no record. `import` takes in the file of
`kkp envelope open --direct`, on record like any change.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Final

from kkp import app, data_dir
from kkp.audit.break_glass import AlteredError, read_record_file, unfinished
from kkp.audit.checkpoint_files import CheckpointFile
from kkp.audit.export import export, is_database, read_cursor, verify_export
from kkp.audit.sinks import is_gone
from kkp.audit.verify import UnreadableError, Verdict
from kkp.audit.verify_log import own_lines, verify_log
from kkp.cli import audit_proofs, audit_retention
from kkp.cli.common import (
    OK,
    REFUSED,
    UNUSABLE,
    check_public_key,
    origin,
    settings,
    with_foundation,
    write_private,
)
from kkp.cli.progress import shown
from kkp.cli.stored_log import OpenLog, read_log, read_log_file
from kkp.config import Settings
from kkp.errors import ConfigError
from kkp.model import Credentials
from kkp.operations.break_glass import ImportBreakGlass
from kkp.store.audit import AuditStore

BEHIND: Final = 3
TOO_OLD: Final = 4


def register(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command to the parser."""
    verbs = commands.add_parser(
        "audit", help="check, export, prove and shorten the audit log"
    ).add_subparsers(required=True, metavar="VERB")
    verify = verbs.add_parser(
        "verify",
        help="find any change in the log",
        epilog="Exit codes: 0 clean; 1 tampered; 2 the log or the checkpoints can't be read; 3 the log is "
        "behind a checkpoint or other than it says; 4 the newest checkpoint is older than --max-age.",
    )
    verify.add_argument(
        "files", nargs="*", type=Path, metavar="FILE", help="a database, or the parts of an export in order"
    )
    verify.add_argument("--checkpoints", type=Path, metavar="FILE", help="what a checkpoint sink wrote")
    verify.add_argument("--public-key", metavar="KEY", help="that must have signed them; see `kkp audit key`")
    verify.add_argument("--max-age", type=float, metavar="SECONDS", help="of the newest checkpoint")
    verify.set_defaults(command=_verify)
    exporting = verbs.add_parser("export", help="print the records as JSON lines")
    exporting.add_argument("--after", metavar="CHAIN:SEQ", help="go on behind this record")
    exporting.add_argument("--checkpoints", type=Path, metavar="FILE", help="write the checkpoints to it")
    exporting.set_defaults(command=_export)
    importing = verbs.add_parser(
        "import",
        help="take in the records of `kkp envelope open --direct`",
        epilog="What the log has already is passed over. Exit codes: 0 done; 1 the file was altered, or the "
        "log took nothing; 2 the file can't be read.",
    )
    importing.add_argument("file", type=Path, metavar="FILE", help="such as break-glass.jsonl")
    importing.set_defaults(command=_import)
    verbs.add_parser("checkpoint", help="sign a checkpoint now and print it").set_defaults(
        command=_checkpoint
    )
    verbs.add_parser("key", help="print the public key of the checkpoints").set_defaults(command=_key)
    audit_proofs.add_verbs(verbs)
    audit_retention.add_verbs(verbs)


def _verify(options: argparse.Namespace) -> int:
    if options.public_key is not None:
        check_public_key(options.public_key)
    chosen = None if options.files else settings()
    try:
        verdict = _verdict(options, chosen)
    except UnreadableError as error:
        print(f"kkp: {error}", file=sys.stderr)
        return UNUSABLE
    for part in verdict.alterations:
        print(f"the layout of the database was altered: {part}")
    for line in (*verdict.findings, *verdict.disagreements, *verdict.evidence.notes, *verdict.prunings):
        print(line)
    newest = verdict.evidence.newest
    if newest is not None:
        pinned = "pinned" if options.public_key else "not pinned: compare it with `kkp audit key`"
        print(f"checkpoints: {verdict.evidence.count}, the last is {newest}, by key {newest.key} ({pinned})")
    elif verdict.records:
        print("no checkpoints were given: a log cut at its end can't be told from a whole one")
    is_sink_set = chosen is not None and not chosen.checkpoint_sink.is_default
    code, word = _judge(verdict, options.max_age, is_sink_set=is_sink_set)
    print(f"{word}: records: {verdict.records}, chains: {verdict.chains}")
    return code


def _verdict(options: argparse.Namespace, chosen: Settings | None) -> Verdict:
    """Verify what is asked for. Checkpoints are read first: the log can only have grown since."""
    paths: Sequence[Path] = options.files
    checkpoint_path: Path | None = options.checkpoints
    sink = chosen.checkpoint_sink if chosen is not None and checkpoint_path is None else None
    if sink is not None and sink.kind == "file" and sink.path.exists():
        checkpoint_path = sink.path
    found = [CheckpointFile(checkpoint_path)] if checkpoint_path is not None else []

    def verify(opened: OpenLog) -> Verdict:
        altered = tuple(opened.foreign_parts())
        progress = shown if sys.stderr.isatty() else None
        verdict = verify_log(opened.log, found, public_key=options.public_key, progress=progress)
        return replace(verdict, alterations=altered)

    if chosen is not None:
        verdict = read_log(chosen, verify)
    elif len(paths) == 1 and is_database(paths[0]):
        verdict = read_log_file(paths[0], verify)
    else:
        checkpoints = [checkpoint for file in found for checkpoint in file.read()]
        verdict = verify_export(paths, checkpoints, public_key=options.public_key)
    if sink is not None and is_gone(sink):
        problem = f"KKP_CHECKPOINT_SINK: {sink.path} does not exist; it was deleted, or KKP never wrote to it"
        return replace(verdict, disagreements=(*verdict.disagreements, problem))
    return verdict


def _judge(verdict: Verdict, max_age: float | None, *, is_sink_set: bool) -> tuple[int, str]:
    if verdict.findings or verdict.alterations:
        return REFUSED, "tampered"
    if verdict.disagreements:
        return BEHIND, "behind or inconsistent with a checkpoint"
    newest = verdict.evidence.newest
    if newest is None and is_sink_set:
        return TOO_OLD, "clean, but there is no checkpoint"
    if max_age is not None and (newest is None or time.time() - newest.time > max_age):
        return TOO_OLD, "clean, but no checkpoint is recent enough"
    return OK, "clean"


def _export(options: argparse.Namespace) -> int:
    if options.checkpoints is not None and os.path.lexists(options.checkpoints):  # before all is printed
        raise ConfigError([f"--checkpoints {options.checkpoints}: it exists, and is not written over"])
    left_out, last = 0, options.after

    def write(opened: OpenLog) -> None:
        nonlocal left_out, last
        for record in export(opened.log, after):
            if record.line is None:
                left_out += 1
                print(f"kkp: {record.chain!r}:{record.seq!r} was tampered with, left out", file=sys.stderr)
                continue
            sys.stdout.buffer.write(record.line)
            last = f"{record.chain}:{record.seq}"
        if options.checkpoints is not None:
            lines = (line + b"\n" for _, line in own_lines(opened.log) if isinstance(line, bytes))
            write_private(options.checkpoints, lines, "--checkpoints")

    try:
        after = read_cursor(options.after) if options.after is not None else None
        read_log(settings(), write)
    except UnreadableError as error:
        print(f"kkp: {error}", file=sys.stderr)
        return UNUSABLE
    except (ValueError, LookupError) as error:
        raise ConfigError([f"--after {options.after}: {error}"]) from None
    print(f"kkp: to go on later: --after {last}", file=sys.stderr)
    return REFUSED if left_out else OK


def _import(options: argparse.Namespace) -> int:
    try:
        records = read_record_file(options.file)
    except AlteredError as error:
        print(f"kkp: {options.file} was altered: {error}; nothing was imported", file=sys.stderr)
        return REFUSED

    async def take(base: app.Foundation) -> int:
        operation = ImportBreakGlass(AuditStore(base.database), base.audit)
        with data_dir.locked(base.settings.database_path.parent):
            answer = await base.operator_pipeline().run(operation, records, Credentials(), origin())
        print(f"{answer.new} of {answer.new + answer.known} records were new, and are in the audit log now.")
        for attempt in unfinished(records):
            print(f"Attempt {attempt.chain}:{attempt.seq} has no outcome: it may have opened the envelope.")
        return OK

    return with_foundation(take)


def _checkpoint(_options: argparse.Namespace) -> int:
    async def write(base: app.Foundation) -> int:
        signed = await base.checkpoints.write()
        if signed is not None:  # always: this command's own first record is new
            print(signed.line.decode())
        return OK

    return with_foundation(write)


def _key(_options: argparse.Namespace) -> int:
    print(asyncio.run(app.checkpoint_signer(settings())).public_key)
    return OK
