"""What asks a running KKP as any of its callers does: `kkp token mint`, `kkp encrypt` and `kkp decrypt`.

These commands need no data directory and run wherever a caller is. Here alone is kkp-client loaded, and never
by a server; their options stand in `kkp.cli.token`, `kkp.cli.encrypt` and `kkp.cli.decrypt`.

Rules that hold here:
- The credential comes from `KKP_SERVICE_KEY`, or from the file that `KKP_SERVICE_KEY_FILE` names. It is never
  an argument, which every account on the machine can see.
- Standard output has the token, or what is made of the file, and nothing else. No message holds a credential,
  a key, a token or a plaintext.
- A file has its name once it is whole and on disk, and is its owner's alone; whatever ends the command before
  leaves nothing of it. None is overwritten but with `--force`, and the one that is read never.
- What goes to a pipe is released chunk by chunk, each after its own tag; it is whole if all ends with 0.
"""

from __future__ import annotations

import argparse
import logging
import os
import ssl
import stat
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Final, TypeAlias

from kkp_client import envelope, stream, strict_json
from kkp_client.errors import (
    ConfigurationError,
    EnvelopeInvalidError,
    KKPError,
    ProblemError,
    TransportError,
)
from kkp_client.local import SyncLocalEnvelope
from kkp_client.messages import Scope
from kkp_client.sync_client import SyncKKPClient

from kkp import data_dir
from kkp.cli.common import (
    AWAY,
    DENIED,
    NO_KEY,
    NO_OPTIONS,
    NOT_WRITTEN,
    OK,
    REFUSED,
    STDIN,
    STDOUT,
    UNUSABLE,
    pair,
    say,
    seconds,
    to_its_end,
)
from kkp.cli.moments import absolute
from kkp.cli.progress import Progress
from kkp.errors import ConfigError

Write: TypeAlias = Callable[[bytes], None]

SUFFIX: Final = ".kkp"
_PIPE: Final = Path("-")
_READ_BYTES: Final = 1_048_576
_MEGABYTE: Final = 1_000_000
_NO_SUCH_KEY: Final = frozenset({"unknown_backend", "unknown_key", "key_disabled"})
_UNUSABLE_REQUEST: Final = "invalid_request"
_TOO_MANY: Final = 429
_BEGINNING: Final = "kkp: what was written before that is a beginning at best, and not to be used"
_NO_STREAM: Final = "this is not a stream of KKP's, or its first line was altered"
_WHOLE_ENVELOPE: Final = (
    "this is a whole envelope: `kkp decrypt` opens streams; KKP opens this at /envelope/decrypt, and a "
    "client with `decrypt`"
)
_SERVER_ERRORS: Final = 500


def mint(options: argparse.Namespace) -> int:
    """Print a token."""
    scope = Scope(
        audience=_audience(options),
        backend=options.backend,
        key_id=options.key_id,
        ops=options.op or None,
        subject=options.subject,
        ttl_seconds=None if options.ttl is None else seconds(options.ttl),
        policy_claims=_pairs("--claim", options.claim),
        context=_pairs("--context", options.context),
    )

    def work() -> None:
        with _client(options) as client:
            token = client.token(scope).token
        data_dir.write_all(STDOUT, f"{token}\n".encode())

    return _done(work, hints=_about_ttl(options.ttl))


def _about_ttl(ttl: str | None) -> Mapping[str, str]:
    """Return what to say of a TTL if KKP can't use what was asked for; its answer does not tell what."""
    if ttl is None:
        return NO_OPTIONS
    limit = "from 1s to KKP's KKP_TOKEN_TTL_SECS, which is 5m unless set"
    return {_UNUSABLE_REQUEST: f"kkp: if it is for --ttl {ttl}: give a time such as 90s or 5m, {limit}"}


def encrypt(options: argparse.Namespace) -> int:
    """Make a stream of a file."""
    source: Path = options.file
    target = _target(options, Path(f"{source}{SUFFIX}"))
    context = _pairs("--context", options.context)

    def sealed(local: SyncLocalEnvelope, plaintext: Iterable[bytes]) -> Iterator[bytes]:
        return local.seal_stream(
            plaintext,
            backend=options.backend,
            key_id=options.key_id,
            context=context,
            associated_data=options.associated_data,
        )

    return _done(lambda: _through(options, target, sealed), target)


