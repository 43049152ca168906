"""The settings: environment variables `KKP_*` over `kkp.toml` over defaults.

Every setting stands in one table with its default, its parser and what a good value looks like. Loading
reports every problem at once, each with its cure; nothing starts on a half-good configuration. In
`kkp.toml` a setting carries its name in lower case without the prefix (`token_ttl_secs = 300`), and
backends may also be tables (`[backends.aws]` with `uri = "aws-kms://eu-west-1"`), those of a composite with
a table for each key (`[backends.both.keys.orders]` with `members = ["aws:alias/orders", "gcp:orders"]`).

What a setting must be depends on the `Way` that KKP is run (`kkp.ways`). Rules that only a room above can
judge come in as `Check`s. All are told in one breath.

A `KKP_*` variable that names no setting is reported as a warning, not refused: Kubernetes itself injects
such variables for a service called `kkp`. An unknown name in `kkp.toml` is a problem.
"""

from __future__ import annotations

import base64
import binascii
import ipaddress
import re
import tomllib
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple
from urllib.parse import quote, urlencode, urlsplit

import msgspec

from kkp import backend_tables, certificates, issuers
from kkp.backend_tables import BACKEND_NAME
from kkp.certificates import Certificates
from kkp.errors import ConfigError
from kkp.issuers import Issuer
from kkp.model import JSON, BackendLimits
from kkp.peers import Network, parse_networks
from kkp.postgres_address import GOOD as GOOD_POSTGRES
from kkp.postgres_address import PostgresAddress, is_postgres, read_address
from kkp.ring_times import SETTINGS as RING_SETTINGS
from kkp.ring_times import RingTimes

_BACKENDS_TEXT = re.compile(r"^\s*backends\s*=", re.MULTILINE)
_BACKENDS_TABLE = re.compile(r"^\s*\[\s*backends\s*\.", re.MULTILINE)
_LOOPBACK_NAMES = frozenset({"localhost"})
_SQLITE = "sqlite:///"
_LONGEST_INTERVAL_SECONDS = 3600.0
_MIN_LIST_SECONDS, _MAX_LIST_SECONDS = 10, 3600
_MAX_PLAINTEXT_CEILING = 64 * 1024 * 1024
_HELD_BODY_BYTES = 64 * 1024 * 1024
_MIN_DATA_KEY_AGE_SECONDS, _MAX_DATA_KEY_AGE_SECONDS = 1, 3600
_MAX_CACHED_DATA_KEYS = 100_000
# What SP 800-38D lets a single AES-GCM key do, although the messages of a data key have a key each.
_MAX_DATA_KEY_MESSAGES = 2**32
_MAX_DATA_KEY_BYTES = 2**36
_MAX_OPA_TIMEOUT_MS = 1_000  # a decision that took longer is stale
_MAX_KMS_TIMEOUT_MS = 60_000
_MAX_DRAIN_SECONDS = 600
_MAX_WORKERS = 64
_MAX_SESSION_SECONDS = 86_400
_MAX_MASTER_KEY_CHECKS = 2  # the present key's, and its successor's while one follows the other
_NOT_FOR_MASTER_KEYS = frozenset({"memory", "local", *backend_tables.COMPOSITES})
_ENVIRONMENT = "the environment"
_OF_BACKENDS = "KKP_KMS_"
_DEV_BACKENDS = "aws=memory://aws,gcp=memory://gcp,azure=memory://azure,local=local://"


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


class SinkAddress(NamedTuple):
    """Where checkpoints of the audit go, outside the database.

    Attributes:
        kind: A file that they are appended to, or a program that is handed each.
        path: Of either; absolute.
        is_default: Whether it was not set.
    """

    kind: Literal["file", "command"]
    path: Path
    is_default: bool = False


@dataclass(frozen=True, slots=True)
class KMSKey:
    """A key of a KMS.

    Attributes:
        uri: Of the KMS, as a backend's.
        key_id: The key, as the KMS names it.
    """

    uri: str = field(repr=False)  # a URI may carry a credential
    key_id: str

    @property
    def label(self) -> str:
        """What people are told of it."""
        return f"{self.scheme}://…#{self.key_id}"

    @property
    def scheme(self) -> str:
        """Which kind of KMS it is."""
        return self.uri.partition("://")[0]


class DataKeyCacheLimits(NamedTuple):
    """How long and how often a data key serves, once a backend gave it.

    Attributes:
        age_seconds: For so long.
        entries: So many are kept, of all callers.
        messages: So many messages.
        plaintext_bytes: So much plaintext, of all its messages together.
        encrypts: Whether one may also seal more than one message.
    """

    age_seconds: float
    entries: int
    messages: int
    plaintext_bytes: int
    encrypts: bool


