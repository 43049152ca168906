"""What the commands share: exit codes, the settings, and the state that they work on."""

from __future__ import annotations

import asyncio
import gc
import os
import re
import secrets
import signal
import sys
from collections.abc import Callable, Coroutine, Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import MappingProxyType
from typing import Any

from kkp import app, data_dir, kms
from kkp.audit.signed_lines import read_public_key
from kkp.config import Check, Settings, Way, load
from kkp.errors import ConfigError
from kkp.pipeline import Origin
from kkp.ways import COMMAND

OK, REFUSED, UNUSABLE, UNREAD = 0, 1, 2, 141
# Of the commands that open and seal.
AWAY, DENIED, NO_KEY, NO_RECORD, NOT_WRITTEN, BROKEN, INTERRUPTED = 3, 4, 5, 6, 7, 8, 130
STDIN, STDOUT, _STDERR = 0, 1, 2
NO_OPTIONS: Mapping[str, str] = MappingProxyType({})
_ENDINGS = (signal.SIGTERM, signal.SIGHUP)
_SECONDS_OF = {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86400}


def settings(
    way: Way = COMMAND,
    checks: Sequence[Check] = (),
    options: Mapping[str, str] = NO_OPTIONS,
    *,
    warns: bool = True,
) -> Settings:
    """Load the settings; what looks unintended is said on standard error.

    Args:
        way: How KKP is run.
        checks: Further rules.
        options: Settings that the command line gives, over the environment's.
        warns: Whether that is to be said.

    Raises:
        ConfigError: Every problem at once.
    """
    loaded = load({**os.environ, **options}, way, schemes=kms.SCHEMES, checks=checks)
    for warning in loaded.warnings if warns else ():
        print(f"kkp: warning: {warning}", file=sys.stderr)
    return loaded


def with_foundation(command: Callable[[app.Foundation], Coroutine[Any, Any, int]]) -> int:
    """Run a command on the stored state, beside a server or without one, and return its exit code."""

    async def run() -> int:
        async with app.foundation(settings(), create=False) as base:
            return await command(base)

    return asyncio.run(run())


def origin() -> Origin:
    """Return where a command's operation comes from."""
    return Origin(request_id=secrets.token_hex(16))


def say(text: str) -> None:
    """Tell the operator, if they can be told: what is done does not depend on it."""
    with suppress(OSError):  # the terminal of a session that was lost
        data_dir.write_all(_STDERR, f"{text}\n".encode(errors="backslashreplace"))


def end_as_by_ctrl_c() -> None:
    """Have what else ends a process, such as a session that is lost, interrupt it as Ctrl-C does, and once.

    So the outcome goes on record, and no file is left behind. What is ignored, as under nohup, stays so.
    """
    heard = [number for number in _ENDINGS if signal.getsignal(number) is not signal.SIG_IGN]

    def interrupt(*_: object) -> None:
        for number in heard:
            signal.signal(number, signal.SIG_IGN)
        raise KeyboardInterrupt

    for number in heard:
        signal.signal(number, interrupt)


def to_its_end(work: Callable[[], int]) -> int:
    """Do what a command does and return its exit code, whatever ends it.

    What can't be used, and a reader that went away, `kkp.cli.main` tells. Of what nobody foresaw the kind
    alone is told: its text may hold what was worked on.
    """
    end_as_by_ctrl_c()
    try:
        return work()
    except (ConfigError, BrokenPipeError):
        raise
    except KeyboardInterrupt:
        return INTERRUPTED
    except Exception as error:  # noqa: BLE001  of any kind: nobody foresaw it
        say(f"kkp: internal: {type(error).__name__}; report it")
        return BROKEN


def check_public_key(text: str) -> None:
    """Refuse what is no public key of checkpoints.

    Raises:
        ConfigError: It is none.
    """
    try:
        read_public_key(text)
    except ValueError as error:
        raise ConfigError([f"--public-key: {error}"]) from None


def write_private(path: Path, lines: Iterable[bytes], option: str) -> None:
    """Write lines to a new file of mode 0600.

    Raises:
        ConfigError: It can't be made, or is there already.
    """
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except OSError as error:
        raise ConfigError([f"{option} {path}: {error.strerror}"]) from error
    with os.fdopen(descriptor, "wb") as file:
        file.writelines(lines)


def pair(text: str) -> tuple[str, str]:
    """Split NAME=VALUE.

    Raises:
        ConfigError: It has no equals sign.
    """
    name, separator, value = text.partition("=")
    if not separator:
        raise ConfigError([f"{text}: give NAME=VALUE"])
    return name, value


def seconds(text: str) -> int:
    """Read a time such as 90, 90s, 15m, 12h or 30d.

    Raises:
        ConfigError: It is something else.
    """
    found = re.fullmatch(r"([0-9]{1,9})([smhd]?)", text)
    if found is None:
        raise ConfigError([f"{text[:80]}: give a time such as 90, 90s, 15m, 12h or 30d"])
    return int(found[1]) * _SECONDS_OF[found[2]]


def collect_garbage_rarely() -> None:
    """Have a server look for cycles less often than every 700 objects: that is every few requests."""
    gc.freeze()  # what was imported stays
    gc.set_threshold(50_000, 20, 50)
