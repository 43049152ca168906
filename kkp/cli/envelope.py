"""`kkp envelope open --direct`: open an envelope or a stream past KKP, with the operator's own credentials.

For when KKP is down and what is sealed is needed: there is no lock-in. No server, database, policy or audit
log takes part; docs/runbooks/break-glass.md says when and how. Whoever may use the key in the cloud could do
the same by hand, so nothing here stops them; it makes them say so, and keeps a record.

Rules that hold here:
- Nothing is done before the person has typed the sentence (or a script has given it) and a reason.
- The attempt is on disk before a backend is asked, and the outcome before a plaintext is released: no
  record, no plaintext.
- A plaintext is released whole, after every check of `kkp.envelope`, and never to a terminal unasked.
- Neither a key, a plaintext nor a value of a context is printed or recorded.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Final, NamedTuple

import msgspec

from kkp import envelope as envelopes
from kkp import streams
from kkp.audit.break_glass import MAX_REASON_CHARACTERS, RecordFile
from kkp.cli import reach
from kkp.cli.common import (
    AWAY,
    BROKEN,
    DENIED,
    NO_KEY,
    NO_RECORD,
    NOT_WRITTEN,
    OK,
    REFUSED,
    STDOUT,
    UNUSABLE,
    pair,
    say,
    settings,
    to_its_end,
)
from kkp.cli.direct import Act, NotWrittenError, open_on_record
from kkp.clock import SteadyClock
from kkp.config import Settings, given, load_backend_limits
from kkp.envelope import DetachedEnvelope, Envelope
from kkp.errors import (
    AuditUnavailableError,
    ConfigError,
    EnvelopeInvalidError,
    KeyDisabledError,
    KKPError,
    KMSDeniedError,
    KMSUnavailableError,
    UnknownKeyError,
)
from kkp.model import BackendLimits
from kkp.strict_json import refuse_duplicates
from kkp.ways import COMMAND

ACKNOWLEDGEMENT: Final = "I open this envelope past KKP and will account for it"

_CODES: Final = (
    (EnvelopeInvalidError, REFUSED),
    (ConfigError, UNUSABLE),
    (KMSUnavailableError, AWAY),
    (KMSDeniedError, DENIED),
    (UnknownKeyError, NO_KEY),
    (KeyDisabledError, NO_KEY),
    (AuditUnavailableError, NO_RECORD),
)
_EPILOG: Final = (
    "Exit codes: 0 opened; 1 the envelope was altered, or is not this key's or context's; 2 what was given "
    "can't be used: no acknowledgement or reason, no such file, no envelope, no such backend, no "
    "credentials; 3 the backend can't be reached, failed or asks to wait; 4 the backend refused your "
    "credentials; 5 the key does not exist, or is disabled; 6 the record could not be made durable; 7 the "
    "plaintext could not be written; 8 a fault of KKP's; 130 interrupted. Nothing but 0 means that the "
    "plaintext was written whole. "
    "docs/runbooks/break-glass.md has the steps."
)
_MAX_FILE_BYTES: Final = 96 * 1024 * 1024  # 64 MiB of plaintext in base64url, and what stands around it


class _Answer(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What `/envelope/encrypt` answers, an envelope in it."""

    envelope: msgspec.Raw


class _Uses(NamedTuple):
    """The backends, what each may take, where the record goes by default, and the settings for the rest."""

    uris: Mapping[str, str]
    limits: BackendLimits
    data_dir: Path
    settings: Callable[[], Settings]