def decrypt(options: argparse.Namespace) -> int:
    """Make the file again that a stream was made of."""
    source: Path = options.file
    target = _target(options, source.with_suffix("") if source.suffix == SUFFIX else None)
    scope = Scope(audience=_audience(options))

    def opened(local: SyncLocalEnvelope, sealed: Iterator[bytes]) -> Iterator[bytes]:
        return local.open_stream(_stream(sealed), scope=scope)

    return _done(lambda: _through(options, target, opened), target)


def _stream(pieces: Iterator[bytes]) -> Iterator[bytes]:
    """Return the same pieces, once they are known to begin as a stream does.

    Raises:
        EnvelopeInvalidError: They don't; it says what they are, as far as that shows.
    """
    read: list[bytes] = []

    def kept() -> Iterator[bytes]:
        for piece in pieces:
            read.append(piece)
            yield piece

    try:
        stream.read_line(kept())
    except EnvelopeInvalidError:
        told = _WHOLE_ENVELOPE if _is_whole_envelope(b"".join(read)) else _NO_STREAM
    else:
        return chain(read, pieces)
    raise EnvelopeInvalidError(told)


def _is_whole_envelope(content: bytes) -> bool:
    """Tell whether this is an envelope, or KKP's answer with one."""
    try:
        document = strict_json.loads(content)
        members = document if isinstance(document, dict) else {}
        inner = members.get("envelope", members)
        envelope.parse(inner if isinstance(inner, dict) else {})
    except (ValueError, EnvelopeInvalidError):
        return False
    return True


def _done(
    work: Callable[[], None], target: Path | None = None, *, hints: Mapping[str, str] = NO_OPTIONS
) -> int:
    """Do it, and return its exit code; what can't be used, or read, `kkp.cli.main` tells.

    Args:
        work: What is done.
        target: The file that it writes; None for standard output.
        hints: What else is to be said, by the codes of errors.
    """
    logging.getLogger("httpx").setLevel(logging.WARNING)  # it tells of each request

    def told() -> int:
        try:
            work()
        except BrokenPipeError:
            raise
        except KKPError as error:
            say(f"kkp: {error.code}: {_told(error)}")
            if error.code in hints:
                say(hints[error.code])
            return _code(error)
        except OSError as error:
            name, why = target or "standard output", error.strerror or type(error).__name__
            say(f"kkp: {name}: the output could not be written ({why})")
            return NOT_WRITTEN
        return OK

    return to_its_end(told)


def _told(error: KKPError) -> str:
    details = {
        "approval": error.approval_id,
        "waits until": error.approval_expires_at and absolute(error.approval_expires_at),
        "reasons": ", ".join(error.reasons),
        "decision": error.decision_id,
        "request": error.request_id,
        "again in seconds": error.retry_after_seconds,
    }
    known = [f"{name} {value}" for name, value in details.items() if value]
    is_kkps = error.status is not None and not isinstance(error, TransportError)
    told = "KKP refused" if is_kkps else str(error)  # its text would say the code and these once more
    return f"{told} ({'; '.join(known)})" if known else told


def _code(error: KKPError) -> int:
    if isinstance(error, EnvelopeInvalidError):
        return REFUSED
    if isinstance(error, ConfigurationError) or error.code == _UNUSABLE_REQUEST:
        return UNUSABLE
    if not isinstance(error, ProblemError) or error.status is None:
        return AWAY
    if error.code in _NO_SUCH_KEY:
        return NO_KEY
    return AWAY if error.status == _TOO_MANY or error.status >= _SERVER_ERRORS else DENIED


def _client(options: argparse.Namespace) -> SyncKKPClient:
    """Return a client of the KKP that was named.

    Raises:
        ConfigError: None was, or there is no credential for it.
    """
    url = options.url or os.environ.get("KKP_URL")
    if not url:
        raise ConfigError(["where is KKP? Give --url, or set KKP_URL"])
    authorities = options.ca_file or os.environ.get("KKP_CA_FILE")
    client = SyncKKPClient(
        url,
        _credential(os.environ),
        ssl_context=_ssl_context(authorities) if authorities else None,
    )
    return client if options.approval is None else client.approved(options.approval)


def _audience(options: argparse.Namespace) -> str:
    audience = options.audience or os.environ.get("KKP_AUDIENCE")
    if not audience:
        raise ConfigError(["for whom is the token? Give --audience, or set KKP_AUDIENCE"])
    return str(audience)


