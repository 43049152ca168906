"""The settings: what holds when nothing is set, what wins, and what is refused with which cure."""

from __future__ import annotations

import base64
from dataclasses import fields
from pathlib import Path

import pytest

from kkp import kms
from kkp.app import PRODUCTION_CHECKS
from kkp.config import (
    GOOD_KMS_KEY,
    Address,
    DataKeyCacheLimits,
    KMSKey,
    Settings,
    SinkAddress,
    load,
    load_backend_limits,
)
from kkp.errors import ConfigError
from kkp.model import BackendLimits
from kkp.postgres_address import read_address
from kkp.ring_times import RingTimes
from kkp.ways import COMMAND, DEV, SERVE

SCHEMES = ("memory", "local")
CANARY = "canary-3f9a1c"
MASTER_KEY = bytes(range(200, 232))
MASTER_KEY_TEXT = base64.urlsafe_b64encode(MASTER_KEY).decode()


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Work in an empty directory: `kkp.toml` is looked for in the current one."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def settings(**environ: str) -> Settings:
    return load(environ, DEV, schemes=SCHEMES)


def problems(**environ: str) -> tuple[str, ...]:
    with pytest.raises(ConfigError) as refusal:
        settings(**environ)
    return refusal.value.problems


# Defaults.


def test_with_nothing_set_the_documented_defaults_hold() -> None:
    assert settings() == Settings(
        listen=Address("127.0.0.1", 8080),
        tls_cert_file=None,
        tls_key_file=None,
        client_ca_file=None,
        requires_client_certificate=False,
        takes_forwarded_certificates=False,
        trusted_proxies=(),
        metrics_listen=None,
        drain_seconds=5,
        workers=1,
        data_dir=Path(".kkp"),
        database_url="sqlite:///.kkp/kkp.db",
        postgres=None,
        database_password_file=None,
        master_key=None,
        master_key_file=Path(".kkp/master.key"),
        master_key_kms=None,
        master_key_checks=(),
        issuer="http://127.0.0.1:8080",
        dpop_nonce=False,
        policy_path=None,
        opa_url=None,
        opa_timeout_seconds=0.5,
        opa_ca_file=None,
        policy_rule=None,
        open_signup=False,
        session_ttl_seconds=900,
        revocation_list_seconds=300,
        checkpoint_sink=SinkAddress("file", Path.cwd() / ".kkp/checkpoints.jsonl", is_default=True),
        checkpoint_interval_seconds=10,
        audit_min_free_bytes=67_108_864,
        accept_rollback="",
        issuers={},
        certificates={},
        backends={
            "aws": "memory://aws",
            "gcp": "memory://gcp",
            "azure": "memory://azure",
            "local": "local://",
        },
        backend_limits=BackendLimits(
            timeout_seconds=5, attempts=3, concurrency=32, breaker_failures=10, breaker_seconds=5
        ),
        max_plaintext_bytes=1024 * 1024,
        caller_rate_per_second=500,
        caller_burst=1000,
        address_rate_per_second=1000,
        address_burst=2000,
        address_connections=1000,
        max_held_body_bytes=64 * 1024 * 1024,
        data_key_cache=None,
        ring_times=RingTimes(
            token_ttl=300,
            min_ttl=60,
            rotation=900,
            key_ttl=1800,
            max_keys=5,
            jwks_max_age=300,
            jwks_max_age_floor=30,
            verifier_cache=600,
            verifier_leeway=60,
            replica_staleness=60,
            poll=5,
            clock_error=5,
            fetch=10,
        ),
        warnings=(),
    )


def test_the_data_directory_carries_database_and_master_key_with_it() -> None:
    chosen = settings(KKP_DATA_DIR="/var/lib/kkp")
    assert chosen.database_path == Path("/var/lib/kkp/kkp.db")
    assert chosen.database_url == "sqlite:////var/lib/kkp/kkp.db"
    assert chosen.master_key_file == Path("/var/lib/kkp/master.key")


def test_the_default_issuer_is_where_the_server_listens() -> None:
    assert settings(KKP_LISTEN_ADDR="[::1]:9000").issuer == "http://[::1]:9000"


def test_a_short_token_lifetime_alone_is_a_good_wish() -> None:
    assert settings(KKP_TOKEN_TTL_SECS="30").ring_times.min_ttl == 30
    assert settings(KKP_TOKEN_TTL_SECS="60").ring_times.min_ttl == 60
    assert settings(KKP_TOKEN_TTL_SECS="61").ring_times.min_ttl == 60


def test_a_minimum_above_the_token_lifetime_is_refused() -> None:
    (problem,) = problems(KKP_TOKEN_TTL_SECS="60", KKP_MIN_TOKEN_TTL_SECS="61")
    assert problem.startswith("V9")


# Every setting arrives where it belongs.

RING_SETTINGS = {
    "KKP_TOKEN_TTL_SECS": ("token_ttl", "299", 299),
    "KKP_MIN_TOKEN_TTL_SECS": ("min_ttl", "59.5", 59.5),
    "KKP_KEY_TTL_SECS": ("key_ttl", "1801", 1801),
    "KKP_KEY_ROTATION_SECS": ("rotation", "901", 901),
    "KKP_MAX_ACTIVE_KEYS": ("max_keys", "6", 6),
    "KKP_JWKS_MAX_AGE_SECS": ("jwks_max_age", "301", 301),
    "KKP_JWKS_MAX_AGE_FLOOR_SECS": ("jwks_max_age_floor", "29", 29),
    "KKP_VERIFIER_CACHE_SECS": ("verifier_cache", "599", 599),
    "KKP_VERIFIER_LEEWAY_SECS": ("verifier_leeway", "0", 0),
    "KKP_REPLICA_STALENESS_SECS": ("replica_staleness", "61", 61),
    "KKP_POLL_SECS": ("poll", "4", 4),
    "KKP_CLOCK_ERROR_SECS": ("clock_error", "4", 4),
    "KKP_FETCH_SECS": ("fetch", "9", 9),
}


@pytest.mark.parametrize(
    ("name", "field", "text", "value"), [(name, *case) for name, case in RING_SETTINGS.items()]
)
def test_each_time_of_the_keyring_has_its_setting(name: str, field: str, text: str, value: float) -> None:
    times = settings(**{name: text}).ring_times
    assert getattr(times, field) == value
    others = [other.name for other in fields(times) if other.name != field]
    assert [getattr(times, other) for other in others] == [getattr(RingTimes(), other) for other in others]


def test_every_time_of_the_keyring_can_be_set() -> None:
    assert {field for field, _, _ in RING_SETTINGS.values()} == {field.name for field in fields(RingTimes)}


def test_the_other_settings_arrive(here: Path) -> None:
    (here / "policy.rego").write_text("package kkp.authz")
    chosen = settings(
        KKP_LISTEN_ADDR="localhost:0",
        KKP_DATABASE_URL="sqlite:////srv/other.db",
        KKP_MASTER_KEY=MASTER_KEY_TEXT,
        KKP_ISSUER="https://kkp.example.com/tenant/",
        KKP_POLICY_PATH="policy.rego",
        KKP_BACKENDS=" b=local:// , a=memory://aws,",
        KKP_MAX_PLAINTEXT_BYTES="10",
        KKP_CHECKPOINT_SINK="command:/usr/local/bin/keep",
        KKP_CHECKPOINT_INTERVAL_SECS="0.5",
        KKP_AUDIT_MIN_FREE_BYTES="0",
        KKP_ACCEPT_ROLLBACK="ab" * 32,
    )
    assert chosen.listen == Address("localhost", 0)
    assert chosen.database_path == Path("/srv/other.db")
    assert chosen.master_key == MASTER_KEY
    assert chosen.issuer == "https://kkp.example.com/tenant"
    assert chosen.policy_path == Path("policy.rego")
    assert list(chosen.backends.items()) == [("b", "local://"), ("a", "memory://aws")]
    assert chosen.max_plaintext_bytes == 10
    assert chosen.checkpoint_sink == SinkAddress("command", Path("/usr/local/bin/keep"))
    assert chosen.checkpoint_interval_seconds == 0.5
    assert chosen.audit_min_free_bytes == 0
    assert chosen.accept_rollback == "ab" * 32


def test_a_master_key_file_is_named_not_read() -> None:
    chosen = settings(KKP_MASTER_KEY_FILE="/run/secrets/kkp")
    assert (chosen.master_key, chosen.master_key_file) == (None, Path("/run/secrets/kkp"))


# Environment over file over default.


def toml(text: str, name: str = "kkp.toml") -> None:
    Path(name).write_text(text, "utf-8")


def test_the_file_wins_over_the_default_and_the_environment_over_both() -> None:
    toml('token_ttl_secs = 200\nissuer = "https://file.test"\nlisten_addr = "127.0.0.1:1"')
    chosen = settings(KKP_ISSUER="https://environment.test")
    assert chosen.ring_times.token_ttl == 200
    assert chosen.issuer == "https://environment.test"
    assert chosen.listen == Address("127.0.0.1", 1)
    assert chosen.ring_times.rotation == 900


