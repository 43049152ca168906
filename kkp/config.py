"""The settings: environment variables `KKP_*` over `kkp.toml` over defaults.

Every setting stands in one table with its default, its parser and what a good value looks like. Loading
reports every problem at once, each with its cure; nothing starts on a half-good configuration. In
`kkp.toml` a setting carries its name in lower case without the prefix (`token_ttl_secs = 300`), and
backends may also be tables (`[backends.aws]` with `uri = "aws-kms://eu-west-1"`).

A `KKP_*` variable that names no setting is reported as a warning, not refused: Kubernetes itself injects
such variables for a service called `kkp`. An unknown name in `kkp.toml` is a problem.
"""

from __future__ import annotations

import base64
import binascii
import ipaddress
import re
import tomllib
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import msgspec

from kkp.errors import ConfigError
from kkp.model import JSON
from kkp.ring_times import SETTINGS as RING_SETTINGS
from kkp.ring_times import RingTimes

_BACKEND_NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,31}\Z")
_LOOPBACK_NAMES = frozenset({"localhost"})
_SQLITE = "sqlite:///"
_MAX_PLAINTEXT_CEILING = 64 * 1024 * 1024
_DEV_BACKENDS = "aws=memory://aws,gcp=memory://gcp,azure=memory://azure,local=local://"
# Refused by name: whoever sets one relies on it, and to ignore it would be worse.
_NOT_SERVED = {
    "KKP_OPA_URL": "`kkp dev` decides with the policy in process; unset it",
    "KKP_OPA_TIMEOUT_MS": "`kkp dev` decides with the policy in process; unset it",
    "KKP_MASTER_KEY_KMS": "give KKP_MASTER_KEY or KKP_MASTER_KEY_FILE instead",
}


@dataclass(frozen=True, slots=True)
class Address:
    """A host and a TCP port to listen on."""

    host: str
    port: int

    @property
    def is_loopback(self) -> bool:
        """Whether only this machine can reach the address."""
        if self.host in _LOOPBACK_NAMES:
            return True
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return False

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{host}:{self.port}"


@dataclass(frozen=True, slots=True)
class Settings:
    """Everything that can be set, checked.

    Attributes:
        listen: Where the API listens.
        data_dir: Holds the database and the keys of `kkp dev`; mode 0700.
        database_url: SQLAlchemy URL.
        master_key: The key itself, when it came by the environment.
        master_key_file: The file that holds it otherwise.
        issuer: `iss` of every token; an absolute URL (RFC 8414).
        policy_path: A Rego file or a bundle directory; None for the bundled policy.
        backends: Backend name to URI, in the order given.
        max_plaintext_bytes: The largest plaintext that an envelope takes.
        ring_times: The keyring's times, which keep the start-up rules V1 to V9.
        warnings: Things that are not wrong but look unintended.
    """

    listen: Address
    data_dir: Path
    database_url: str = field(repr=False)  # a database URL may carry a password
    master_key: bytes | None = field(repr=False)
    master_key_file: Path
    issuer: str
    policy_path: Path | None
    backends: Mapping[str, str]
    max_plaintext_bytes: int
    ring_times: RingTimes
    warnings: tuple[str, ...] = ()

    @property
    def database_path(self) -> Path:
        """The SQLite file of `database_url`."""
        return Path(self.database_url.removeprefix(_SQLITE))


def _optional_seconds(text: str) -> float | None:
    return float(text) if text else None


def _count(text: str) -> int:
    if not re.fullmatch(r"[0-9]{1,12}", text) or int(text) == 0:
        raise ValueError
    return int(text)


def _flag(text: str) -> bool:
    return {"1": True, "true": True, "0": False, "false": False, "": False}[text.lower()]


def _address(text: str) -> Address:
    parts = urlsplit(f"//{text}")
    extras = parts.path or parts.query or parts.fragment
    if not parts.hostname or parts.port is None or extras or parts.username is not None:
        raise ValueError
    return Address(parts.hostname, parts.port)


def _master_key(text: str) -> bytes | None:
    return decode_master_key(text) if text else None


def decode_master_key(text: str) -> bytes:
    """Return the 32 bytes of a master key written as base64url (RFC 4648 section 5), padded or not.

    Raises:
        ValueError: It is something else; the message does not repeat it.
    """
    try:
        key = base64.b64decode(text.strip().rstrip("=") + "=", altchars=b"-_", validate=True)
    except (binascii.Error, ValueError):
        key = b""
    if len(key) != 32:  # noqa: PLR2004  AES-256 and HMAC-SHA-256
        raise ValueError("a master key is 32 bytes in base64url")
    return key


