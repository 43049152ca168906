"""`kkp audit prune`: delete old records of the audit log, on record and so that what is left still verifies.

It also runs while KKP serves, may be stopped at any time, and goes on where it stopped when it is run again.
"""

from __future__ import annotations

import argparse
import re
import sys
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from kkp import app
from kkp.audit.checkpoints import CheckpointSigner
from kkp.audit.retention import Pruner
from kkp.cli.common import OK, origin, with_foundation
from kkp.cli.progress import Progress
from kkp.errors import ConfigError
from kkp.model import Credentials
from kkp.operations.pruning import PruneAudit, PruneRequest
from kkp.store.checkpoints import CheckpointStore
from kkp.store.retention import RetentionStore

_DAY_SECONDS: Final = 86_400


def add_verbs(verbs: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command to those of `kkp audit`."""
    prune = verbs.add_parser(
        "prune",
        help="delete old records, so that what is left still verifies",
        epilog="Whole segments of 4,096 records go, or whole chains, and only what a delivered checkpoint "
        "lists. Exit codes: 0 done; 1 refused; 2 the settings or the directory are not fit.",
    )
    age = prune.add_mutually_exclusive_group(required=True)
    age.add_argument("--before", metavar="TIME", help="what is older than 2026-01-31 or 2026-01-31T12:00:00Z")
    age.add_argument("--keep", metavar="DAYS", help="what is older than so many days")
    prune.add_argument("--export", type=Path, metavar="DIR", help="put the records there first, with proofs")
    prune.set_defaults(command=_prune)


def _prune(options: argparse.Namespace) -> int:
    before = _moment(options.before) if options.before is not None else time.time() - _days(options.keep)
    directory: Path | None = options.export
    if directory is not None and not directory.is_dir():
        raise ConfigError([f"--export: {directory} is no directory"])
    if directory is None and options.keep is not None and _days(options.keep) == 0:
        print("kkp: warning: --keep 0 without --export: what goes is kept nowhere", file=sys.stderr)

    async def prune(base: app.Foundation) -> int:
        await base.checkpoints.write()  # so that all there is, is listed, and delivered
        checkpoints = CheckpointStore(base.database)
        pruner = Pruner(
            RetentionStore(base.database), checkpoints, CheckpointSigner(base.master_key), base.clock
        )
        bar: list[Progress] = []

        def on_slice(count: int, total: int) -> None:
            if not bar:
                bar.append(Progress(total))
            bar[0].advance(count)

        request = PruneRequest(before, directory, on_slice)
        operation = PruneAudit(pruner, base.audit)
        answer = await base.operator_pipeline().run(operation, request, Credentials(), origin())
        for progress in bar:
            progress.close()
        for path in answer.files:
            print(f"exported: {path}")
        records = sum(map(len, answer.pruned))
        print(f"pruned: {records} records of {len(answer.pruned)} chains")
        return OK

    return with_foundation(prune)


def _moment(text: str) -> float:
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        raise ConfigError([f"--before: {text[:80]}: give a time such as 2026-01-31T12:00:00Z"]) from None
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=UTC)
    if moment.timestamp() > time.time():
        raise ConfigError(["--before: that time has not come yet"])
    return moment.timestamp()


def _days(text: str) -> int:
    if re.fullmatch(r"[0-9]{1,5}", text) is None:
        raise ConfigError([f"--keep: {text[:80]}: give a number of days"])
    return int(text) * _DAY_SECONDS