def test_an_empty_variable_is_no_variable() -> None:
    toml("token_ttl_secs = 200")
    assert settings(KKP_TOKEN_TTL_SECS="").ring_times.token_ttl == 200
    assert settings(KKP_CONFIG="", KKP_OPA_URL="").ring_times.token_ttl == 200


def test_a_file_elsewhere_is_read_where_it_is_named_and_the_one_here_is_not() -> None:
    toml("token_ttl_secs = 200")
    toml("token_ttl_secs = 100", "other.toml")
    assert settings(KKP_CONFIG="other.toml").ring_times.token_ttl == 100


@pytest.mark.parametrize(
    ("text", "value"),
    [("token_ttl_secs = 250", 250), ("token_ttl_secs = 250.5", 250.5), ('token_ttl_secs = "250"', 250)],
)
def test_a_number_in_the_file_is_a_number_or_its_text(text: str, value: float) -> None:
    toml(text)
    assert settings().ring_times.token_ttl == value


def test_true_in_the_file_is_a_flag() -> None:
    toml('dev_allow_remote = true\nlisten_addr = "0.0.0.0:80"')
    assert settings().listen == Address("0.0.0.0", 80)  # noqa: S104  allowed on purpose


def test_backends_are_a_list_or_tables_and_the_environment_replaces_them_whole() -> None:
    toml('[backends.aws]\nuri = "memory://aws"\n[backends.keys]\nuri = "local://"')
    assert settings().backends == {"aws": "memory://aws", "keys": "local://"}
    assert settings(KKP_BACKENDS="gcp=memory://gcp").backends == {"gcp": "memory://gcp"}
    toml('backends = "azure=memory://azure"')
    assert settings().backends == {"azure": "memory://azure"}


COMMAS: dict[str, tuple[str, dict[str, str]]] = {
    "in an option": (
        '[backends.v]\nuri = "vault-transit://h:1/t?ca_file=/a,b.pem"',
        {"v": "vault-transit://h:1/t?ca_file=/a%2Cb.pem"},
    ),
    "before what looks like another backend": (
        '[backends.v]\nuri = "memory://v?x=1,w=local://"',
        {"v": "memory://v?x=1%2Cw=local://"},
    ),
    "at the end": ('[backends.v]\nuri = "memory://v,"', {"v": "memory://v%2C"}),
}


@pytest.mark.parametrize(("text", "backends"), COMMAS.values(), ids=COMMAS)
def test_a_table_is_one_backend_also_with_a_comma(text: str, backends: dict[str, str]) -> None:
    toml(text)
    assert load({}, DEV, schemes=kms.SCHEMES).backends == backends


COMPOSITE_TABLES: dict[str, tuple[str, str]] = {
    "members and former ones": (
        """[backends.multi]
uri = "any-of://?hedge_ms=9"
[backends.multi.keys.orders]
members = ["aws:alias/orders", "gcp:orders"]
former = ["azure:orders"]
""",
        "any-of://?hedge_ms=9&key.orders=aws:alias/orders&key.orders=gcp:orders&former.orders=azure:orders",
    ),
    "several keys and no option": (
        """[backends.multi]
uri = "all-of://"
keys.orders = { members = ["aws:a", "gcp:b"] }
keys."team/billing" = { members = ["aws:c", "gcp:d"] }
""",
        "all-of://?key.orders=aws:a&key.orders=gcp:b&key.team/billing=aws:c&key.team/billing=gcp:d",
    ),
    "characters that a URI, or the list of backends, has another use for": (
        """[backends.multi]
uri = "any-of://"
keys.orders = { members = ["aws:a,b=c&d#e+f%20 é?"] }
""",
        "any-of://?key.orders=aws:a%2Cb%3Dc%26d%23e%2Bf%2520%20%C3%A9%3F",
    ),
    "a key that has nobody": (
        """[backends.multi]
uri = "any-of://"
keys.orders = { members = [] }
""",
        "any-of://?key.orders=",
    ),
}


@pytest.mark.parametrize(("text", "uri"), COMPOSITE_TABLES.values(), ids=COMPOSITE_TABLES)
def test_the_tables_of_a_composite_become_its_uri(text: str, uri: str) -> None:
    toml(text + '[backends.aws]\nuri = "memory://aws"')
    served = (*SCHEMES, "any-of", "all-of")
    assert load({}, DEV, schemes=served).backends == {"multi": uri, "aws": "memory://aws"}
    assert (
        load({"KKP_BACKENDS": f"aws=memory://aws, multi={uri}"}, DEV, schemes=served).backends["multi"] == uri
    )


UNKNOWN_IN_THE_FILE = {
    "a misspelt name": ("token_ttl_sec = 1", "token_ttl_sec"),
    "upper case": ("TOKEN_TTL_SECS = 1", "TOKEN_TTL_SECS"),
    "the whole variable": ('kkp_issuer = "https://x.test"', "kkp_issuer"),
    "a list": ("token_ttl_secs = [1]", "token_ttl_secs"),
    "a table": ("[token_ttl_secs]\nvalue = 1", "token_ttl_secs"),
    "an unknown table": ("[server]\nport = 1", "server"),
    "the file itself": ('config = "other.toml"', "config"),
}


@pytest.mark.parametrize(("text", "name"), UNKNOWN_IN_THE_FILE.values(), ids=UNKNOWN_IN_THE_FILE.keys())
def test_an_unknown_name_in_the_file_is_refused(text: str, name: str) -> None:
    toml(text)
    (problem,) = problems()
    assert f"`{name}` is not a setting" in problem


OPTIONS = 'options go into the uri: uri = "'
MALFORMED_TABLES: dict[str, tuple[str, list[str]]] = {
    "no uri, but a url": (
        '[backends.aws]\nurl = "memory://aws"',
        ['[backends.aws] has no uri; give uri = "SCHEME://…"', f"[backends.aws] url: {OPTIONS}SCHEME://…?url=…"],
    ),
    "an option beside the uri": (
        '[backends.aws]\nuri = "memory://aws"\nregion = "x"',
        [f'[backends.aws] region: {OPTIONS}memory://…?region=…"'],
    ),
    "an option of an any-of beside its uri": (
        '[backends.both]\nuri = "any-of://"\nmin_members = 1',
        [f'[backends.both] min_members: {OPTIONS}any-of://…?min_members=…"'],
    ),
    "an option of an any-of beside the uri of an all-of": (
        '[backends.both]\nuri = "all-of://"\nmin_members = 1',
        ["[backends.both] min_members: all-of:// takes no options, because every member must do its part"],
    ),
    "an option of an any-of beside the members of a key": (
        '[backends.a]\nuri = "any-of://"\nkeys.b = { members = ["aws:c"], min_members = 1 }',
        [
            "[backends.a.keys.b] min_members: a key has members and former alone; options hold for all keys"
        ],
    ),
    "members of no key": (
        '[backends.a]\nuri = "any-of://"\nmembers = ["aws:c"]',
        ["[backends.a] members: it belongs to a key; write it under [backends.a.keys.NAME]"],
    ),
    "a uri that is no text": ("[backends.aws]\nuri = 1", ["[backends.aws] uri: it is one string"]),
    "a uri without a scheme": ('[backends.aws]\nuri = "aws"', ["[backends.aws] uri: it is one string"]),
    "a name in capitals": ('[backends.AWS]\nuri = "memory://aws"', ["[backends.AWS]: a backend's name is"]),
    "a name of 33": (
        f'[backends.{"a" * 33}]\nuri = "memory://aws"', [f"[backends.{'a' * 33}]: a backend's name is"]
    ),
    "a backend that is no table": (
        "[backends]\naws = 'memory://aws'",
        ['[backends] aws: a backend is a table of its own; write [backends.aws] with uri = "SCHEME://…"'],
    ),
    "keys of what is no composite": (
        '[backends.aws]\nuri = "memory://aws"\n[backends.aws.keys.payroll]\nmembers = ["aws:x"]',
        ["[backends.aws.keys.payroll]: only any-of:// and all-of:// have keys"],
    ),
    "keys of what is no composite that are no tables": (
        '[backends.aws]\nuri = "memory://aws"\nkeys = []', ["[backends.aws] keys: only any-of:// and all-of://"]
    ),
    "keys that are no tables": (
        '[backends.a]\nuri = "any-of://"\nkeys = ["aws:c"]', ["[backends.a] keys: each key is a table"]
    ),
    "a key that is no table": (
        '[backends.a]\nuri = "any-of://"\nkeys.b = ["aws:c"]', ["[backends.a.keys.b]: it is a table"]
    ),
    "members that are one text": (
        '[backends.a]\nuri = "any-of://"\nkeys.b = { members = "aws:c" }',
        ["[backends.a.keys.b] members: it is a list of strings"],
    ),
    "a member that is no text": (
        '[backends.a]\nuri = "any-of://"\nkeys.b = { members = ["aws:c", 1] }',
        ["[backends.a.keys.b] members: it is a list of strings"],
    ),
    "former ones that are one text": (
        '[backends.a]\nuri = "any-of://"\nkeys.b = { members = ["aws:c"], former = "aws:d" }',
        ["[backends.a.keys.b] former: it is a list of strings"],
    ),
    "former ones alone": (
        '[backends.a]\nuri = "any-of://"\nkeys.b = { former = ["aws:c"] }',
        ["[backends.a.keys.b] has no members"],
    ),
    "keys without a uri": (
        '[backends.a]\nkeys.b = { members = ["aws:c"] }', ["[backends.a] has no uri; give uri = "]
    ),
    "a number": ("backends = 1", ["`backends` is one string, or a table for each backend"]),
    "a list": ("backends = ['aws=memory://aws']", ["`backends` is one string, or a table for each backend"]),
    "three mistakes": (
        """[backends.aws]
[backends.one.keys.x]
members = "aws:x"
[backends.two]
uri = "all-of://"
keys.y = { member = ["aws:y"] }
""",
        [
            "[backends.aws] has no uri",
            "[backends.one] has no uri",
            "[backends.one.keys.x] members: it is a list of strings",
            "[backends.two.keys.y] has no members",
            "[backends.two.keys.y] member: a key has members and former alone",
        ],
    ),
}  # fmt: skip


