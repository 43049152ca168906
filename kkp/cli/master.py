"""`kkp master`: rotate the master key while servers run, and say how it stands.

`rotate` makes a new key and renews every row; run again, it goes on where it was cut off. Where a KMS key
wraps the key it needs nothing more. Where a file or the environment holds it, the new key goes elsewhere
(`--to-file`, `--to`), every replica is given it, and `finish` ends the former one.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from kkp import app
from kkp.cli.common import OK, origin, with_foundation
from kkp.config import GOOD_KMS_KEY, Settings, kms_key
from kkp.errors import ConfigError
from kkp.master_key import MasterKey
from kkp.model import Credentials
from kkp.operations.master_key import FinishMasterKey, RotateMasterKey, ShowMasterKey
from kkp.store.master_keys import MasterKeyStore
from kkp.unlock import FileTarget, KMSTarget, Target

_FINISHED = """\
The former key opens nothing any more in this database. Destroy its copies, once no backup needs it, and
destroy the backups that were made since the rotation began: with the former key they give the new one."""
_UNWRAPPED_ALL_THE_SAME = """\
The KMS key still unwraps what it wrapped before. Who knows the former key and writes the database could put
it back: set KKP_MASTER_KEY_CHECK to the value above, or rotate --to another KMS key and disable this one."""
_UNFINISHED = """\
The former key still opens the database, so that replicas can be restarted one after the other: give each of
them the new key, and the value above if KKP_MASTER_KEY_CHECK is set, then run, with it: kkp master finish"""


def register(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command to the parser."""
    master = commands.add_parser("master", help="rotate the master key, or say how it stands")
    verbs = master.add_subparsers(required=True, metavar="VERB")
    status = verbs.add_parser("status", help="say what holds the key, and whether a rotation is unfinished")
    status.set_defaults(command=_status)
    rotate = verbs.add_parser("rotate", help="put everything under a new key, or go on with that")
    target = rotate.add_mutually_exclusive_group()
    target.add_argument("--to", metavar="URI#KEY", help="have the new key wrapped by this key of a KMS")
    target.add_argument("--to-file", metavar="PATH", help="keep the new key in this file; it is made")
    rotate.set_defaults(command=_rotate)
    finish = verbs.add_parser("finish", help="end the former key, once every replica has the new one")
    finish.set_defaults(command=_finish)


def _status(_options: argparse.Namespace) -> int:
    async def show(base: app.Foundation) -> int:
        operation = ShowMasterKey(MasterKeyStore(base.database))
        standing = await base.operator_pipeline().run(operation, None, Credentials(), origin())
        kept = " and ".join(standing.wraps) or "a file or the environment"
        print(f"master key {standing.check_value.hex()[:16]}, kept by {kept}")
        print(named(base.master_key))
        if standing.is_renewing:
            print("A rotation was cut off: rows are under two keys; run: kkp master rotate")
        elif standing.former_opens:
            print(_UNFINISHED)
        else:
            print("Everything is under this key, and no other opens the database.")
        return OK

    return with_foundation(show)


def _rotate(options: argparse.Namespace) -> int:
    async def rotate(base: app.Foundation) -> int:
        target = _target(base.settings, options.to, options.to_file)
        operation = RotateMasterKey(
            MasterKeyStore(base.database),
            base.master_keys,
            app.UNDER_THE_MASTER_KEY,
            base.clock,
            notice_seconds=2 * base.settings.ring_times.poll,
        )
        answer = await base.operator_pipeline().run(operation, target, Credentials(), origin())
        begun = "A new key took over" if answer.began else "The rotation went on where it had been cut off"
        print(f"{begun}; {answer.rows} rows were renewed.")
        print(_finished(base) if answer.finished else f"{named(base.master_key)}\n{_UNFINISHED}")
        return OK

    return with_foundation(rotate)


def _target(settings: Settings, uri: str | None, path: str | None) -> Target | None:
    if path is not None:
        return FileTarget(Path(path))
    if uri is not None:
        try:
            return KMSTarget(kms_key(uri), settings.backend_limits)
        except ValueError:  # it may hold a credential, and is not repeated
            raise ConfigError([f"master rotate --to: it can't be used; give {GOOD_KMS_KEY}"]) from None
    if settings.master_key_kms is None:
        return None
    return KMSTarget(settings.master_key_kms, settings.backend_limits)


def _finish(_options: argparse.Namespace) -> int:
    async def finish(base: app.Foundation) -> int:
        operation = FinishMasterKey(MasterKeyStore(base.database), base.master_keys)
        await base.operator_pipeline().run(operation, None, Credentials(), origin())
        print(_finished(base))
        return OK

    return with_foundation(finish)


def _finished(base: app.Foundation) -> str:
    is_rewrappable = base.settings.master_key_kms is not None and not base.settings.master_key_checks
    lines = [named(base.master_key), _FINISHED, *([_UNWRAPPED_ALL_THE_SAME] if is_rewrappable else [])]
    return "\n".join(lines)


def named(master_key: MasterKey) -> str:
    """Return the setting that names this master key; it is no secret."""
    return f"KKP_MASTER_KEY_CHECK={master_key.check_value().hex()}"
