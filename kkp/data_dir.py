"""The files that KKP keeps: the data directory, the master key, root's service key and the database's file.

Key files are made once, whole or not at all, mode 0600 and with fsync. A database's file is made empty, mode
0600 whatever the umask. All of them are refused later if others can touch them; a secret that root hands to
KKP's group is not (`is_exposed`).
Nothing here ever prints what is in them.
"""

from __future__ import annotations

import base64
import fcntl
import os
import secrets
import stat
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from kkp.config import decode_master_key
from kkp.errors import ConfigError

_OTHERS = stat.S_IRWXG | stat.S_IRWXO
_OTHERS_WRITE = stat.S_IWGRP | stat.S_IWOTH
_NEW_FILE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
_COPIED_BYTES = 1024 * 1024  # at a time
_SQLITE_COMPANIONS = ("-wal", "-shm", "-journal")  # SQLite gives those that it makes the database's mode


def is_open_to_others(mode: int) -> bool:
    """Tell whether anybody but the owner can read, write or enter what has this mode."""
    return bool(mode & _OTHERS)


def is_writable_by_others(mode: int) -> bool:
    """Tell whether anybody but the owner can write what has this mode."""
    return bool(mode & _OTHERS_WRITE)


def is_exposed(status: os.stat_result) -> bool:
    """Tell whether a secret file can be read or written by anybody that it is not meant for.

    It is its owner's alone. One of root's may also be readable by its group, as PostgreSQL takes its keys:
    that is how Kubernetes hands a Secret to a process that is not root (`fsGroup`), and nobody but root can
    do so. Root itself needs no group, so to root its own files are like anybody's.
    """
    of_root = status.st_uid == 0 and os.geteuid() != 0
    return bool(status.st_mode & (_OTHERS & ~stat.S_IRGRP if of_root else _OTHERS))


def open_private(path: Path, flags: int, name: str) -> int:
    """Open a file that is its owner's alone; a link is not followed.

    Args:
        path: The file; made with mode 0600 where the flags ask for it.
        flags: Those of `os.open`.
        name: What the file is to whoever gave it.

    Raises:
        FileNotFoundError: There is none.
        ConfigError: What is there is a link or no file, belongs to somebody else, or others can touch it.
    """
    try:
        descriptor = os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, 0o600)
    except FileNotFoundError:
        raise
    except OSError as error:  # ELOOP: a link in its place
        raise ConfigError([f"{name}: {path} can't be opened ({error.strerror})"]) from error
    status = os.fstat(descriptor)
    problem = None
    if not stat.S_ISREG(status.st_mode):
        problem = "is no file"
    elif status.st_uid != os.geteuid():
        problem = "belongs to somebody else"
    elif is_open_to_others(status.st_mode):
        problem = f"can be touched by others; run: chmod 600 {path}"
    if problem:
        os.close(descriptor)
        raise ConfigError([f"{name}: {path} {problem}"])
    return descriptor


@contextmanager
def locked(directory: Path) -> Iterator[None]:
    """Keep every other command that does this to the directory out for the duration of the block.

    Raises:
        OSError: It can't be opened.
    """
    with _opened_directory(directory) as descriptor:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield


@contextmanager
def _opened_directory(directory: Path) -> Iterator[int]:
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def write_all(descriptor: int, content: bytes) -> None:
    """Write every byte.

    Raises:
        OSError: Some were not written.
    """
    remaining = memoryview(content)
    while remaining:
        remaining = remaining[os.write(descriptor, remaining) :]


def flush_directory(directory: Path) -> None:
    """Make the names in a directory durable: a file's own fsync doesn't keep its name.

    Raises:
        OSError: It can't be opened or flushed.
    """
    with _opened_directory(directory) as descriptor:
        os.fsync(descriptor)


def prepare(directory: Path) -> None:
    """Make the data directory, or check the one there is.

    Raises:
        ConfigError: It can't be made, or others can enter it.
    """
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError([f"KKP_DATA_DIR: {directory} can't be used ({error.strerror})"]) from error
    check(directory)


def check(directory: Path) -> None:
    """Check the data directory.

    Raises:
        ConfigError: It can't be read, or others can enter it.
    """
    try:
        mode = directory.stat().st_mode
    except FileNotFoundError:
        problem = f"KKP_DATA_DIR: {directory} does not exist; start `kkp dev` there first, or run `kkp init`"
        raise ConfigError([problem]) from None
    except OSError as error:
        raise ConfigError([f"KKP_DATA_DIR: {directory} can't be used ({error.strerror})"]) from error
    if is_open_to_others(mode):
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
        status = path.stat()
        text = path.read_text("ascii")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError([f"{name}: {path} can't be read ({type(error).__name__})"]) from None
    if is_exposed(status):
        raise ConfigError([_open_to_others(name, path)])
    return text.rstrip("\n")