@pytest.mark.parametrize(("text", "beginnings"), MALFORMED_TABLES.values(), ids=MALFORMED_TABLES)
def test_all_that_is_wrong_with_tables_of_backends_is_told_by_name(text: str, beginnings: list[str]) -> None:
    toml(text)
    told = problems()
    assert len(told) == len(beginnings), told
    for problem, beginning in zip(told, beginnings, strict=True):
        assert problem.startswith(f"kkp.toml: {beginning}")


def test_a_value_in_a_table_of_backends_is_not_repeated() -> None:
    toml(f'[backends.aws]\nuri = "{CANARY}"\nregion = "{CANARY}"\nkeys.a = {{ members = "{CANARY}" }}')
    assert CANARY not in str(problems())


def test_tables_of_backends_that_are_refused_are_not_told_as_missing(here: Path) -> None:
    toml("[backends.aws]")
    with pytest.raises(ConfigError) as refusal:
        load({**SERVED, "KKP_BACKENDS": ""}, SERVE, schemes=SCHEMES)
    assert [problem for problem in refusal.value.problems if "ackends" in problem.lower()] == [
        'kkp.toml: [backends.aws] has no uri; give uri = "SCHEME://…"'
    ]


def test_refused_tables_of_backends_hide_nothing_that_is_wrong_with_the_variable() -> None:
    toml("[backends.aws]")
    assert [problem.partition(" ")[0] for problem in problems(KKP_BACKENDS="x")] == [
        "kkp.toml:",
        "KKP_BACKENDS:",
    ]


def test_backends_in_the_environment_that_replace_those_of_the_file_are_a_warning(here: Path) -> None:
    toml('[backends.aws]\nuri = "memory://aws"')
    (here / "other.toml").write_text('backends = "aws=memory://aws"')
    told = "KKP_BACKENDS in the environment replaces all backends of "
    assert settings().warnings == ()
    assert settings(KKP_BACKENDS="gcp=memory://gcp").warnings == (f"{told}kkp.toml",)
    assert settings(KKP_BACKENDS="gcp=memory://gcp", KKP_CONFIG="other.toml").warnings == (
        f"{told}other.toml",
    )
    toml("token_ttl_secs = 60")
    assert settings(KKP_BACKENDS="gcp=memory://gcp").warnings == ()