@dataclass(frozen=True, slots=True)
class Settings:
    """Everything that can be set, checked.

    Attributes:
        listen: Where the API listens.
        tls_cert_file: PEM certificate chain of the listener; None where it speaks plain HTTP.
        tls_key_file: Its private key, mode 0600.
        client_ca_file: PEM certificates of those who vouch for clients, where a table does not say who.
        requires_client_certificate: Whether nobody is served without one; who asks for its health is.
        takes_forwarded_certificates: Whether those that trusted proxies forward are believed.
        trusted_proxies: Whose `X-Forwarded-For` is believed.
        metrics_listen: Where metrics are served, on loopback; None for nowhere.
        drain_seconds: How long a stopping server stays up, unready, before it stops listening.
        workers: How many processes serve; None for one on each core.
        data_dir: Holds the database and the keys of `kkp dev`; mode 0700.
        database_url: The database as it was named.
        postgres: Where it is, if it is PostgreSQL.
        database_password_file: The file that holds its password, if that is not in the URL.
        master_key: The key itself, when it came by the environment.
        master_key_file: The file that holds it otherwise.
        master_key_kms: The key of a KMS that wraps it, if one does.
        master_key_checks: The check values of the master keys that may be used; empty for any.
        issuer: `iss` of every token; an absolute URL (RFC 8414).
        dpop_nonce: Whether DPoP proofs must have a nonce of KKP's.
        policy_path: A Rego file or a bundle directory; None for the bundled policy.
        opa_url: The OPA sidecar; None where policy is decided in process.
        opa_timeout_seconds: How long a decision may take.
        opa_ca_file: PEM certificates that sign an https OPA's.
        policy_rule: The rule that is asked; None to find out.
        backends: Backend name to URI, in the order given.
        backend_limits: What each of them may take.
        max_plaintext_bytes: The largest plaintext that an envelope takes.
        data_key_cache: How data keys are cached; None for not at all.
        caller_rate_per_second: How fast a caller's allowance refills; 0 for no limit.
        caller_burst: How many requests a caller may send at once.
        open_signup: Whether anybody may have an account, and not only whoever was invited.
        session_ttl_seconds: How long a person's session lasts at the most.
        address_rate_per_second: How fast an address's allowance refills; 0 for no limit.
        address_burst: How many requests may come from an address at once.
        address_connections: How many connections an address may have open; 0 for no limit.
        max_held_body_bytes: How much of requests' bodies is in memory at once, of all together.
        ring_times: The keyring's times, which keep the start-up rules V1 to V9.
        revocation_list_seconds: How long the signed list of revocations may be relied on.
        checkpoint_sink: Where checkpoints of the audit go, outside the database.
        checkpoint_interval_seconds: How often one is signed at least, while anything is recorded.
        audit_min_free_bytes: What must be free beside a SQLite file for anything new to be done; 0: nothing.
        accept_rollback: The hash of the checkpoint that the database may be behind; empty for none.
        issuers: Whose tokens are taken as credentials, by name.
        certificates: Whose client certificates are, by name.
        warnings: Things that are not wrong but look unintended.
    """

    listen: Address
    tls_cert_file: Path | None
    tls_key_file: Path | None
    client_ca_file: Path | None
    requires_client_certificate: bool
    takes_forwarded_certificates: bool
    trusted_proxies: tuple[Network, ...]
    metrics_listen: Address | None
    drain_seconds: float
    workers: int | None
    data_dir: Path
    database_url: str = field(repr=False)  # a database URL may carry a password
    postgres: PostgresAddress | None
    database_password_file: Path | None
    master_key: bytes | None = field(repr=False)
    master_key_file: Path
    master_key_kms: KMSKey | None
    master_key_checks: tuple[bytes, ...] = field(repr=False)
    issuer: str
    dpop_nonce: bool
    policy_path: Path | None
    opa_url: str | None
    opa_timeout_seconds: float
    opa_ca_file: Path | None
    policy_rule: Literal["decision", "allow"] | None
    checkpoint_sink: SinkAddress
    backends: Mapping[str, str]
    backend_limits: BackendLimits
    max_plaintext_bytes: int
    data_key_cache: DataKeyCacheLimits | None
    caller_rate_per_second: int
    caller_burst: int
    open_signup: bool
    session_ttl_seconds: int
    address_rate_per_second: int
    address_burst: int
    address_connections: int
    max_held_body_bytes: int
    ring_times: RingTimes
    revocation_list_seconds: int
    checkpoint_interval_seconds: float
    audit_min_free_bytes: int
    accept_rollback: str
    issuers: Mapping[str, Issuer]
    certificates: Mapping[str, Certificates]
    warnings: tuple[str, ...] = ()

    @property
    def client_ca_files(self) -> Mapping[str, Path]:
        """The files with those whose client certificates are accepted, by the table that they are for."""
        return certificates.bundles(self.client_ca_file, self.certificates)

    @property
    def database_path(self) -> Path:
        """The SQLite file of `database_url`.

        Raises:
            ConfigError: It is no file.
        """
        if self.postgres is not None:
            raise ConfigError(
                ["KKP_DATABASE_URL: this command reads a SQLite file, and the database is a PostgreSQL"]
            )
        return Path(self.database_url.removeprefix(_SQLITE))


def _optional_path(text: str) -> Path | None:
    return Path(text) if text else None


def _optional_text(text: str) -> str | None:
    return text or None


def _optional_seconds(text: str) -> float | None:
    return float(text) if text else None


def _count(text: str) -> int:
    if not re.fullmatch(r"[0-9]{1,12}", text) or int(text) == 0:
        raise ValueError
    return int(text)


def _count_or_none(text: str) -> int:
    return 0 if text == "0" else _count(text)


def _optional_count(text: str) -> int | None:
    return _count(text) if text else None


def _flag(text: str) -> bool:
    return {"1": True, "true": True, "0": False, "false": False, "": False}[text.lower()]


def _address(text: str) -> Address:
    parts = urlsplit(f"//{text}")
    extras = parts.path or parts.query or parts.fragment
    if not parts.hostname or parts.port is None or extras or parts.username is not None:
        raise ValueError
    return Address(parts.hostname, parts.port)


def _loopback_address(text: str) -> Address | None:
    if not text:
        return None
    address = _address(text)
    if not address.is_loopback:
        raise ValueError
    return address


def _count_up_to(most: int) -> Callable[[str], int]:
    def parse(text: str) -> int:
        value = _count(text)
        if value > most:
            raise ValueError
        return value

    return parse


def _milliseconds_up_to(most: int) -> Callable[[str], float]:
    count = _count_up_to(most)
    return lambda text: count(text) / 1000


