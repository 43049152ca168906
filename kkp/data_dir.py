"""The files of `kkp dev`: the data directory, the master key and root's service key.

Key files are made once, whole or not at all, mode 0600 and with fsync, and are refused later if others can
read them.
Nothing here ever prints what is in them.
"""

from __future__ import annotations

import base64
import os
import secrets
import stat
from pathlib import Path

from kkp.config import decode_master_key
from kkp.errors import ConfigError

_OTHERS = stat.S_IRWXG | stat.S_IRWXO


def prepare(directory: Path) -> None:
    """Make the data directory, or check the one there is.

    Raises:
        ConfigError: It can't be made, or others can enter it.
    """
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        mode = directory.stat().st_mode
    except OSError as error:
        raise ConfigError([f"KKP_DATA_DIR: {directory} can't be used ({error.strerror})"]) from error
    if mode & _OTHERS:
        raise ConfigError([f"KKP_DATA_DIR: others can enter {directory}; run: chmod 700 {directory}"])


def master_key(path: Path, *, may_create: bool) -> bytes:
    """Return the master key in a file, making the file first if that is allowed.

    Raises:
        ConfigError: The file is missing, can be read by others, or holds something else.
    """
    if may_create and not path.exists():
        write_secret(path, base64.urlsafe_b64encode(os.urandom(32)).decode())
    try:
        return decode_master_key(read_secret(path, "KKP_MASTER_KEY_FILE"))
    except ValueError as error:
        raise ConfigError([f"KKP_MASTER_KEY_FILE: {path}: {error}"]) from None


def read_secret(path: Path, name: str) -> str:
    """Return the one line of a secret file.

    Raises:
        ConfigError: It can't be read, or others can read it.
    """
    try:
        mode = path.stat().st_mode
        text = path.read_text("ascii")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError([f"{name}: {path} can't be read ({type(error).__name__})"]) from None
    if mode & _OTHERS:
        raise ConfigError([f"{name}: others can read {path}; run: chmod 600 {path}"])
    return text.rstrip("\n")


def write_secret(path: Path, text: str) -> None:
    """Write a new secret file and make it durable; never overwrite one.

    The file gets its name once it is whole on disk: a crash leaves no half-written key under that name, only
    a complete one, or a file that nothing reads.

    Raises:
        ConfigError: It exists or can't be written.
    """
    unnamed = path.with_name(f"{path.name}.{secrets.token_hex(8)}.new")
    try:
        descriptor = os.open(unnamed, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        try:
            with os.fdopen(descriptor, "w", encoding="ascii") as file:
                file.write(f"{text}\n")
                file.flush()
                os.fsync(file.fileno())
            os.link(unnamed, path)  # unlike a rename, it never overwrites
        finally:
            unnamed.unlink()
        directory = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)
    except OSError as error:
        raise ConfigError([f"{path} can't be written ({error.strerror})"]) from error