def register(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command to the parser."""
    verbs = commands.add_parser("envelope", help="open an envelope past KKP, in an emergency").add_subparsers(
        required=True, metavar="VERB"
    )
    opening = verbs.add_parser(
        "open", help="open an envelope with your own cloud credentials, without KKP", epilog=_EPILOG
    )
    opening.add_argument(
        "file", type=Path, metavar="FILE", help="the envelope, or the answer that it came in, or a stream"
    )
    opening.add_argument(
        "--direct",
        action="store_true",
        required=True,
        help="past KKP, its policy and its audit log; through KKP it is POST /envelope/decrypt",
    )
    opening.add_argument("--reason", required=True, metavar="TEXT", help="why; it is recorded")
    opening.add_argument(
        "--acknowledge", metavar="SENTENCE", help=f"for scripts, in place of typing it: {ACKNOWLEDGEMENT!r}"
    )
    opening.add_argument(
        "--backend",
        action="append",
        default=[],
        metavar="NAME=URI",
        help="a backend, in place of those of KKP_BACKENDS and kkp.toml; may be given several times",
    )
    opening.add_argument(
        "--output", type=Path, metavar="FILE", help="a new file for the plaintext, mode 0600; default: stdout"
    )
    opening.add_argument(
        "--to-terminal", action="store_true", help="print the plaintext even where that is a terminal"
    )
    opening.add_argument(
        "--record",
        type=Path,
        metavar="FILE",
        help="where the record goes; default: break-glass.jsonl in the data directory, without one here",
    )
    opening.set_defaults(command=_open)


def _open(options: argparse.Namespace) -> int:
    return to_its_end(partial(_opened, options))


def _opened(options: argparse.Namespace) -> int:
    try:
        uses = _uses(options.backend)
        act = _prepared(options, uses)
        _acknowledge(options.acknowledge, act)
        where = uses.data_dir if uses.data_dir.is_dir() else Path()
        with RecordFile(options.record or where / "break-glass.jsonl", SteadyClock()) as records:
            open_on_record(act, records)
    except KKPError as error:
        return _told(error)
    except NotWrittenError as error:
        say(f"kkp: the plaintext could not be written: {error}")
        return NOT_WRITTEN
    return OK


def _told(error: KKPError) -> int:
    for problem in error.problems if isinstance(error, ConfigError) else [f"{error.code}: {error}"]:
        say(f"kkp: {problem}")
    return next((code for kind, code in _CODES if isinstance(error, kind)), BROKEN)


def _uses(named: Sequence[str]) -> _Uses:
    """Return the backends of the command line; else those of the settings, which must be good then.

    With those of the command line, of the settings only `KKP_KMS_*` must be good.
    """
    if not named:
        chosen = settings()
        return _Uses(chosen.backends, chosen.backend_limits, chosen.data_dir, lambda: chosen)
    uris = dict(map(pair, named))
    if len(uris) != len(named):
        raise ConfigError(["--backend: two have one name; give each of them once"])
    texts = {item.name: item.text for item in given(os.environ, COMMAND)}
    return _Uses(uris, load_backend_limits(os.environ), Path(texts["KKP_DATA_DIR"]), settings)


def _prepared(options: argparse.Namespace, uses: _Uses) -> Act:
    """Check whatever can be checked without a key.

    Raises:
        ConfigError: Something that was given can't be used.
    """
    reason = options.reason.strip()
    if not reason or not reason.isprintable() or len(reason) > MAX_REASON_CHARACTERS:
        raise ConfigError([f"--reason: give one line of {MAX_REASON_CHARACTERS} characters at most"])
    if options.output is not None and os.path.lexists(options.output):
        raise ConfigError(
            [f"--output {options.output}: it exists, and is not overwritten; name another file"]
        )
    if options.output is None and os.isatty(STDOUT) and not options.to_terminal:
        raise ConfigError(["stdout is a terminal: give --output FILE, or --to-terminal if you mean it"])
    envelope = _read_line(options.file) or _read(options.file)
    name = envelope.wrap.backend
    if name not in uses.uris:
        known = ", ".join(uses.uris)
        problem = f"the envelope is of the backend {name!r}, and there are {known}"
        raise ConfigError([f"{problem}; give --backend NAME=URI"])
    chosen = reach.needed(name, uses.uris)
    return Act(envelope, options.file, chosen, uses.settings, uses.limits, reason, options.output)


def _read_line(path: Path) -> DetachedEnvelope | None:
    """Read what a stream begins with; None if the file holds none, or can be read only once."""
    try:
        if not path.is_file():
            return None
        with path.open("rb") as file:
            return streams.read_line(file)
    except (OSError, EnvelopeInvalidError):
        return None


def _read(path: Path) -> Envelope:
    """Read an envelope, or an answer with one in it.

    Raises:
        ConfigError: It can't be read, or is none.
    """
    try:
        with path.open("rb") as file:
            raw = file.read(_MAX_FILE_BYTES + 1)
    except OSError as error:
        raise ConfigError([f"{path}: it can't be read ({error.strerror})"]) from None
    if len(raw) > _MAX_FILE_BYTES:
        raise ConfigError([f"{path}: it is larger than any envelope"])
    try:
        refuse_duplicates(raw)
        return envelopes.parse(_unwrapped(raw))
    except (ValueError, RecursionError, EnvelopeInvalidError):
        raise ConfigError(
            [f"{path}: it is no envelope with its ciphertext, and no stream; give it as it was made"]
        ) from None


def _unwrapped(raw: bytes) -> bytes | msgspec.Raw:
    try:
        return msgspec.json.decode(raw, type=_Answer).envelope
    except msgspec.ValidationError:
        return raw


def _acknowledge(sentence: str | None, act: Act) -> None:
    """Have the person say that they mean it.

    Raises:
        ConfigError: They did not.
    """
    if sentence is None and sys.stdin.isatty():
        wrap = act.envelope.wrap
        print(
            f"This opens the envelope {act.digest}\n"
            f"under the key {wrap.key_id!r} of {wrap.backend!r}, with your own credentials and past policy.\n"
            f"It goes on record. To go on, type: {ACKNOWLEDGEMENT}",
            file=sys.stderr,
        )
        sentence = sys.stdin.readline().rstrip("\n")
    if sentence != ACKNOWLEDGEMENT:
        raise ConfigError([f"nothing was done: acknowledge it with --acknowledge {ACKNOWLEDGEMENT!r}"])