NOT_BOTH = "`backends` is one string, or tables such as [backends.aws], and not both"
NO_TOML: dict[str, tuple[str, str]] = {
    "no key": ("a = 1\n= 1\n", "Invalid statement (at line 2, column 1); mend it there"),
    "no value": ("issuer = \n", "Invalid value (at line 1, column 10); mend it there"),
    "a text without quotes": (
        "token_ttl_secs = 9\nissuer = https\n", "Invalid value (at line 2, column 10); mend it there"
    ),
    "a name twice": ("a = 1\na = 2\n", "Cannot overwrite a value (at line 2, column 6); mend it there"),
    "a table twice": (
        "[backends.aws]\n[other]\n[backends.aws]\n",
        "Cannot declare ('backends', 'aws') twice (at line 3, column 14); mend it there",
    ),
    "backends as a text and as tables": (
        'backends = "aws=memory://aws"\n[backends.gcp]\nuri = "memory://gcp"\n',
        f"Cannot overwrite a value (at line 2, column 14); {NOT_BOTH}",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("text", "told"), NO_TOML.values(), ids=NO_TOML)
def test_a_file_that_is_no_toml_is_refused_with_the_place(text: str, told: str) -> None:
    toml(text)
    assert problems() == (f"KKP_CONFIG: kkp.toml can't be read as TOML: {told}",)


def test_a_value_in_a_file_that_is_no_toml_is_not_repeated() -> None:
    toml(f"master_key = {CANARY}\n")
    assert CANARY not in str(problems())


def test_a_file_that_is_no_text_is_refused(here: Path) -> None:
    (here / "kkp.toml").write_bytes(b"\xff\xfe")
    assert problems() == ("KKP_CONFIG: kkp.toml can't be read (UnicodeDecodeError); mend or unset it",)


@pytest.mark.parametrize("name", ["missing.toml", "."])
def test_a_named_file_that_can_not_be_read_is_refused(name: str) -> None:
    (problem,) = problems(KKP_CONFIG=name)
    assert problem.startswith(f"KKP_CONFIG: {name} can't be read")


# Bad values, each with its cure.

SECONDS = [name for name in RING_SETTINGS if name.endswith("_SECS")]
LEAST_SECONDS = {
    "KKP_TOKEN_TTL_SECS": "seconds, from 1 to",
    "KKP_MIN_TOKEN_TTL_SECS": "seconds, from 1 to",
    "KKP_VERIFIER_LEEWAY_SECS": "seconds, from 0 to",
}


@pytest.mark.parametrize("name", SECONDS)
@pytest.mark.parametrize("text", ["five", "1 s", "1,5", "0x10", "1\0"])
def test_what_is_no_number_of_seconds_is_refused(name: str, text: str) -> None:
    (problem,) = problems(**{name: text})
    assert problem == f"{name}: {text!r} can't be used; give a number of seconds"


@pytest.mark.parametrize("name", SECONDS)
@pytest.mark.parametrize("text", ["-1", "-1e-9", "nan", "inf", "-inf", "1e400", "315360001", "1e300"])
def test_a_time_out_of_bounds_is_refused_by_name_with_its_cure(name: str, text: str) -> None:
    (problem,) = problems(**{name: text})
    good = LEAST_SECONDS.get(name, "seconds, above 0 and at most")
    assert problem == f"{name}: {float(text):.12g} can't be used; give {good} 315360000"


@pytest.mark.parametrize("text", ["0", "0.5", "0.999"])
@pytest.mark.parametrize("name", ["KKP_TOKEN_TTL_SECS", "KKP_MIN_TOKEN_TTL_SECS"])
def test_a_token_that_would_expire_as_it_is_signed_is_refused(name: str, text: str) -> None:
    (problem,) = problems(**{name: text})
    assert problem == f"{name}: {text} can't be used; give seconds, from 1 to 315360000"


def test_a_token_may_live_for_one_second() -> None:
    times = settings(KKP_TOKEN_TTL_SECS="1").ring_times
    assert (times.token_ttl, times.min_ttl) == (1, 1)


def test_the_longest_times_are_ten_years() -> None:
    assert (
        settings(KKP_KEY_TTL_SECS="315360000", KKP_MAX_ACTIVE_KEYS="999999").ring_times.key_ttl == 315360000
    )


BAD_VALUES = {
    "KKP_LISTEN_ADDR": (
        ["8080", "127.0.0.1", "127.0.0.1:", ":8080", "127.0.0.1:x", "127.0.0.1:65536", "127.0.0.1:-1",
         "127.0.0.1:80/x", "127.0.0.1:80?x", "127.0.0.1:80#x", "u@127.0.0.1:80", "[::1", "http://127.0.0.1:80"],
        "give host:port, such as 127.0.0.1:8080 or [::1]:8080",
    ),
    "KKP_DEV_ALLOW_REMOTE": (["2", "yes", "on", " 1", "maybe"], "give 1 or 0"),
    "KKP_ISSUER": (
        ["kkp", "kkp.test", "//kkp.test", "ftp://kkp.test", "https://", "https:///x", "https://kkp.test?x=1",
         "https://kkp.test#x", "https://kkp.test\n", "https://kkp .test", "https://kkp.t\tst", "https://[::1",
         "https://\u043akp.test", "https://kkp.test?", "https://kkp.test#", "https://kkp.test/x?#",
         "https://user@kkp.test", f"https://user:{CANARY}@kkp.test", "https://@kkp.test", "https://kkp.test:0",
         "https://kkp.test:65536", "https://kkp.test:x", "https://kkp.test:", "https://kkp.test:-1"],
        "give an http or https URL without user, query or fragment",
    ),
    "KKP_BACKENDS": (
        ["aws", "aws=", "aws=memory", "=memory://aws", "AWS=memory://aws", "a b=memory://aws", "-a=local://",
         "a" * 33 + "=local://", "a=local://,a=local://", "a=local://;b=local://,c", "a\n=local://", ",",
         " , "],
        "give a list such as aws=memory://aws,local=local://",
    ),
    "KKP_MAX_PLAINTEXT_BYTES": (
        ["0", "-1", "1.5", "1e3", "67108865", "9" * 13, "\u0661", "1_0", "0x10", "10\n"],
        "give bytes, from 1 to 67108864",
    ),
    "KKP_KMS_TIMEOUT_MS": (["0", "-1", "0.5", "60001", "5s"], "give milliseconds, from 1 to 60000"),
    "KKP_KMS_ATTEMPTS": (["0", "-1", "1.5", "11", "many"], "give a whole number from 1 to 10"),
    "KKP_KMS_CONCURRENCY": (["0", "-1", "1.5", "257", "all"], "give a whole number from 1 to 256"),
    "KKP_KMS_BREAKER_FAILURES": (
        ["0", "-1", "1.5", "1000001", "off"], "give a whole number from 1 to 1000000",
    ),
    "KKP_KMS_BREAKER_SECS": (
        ["0", "-1", "nan", "inf", "soon", "3600.001"], "give a number of seconds above 0, up to 3600",
    ),
    "KKP_CHECKPOINT_SINK": (
        ["/srv/c", "file:", "file:c", "file://", "file:///c", "command:sh", "https://sink", "file:/a\nb"],
        "give file:/path or command:/path/to/program",
    ),
    "KKP_CHECKPOINT_INTERVAL_SECS": (
        ["0", "-1", "nan", "inf", "soon", "3600.001"], "give a number of seconds above 0, up to 3600",
    ),
    "KKP_AUDIT_MIN_FREE_BYTES": (
        ["-1", "1.5", "64M", "00", "9" * 13, "\u0661"], "give bytes, or 0 for no reserve",
    ),
    "KKP_ACCEPT_ROLLBACK": (
        ["yes", "1", "a" * 63, "a" * 65, "A" * 64, "a" * 64 + "\n"],
        "give the hash that the refused start names",
    ),
    "KKP_MAX_ACTIVE_KEYS": (["0", "-1", "5.0", "five", "9" * 13, " 5"], "give a positive whole number"),
}  # fmt: skip


@pytest.mark.parametrize(
    ("name", "text", "cure"),
    [(name, text, cure) for name, (texts, cure) in BAD_VALUES.items() for text in texts],
)
def test_a_bad_value_is_refused_by_name_with_its_cure(name: str, text: str, cure: str) -> None:
    (problem,) = problems(**{name: text})
    # A URL may carry a password, so it is not repeated.
    shown = "its value" if name in {"KKP_BACKENDS", "KKP_ISSUER"} else f"{text[:80]!r}"
    assert problem == f"{name}: {shown} can't be used; {cure}"


@pytest.mark.parametrize(
    "issuer", ["https://kkp.test:1", "https://kkp.test:65535/x", "http://[::1]:8080", "https://kkp.test/a@b"]
)
def test_an_issuer_may_have_a_port_and_a_path(issuer: str) -> None:
    assert settings(KKP_ISSUER=issuer).issuer == issuer


@pytest.mark.parametrize("text", ["[backends]", 'backends = ","', 'backends = ""'])
def test_no_backend_at_all_is_refused(text: str) -> None:
    toml(text)
    (problem,) = problems()
    assert problem.startswith("KKP_BACKENDS: its value can't be used")


def test_a_port_left_open_needs_an_issuer() -> None:
    (problem,) = problems(KKP_LISTEN_ADDR="127.0.0.1:0")
    assert problem.startswith("KKP_LISTEN_ADDR: 127.0.0.1:0 ")
    assert problem.endswith("give a port, or set KKP_ISSUER")
    assert settings(KKP_LISTEN_ADDR="127.0.0.1:0", KKP_ISSUER="https://kkp.test").listen.port == 0
    assert settings(KKP_LISTEN_ADDR="127.0.0.1:1").issuer == "http://127.0.0.1:1"


@pytest.mark.parametrize("text", ["1", "67108864"])
def test_the_plaintext_limit_has_both_ends(text: str) -> None:
    assert settings(KKP_MAX_PLAINTEXT_BYTES=text).max_plaintext_bytes == int(text)


@pytest.mark.parametrize(
    ("texts", "limits"),
    [
        (("1", "1", "1", "1", "0.1"), BackendLimits(0.001, 1, 1, 1, 0.1)),
        (("60000", "10", "256", "1000000", "3600"), BackendLimits(60, 10, 256, 1_000_000, 3600)),
    ],
    ids=["the least", "the most"],
)
def test_what_a_backend_may_take_has_both_ends(texts: tuple[str, ...], limits: BackendLimits) -> None:
    names = ("TIMEOUT_MS", "ATTEMPTS", "CONCURRENCY", "BREAKER_FAILURES", "BREAKER_SECS")
    given = {f"KKP_KMS_{name}": text for name, text in zip(names, texts, strict=True)}
    assert settings(**given).backend_limits == limits


def test_a_backend_name_has_32_characters_at_most() -> None:
    assert list(settings(KKP_BACKENDS=f"{'a' * 32}=local://").backends) == ["a" * 32]


@pytest.mark.parametrize(
    "url",
    [
        "sqlite://",
        "sqlite:///",
        "sqlite:///:memory:",
        "sqlite:///kkp.db?mode=memory",
        "sqlite+aiosqlite:///kkp.db",
        "kkp.db",
    ],
)
def test_a_database_that_is_no_file_and_no_postgresql_is_refused(url: str) -> None:
    (problem,) = problems(KKP_DATABASE_URL=url)
    assert problem.startswith("KKP_DATABASE_URL: it is no SQLite file and no PostgreSQL; give sqlite:///path")


POSTGRES = "postgresql+asyncpg://kkp:pass%2Fword@127.0.0.1/kkp"


def test_a_postgresql_is_served() -> None:
    chosen = settings(KKP_DATABASE_URL=POSTGRES)
    assert chosen.postgres == read_address(POSTGRES)
    assert chosen.database_password_file is None
    with pytest.raises(ConfigError, match="reads a SQLite file, and the database is a PostgreSQL"):
        _ = chosen.database_path


@pytest.mark.parametrize(
    ("url", "problem"),
    [
        ("postgresql://kkp@127.0.0.1/kkp", "KKP_DATABASE_URL: the scheme is not postgresql+asyncpg"),
        ("postgresql+asyncpg://kkp@db/kkp", "KKP_DATABASE_URL: another machine is reached over TLS"),
        (f"postgresql+asyncpg://kkp:{CANARY}/x@127.0.0.1/kkp", "KKP_DATABASE_URL: it is no URL"),
    ],
)
def test_a_postgresql_that_can_not_be_meant_is_refused(url: str, problem: str) -> None:
    (told,) = problems(KKP_DATABASE_URL=url)
    assert told.startswith(problem)
    assert told.endswith("give postgresql+asyncpg://user:password@host/database?ssl=verify-full")
    assert CANARY not in told


def test_a_database_s_password_comes_from_one_place() -> None:
    given = "postgresql+asyncpg://kkp@127.0.0.1/kkp"
    chosen = settings(KKP_DATABASE_URL=given, KKP_DATABASE_PASSWORD_FILE="/run/password")
    assert chosen.database_password_file == Path("/run/password")
    (problem,) = problems(KKP_DATABASE_URL=POSTGRES, KKP_DATABASE_PASSWORD_FILE="/run/password")
    assert problem == ("KKP_DATABASE_PASSWORD_FILE: KKP_DATABASE_URL has a password too; give one of them")
    (problem,) = problems(KKP_DATABASE_PASSWORD_FILE="/run/password")
    assert problem == "KKP_DATABASE_PASSWORD_FILE: a SQLite file has no password; unset it"


@pytest.mark.parametrize("uri", ["aws-kms://eu-west-1", "http://127.0.0.1", "MEMORY://aws", "://x"])
def test_a_backend_of_an_unknown_scheme_is_refused_naming_those_that_are_served(uri: str) -> None:
    (problem,) = problems(KKP_BACKENDS=f"good=local://,bad={uri}")
    assert problem.startswith("KKP_BACKENDS: bad has the unknown scheme")
    assert problem.endswith("served are local, memory")


def test_a_policy_that_does_not_exist_is_refused() -> None:
    (problem,) = problems(KKP_POLICY_PATH="missing.rego")
    assert problem.startswith("KKP_POLICY_PATH: missing.rego does not exist")


NOT_FOR_DEV = {
    "KKP_OPA_URL": "http://127.0.0.1:8181",
    "KKP_OPA_TIMEOUT_MS": "500",
    "KKP_OPA_CA_FILE": "ca.pem",
    "KKP_POLICY_RULE": "allow",
    "KKP_TLS_CERT_FILE": "tls.crt",
    "KKP_TLS_KEY_FILE": "tls.key",
    "KKP_TRUSTED_PROXIES": "10.0.0.1",
    "KKP_DRAIN_SECS": "1",
    "KKP_WORKERS": "2",
    "KKP_MASTER_KEY_KMS": "aws-kms://eu-west-1#alias/kkp",
}


@pytest.mark.parametrize("name", NOT_FOR_DEV)
def test_what_only_serving_knows_is_refused_and_not_ignored(name: str) -> None:
    (problem,) = problems(**{name: NOT_FOR_DEV[name]})
    assert problem.startswith(f"{name}: not taken by `kkp dev` (from the environment); ")
    member = name.removeprefix("KKP_").lower()
    toml(f'{member} = "{NOT_FOR_DEV[name]}"')
    assert problems() == (problem.replace("the environment", f"`{member}` in kkp.toml"),)
    (file,) = (path for path in Path().iterdir() if path.suffix == ".toml")
    elsewhere = problems(KKP_CONFIG=str(file.rename("other.toml")))
    assert elsewhere == (problem.replace("the environment", f"`{member}` in other.toml"),)


def test_two_master_keys_are_one_too_many() -> None:
    (problem,) = problems(KKP_MASTER_KEY=MASTER_KEY_TEXT, KKP_MASTER_KEY_FILE="master.key")
    assert problem == "KKP_MASTER_KEY and KKP_MASTER_KEY_FILE: give exactly one of them"
    everything = {
        "KKP_MASTER_KEY": MASTER_KEY_TEXT,
        "KKP_MASTER_KEY_FILE": "master.key",
        "KKP_MASTER_KEY_KMS": "aws-kms://eu-west-1#alias/kkp",
    }
    with pytest.raises(ConfigError) as refusal:
        load(everything, COMMAND, schemes=SCHEMES)
    names = "KKP_MASTER_KEY and KKP_MASTER_KEY_FILE and KKP_MASTER_KEY_KMS"
    assert refusal.value.problems == (f"{names}: give exactly one of them",)


@pytest.mark.parametrize(
    ("text", "uri", "key_id"),
    [
        ("aws-kms://eu-west-1#alias/kkp-master", "aws-kms://eu-west-1", "alias/kkp-master"),
        ("vault-transit://v.test/transit?x=1#kkp", "vault-transit://v.test/transit?x=1", "kkp"),
        ("azure-keyvault://name.vault.azure.net#kkp/0", "azure-keyvault://name.vault.azure.net", "kkp/0"),
    ],
)  # fmt: skip
def test_a_kms_key_for_the_master_key_is_a_uri_and_a_key_of_it(text: str, uri: str, key_id: str) -> None:
    key = load({"KKP_MASTER_KEY_KMS": text}, COMMAND, schemes=SCHEMES).master_key_kms
    assert key == KMSKey(uri, key_id)
    assert key.label == f"{uri.partition(':')[0]}://…#{key_id}"
    assert uri not in repr(key)


def test_one_or_two_master_keys_are_named_by_their_check_values() -> None:
    one, other = "01" * 32, "ab" * 32
    assert settings(KKP_MASTER_KEY_CHECK=one).master_key_checks == (bytes.fromhex(one),)
    assert settings(KKP_MASTER_KEY_CHECK=f"{one},{other}").master_key_checks == (
        bytes.fromhex(one),
        bytes.fromhex(other),
    )


@pytest.mark.parametrize(
    "text",
    [
        "01" * 31, "01" * 33, "AB" * 32, "zz" * 32, MASTER_KEY_TEXT, ",", "01" * 32 + ",", "01" * 32 + "\n",
        ",".join(["01" * 32] * 3),
    ],
)  # fmt: skip
def test_what_is_no_check_value_is_refused_and_not_repeated(text: str) -> None:
    (problem,) = problems(KKP_MASTER_KEY_CHECK=text)
    assert problem.startswith(
        "KKP_MASTER_KEY_CHECK: its value can't be used; give what `kkp master status` says"
    )


@pytest.mark.parametrize(
    "text",
    [
        "aws-kms://eu-west-1", "aws-kms://eu-west-1#", "#alias/kkp", "eu-west-1#alias/kkp", "aws:alias/kkp",
        "memory://aws#alias/kkp", "local://#default", "any-of://?key.k=aws:k#k", "all-of://?key.k=aws:k#k",
    ],
)  # fmt: skip
def test_what_can_t_wrap_a_master_key_is_refused_and_not_repeated(text: str) -> None:
    with pytest.raises(ConfigError) as refusal:
        load({"KKP_MASTER_KEY_KMS": text}, COMMAND, schemes=SCHEMES)
    assert refusal.value.problems == (f"KKP_MASTER_KEY_KMS: its value can't be used; give {GOOD_KMS_KEY}",)


@pytest.mark.promise(2)
def test_unsafe_times_are_refused_by_the_rule_that_they_break() -> None:
    (problem,) = problems(KKP_KEY_ROTATION_SECS="674", KKP_KEY_TTL_SECS="1574")
    assert problem.startswith("V1")
    assert "675" in problem
    assert "674" in problem


def test_every_problem_is_told_at_once() -> None:
    toml('token_ttl_sec = 1\nissuer = "kkp"')
    told = problems(
        KKP_LISTEN_ADDR="0.0.0.0:80",
        KKP_DATABASE_URL="postgresql://db/kkp",
        KKP_MASTER_KEY="short",
        KKP_MASTER_KEY_FILE="master.key",
        KKP_POLICY_PATH="missing.rego",
        KKP_BACKENDS="a=ftp://x,b=gopher://x",
        KKP_MAX_PLAINTEXT_BYTES="0",
        KKP_OPA_URL="http://127.0.0.1:8181",
        KKP_TOKEN_TTL_SECS="soon",
    )
    beginnings = [
        "kkp.toml: `token_ttl_sec`", "KKP_MASTER_KEY: ", "KKP_ISSUER: ", "KKP_MAX_PLAINTEXT_BYTES: '0'",
        "KKP_TOKEN_TTL_SECS: 'soon'", "KKP_OPA_URL: ", "KKP_DATABASE_URL: ",
        "KKP_MASTER_KEY and KKP_MASTER_KEY_FILE: ", "KKP_LISTEN_ADDR: 0.0.0.0:80",
        "KKP_POLICY_PATH: missing.rego", "KKP_BACKENDS: a ",
        "KKP_BACKENDS: b ",
    ]  # fmt: skip
    assert len(told) == len(beginnings)
    assert all(problem.startswith(start) for problem, start in zip(told, beginnings, strict=True)), told


@pytest.mark.promise(2)
def test_broken_ring_rules_are_told_beside_the_other_problems() -> None:
    told = problems(KKP_POLL_SECS="21", KKP_MAX_ACTIVE_KEYS="3", KKP_ISSUER="kkp")
    assert {problem.partition(":")[0] for problem in told} == {"KKP_ISSUER", "V5", "V7"}


@pytest.mark.parametrize("text", ["soon", "nan", "-1"])
def test_a_bad_time_hides_no_broken_rule_of_the_others_and_breaks_none_itself(text: str) -> None:
    told = problems(KKP_TOKEN_TTL_SECS=text, KKP_POLL_SECS="21", KKP_MIN_TOKEN_TTL_SECS="10000")
    assert [problem.partition(":")[0] for problem in told] == ["KKP_TOKEN_TTL_SECS", "V7"]
    told = problems(KKP_MAX_ACTIVE_KEYS="many", KKP_KEY_ROTATION_SECS=text, KKP_JWKS_MAX_AGE_SECS="29")
    assert {problem.partition(":")[0] for problem in told} == {
        "KKP_MAX_ACTIVE_KEYS", "KKP_KEY_ROTATION_SECS", "V6",
    }  # fmt: skip


# Who can reach it.


@pytest.mark.parametrize(
    "address", ["127.0.0.1:80", "127.8.8.8:80", "[::1]:80", "localhost:80", "LOCALHOST:80"]
)
def test_a_loopback_address_is_taken(address: str) -> None:
    assert settings(KKP_LISTEN_ADDR=address).listen.is_loopback


REMOTE = [
    "0.0.0.0:80", "[::]:80", "10.0.0.1:80", "192.0.2.1:80", "kkp.test:80", "localhost.test:80", "*:80",
    "127.0.0.1.test:80", "[2001:db8::1]:80", "0:80", "1:80", "2130706433:80",
]  # fmt: skip


@pytest.mark.parametrize("address", REMOTE)
def test_any_other_address_is_refused_unless_it_is_meant(address: str) -> None:
    (problem,) = problems(KKP_LISTEN_ADDR=address)
    assert "set KKP_DEV_ALLOW_REMOTE=1 if you mean it" in problem
    assert not settings(KKP_LISTEN_ADDR=address, KKP_DEV_ALLOW_REMOTE="1").listen.is_loopback


@pytest.mark.parametrize("flag", ["0", "false", "False", ""])
def test_a_flag_that_says_no_allows_nothing(flag: str) -> None:
    assert problems(KKP_LISTEN_ADDR="0.0.0.0:80", KKP_DEV_ALLOW_REMOTE=flag)


def test_an_address_is_written_as_it_is_read() -> None:
    for text in ("127.0.0.1:8080", "[::1]:8080", "localhost:1"):
        assert str(settings(KKP_LISTEN_ADDR=text).listen) == text


# Secrets.

BAD_MASTER_KEYS = [
    CANARY, CANARY * 20, base64.urlsafe_b64encode(bytes(31)).decode(), bytes(32).hex(), "\u00e9" * 43,
]  # fmt: skip


@pytest.mark.parametrize("text", BAD_MASTER_KEYS)
def test_a_bad_master_key_is_refused_without_being_shown(text: str) -> None:
    (problem,) = problems(KKP_MASTER_KEY=text)
    wrong, good = "KKP_MASTER_KEY: its value can't be used", "give 32 random bytes in base64url"
    assert problem == f"{wrong}; {good}"
    toml(f'master_key = "{text}"')
    assert problems() == (f"{wrong} (from `master_key` in kkp.toml); {good}",)


def test_a_password_in_a_database_url_is_not_shown() -> None:
    with pytest.raises(ConfigError) as refusal:
        settings(KKP_DATABASE_URL=f"postgresql://kkp:{CANARY}@db/kkp", KKP_MASTER_KEY=CANARY)
    assert CANARY not in repr(refusal.value) + str(refusal.value)


def test_settings_show_no_secret() -> None:
    chosen = settings(KKP_MASTER_KEY=MASTER_KEY_TEXT, KKP_DATABASE_URL=f"sqlite:///{CANARY}.db")
    for secret in (MASTER_KEY_TEXT, MASTER_KEY.hex(), repr(MASTER_KEY)[2:-1], CANARY):
        assert secret not in repr(chosen)


def test_settings_can_not_be_changed_afterwards() -> None:
    chosen = settings()
    with pytest.raises(AttributeError):
        chosen.issuer = "https://evil.test"  # type: ignore[misc]  # the point of the test


# `kkp serve`.

SERVED = {
    "KKP_ISSUER": "https://kkp.test",
    "KKP_OPA_URL": "http://127.0.0.1:8181",
    "KKP_BACKENDS": "local=local://",
    "KKP_CHECKPOINT_SINK": "file:/var/lib/checkpoints/kkp",
    "KKP_LISTEN_ADDR": "127.0.0.1:8080",
}


@pytest.fixture
def initialised(here: Path) -> Path:
    """Work beside a data directory with a master key and a database."""
    (here / ".kkp").mkdir()
    (here / ".kkp/master.key").touch()
    (here / ".kkp/kkp.db").touch()
    return here


def served(**environ: str) -> Settings:
    return load({**SERVED, **environ}, SERVE, schemes=SCHEMES, checks=PRODUCTION_CHECKS)


def test_a_composite_is_judged_together_with_the_backends_that_it_is_made_of(initialised: Path) -> None:
    members = "key.a=local:default&key.a=far:x&key.a=gone:x&key.a=memory:x&key.a=itself:x"
    backends = f"itself=any-of://?{members},local=local://,far=far://x,memory=memory://aws"
    with pytest.raises(ConfigError) as refusal:
        load({**SERVED, "KKP_BACKENDS": backends}, SERVE, schemes=kms.SCHEMES, checks=PRODUCTION_CHECKS)

    beginnings = [
        "KKP_BACKENDS: far has the unknown scheme 'far'",
        "KKP_BACKENDS: memory is memory://, an emulator for development",
        "KKP_BACKENDS: backend itself: no backend is called gone",
        "KKP_BACKENDS: backend itself: its member itself is itself a composite",
    ]
    assert len(refusal.value.problems) == len(beginnings)
    for problem, beginning in zip(refusal.value.problems, beginnings, strict=True):
        assert problem.startswith(beginning)


def serve_problems(**environ: str) -> tuple[str, ...]:
    with pytest.raises(ConfigError) as refusal:
        served(**environ)
    return refusal.value.problems


def test_serving_asks_for_no_file_where_a_kms_wraps_the_master_key(initialised: Path) -> None:
    (initialised / ".kkp/master.key").unlink()
    chosen = served(KKP_MASTER_KEY_KMS="aws-kms://eu-west-1#alias/kkp")
    assert chosen.master_key_kms == KMSKey("aws-kms://eu-west-1", "alias/kkp")
    assert chosen.master_key is None


def test_serving_takes_what_it_needs_and_has_defaults_for_the_rest(initialised: Path) -> None:
    chosen = served(KKP_LISTEN_ADDR="", KKP_TRUSTED_PROXIES="10.0.0.1")
    assert str(chosen.listen) == "0.0.0.0:8080"
    assert str(chosen.metrics_listen) == "127.0.0.1:9464"
    assert chosen.backends == {"local": "local://"}
    assert chosen.opa_url == "http://127.0.0.1:8181"
    assert chosen.opa_timeout_seconds == 0.5
    assert (chosen.opa_ca_file, chosen.policy_rule, chosen.policy_path) == (None, None, None)
    assert chosen.checkpoint_sink == SinkAddress("file", Path("/var/lib/checkpoints/kkp"))
    assert chosen.drain_seconds == 5
    assert chosen.warnings == ()


def test_the_settings_of_serving_arrive(initialised: Path) -> None:
    chosen = served(
        KKP_OPA_TIMEOUT_MS="1000",
        KKP_POLICY_RULE="allow",
        KKP_CHECKPOINT_SINK="command:/usr/bin/store",
        KKP_TRUSTED_PROXIES="10.0.0.1,2001:db8::/32",
        KKP_METRICS_ADDR="[::1]:1",
        KKP_DRAIN_SECS="0.5",
        KKP_WORKERS="64",
    )
    assert (chosen.opa_timeout_seconds, chosen.policy_rule) == (1, "allow")
    assert chosen.checkpoint_sink == SinkAddress("command", Path("/usr/bin/store"))
    assert [str(network) for network in chosen.trusted_proxies] == ["10.0.0.1/32", "2001:db8::/32"]
    assert (chosen.metrics_listen, chosen.drain_seconds) == (Address("::1", 1), 0.5)
    assert chosen.workers == 64
    assert served(KKP_WORKERS="auto").workers is None


def test_metrics_are_turned_off_by_an_empty_address_in_either_place(initialised: Path) -> None:
    assert served(KKP_METRICS_ADDR="").metrics_listen is None
    toml('metrics_addr = ""')
    assert served().metrics_listen is None


def test_a_policy_and_a_master_key_of_its_own_are_enough(here: Path) -> None:
    (here / "other.db").touch()
    chosen = served(KKP_MASTER_KEY=MASTER_KEY_TEXT, KKP_DATABASE_URL="sqlite:///other.db")
    assert chosen.master_key == MASTER_KEY


SERVE_REFUSALS = {
    "no issuer": ({"KKP_ISSUER": ""}, "KKP_ISSUER: `kkp serve` needs it; give the https URL"),
    "no OPA": ({"KKP_OPA_URL": ""}, "KKP_OPA_URL: `kkp serve` needs it; give OPA's address"),
    "no backends": ({"KKP_BACKENDS": ""}, "KKP_BACKENDS: `kkp serve` needs it; give a list"),
    "no checkpoint sink": (
        {"KKP_CHECKPOINT_SINK": ""},
        "KKP_CHECKPOINT_SINK: `kkp serve` needs it; give file:",
    ),
    "an open listener in the clear": (
        {"KKP_LISTEN_ADDR": "0.0.0.0:80"},
        "KKP_LISTEN_ADDR: 0.0.0.0:80 can be reached from other machines without TLS; give KKP_TLS_CERT_FILE",
    ),
    "the default listener in the clear": ({"KKP_LISTEN_ADDR": ""}, "KKP_LISTEN_ADDR: 0.0.0.0:8080 can be"),
    "a certificate without a key": (
        {"KKP_TLS_CERT_FILE": "tls.crt"},
        "KKP_TLS_CERT_FILE and KKP_TLS_KEY_FILE: give both",
    ),
    "a key without a certificate": (
        {"KKP_TLS_KEY_FILE": "tls.key"},
        "KKP_TLS_CERT_FILE and KKP_TLS_KEY_FILE: give both",
    ),
    "a certificate that is not there": (
        {"KKP_TLS_CERT_FILE": "tls.crt", "KKP_TLS_KEY_FILE": "tls.key"},
        "KKP_TLS_CERT_FILE: tls.crt or tls.key can't be read (No such file or directory)",
    ),
    "everybody as a proxy": (
        {"KKP_TRUSTED_PROXIES": "0.0.0.0/0"},
        "KKP_TRUSTED_PROXIES: '0.0.0.0/0' can't be used; give a list of addresses and networks",
    ),
    "a remote OPA in the clear": (
        {"KKP_OPA_URL": "http://10.0.0.1:8181"},
        "KKP_OPA_URL: without TLS it must be",
    ),
    "a remote OPA without an authority": (
        {"KKP_OPA_URL": "https://opa.test"},
        "KKP_OPA_CA_FILE: an https OPA",
    ),
    "an authority that is not there": (
        {"KKP_OPA_URL": "https://opa.test", "KKP_OPA_CA_FILE": "ca.pem"},
        "KKP_OPA_CA_FILE: ca.pem can't be read",
    ),
    "an emulator": ({"KKP_BACKENDS": "a=memory://aws"}, "KKP_BACKENDS: a is memory://, an emulator"),
    "a backend of an unknown scheme": (
        {"KKP_BACKENDS": "a=ftp://x"},
        "KKP_BACKENDS: a has the unknown scheme",
    ),
    "a backend's bad URI": ({"KKP_BACKENDS": "a=local://x"}, "KKP_BACKENDS: backend a: "),
    "a policy of its own beside OPA": (
        {"KKP_POLICY_PATH": "policy"},
        "KKP_POLICY_PATH: not taken by `kkp serve`",
    ),
    "the wish of a developer": (
        {"KKP_DEV_ALLOW_REMOTE": "1"},
        "KKP_DEV_ALLOW_REMOTE: not taken by `kkp serve`",
    ),
    "a KMS for the master key that there is not": (
        {"KKP_MASTER_KEY_KMS": "gone://x#key"},
        "KKP_MASTER_KEY_KMS: ",
    ),
    "a KMS for the master key that can't be right": (
        {"KKP_MASTER_KEY_KMS": "aws-kms://#alias/kkp"},
        "KKP_MASTER_KEY_KMS: ",
    ),
    "two master keys": (
        {"KKP_MASTER_KEY": MASTER_KEY_TEXT, "KKP_MASTER_KEY_FILE": ".kkp/master.key"},
        "KKP_MASTER_KEY and KKP_MASTER_KEY_FILE: give exactly one",
    ),
    "a master key that is not there": (
        {"KKP_MASTER_KEY_FILE": "other.key"},
        "KKP_MASTER_KEY_FILE: other.key does not exist; give the database's master key, or run `kkp init`",
    ),
    "a database that is not there": (
        {"KKP_DATABASE_URL": "sqlite:///other.db"},
        "KKP_DATABASE_URL: other.db does not exist; name the database, or run `kkp init`",
    ),
    "a database that is no file": ({"KKP_DATABASE_URL": "sqlite://"}, "KKP_DATABASE_URL: it is no SQLite"),
    "times that break a rule": ({"KKP_KEY_ROTATION_SECS": "674", "KKP_KEY_TTL_SECS": "1574"}, "V1"),
    "metrics that others can reach": (
        {"KKP_METRICS_ADDR": "0.0.0.0:9464"},
        "KKP_METRICS_ADDR: '0.0.0.0:9464'",
    ),
    "a rule of another name": ({"KKP_POLICY_RULE": "allowed"}, "KKP_POLICY_RULE: 'allowed' can't be used"),
    "an issuer in the clear": (
        {"KKP_ISSUER": "http://kkp.example.com"},
        "KKP_ISSUER: http://kkp.example.com is not https",
    ),
    "a key instead of its path": (
        {"KKP_MASTER_KEY_FILE": MASTER_KEY_TEXT},
        "KKP_MASTER_KEY_FILE: its value can't be used; give the path of a file",
    ),
    "no time to decide": ({"KKP_OPA_TIMEOUT_MS": "0"}, "KKP_OPA_TIMEOUT_MS: '0' can't be used; give milli"),
    "too much time to decide": ({"KKP_OPA_TIMEOUT_MS": "1001"}, "KKP_OPA_TIMEOUT_MS: '1001' can't be used"),
    "a sink of another kind": (
        {"KKP_CHECKPOINT_SINK": "s3:/x"},
        "KKP_CHECKPOINT_SINK: 's3:/x' can't be used",
    ),
    "a sink that moves": ({"KKP_CHECKPOINT_SINK": "file:x"}, "KKP_CHECKPOINT_SINK: 'file:x' can't be used"),
    "no workers": ({"KKP_WORKERS": "0"}, "KKP_WORKERS: '0' can't be used"),
    "more workers than there may be": ({"KKP_WORKERS": "65"}, "KKP_WORKERS: '65' can't be used"),
    "no number of workers": ({"KKP_WORKERS": "all"}, "KKP_WORKERS: 'all' can't be used"),
    "a negative time to drain": ({"KKP_DRAIN_SECS": "-1"}, "KKP_DRAIN_SECS: '-1' can't be used"),
    "no end of draining": ({"KKP_DRAIN_SECS": "601"}, "KKP_DRAIN_SECS: '601' can't be used"),
    "no number to drain by": ({"KKP_DRAIN_SECS": "nan"}, "KKP_DRAIN_SECS: 'nan' can't be used"),
}


@pytest.mark.parametrize(("environ", "beginning"), SERVE_REFUSALS.values(), ids=SERVE_REFUSALS.keys())
def test_serving_is_refused_on(initialised: Path, environ: dict[str, str], beginning: str) -> None:
    (problem,) = serve_problems(**environ)
    assert problem.startswith(beginning)


def test_serving_is_refused_on_a_sink_that_is_restored_with_the_database(initialised: Path) -> None:
    sink = Path(".kkp/checkpoints").absolute()
    (problem,) = serve_problems(KKP_CHECKPOINT_SINK=f"file:{sink}")
    assert problem.startswith(f"KKP_CHECKPOINT_SINK: {sink} lies in the data directory")


def test_everything_that_is_wrong_with_serving_is_told_at_once(here: Path) -> None:
    told = serve_problems(
        KKP_ISSUER="",
        KKP_OPA_URL="http://opa.test",
        KKP_BACKENDS="a=memory://aws,b=ftp://x,c=local://x",
        KKP_CHECKPOINT_SINK="",
        KKP_LISTEN_ADDR="",
        KKP_TLS_CERT_FILE="tls.crt",
        KKP_POLICY_PATH="policy",
        KKP_MASTER_KEY_KMS="x",
        KKP_POLL_SECS="21",
        KKP_METRICS_ADDR="0.0.0.0:1",
        KKP_OPA_TIMEOUT_MS="soon",
    )
    beginnings = (
        "KKP_METRICS_ADDR: '0.0.0.0:1' can't be used",
        "KKP_MASTER_KEY_KMS: its value can't be used",
        "KKP_OPA_TIMEOUT_MS: 'soon' can't be used",
        "KKP_POLICY_PATH: not taken by `kkp serve`",
        "KKP_ISSUER: `kkp serve` needs it",
        "KKP_CHECKPOINT_SINK: `kkp serve` needs it",
        "KKP_TLS_CERT_FILE and KKP_TLS_KEY_FILE: give both",
        "KKP_DATABASE_URL: .kkp/kkp.db does not exist",
        "KKP_BACKENDS: a is memory://, an emulator",
        "KKP_BACKENDS: b has the unknown scheme 'ftp'; served are local",
        "V7: ",
        "KKP_OPA_URL: without TLS it must be",
        "KKP_BACKENDS: backend c: ",
    )
    pairs = zip(told, beginnings, strict=True)
    assert all(problem.startswith(beginning) for problem, beginning in pairs), told


def test_a_password_in_an_opas_url_is_not_shown(initialised: Path) -> None:
    told = serve_problems(KKP_OPA_URL=f"http://kkp:{CANARY}@127.0.0.1:8181")
    assert CANARY not in str(told)


# A command beside a server, of either kind.


def test_a_command_shares_the_settings_of_a_server_and_is_refused_for_none(here: Path) -> None:
    chosen = load({**SERVED, "KKP_LISTEN_ADDR": "0.0.0.0:80"}, COMMAND, schemes=SCHEMES)
    assert chosen.backends == {"local": "local://"}
    assert chosen.issuer == "https://kkp.test"
    assert load({}, COMMAND, schemes=SCHEMES) == settings()
    load({"KKP_DEV_ALLOW_REMOTE": "1", "KKP_POLICY_PATH": "gone"}, COMMAND, schemes=SCHEMES)


def test_a_command_refuses_what_it_uses_itself(here: Path) -> None:
    wrong = {"KKP_DATABASE_URL": "kkp.db", "KKP_BACKENDS": "a=ftp://x", "KKP_MASTER_KEY_KMS": "x"}
    with pytest.raises(ConfigError) as refusal:
        load(wrong, COMMAND, schemes=SCHEMES)
    assert {problem.partition(":")[0] for problem in refusal.value.problems} == wrong.keys()


# What looks unintended.


@pytest.mark.parametrize(
    "name", ["KKP_URL", "KKP_CA_FILE", "KKP_AUDIENCE", "KKP_SERVICE_KEY", "KKP_SERVICE_KEY_FILE"]
)
def test_what_the_commands_of_callers_read_is_not_warned_of(name: str) -> None:
    assert settings(**{name: "x"}).warnings == ()


def test_unknown_variables_are_warned_of_and_others_are_left_alone() -> None:
    chosen = settings(KKP_TOKEN_TTL="1", KKP_PORT="tcp://10.0.0.1:8080", PATH="/bin", kkp_issuer="x")
    assert chosen.warnings == (
        "KKP_PORT is not a setting of KKP and is ignored",
        "KKP_TOKEN_TTL is not a setting of KKP and is ignored",
    )


def test_known_variables_are_not_warned_of() -> None:
    toml("", "other.toml")
    assert settings(KKP_CONFIG="other.toml", KKP_ISSUER="https://kkp.test").warnings == ()


@pytest.mark.parametrize(("text", "rate"), [("0", 0), ("1", 1), ("100000", 100_000)])
def test_a_caller_and_an_address_have_a_rate_or_with_zero_none(text: str, rate: int) -> None:
    assert settings(KKP_CALLER_RATE_PER_SEC=text).caller_rate_per_second == rate
    assert settings(KKP_ADDRESS_RATE_PER_SEC=text).address_rate_per_second == rate


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("KKP_CALLER_RATE_PER_SEC", "-1"),
        ("KKP_CALLER_RATE_PER_SEC", "0.5"),
        ("KKP_CALLER_RATE_PER_SEC", "many"),
        ("KKP_CALLER_BURST", "0"),
        ("KKP_CALLER_BURST", "-1"),
        ("KKP_ADDRESS_RATE_PER_SEC", "-1"),
        ("KKP_ADDRESS_RATE_PER_SEC", "0.5"),
        ("KKP_ADDRESS_BURST", "0"),
        ("KKP_ADDRESS_CONNECTIONS", "-1"),
        ("KKP_MAX_HELD_BODY_BYTES", "0"),
        ("KKP_MAX_HELD_BODY_BYTES", "64M"),
    ],
)
def test_a_limit_that_is_no_whole_number_is_refused(name: str, text: str) -> None:
    (problem,) = problems(**{name: text})
    assert problem.startswith(f"{name}: {text!r} can't be used")