def _client_cert(text: str) -> bool:
    """Tell whether a client certificate is required."""
    return {"optional": False, "required": True}[text]


def _drain_seconds(text: str) -> float:
    value = float(text)
    if not 0 <= value <= _MAX_DRAIN_SECONDS:
        raise ValueError
    return value


def _workers(text: str) -> int | None:
    return None if text == "auto" else _count_up_to(_MAX_WORKERS)(text)


def _policy_rule(text: str) -> str | None:
    return {"": None, "decision": "decision", "allow": "allow"}[text]


def _checkpoint_sink(text: str) -> SinkAddress | None:
    if not text:
        return None
    kind, _, name = text.partition(":")
    path = Path(name)
    if kind not in {"file", "command"} or not re.fullmatch(r"/[^/].*", name):
        raise ValueError
    return SinkAddress("file" if kind == "file" else "command", path)


def _master_key(text: str) -> bytes | None:
    return decode_master_key(text) if text else None


def kms_key(text: str) -> KMSKey:
    """Return the key that `URI#KEY` names.

    Raises:
        ValueError: It names none, or one that can't wrap a master key: an emulator's is derived from it, a
            local one lies under it, and a composite's members are named elsewhere.
    """
    uri, _, key_id = text.rpartition("#")
    scheme, separator, _ = uri.partition("://")
    if not separator or not key_id or scheme in _NOT_FOR_MASTER_KEYS:
        raise ValueError
    return KMSKey(uri, key_id)


def _optional_kms_key(text: str) -> KMSKey | None:
    return kms_key(text) if text else None


def _master_key_checks(text: str) -> tuple[bytes, ...]:
    checks = tuple(text.split(",")) if text else ()
    if len(checks) > _MAX_MASTER_KEY_CHECKS or not all(
        re.fullmatch(r"[0-9a-f]{64}", each) for each in checks
    ):
        raise ValueError
    return tuple(map(bytes.fromhex, checks))


def _key_file(text: str) -> Path | None:
    if _is_key(text):
        raise ValueError
    return _optional_path(text)


def _is_key(text: str) -> bool:
    """Tell whether a text is a key where a path to one is wanted: it must not be repeated anywhere."""
    if "-----BEGIN" in text:
        return True
    try:
        decode_master_key(text)
    except ValueError:
        return False
    return True


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


def _data_key_age_seconds(text: str) -> float:
    value = float(text)
    if value != 0 and not _MIN_DATA_KEY_AGE_SECONDS <= value <= _MAX_DATA_KEY_AGE_SECONDS:
        raise ValueError
    return value


def read_backends(text: str) -> dict[str, str]:
    """Return the backends of a list `name=uri,…`, from name to URI.

    Raises:
        ValueError: It is no such list.
    """
    backends: dict[str, str] = {}
    for item in filter(None, (part.strip() for part in text.split(","))):
        name, separator, uri = item.partition("=")
        if not separator or not BACKEND_NAME.match(name) or "://" not in uri or name in backends:
            raise ValueError
        backends[name] = uri
    if not backends:
        raise ValueError
    return backends


def _interval(text: str) -> float:
    seconds = float(text)
    if not 0 < seconds <= _LONGEST_INTERVAL_SECONDS:
        raise ValueError
    return seconds


def _signup(text: str) -> bool:
    return {"code": False, "open": True}[text]


def _revocation_list_seconds(text: str) -> int:
    seconds = _count(text)
    if not _MIN_LIST_SECONDS <= seconds <= _MAX_LIST_SECONDS:
        raise ValueError
    return seconds


def _checkpoint_hash(text: str) -> str:
    if text and not re.fullmatch(r"[0-9a-f]{64}", text):
        raise ValueError
    return text


@dataclass(frozen=True, slots=True)
class _Setting:
    default: str
    parse: Callable[[str], object]
    good: str
    secret: bool = False
    may_be_empty: bool = False  # an empty variable is a value, and not just left out