def _issuer(text: str) -> str:
    # urlsplit drops the tabs and newlines that it meets; `iss` would keep them.
    if not re.fullmatch(r"[\x21-\x7e]*", text):
        raise ValueError
    parts = urlsplit(text)
    if text and (parts.scheme not in {"http", "https"} or not parts.hostname or parts.netloc.endswith(":")):
        raise ValueError
    # A delimiter counts even where nothing follows it, because `iss` is compared as it is written.
    if "?" in text or "#" in text or "@" in parts.netloc:
        raise ValueError
    if parts.port == 0:  # any other impossible port raises as it is read
        raise ValueError
    return text.rstrip("/")


def _plaintext_limit(text: str) -> int:
    value = _count(text)
    if value > _MAX_PLAINTEXT_CEILING:
        raise ValueError
    return value


def _backends(text: str) -> dict[str, str]:
    backends: dict[str, str] = {}
    for item in filter(None, (part.strip() for part in text.split(","))):
        name, separator, uri = item.partition("=")
        if not separator or not _BACKEND_NAME.match(name) or "://" not in uri or name in backends:
            raise ValueError
        backends[name] = uri
    if not backends:
        raise ValueError
    return backends


@dataclass(frozen=True, slots=True)
class _Setting:
    default: str
    parse: Callable[[str], object]
    good: str
    secret: bool = False


_SECONDS_HINT = "a number of seconds"
_SETTINGS: Mapping[str, _Setting] = {
    "KKP_LISTEN_ADDR": _Setting(
        "127.0.0.1:8080", _address, "host:port, such as 127.0.0.1:8080 or [::1]:8080"
    ),
    "KKP_DEV_ALLOW_REMOTE": _Setting("0", _flag, "1 or 0"),
    "KKP_DATA_DIR": _Setting("./.kkp", Path, "a directory"),
    "KKP_DATABASE_URL": _Setting("", str, "sqlite:///path/to/kkp.db"),
    "KKP_MASTER_KEY": _Setting("", _master_key, "32 random bytes in base64url", secret=True),
    "KKP_MASTER_KEY_FILE": _Setting("", str, "a file of mode 0600"),
    "KKP_ISSUER": _Setting("", _issuer, "an http or https URL without user, query or fragment", secret=True),
    "KKP_POLICY_PATH": _Setting("", str, "a Rego file or a bundle directory"),
    "KKP_BACKENDS": _Setting(
        _DEV_BACKENDS, _backends, "a list such as aws=memory://aws,local=local://", secret=True
    ),
    "KKP_MAX_PLAINTEXT_BYTES": _Setting("1048576", _plaintext_limit, "bytes, from 1 to 67108864"),
    "KKP_TOKEN_TTL_SECS": _Setting("300", float, _SECONDS_HINT),
    "KKP_MIN_TOKEN_TTL_SECS": _Setting("", _optional_seconds, _SECONDS_HINT),
    "KKP_KEY_TTL_SECS": _Setting("1800", float, _SECONDS_HINT),
    "KKP_KEY_ROTATION_SECS": _Setting("900", float, _SECONDS_HINT),
    "KKP_MAX_ACTIVE_KEYS": _Setting("5", _count, "a positive whole number"),
    "KKP_JWKS_MAX_AGE_SECS": _Setting("300", float, _SECONDS_HINT),
    "KKP_JWKS_MAX_AGE_FLOOR_SECS": _Setting("30", float, _SECONDS_HINT),
    "KKP_VERIFIER_CACHE_SECS": _Setting("600", float, _SECONDS_HINT),
    "KKP_VERIFIER_LEEWAY_SECS": _Setting("60", float, _SECONDS_HINT),
    "KKP_REPLICA_STALENESS_SECS": _Setting("60", float, _SECONDS_HINT),
    "KKP_POLL_SECS": _Setting("5", float, _SECONDS_HINT),
    "KKP_CLOCK_ERROR_SECS": _Setting("5", float, _SECONDS_HINT),
    "KKP_FETCH_SECS": _Setting("10", float, _SECONDS_HINT),
}
_DEFAULT_MIN_TTL_SECONDS = 60.0