@pytest.mark.parametrize(
    ("plaintext", "held"),
    [("1", 64 << 20), (str(9 << 20), 64 << 20), (str(10 << 20), 68 << 20), (str(64 << 20), 392 << 20)],
)
def test_the_room_for_bodies_grows_with_the_largest_plaintext(plaintext: str, held: int) -> None:
    assert settings(KKP_MAX_PLAINTEXT_BYTES=plaintext).max_held_body_bytes == held


def test_less_room_for_bodies_than_the_largest_ones_need_is_refused_and_just_enough_is_not() -> None:
    least = 6 * 1_048_576 + (8 << 20)
    assert settings(KKP_MAX_HELD_BODY_BYTES=str(least)).max_held_body_bytes == least
    (problem,) = problems(KKP_MAX_HELD_BODY_BYTES=str(least - 1))
    assert problem == (
        f"KKP_MAX_HELD_BODY_BYTES: {least - 1} is too little for the bodies that KKP_MAX_PLAINTEXT_BYTES, "
        f"1048576, allows; give {least} at least"
    )


# People.


@pytest.mark.parametrize(("text", "is_open"), [("code", False), ("open", True)])
def test_who_was_invited_may_sign_up_or_whoever_wants_to(text: str, is_open: bool) -> None:  # noqa: FBT001  a column of the table
    assert settings(KKP_SIGNUP=text).open_signup is is_open