GOOD_KMS_KEY = "a cloud's or Vault's URI and a key of it, such as aws-kms://eu-west-1#alias/kkp-master"
_SECONDS_HINT = "a number of seconds"
_LIMITS = BackendLimits()
_SETTINGS: Mapping[str, _Setting] = {
    "KKP_LISTEN_ADDR": _Setting(
        "127.0.0.1:8080", _address, "host:port, such as 127.0.0.1:8080 or [::1]:8080"
    ),
    "KKP_DEV_ALLOW_REMOTE": _Setting("0", _flag, "1 or 0"),
    "KKP_TLS_CERT_FILE": _Setting("", _optional_path, "a PEM file with the certificate chain"),
    "KKP_TLS_KEY_FILE": _Setting("", _key_file, "the path of a PEM file of mode 0600 with its private key"),
    "KKP_CLIENT_CA_FILE": _Setting(
        "", _optional_path, "a PEM file with the authorities of client certificates"
    ),
    "KKP_CLIENT_CERT": _Setting("optional", _client_cert, "optional, or required"),
    "KKP_FORWARDED_CLIENT_CERT": _Setting("0", _flag, "1 or 0"),
    "KKP_TRUSTED_PROXIES": _Setting(
        "", parse_networks, "a list of addresses and networks, such as 10.0.0.7,10.1.0.0/16"
    ),
    "KKP_METRICS_ADDR": _Setting(
        "", _loopback_address, "host:port on loopback, such as 127.0.0.1:9464, or nothing", may_be_empty=True
    ),
    "KKP_DRAIN_SECS": _Setting("5", _drain_seconds, "seconds, from 0 to 600"),
    "KKP_WORKERS": _Setting("1", _workers, "a whole number from 1 to 64, or auto for one on each core"),
    "KKP_DATA_DIR": _Setting("./.kkp", Path, "a directory"),
    "KKP_DATABASE_URL": _Setting("", str, f"sqlite:///path/to/kkp.db or {GOOD_POSTGRES}"),
    "KKP_DATABASE_PASSWORD_FILE": _Setting("", _optional_path, "the path of a file of mode 0600"),
    "KKP_MASTER_KEY": _Setting("", _master_key, "32 random bytes in base64url", secret=True),
    "KKP_MASTER_KEY_FILE": _Setting("", _key_file, "the path of a file of mode 0600"),
    "KKP_MASTER_KEY_KMS": _Setting("", _optional_kms_key, GOOD_KMS_KEY, secret=True),
    "KKP_MASTER_KEY_CHECK": _Setting(
        "",
        _master_key_checks,
        "what `kkp master status` says, 64 hexadecimal digits, or two such, with a comma between",
        secret=True,  # it is none, but somebody may put the master key itself here
    ),
    "KKP_ISSUER": _Setting("", _issuer, "an http or https URL without user, query or fragment", secret=True),
    "KKP_DPOP_NONCE": _Setting("0", _flag, "1 or 0"),
    "KKP_POLICY_PATH": _Setting("", _optional_path, "a Rego file or a bundle directory"),
    "KKP_OPA_URL": _Setting("", _optional_text, "OPA's address, such as http://127.0.0.1:8181"),
    "KKP_OPA_TIMEOUT_MS": _Setting(
        "500", _milliseconds_up_to(_MAX_OPA_TIMEOUT_MS), "milliseconds, from 1 to 1000"
    ),
    "KKP_OPA_CA_FILE": _Setting("", _optional_path, "a PEM file with certificates"),
    "KKP_POLICY_RULE": _Setting("", _policy_rule, "decision or allow, or nothing to find out"),
    "KKP_CHECKPOINT_SINK": _Setting("", _checkpoint_sink, "file:/path or command:/path/to/program"),
    "KKP_BACKENDS": _Setting(
        _DEV_BACKENDS, read_backends, "a list such as aws=memory://aws,local=local://", secret=True
    ),
    "KKP_KMS_TIMEOUT_MS": _Setting(
        f"{_LIMITS.timeout_seconds * 1000:.0f}",
        _milliseconds_up_to(_MAX_KMS_TIMEOUT_MS),
        "milliseconds, from 1 to 60000",
    ),
    "KKP_KMS_ATTEMPTS": _Setting(str(_LIMITS.attempts), _count_up_to(10), "a whole number from 1 to 10"),
    "KKP_KMS_CONCURRENCY": _Setting(
        str(_LIMITS.concurrency), _count_up_to(256), "a whole number from 1 to 256"
    ),
    "KKP_KMS_BREAKER_FAILURES": _Setting(
        str(_LIMITS.breaker_failures), _count_up_to(1_000_000), "a whole number from 1 to 1000000"
    ),
    "KKP_KMS_BREAKER_SECS": _Setting(
        f"{_LIMITS.breaker_seconds:g}", _interval, "a number of seconds above 0, up to 3600"
    ),
    "KKP_MAX_PLAINTEXT_BYTES": _Setting(
        "1048576", _count_up_to(_MAX_PLAINTEXT_CEILING), "bytes, from 1 to 67108864"
    ),
    "KKP_DATA_KEY_CACHE_SECS": _Setting(
        "0", _data_key_age_seconds, "seconds, from 1 to 3600, or 0 to cache no data keys"
    ),
    "KKP_DATA_KEY_CACHE_ENTRIES": _Setting("1000", _count_up_to(_MAX_CACHED_DATA_KEYS), "from 1 to 100000"),
    "KKP_DATA_KEY_CACHE_MESSAGES": _Setting(
        "10000", _count_up_to(_MAX_DATA_KEY_MESSAGES), "from 1 to 4294967296"
    ),
    "KKP_DATA_KEY_CACHE_BYTES": _Setting(
        "1073741824", _count_up_to(_MAX_DATA_KEY_BYTES), "bytes, from 1 to 68719476736"
    ),
    "KKP_DATA_KEY_CACHE_ENCRYPT": _Setting("0", _flag, "1 or 0"),
    "KKP_CALLER_RATE_PER_SEC": _Setting("500", _count_or_none, "requests per second, or 0 for no limit"),
    "KKP_CALLER_BURST": _Setting("1000", _count, "a positive whole number"),
    "KKP_SIGNUP": _Setting("code", _signup, "code, for those who were invited, or open, for everybody"),
    "KKP_SESSION_TTL_SECS": _Setting(
        "900", _count_up_to(_MAX_SESSION_SECONDS), f"whole seconds, from 1 to {_MAX_SESSION_SECONDS}"
    ),
    "KKP_CERTIFICATES": _Setting("", certificates.read, certificates.GOOD, secret=True),
    "KKP_ISSUERS": _Setting("", issuers.read, issuers.GOOD, secret=True),
    "KKP_ADDRESS_RATE_PER_SEC": _Setting("1000", _count_or_none, "requests per second, or 0 for no limit"),
    "KKP_ADDRESS_BURST": _Setting("2000", _count, "a positive whole number"),
    "KKP_ADDRESS_CONNECTIONS": _Setting("1000", _count_or_none, "a whole number, or 0 for no limit"),
    "KKP_MAX_HELD_BODY_BYTES": _Setting("", _optional_count, "bytes, or nothing for the default"),
    "KKP_REVOCATION_LIST_SECS": _Setting("300", _revocation_list_seconds, "whole seconds, from 10 to 3600"),
    "KKP_CHECKPOINT_INTERVAL_SECS": _Setting("10", _interval, "a number of seconds above 0, up to 3600"),
    "KKP_AUDIT_MIN_FREE_BYTES": _Setting("67108864", _count_or_none, "bytes, or 0 for no reserve"),
    "KKP_ACCEPT_ROLLBACK": _Setting("", _checkpoint_hash, "the hash that the refused start names"),
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
# What the commands read that call KKP from outside (`kkp.cli.calling`): a server has no use for them.
_OF_CALLERS = frozenset({"KKP_URL", "KKP_CA_FILE", "KKP_AUDIENCE", "KKP_SERVICE_KEY", "KKP_SERVICE_KEY_FILE"})
# Members of the file that are tables for callers: what each table must be, and where that is documented.
_TABLES: Mapping[str, tuple[type[msgspec.Struct], str]] = {
    "issuers": (Issuer, "federation.md"),
    "certificates": (Certificates, "mtls.md"),
}
_MASTER_KEYS = ("KKP_MASTER_KEY", "KKP_MASTER_KEY_FILE", "KKP_MASTER_KEY_KMS")
_DEFAULT_MIN_TTL_SECONDS = 60.0


@dataclass(frozen=True, slots=True)
class Draft:
    """Settings on their way.

    Attributes:
        given: The texts that somebody set.
        origins: Where each of those came from: `the environment`, or a member of the file.
        texts: All of them, with the defaults.
        values: Those that could be parsed.
        problems: What is wrong so far.
    """

    given: Mapping[str, str]
    origins: Mapping[str, str]
    texts: Mapping[str, str]
    values: dict[str, object]
    problems: list[str]

    @property
    def listen(self) -> Address | None:
        """Where the API listens, if that could be read."""
        address = self.values.get("KKP_LISTEN_ADDR")
        return address if isinstance(address, Address) else None

    @property
    def issuer(self) -> str:
        """`iss` of KKP's own tokens, by default its address."""
        return str(self.values.get("KKP_ISSUER") or f"http://{self.listen}")

    @property
    def database_url(self) -> str:
        """The database, by default the data directory's."""
        return self.texts["KKP_DATABASE_URL"] or f"{_SQLITE}{Path(self.texts['KKP_DATA_DIR']) / 'kkp.db'}"

    @property
    def database_path(self) -> Path | None:
        """The SQLite file of `database_url`; None if it names something else."""
        # An in-memory database would be another one for each connection.
        found = re.fullmatch(re.escape(_SQLITE) + r"((?!:memory:)[^?]+)", self.database_url)
        return Path(found[1]) if found is not None else None

    @property
    def postgres(self) -> PostgresAddress | None:
        """The PostgreSQL of `database_url`; None if it names something else, or can't be read."""
        with suppress(ValueError):
            return read_address(self.database_url)
        return None

    @property
    def master_key_file(self) -> Path:
        """The master key's file, by default the data directory's."""
        return Path(self.texts["KKP_MASTER_KEY_FILE"] or Path(self.texts["KKP_DATA_DIR"]) / "master.key")

    def schemes(self) -> Iterator[tuple[str, str]]:
        """Yield each backend's name and the scheme of its URI, if they could be read."""
        backends = self.values.get("KKP_BACKENDS")
        if isinstance(backends, dict):
            for name, uri in backends.items():
                yield name, uri.partition("://")[0]


@dataclass(frozen=True, slots=True)
class Way:
    """A way to run KKP, and what it makes of the settings.

    Attributes:
        command: What the user types.
        defaults: Those that differ from the table's.
        required: What must be given, with what to give.
        refused: What must not be given: whoever sets it relies on it, and to ignore it would be worse.
        refused_schemes: Those of backends that are not offered; a rule tells why.
        rules: What else must hold.
    """

    command: str
    defaults: Mapping[str, str] = field(default_factory=dict)
    required: Mapping[str, str] = field(default_factory=dict)
    refused: Mapping[str, str] = field(default_factory=dict)
    refused_schemes: Mapping[str, str] = field(default_factory=dict)
    rules: tuple[Callable[[Draft], None], ...] = ()


class Check(NamedTuple):
    """A rule that a room above knows.

    Attributes:
        names: The settings it is about; it is asked only when all of them could be parsed.
        problems: Called with their values, in that order; tells what is wrong, each with its cure.
    """

    names: tuple[str, ...]
    problems: Callable[..., Iterable[str]]


def load(
    environ: Mapping[str, str], way: Way, *, schemes: Collection[str], checks: Sequence[Check] = ()
) -> Settings:
    """Read and check the settings.

    Args:
        environ: The process's environment.
        way: How KKP is run.
        schemes: The backend URI schemes that this installation serves.
        checks: Further rules.

    Raises:
        ConfigError: Lists every problem and its cure.
    """
    problems: list[str] = []
    refused: set[str] = set()
    given = _given(environ, problems, refused)
    texts = {name: setting.default for name, setting in _SETTINGS.items()} | dict(way.defaults) | given
    draft = Draft(given, _origins(environ, given), texts, {}, problems)
    _parse(draft, unless=refused | {name for name in way.required if not given.get(name)})
    _check_given(draft, way, refused)
    _check_database(draft)
    _check_master_key(draft)
    _check_data_key_cache(draft)
    _check_held_bodies(draft)
    for rule in way.rules:
        rule(draft)
    _check_backends(draft, way, schemes)
    _check_issuers(draft)
    _check_certificates(draft)
    ring_times = _ring_times(draft.values, problems)
    for check in checks:
        if draft.values.keys() >= set(check.names):
            problems.extend(check.problems(*(draft.values[name] for name in check.names)))
    if problems:
        raise ConfigError(problems)
    return _settings(draft, ring_times, _warnings(environ, draft))


def load_backend_limits(environ: Mapping[str, str]) -> BackendLimits:
    """Read what a backend may take and nothing else, for a command that works whatever the rest is.

    Raises:
        ConfigError: Lists what is wrong with these settings, and its cure.
    """
    given = _given(environ, [], set())
    texts = {name: setting.default for name, setting in _SETTINGS.items()} | given
    draft = Draft(given, _origins(environ, given), texts, {}, [])
    _parse(draft, unless={name for name in _SETTINGS if not name.startswith(_OF_BACKENDS)})
    if draft.problems:
        raise ConfigError(draft.problems)
    return _backend_limits(draft.values)


def _given(environ: Mapping[str, str], problems: list[str], refused: set[str]) -> dict[str, str]:
    """Return the texts that were set, the environment's first; `refused` gets what of the file is none."""
    given = _file_texts(environ.get("KKP_CONFIG", ""), problems, refused)
    for name, setting in _SETTINGS.items():
        if _is_set(environ, name, setting):
            given[name] = environ[name]
            refused.discard(name)
    return given


def _is_set(environ: Mapping[str, str], name: str, setting: _Setting) -> bool:
    return bool(environ.get(name)) or (setting.may_be_empty and name in environ)


def _origins(environ: Mapping[str, str], given: Iterable[str]) -> dict[str, str]:
    """Say where each setting came from, so that whoever reads a refusal knows where to mend it."""
    path = environ.get("KKP_CONFIG") or "kkp.toml"
    return {
        name: _ENVIRONMENT
        if _is_set(environ, name, _SETTINGS[name])
        else f"`{name.removeprefix('KKP_').lower()}` in {path}"
        for name in given
    }


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


def given(environ: Mapping[str, str], way: Way) -> tuple[Given, ...]:
    """Return every setting of the table; a file that can't be used gives none, and `load` says so."""
    config_path = environ.get("KKP_CONFIG", "")
    from_file = _file_texts(config_path, [], set())
    found = []
    for name, setting in _SETTINGS.items():
        text, source = way.defaults.get(name, setting.default), "default"
        if _is_set(environ, name, setting):
            text, source = environ[name], "environment"
        elif name in from_file:
            text, source = from_file[name], config_path or "kkp.toml"
        found.append(Given(name, text, source, setting.secret or _is_key(text)))
    return tuple(found)


def _file_texts(config_path: str, problems: list[str], refused: set[str]) -> dict[str, str]:
    path = Path(config_path or "kkp.toml")
    if not config_path and not path.exists():
        return {}
    try:
        text = path.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        problems.append(f"KKP_CONFIG: {path} can't be read ({type(error).__name__}); mend or unset it")
        return {}
    try:
        document = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:  # it tells the place, and of a value one character at most
        problems.append(f"KKP_CONFIG: {path} can't be read as TOML: {error}; {_toml_cure(text)}")
        return {}
    backends = document.pop("backends", None)
    tables = {name: document.pop(name, None) for name in _TABLES}
    texts: dict[str, str] = {}
    for key, value in document.items():
        name = f"KKP_{key.upper()}"
        if name not in _SETTINGS or key != key.lower() or isinstance(value, dict | list):
            problems.append(f"{path}: `{key}` is not a setting; see the README's table of settings")
        else:
            texts[name] = str(value)
    if backends is not None:
        _file_backends(backends, path, texts, problems, refused)
    for name, found in tables.items():
        if found is not None:
            _file_tables(name, found, path, texts, problems, refused)
    return texts


def _toml_cure(text: str) -> str:
    if _BACKENDS_TEXT.search(text) and _BACKENDS_TABLE.search(text):
        return "`backends` is one string, or tables such as [backends.aws], and not both"
    return "mend it there"


def _file_backends(
    backends: JSON, path: Path, texts: dict[str, str], problems: list[str], refused: set[str]
) -> None:
    wrong = [f"{path}: {problem}" for problem in backend_tables.problems(backends)]
    if wrong:
        problems.extend(wrong)
        refused.add("KKP_BACKENDS")
        return
    tables = msgspec.convert(backends, str | dict[str, _BackendTable])
    if not isinstance(tables, str):
        # What a table says is one backend, whatever stands in it.
        items = (f"{name}={_backend_uri(table)}" for name, table in tables.items())
        tables = ",".join(item.replace(",", quote(",")) for item in items)
    texts["KKP_BACKENDS"] = tables


def _file_tables(  # noqa: PLR0913, PLR0917  what `_file_texts` has
    kind: str, tables: JSON, path: Path, texts: dict[str, str], problems: list[str], refused: set[str]
) -> None:
    setting = f"KKP_{kind.upper()}"
    wrong = [f"{path}: {problem}" for problem in issuers.form_problems(kind, *_TABLES[kind], tables)]
    if wrong:
        problems.extend(wrong)
        refused.add(setting)
        return
    texts[setting] = msgspec.json.encode(tables).decode()


class _KeyTable(msgspec.Struct, forbid_unknown_fields=True):
    members: list[str]
    former: list[str] = []


class _BackendTable(msgspec.Struct, forbid_unknown_fields=True):
    uri: str
    keys: dict[str, _KeyTable] = {}


def _backend_uri(table: _BackendTable) -> str:
    """Write a table as the URI that says the same: the keys of a composite are options of it."""
    options = [
        (f"{role}.{name}", member)
        for name, key in table.keys.items()
        # A key that has nobody keeps its name, for its refusal to tell.
        for role, members in (("key", key.members or [""]), ("former", key.former))
        for member in members
    ]
    if not options:
        return table.uri
    separator = "&" if "?" in table.uri else "?"
    return table.uri + separator + urlencode(options, quote_via=quote, safe=":/")


def _parse(draft: Draft, *, unless: Collection[str]) -> None:
    for name, setting in _SETTINGS.items():
        if name in unless:
            continue
        text = draft.texts[name]
        try:
            draft.values[name] = setting.parse(text)
        except (ValueError, KeyError):
            shown = "its value" if setting.secret or _is_key(text) else f"{text[:80]!r}"
            origin = draft.origins.get(name, _ENVIRONMENT)  # that of a variable its name says
            told = f" (from {origin})" if origin != _ENVIRONMENT else ""
            draft.problems.append(f"{name}: {shown} can't be used{told}; give {setting.good}")


def _check_given(draft: Draft, way: Way, refused: Collection[str]) -> None:
    for name, cure in way.refused.items():
        if draft.given.get(name):
            draft.problems.append(f"{name}: not taken by {way.command} (from {draft.origins[name]}); {cure}")
    for name, cure in way.required.items():
        if not draft.given.get(name) and name not in refused:
            draft.problems.append(f"{name}: {way.command} needs it; give {cure}")


def _check_database(draft: Draft) -> None:
    url, has_file = draft.database_url, bool(draft.texts["KKP_DATABASE_PASSWORD_FILE"])
    if not is_postgres(url):
        if draft.database_path is None:
            draft.problems.append(
                f"KKP_DATABASE_URL: it is no SQLite file and no PostgreSQL; give sqlite:///path/to/kkp.db or "
                f"{GOOD_POSTGRES}"
            )
        if has_file:
            draft.problems.append("KKP_DATABASE_PASSWORD_FILE: a SQLite file has no password; unset it")
        return
    try:
        address = read_address(url)
    except ValueError as error:  # the text may hold a password, and is not repeated
        draft.problems.append(f"KKP_DATABASE_URL: {error}; give {GOOD_POSTGRES}")
        return
    if has_file and address.password is not None:
        draft.problems.append(
            "KKP_DATABASE_PASSWORD_FILE: KKP_DATABASE_URL has a password too; give one of them"
        )


def _check_master_key(draft: Draft) -> None:
    names = [name for name in _MASTER_KEYS if draft.given.get(name)]
    if len(names) > 1:
        draft.problems.append(f"{' and '.join(names)}: give exactly one of them")


def _check_data_key_cache(draft: Draft) -> None:
    if draft.values.get("KKP_DATA_KEY_CACHE_ENCRYPT") and draft.values.get("KKP_DATA_KEY_CACHE_SECS") == 0:
        draft.problems.append(
            "KKP_DATA_KEY_CACHE_ENCRYPT: no data keys are cached; give KKP_DATA_KEY_CACHE_SECS, or unset it"
        )


def _least_held_body_bytes(max_plaintext_bytes: int) -> int:
    """Return what admits the largest body of any kind, also where only a quarter is left for it."""
    return 6 * max_plaintext_bytes + 8 * 1024 * 1024


def _check_held_bodies(draft: Draft) -> None:
    held, plaintext = draft.values.get("KKP_MAX_HELD_BODY_BYTES"), draft.values.get("KKP_MAX_PLAINTEXT_BYTES")
    if not isinstance(held, int) or not isinstance(plaintext, int):
        return  # not given, or its parser has already reported it
    least = _least_held_body_bytes(plaintext)
    if held < least:
        draft.problems.append(
            f"KKP_MAX_HELD_BODY_BYTES: {held} is too little for the bodies that KKP_MAX_PLAINTEXT_BYTES, "
            f"{plaintext}, allows; give {least} at least"
        )


def _check_backends(draft: Draft, way: Way, schemes: Collection[str]) -> None:
    for name, scheme in draft.schemes():
        if scheme in way.refused_schemes:
            draft.problems.append(f"KKP_BACKENDS: {name} is {scheme}://, {way.refused_schemes[scheme]}")
        elif scheme not in schemes:
            served = ", ".join(sorted(set(schemes) - way.refused_schemes.keys()))
            draft.problems.append(
                f"KKP_BACKENDS: {name} has the unknown scheme {scheme!r}; served are {served}"
            )


def _check_issuers(draft: Draft) -> None:
    found, backends = draft.values.get("KKP_ISSUERS"), draft.values.get("KKP_BACKENDS")
    if isinstance(found, dict):
        known = backends if isinstance(backends, dict) else None
        draft.problems.extend(issuers.problems(found, draft.issuer, known))


def _check_certificates(draft: Draft) -> None:
    tables, backends = draft.values.get("KKP_CERTIFICATES"), draft.values.get("KKP_BACKENDS")
    if isinstance(tables, dict):
        named = draft.values.get("KKP_ISSUERS")
        draft.problems.extend(
            certificates.problems(
                tables,
                named if isinstance(named, dict) else (),
                backends if isinstance(backends, dict) else None,
                has_general=bool(draft.texts["KKP_CLIENT_CA_FILE"]),
            )
        )


def _ring_times(values: Mapping[str, object], problems: list[str]) -> RingTimes:
    known: dict[str, Any] = {field: values[name] for field, name in RING_SETTINGS.items() if name in values}
    if "min_ttl" in known and known["min_ttl"] is None:
        # A short token lifetime on its own is a good wish; its least useful part shrinks with it.
        token_ttl = known.get("token_ttl", _DEFAULT_MIN_TTL_SECONDS)
        known["min_ttl"] = max(1.0, min(_DEFAULT_MIN_TTL_SECONDS, token_ttl))
    times = RingTimes(**known)
    problems.extend(times.problems(unknown=RING_SETTINGS.keys() - known.keys()))
    return times


def _backend_limits(values: Mapping[str, Any]) -> BackendLimits:
    return BackendLimits(
        timeout_seconds=values["KKP_KMS_TIMEOUT_MS"],
        attempts=values["KKP_KMS_ATTEMPTS"],
        concurrency=values["KKP_KMS_CONCURRENCY"],
        breaker_failures=values["KKP_KMS_BREAKER_FAILURES"],
        breaker_seconds=values["KKP_KMS_BREAKER_SECS"],
    )


def _data_key_cache(values: Mapping[str, Any]) -> DataKeyCacheLimits | None:
    if not values["KKP_DATA_KEY_CACHE_SECS"]:
        return None
    return DataKeyCacheLimits(
        age_seconds=values["KKP_DATA_KEY_CACHE_SECS"],
        entries=values["KKP_DATA_KEY_CACHE_ENTRIES"],
        messages=values["KKP_DATA_KEY_CACHE_MESSAGES"],
        plaintext_bytes=values["KKP_DATA_KEY_CACHE_BYTES"],
        encrypts=values["KKP_DATA_KEY_CACHE_ENCRYPT"],
    )


def _warnings(environ: Mapping[str, str], draft: Draft) -> tuple[str, ...]:
    known = {*_SETTINGS, "KKP_CONFIG", *_OF_CALLERS}
    unknown = [
        f"{name} is not a setting of KKP and is ignored"
        for name in sorted(environ)
        if name.startswith("KKP_") and name not in known
    ]
    issuers_found: Any = draft.values["KKP_ISSUERS"]
    tables_found: Any = draft.values["KKP_CERTIFICATES"]
    loose = (*issuers.warnings(issuers_found), *certificates.warnings(tables_found))
    return (*_replaced_tables(environ), *unknown, *loose)


def _replaced_tables(environ: Mapping[str, str]) -> Iterator[str]:
    """Tell that tables of the file are not there: unlike other settings, they look as if they added up."""
    path = environ.get("KKP_CONFIG", "")
    for name in ("KKP_BACKENDS", *(f"KKP_{kind.upper()}" for kind in _TABLES)):
        if environ.get(name) and name in _file_texts(path, [], set()):
            what = name.removeprefix("KKP_").lower()
            yield f"{name} in the environment replaces all {what} of {path or 'kkp.toml'}"


def _settings(draft: Draft, ring_times: RingTimes, warnings: tuple[str, ...]) -> Settings:
    values: Mapping[str, Any] = draft.values  # each of the type that its parser returns
    return Settings(
        listen=values["KKP_LISTEN_ADDR"],
        tls_cert_file=values["KKP_TLS_CERT_FILE"],
        tls_key_file=values["KKP_TLS_KEY_FILE"],
        client_ca_file=values["KKP_CLIENT_CA_FILE"],
        requires_client_certificate=values["KKP_CLIENT_CERT"],
        takes_forwarded_certificates=values["KKP_FORWARDED_CLIENT_CERT"],
        trusted_proxies=values["KKP_TRUSTED_PROXIES"],
        metrics_listen=values["KKP_METRICS_ADDR"],
        drain_seconds=values["KKP_DRAIN_SECS"],
        workers=values["KKP_WORKERS"],
        data_dir=values["KKP_DATA_DIR"],
        database_url=draft.database_url,
        postgres=draft.postgres,
        database_password_file=values["KKP_DATABASE_PASSWORD_FILE"],
        master_key=values["KKP_MASTER_KEY"],
        master_key_file=draft.master_key_file,
        master_key_kms=values["KKP_MASTER_KEY_KMS"],
        master_key_checks=values["KKP_MASTER_KEY_CHECK"],
        issuer=draft.issuer,
        dpop_nonce=values["KKP_DPOP_NONCE"],
        policy_path=values["KKP_POLICY_PATH"],
        opa_url=values["KKP_OPA_URL"],
        opa_timeout_seconds=values["KKP_OPA_TIMEOUT_MS"],
        opa_ca_file=values["KKP_OPA_CA_FILE"],
        policy_rule=values["KKP_POLICY_RULE"],
        backends=values["KKP_BACKENDS"],
        backend_limits=_backend_limits(values),
        max_plaintext_bytes=values["KKP_MAX_PLAINTEXT_BYTES"],
        data_key_cache=_data_key_cache(values),
        caller_rate_per_second=values["KKP_CALLER_RATE_PER_SEC"],
        caller_burst=values["KKP_CALLER_BURST"],
        open_signup=values["KKP_SIGNUP"],
        session_ttl_seconds=values["KKP_SESSION_TTL_SECS"],
        address_rate_per_second=values["KKP_ADDRESS_RATE_PER_SEC"],
        address_burst=values["KKP_ADDRESS_BURST"],
        address_connections=values["KKP_ADDRESS_CONNECTIONS"],
        max_held_body_bytes=values["KKP_MAX_HELD_BODY_BYTES"]
        or max(_HELD_BODY_BYTES, _least_held_body_bytes(values["KKP_MAX_PLAINTEXT_BYTES"])),
        ring_times=ring_times,
        revocation_list_seconds=values["KKP_REVOCATION_LIST_SECS"],
        checkpoint_sink=values["KKP_CHECKPOINT_SINK"]
        or SinkAddress("file", values["KKP_DATA_DIR"].absolute() / "checkpoints.jsonl", is_default=True),
        checkpoint_interval_seconds=values["KKP_CHECKPOINT_INTERVAL_SECS"],
        audit_min_free_bytes=values["KKP_AUDIT_MIN_FREE_BYTES"],
        accept_rollback=values["KKP_ACCEPT_ROLLBACK"],
        issuers=values["KKP_ISSUERS"],
        certificates=values["KKP_CERTIFICATES"],
        warnings=warnings,
    )