def load(environ: Mapping[str, str], *, schemes: Collection[str]) -> Settings:
    """Read and check the settings of `kkp dev`.

    Args:
        environ: The process's environment.
        schemes: The backend URI schemes that this installation serves.

    Raises:
        ConfigError: Lists every problem and its cure.
    """
    problems: list[str] = []
    texts = _texts(environ, problems)
    values = _parse(texts, problems)
    _refuse_not_served(environ, problems)
    _check_listen(texts, values, problems)
    _check_database(texts, problems)
    _check_master_key(texts, problems)
    _check_policy_path(texts, problems)
    _check_backends(values, schemes, problems)
    ring_times = _ring_times(values, problems)
    if problems:
        raise ConfigError(problems)
    return _settings(texts, values, ring_times, _warnings(environ))


@dataclass(frozen=True, slots=True)
class Given:
    """A setting's text as it was given, unchecked, and where it came from.

    Attributes:
        text: Maybe a secret, maybe a URL with a password in it.
        source: `environment`, `default`, or the file's path.
        secret: Whether a problem with it is told without its text.
    """

    name: str
    text: str = field(repr=False)
    source: str
    secret: bool


def given(environ: Mapping[str, str]) -> tuple[Given, ...]:
    """Return every setting of the table; a file that can't be used gives none, and `load` says so."""
    config_path = environ.get("KKP_CONFIG", "")
    from_file = _file_texts(config_path, [])
    found = []
    for name, setting in _SETTINGS.items():
        text, source = setting.default, "default"
        if environ.get(name):
            text, source = environ[name], "environment"
        elif name in from_file:
            text, source = from_file[name], config_path or "kkp.toml"
        found.append(Given(name, text, source, setting.secret))
    return tuple(found)


def _texts(environ: Mapping[str, str], problems: list[str]) -> dict[str, str]:
    """Return every setting's text, the environment's before the file's before the default."""
    texts = {name: setting.default for name, setting in _SETTINGS.items()}
    texts.update(_file_texts(environ.get("KKP_CONFIG", ""), problems))
    texts.update({name: environ[name] for name in _SETTINGS if environ.get(name)})
    return texts