@pytest.mark.parametrize(("text", "seconds"), [("1", 1), ("86400", 86_400)])
def test_a_session_lasts_from_a_second_to_a_day(text: str, seconds: int) -> None:
    assert settings(KKP_SESSION_TTL_SECS=text).session_ttl_seconds == seconds


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("KKP_SIGNUP", "1"),
        ("KKP_SIGNUP", "Open"),
        ("KKP_SESSION_TTL_SECS", "0"),
        ("KKP_SESSION_TTL_SECS", "86401"),
        ("KKP_SESSION_TTL_SECS", "60.5"),
        ("KKP_SESSION_TTL_SECS", "1h"),
    ],
)
def test_anything_else_about_people_is_refused(name: str, text: str) -> None:
    (problem,) = problems(**{name: text})
    assert problem.startswith(f"{name}: {text!r} can't be used")


# Cached data keys.


def test_data_keys_are_cached_only_when_they_are_given_an_age() -> None:
    given = {"KKP_DATA_KEY_CACHE_ENTRIES": "7", "KKP_DATA_KEY_CACHE_MESSAGES": "8"}
    assert settings(**given).data_key_cache is None
    assert settings(**given, KKP_DATA_KEY_CACHE_SECS="0").data_key_cache is None
    assert settings(KKP_DATA_KEY_CACHE_SECS="2.5").data_key_cache == DataKeyCacheLimits(
        age_seconds=2.5, entries=1000, messages=10_000, plaintext_bytes=2**30, encrypts=False
    )