def prepare_database(path: Path, *, create: bool = True) -> None:
    """Make an empty database file for its owner only, or check the one there is and what lies beside it.

    Args:
        path: The file.
        create: Whether it may be made.

    Raises:
        ConfigError: It can't be made or is no file, or others can read or write it.
    """
    problems: list[str] = []
    try:
        if create:
            with suppress(FileExistsError):  # a planted link exists, too, and is not written through
                os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))
        found = path.stat()
        mode = found.st_mode
        if not stat.S_ISREG(mode):
            raise ConfigError([f"KKP_DATABASE_URL: {path} is no file; give sqlite:///path/to/kkp.db"])
        if not create and not found.st_size:  # it would be laid out anew, in place of whatever was lost
            raise ConfigError([f"KKP_DATABASE_URL: {path} is empty; name the database, or run `kkp init`"])
        if is_open_to_others(mode):
            problems.append(_open_to_others("KKP_DATABASE_URL", path))
        real = path.resolve()  # SQLite follows a link before it names them
        for companion in (real.with_name(real.name + suffix) for suffix in _SQLITE_COMPANIONS):
            with suppress(FileNotFoundError):  # it comes and goes with whoever uses the database
                if is_open_to_others(companion.stat().st_mode):
                    problems.append(_open_to_others("KKP_DATABASE_URL", companion))
    except OSError as error:
        raise ConfigError(
            [f"KKP_DATABASE_URL: the database can't be opened ({path}: {error.strerror})"]
        ) from error
    if problems:
        raise ConfigError(problems)


def is_missing_or_empty(path: Path) -> bool:
    """Tell whether there is no such file, or nothing in it."""
    return not path.exists() or not path.stat().st_size


def read_only_uri(path: Path) -> str:
    """Return the SQLite URI that reads a database, with a server beside it or without, and makes no file.

    Reading a database in WAL mode makes the files of its log. Where there is no log, nobody has the database
    open and nothing is missing from it, so it is read as it lies.
    """
    real = path.resolve()
    has_log = real.with_name(f"{real.name}-wal").exists()
    return f"{real.as_uri()}?mode=ro{'' if has_log else '&immutable=1'}"


def _open_to_others(name: str, path: Path) -> str:
    return f"{name}: others can read or write {path}; run: chmod 600 {path}"


def write_secret(path: Path, text: str) -> None:
    """Write a new secret file of one line; see `write_new`.

    Raises:
        ConfigError: It exists or can't be written.
    """
    try:
        write_new(path, f"{text}\n".encode("ascii"))
    except OSError as error:
        raise ConfigError([f"{path} can't be written ({error.strerror})"]) from error


def write_new(path: Path, content: bytes) -> None:
    """Write a new file for its owner only and make it durable; never overwrite one. See `whole_file`.

    Raises:
        OSError: It exists or can't be written; then there is nothing of it.
    """
    with whole_file(path) as descriptor:
        write_all(descriptor, content)


@contextmanager
def whole_file(path: Path, *, replaces: bool = False) -> Iterator[int]:
    """Give the descriptor of a new file for its owner only, which has its name once it is whole and on disk.

    Until then it has none, so that whatever ends the block or the process leaves all of it or nothing. Where
    the filesystem has no files without a name, it has another one until then, and a kill leaves that; where
    it has no links either (FAT), a kill in the last moment can leave an empty file of the name.

    Args:
        path: Its name.
        replaces: Whether it takes the place of a file that has the name.

    Raises:
        OSError: It exists or can't be written; then there is nothing of it.
    """
    with ExitStack() as stack:
        descriptor, source = _unnamed_file(path, stack)
        yield descriptor
        os.fsync(descriptor)
        if replaces:
            _named(descriptor, source, path, stack).replace(path)
        else:
            _give_name(descriptor, source, path, stack)
    flush_directory(path.parent)


def _unnamed_file(path: Path, stack: ExitStack) -> tuple[int, Path]:
    """Return a new file that does not last beyond the stack, and where it can be linked from."""
    try:
        descriptor = os.open(path.parent, os.O_RDWR | os.O_TMPFILE | os.O_CLOEXEC, 0o600)
        source = Path(f"/proc/self/fd/{descriptor}")
    except OSError:  # it has no such files; whatever else is wrong is met again
        source = _beside(path, stack)
        descriptor = os.open(source, _NEW_FILE, 0o600)
    stack.callback(os.close, descriptor)
    return descriptor, source


def _give_name(descriptor: int, source: Path, path: Path, stack: ExitStack) -> None:
    """Give the file its name, which nobody else's has."""
    try:
        _link(source, path)
    except FileExistsError:
        raise
    except OSError:  # it has no links, or there is no /proc; whatever else is wrong is met again
        named = _named(descriptor, source, path, stack)
        os.close(os.open(path, _NEW_FILE, 0o600))  # from here on the name is ours
        try:
            named.replace(path)
        except BaseException:
            path.unlink()
            raise


def _named(descriptor: int, source: Path, path: Path, stack: ExitStack) -> Path:
    """Return a file of this content, with a name beside its own that does not last beyond the stack."""
    if source.parent == path.parent:
        return source
    named = _beside(path, stack)
    try:
        _link(source, named)
    except OSError:
        _copy(descriptor, named)
    return named


def _beside(path: Path, stack: ExitStack) -> Path:
    beside = path.with_name(f"{path.name}.{secrets.token_hex(8)}.new")
    stack.callback(beside.unlink, missing_ok=True)
    return beside


def _link(source: Path, path: Path) -> None:
    """Give a file a name; unlike a rename, it never overwrites."""
    with _opened_directory(path.parent) as directory:
        # Without a directory Python calls link(2), which takes what lies in /proc and not where it leads.
        os.link(source, path.name, dst_dir_fd=directory, follow_symlinks=True)


def _copy(descriptor: int, path: Path) -> None:
    copied = os.open(path, _NEW_FILE, 0o600)
    try:
        os.lseek(descriptor, 0, os.SEEK_SET)
        while piece := os.read(descriptor, _COPIED_BYTES):
            write_all(copied, piece)
        os.fsync(copied)
    finally:
        os.close(copied)