def _file_texts(config_path: str, problems: list[str]) -> dict[str, str]:
    path = Path(config_path or "kkp.toml")
    if not config_path and not path.exists():
        return {}
    try:
        document = tomllib.loads(path.read_text("utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        problems.append(
            f"KKP_CONFIG: {path} can't be read as TOML ({type(error).__name__}); mend or unset it"
        )
        return {}
    backends = document.pop("backends", None)
    texts: dict[str, str] = {}
    for key, value in document.items():
        name = f"KKP_{key.upper()}"
        if name not in _SETTINGS or key != key.lower() or isinstance(value, dict | list):
            problems.append(f"{path}: `{key}` is not a setting; see the README's table of settings")
        else:
            texts[name] = str(value)
    if backends is not None:
        _file_backends(backends, path, texts, problems)
    return texts


def _file_backends(backends: JSON, path: Path, texts: dict[str, str], problems: list[str]) -> None:
    try:
        tables = msgspec.convert(backends, str | dict[str, _BackendTable])
    except msgspec.ValidationError:
        problems.append(f"{path}: [backends.<name>] takes one string member, `uri`")
        return
    if not isinstance(tables, str):
        tables = ",".join(f"{name}={table.uri}" for name, table in tables.items())
    texts["KKP_BACKENDS"] = tables


class _BackendTable(msgspec.Struct, forbid_unknown_fields=True):
    uri: str


def _parse(texts: Mapping[str, str], problems: list[str]) -> dict[str, object]:
    values: dict[str, object] = {}
    for name, setting in _SETTINGS.items():
        text = texts[name]
        try:
            values[name] = setting.parse(text)
        except (ValueError, KeyError):
            shown = "its value" if setting.secret else f"{text[:80]!r}"
            problems.append(f"{name}: {shown} can't be used; give {setting.good}")
    return values


def _refuse_not_served(environ: Mapping[str, str], problems: list[str]) -> None:
    problems.extend(f"{name}: not served; {cure}" for name, cure in _NOT_SERVED.items() if environ.get(name))


def _check_listen(texts: Mapping[str, str], values: Mapping[str, object], problems: list[str]) -> None:
    address = values.get("KKP_LISTEN_ADDR")
    if not isinstance(address, Address):
        return  # its parser has already reported it
    if address.port == 0 and not texts["KKP_ISSUER"]:
        problems.append(
            f"KKP_LISTEN_ADDR: {address} leaves the port open, and without KKP_ISSUER the address is the "
            "issuer of every token; give a port, or set KKP_ISSUER"
        )
    if not address.is_loopback and not values.get("KKP_DEV_ALLOW_REMOTE"):
        problems.append(
            f"KKP_LISTEN_ADDR: {address} can be reached from other machines and `kkp dev` is a development "
            "server; listen on 127.0.0.1, or set KKP_DEV_ALLOW_REMOTE=1 if you mean it"
        )


def _check_database(texts: Mapping[str, str], problems: list[str]) -> None:
    url = texts["KKP_DATABASE_URL"]
    # An in-memory database would be another one for each connection.
    if url and not re.match(re.escape(_SQLITE) + r"(?!:memory:)[^?]+\Z", url):
        problems.append("KKP_DATABASE_URL: only a SQLite file is served; give sqlite:///path/to/kkp.db")


def _check_master_key(texts: Mapping[str, str], problems: list[str]) -> None:
    if texts["KKP_MASTER_KEY"] and texts["KKP_MASTER_KEY_FILE"]:
        problems.append("KKP_MASTER_KEY and KKP_MASTER_KEY_FILE: give exactly one of them")


def _check_policy_path(texts: Mapping[str, str], problems: list[str]) -> None:
    path = texts["KKP_POLICY_PATH"]
    if path and not Path(path).exists():
        problems.append(f"KKP_POLICY_PATH: {path} does not exist; give a Rego file or a bundle directory")


def _check_backends(values: Mapping[str, object], schemes: Collection[str], problems: list[str]) -> None:
    backends = values.get("KKP_BACKENDS")
    if not isinstance(backends, dict):
        return
    for name, uri in backends.items():
        scheme = uri.partition("://")[0]
        if scheme not in schemes:
            served = ", ".join(sorted(schemes))
            problems.append(f"KKP_BACKENDS: {name} has the unknown scheme {scheme!r}; served are {served}")


def _ring_times(values: Mapping[str, object], problems: list[str]) -> RingTimes:
    known: dict[str, Any] = {field: values[name] for field, name in RING_SETTINGS.items() if name in values}
    if "min_ttl" in known and known["min_ttl"] is None:
        # A short token lifetime on its own is a good wish; its least useful part shrinks with it.
        token_ttl = known.get("token_ttl", _DEFAULT_MIN_TTL_SECONDS)
        known["min_ttl"] = max(1.0, min(_DEFAULT_MIN_TTL_SECONDS, token_ttl))
    times = RingTimes(**known)
    problems.extend(times.problems(unknown=RING_SETTINGS.keys() - known.keys()))
    return times


def _warnings(environ: Mapping[str, str]) -> tuple[str, ...]:
    known = {*_SETTINGS, *_NOT_SERVED, "KKP_CONFIG"}
    return tuple(
        f"{name} is not a setting of KKP and is ignored"
        for name in sorted(environ)
        if name.startswith("KKP_") and name not in known
    )


def _settings(
    texts: Mapping[str, str], values: Mapping[str, object], ring_times: RingTimes, warnings: tuple[str, ...]
) -> Settings:
    listen, data_dir = values["KKP_LISTEN_ADDR"], values["KKP_DATA_DIR"]
    master_key, backends = values["KKP_MASTER_KEY"], values["KKP_BACKENDS"]
    max_plaintext = values["KKP_MAX_PLAINTEXT_BYTES"]
    # What the parsers promise, said to the type checker.
    assert isinstance(listen, Address) and isinstance(data_dir, Path)  # noqa: S101, PT018
    assert isinstance(backends, dict) and isinstance(max_plaintext, int)  # noqa: S101, PT018
    assert master_key is None or isinstance(master_key, bytes)  # noqa: S101
    return Settings(
        listen=listen,
        data_dir=data_dir,
        database_url=texts["KKP_DATABASE_URL"] or f"{_SQLITE}{data_dir / 'kkp.db'}",
        master_key=master_key,
        master_key_file=Path(texts["KKP_MASTER_KEY_FILE"] or data_dir / "master.key"),
        issuer=str(values["KKP_ISSUER"]) or f"http://{listen}",
        policy_path=Path(texts["KKP_POLICY_PATH"]) if texts["KKP_POLICY_PATH"] else None,
        backends=backends,
        max_plaintext_bytes=max_plaintext,
        ring_times=ring_times,
        warnings=warnings,
    )