def test_a_data_key_serves_a_second_at_least() -> None:
    chosen = settings(KKP_DATA_KEY_CACHE_SECS="1").data_key_cache
    assert chosen is not None
    assert chosen.age_seconds == 1


def test_the_largest_data_key_cache_that_can_be_set() -> None:
    chosen = settings(
        KKP_DATA_KEY_CACHE_SECS="3600",
        KKP_DATA_KEY_CACHE_ENTRIES="100000",
        KKP_DATA_KEY_CACHE_MESSAGES="4294967296",
        KKP_DATA_KEY_CACHE_BYTES="68719476736",
        KKP_DATA_KEY_CACHE_ENCRYPT="1",
    )
    assert chosen.data_key_cache == DataKeyCacheLimits(3600, 100_000, 2**32, 2**36, encrypts=True)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("KKP_DATA_KEY_CACHE_SECS", "-1"),
        ("KKP_DATA_KEY_CACHE_SECS", "0.000001"),
        ("KKP_DATA_KEY_CACHE_SECS", "0.999"),
        ("KKP_DATA_KEY_CACHE_SECS", "3600.1"),
        ("KKP_DATA_KEY_CACHE_SECS", "nan"),
        ("KKP_DATA_KEY_CACHE_SECS", "inf"),
        ("KKP_DATA_KEY_CACHE_SECS", "soon"),
        ("KKP_DATA_KEY_CACHE_ENTRIES", "0"),
        ("KKP_DATA_KEY_CACHE_ENTRIES", "100001"),
        ("KKP_DATA_KEY_CACHE_MESSAGES", "0"),
        ("KKP_DATA_KEY_CACHE_MESSAGES", "4294967297"),
        ("KKP_DATA_KEY_CACHE_BYTES", "0"),
        ("KKP_DATA_KEY_CACHE_BYTES", "68719476737"),
        ("KKP_DATA_KEY_CACHE_BYTES", "1e6"),
        ("KKP_DATA_KEY_CACHE_ENCRYPT", "yes"),
    ],
)
def test_a_data_key_cache_beyond_its_bounds_is_refused(name: str, text: str) -> None:
    (problem,) = problems(**{name: text})
    assert problem.startswith(f"{name}: {text!r} can't be used; give ")


def test_sealing_from_a_cache_that_is_off_is_refused() -> None:
    (problem,) = problems(KKP_DATA_KEY_CACHE_ENCRYPT="1")
    assert problem == (
        "KKP_DATA_KEY_CACHE_ENCRYPT: no data keys are cached; give KKP_DATA_KEY_CACHE_SECS, or unset it"
    )


def test_the_limits_of_backends_are_read_alone_whatever_the_rest_is(tmp_path: Path) -> None:
    rest = {"KKP_CONFIG": str(tmp_path / "absent.toml"), "KKP_LISTEN_ADDR": "nowhere"}
    limits = load_backend_limits({**rest, "KKP_KMS_TIMEOUT_MS": "250", "KKP_KMS_ATTEMPTS": "1"})
    assert (limits.timeout_seconds, limits.attempts) == (0.25, 1)
    with pytest.raises(ConfigError, match="KKP_KMS_TIMEOUT_MS"):
        load_backend_limits({**rest, "KKP_KMS_TIMEOUT_MS": "soon"})