def _credential(environ: Mapping[str, str]) -> str:
    """Return the service key.

    Raises:
        ConfigError: There is none, or two, or it lies where others can read it.
    """
    key, file = environ.get("KKP_SERVICE_KEY"), environ.get("KKP_SERVICE_KEY_FILE")
    if key and file:
        raise ConfigError(["KKP_SERVICE_KEY and KKP_SERVICE_KEY_FILE are both set: unset one"])
    if not key and not file:
        raise ConfigError(["set KKP_SERVICE_KEY_FILE, the file with the service key, or KKP_SERVICE_KEY"])
    return key or data_dir.read_secret(Path(str(file)), "KKP_SERVICE_KEY_FILE")


def _ssl_context(authorities: str) -> ssl.SSLContext:
    try:
        return ssl.create_default_context(cafile=authorities)
    except OSError as error:  # also of what is no certificate
        raise ConfigError(
            [f"KKP_CA_FILE: {authorities}: it can't be used ({type(error).__name__})"]
        ) from None


def _pairs(option: str, given: Iterable[str]) -> Mapping[str, str]:
    pairs = list(map(pair, given))
    if len(dict(pairs)) != len(pairs):
        raise ConfigError([f"{option}: a name is given twice"])
    return dict(pairs)


def _target(options: argparse.Namespace, beside: Path | None) -> Path | None:
    """Return the file that is to be written; None for standard output.

    Raises:
        ConfigError: There is no name for it, it is there already, it is what is read, or it is a terminal.
    """
    target = options.output or (_PIPE if options.file == _PIPE else beside)
    if target is None:
        raise ConfigError([f"{options.file}: it does not end in {SUFFIX}; name the file to write with -o"])
    if target == _PIPE:
        if os.isatty(STDOUT):
            raise ConfigError(["standard output is a terminal: name the file to write with -o"])
        return None
    if os.path.lexists(target):
        if not stat.S_ISREG(target.lstat().st_mode):
            raise ConfigError([f"{target}: it is there, and is no file"])
        if _is_read(options.file, target):
            raise ConfigError([f"{target}: it is the file that is read; write another one"])
        if not options.force:
            raise ConfigError([f"{target}: it is there; --force overwrites it"])
    return Path(target)


def _is_read(source: Path, target: Path) -> bool:
    """Tell whether a file that is there is the one that is read, under whatever name."""
    try:
        read = os.fstat(STDIN) if source == _PIPE else source.stat()
    except OSError:  # it can't be read, which is said where it is tried
        return False
    return os.path.samestat(read, target.stat())


def _through(
    options: argparse.Namespace,
    target: Path | None,
    made: Callable[[SyncLocalEnvelope, Iterator[bytes]], Iterator[bytes]],
) -> None:
    """Write what is made of the file that is read."""
    with _client(options) as client, _read(options.file) as pieces:
        chunks = made(SyncLocalEnvelope(client), pieces)
        with _written(target, is_forced=options.force) as write:
            for chunk in chunks:
                write(chunk)


@contextmanager
def _read(path: Path) -> Iterator[Iterator[bytes]]:
    """Give a file's bytes, piece by piece, and show how far that is.

    Raises:
        ConfigError: It can't be read.
    """
    try:
        descriptor = STDIN if path == _PIPE else os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise _unread(path, error) from None
    size = os.fstat(descriptor).st_size or None  # a pipe has none
    progress = Progress(size, unit="MB", unit_size=_MEGABYTE)
    try:
        yield _pieces(descriptor, path, progress.advance)
    finally:
        progress.close()
        if descriptor != STDIN:
            os.close(descriptor)


def _pieces(descriptor: int, path: Path, advance: Callable[[int], None]) -> Iterator[bytes]:
    while piece := _piece(descriptor, path):
        advance(len(piece))
        yield piece


def _piece(descriptor: int, path: Path) -> bytes:
    try:
        return os.read(descriptor, _READ_BYTES)
    except OSError as error:
        raise _unread(path, error) from None


def _unread(path: Path, error: OSError) -> ConfigError:
    return ConfigError([f"{path}: it can't be read ({error.strerror})"])


@contextmanager
def _written(target: Path | None, *, is_forced: bool) -> Iterator[Write]:
    """Give what writes to a file, which has its name at the end; or to standard output."""
    if target is None:
        try:
            yield partial(data_dir.write_all, STDOUT)
        except EnvelopeInvalidError:
            say(_BEGINNING)
            raise
        return
    with data_dir.whole_file(target, replaces=is_forced) as descriptor:
        yield partial(data_dir.write_all, descriptor)
