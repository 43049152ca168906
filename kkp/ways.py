"""The ways to run KKP: what each takes for granted, demands and refuses of the settings.

- `DEV` is for one machine: it decides in process and takes nothing that only serving knows.
- `SERVE` is production: it makes no key and no database, takes no emulator, and lets nobody from elsewhere
  speak to it in the clear unless somebody is named who terminates TLS before it.
- `COMMAND` stands beside a server of either kind and shares its settings, and so demands nothing of those
  that it does not use.
"""

from __future__ import annotations

from pathlib import Path
from urllib.parse import urlsplit

from kkp.config import Address, Draft, SinkAddress, Way


def _check_dev_listener(draft: Draft) -> None:
    address = draft.listen
    if address is None:
        return  # its parser has already reported it
    if address.port == 0 and not draft.texts["KKP_ISSUER"]:
        draft.problems.append(
            f"KKP_LISTEN_ADDR: {address} leaves the port open, and without KKP_ISSUER the address is the "
            "issuer of every token; give a port, or set KKP_ISSUER"
        )
    if not address.is_loopback and not draft.values.get("KKP_DEV_ALLOW_REMOTE"):
        draft.problems.append(
            f"KKP_LISTEN_ADDR: {address} can be reached from other machines and `kkp dev` is a development "
            "server; listen on 127.0.0.1, or set KKP_DEV_ALLOW_REMOTE=1 if you mean it"
        )


def _check_tls(draft: Draft) -> None:
    cert, key = bool(draft.texts["KKP_TLS_CERT_FILE"]), bool(draft.texts["KKP_TLS_KEY_FILE"])
    if cert != key:
        draft.problems.append("KKP_TLS_CERT_FILE and KKP_TLS_KEY_FILE: give both of them, or neither")
    address = draft.listen
    is_plain = not cert and not key and not draft.texts["KKP_TRUSTED_PROXIES"]
    if address is not None and not address.is_loopback and is_plain:
        draft.problems.append(
            f"KKP_LISTEN_ADDR: {address} can be reached from other machines without TLS; give "
            "KKP_TLS_CERT_FILE and KKP_TLS_KEY_FILE, or name who terminates TLS in KKP_TRUSTED_PROXIES, or "
            "listen on 127.0.0.1"
        )


def _check_client_certificates(draft: Draft) -> None:
    """Demand that a client certificate can arrive, and be judged, where one is spoken of."""
    has_tls, proxies = bool(draft.texts["KKP_TLS_CERT_FILE"]), bool(draft.texts["KKP_TRUSTED_PROXIES"])
    is_forwarded = bool(draft.values.get("KKP_FORWARDED_CLIENT_CERT"))
    if is_forwarded and not proxies:
        draft.problems.append(
            "KKP_FORWARDED_CLIENT_CERT: no proxy is named; name those that forward client certificates in "
            "KKP_TRUSTED_PROXIES, or unset it"
        )
    tables = draft.values.get("KKP_CERTIFICATES")
    has_tables = isinstance(tables, dict) and bool(tables)
    if draft.texts["KKP_CLIENT_CA_FILE"] or has_tables:
        if not has_tls and not is_forwarded:
            setting = "KKP_CERTIFICATES" if has_tables else "KKP_CLIENT_CA_FILE"
            draft.problems.append(
                f"{setting}: no client certificate can arrive; give KKP_TLS_CERT_FILE and KKP_TLS_KEY_FILE, "
                "or set KKP_FORWARDED_CLIENT_CERT=1 where a proxy forwards them"
            )
    elif is_forwarded or draft.values.get("KKP_CLIENT_CERT"):
        draft.problems.append(
            "KKP_CLIENT_CA_FILE: no client certificate is accepted without it; give the file of those who "
            "issue them"
        )


def _check_state_exists(draft: Draft) -> None:
    """Demand what `kkp init` makes: serving makes no master key, and no database in place of a lost one."""
    key_file, database = draft.master_key_file, draft.database_path
    could_be_read = "KKP_MASTER_KEY_FILE" in draft.values
    is_elsewhere = draft.given.get("KKP_MASTER_KEY") or draft.given.get("KKP_MASTER_KEY_KMS")
    if could_be_read and not is_elsewhere and not key_file.exists():
        draft.problems.append(
            f"KKP_MASTER_KEY_FILE: {key_file} does not exist; give the database's master key, or run "
            "`kkp init` for a new database"
        )
    if database is not None and not database.exists():
        draft.problems.append(
            f"KKP_DATABASE_URL: {database} does not exist; name the database, or run `kkp init` for a new one"
        )


def _check_issuer(draft: Draft) -> None:
    issuer = str(draft.values.get("KKP_ISSUER", ""))
    if issuer.startswith("http://") and not Address(urlsplit(issuer).hostname or "", 0).is_loopback:
        draft.problems.append(
            f"KKP_ISSUER: {issuer} is not https, so anybody on the way could replace the keys that verify "
            "tokens; give the https URL that callers know this KKP by"
        )


def _check_sink(draft: Draft) -> None:
    sink, data_dir = draft.values.get("KKP_CHECKPOINT_SINK"), draft.values.get("KKP_DATA_DIR")
    if not isinstance(sink, SinkAddress) or not isinstance(data_dir, Path) or sink.kind != "file":
        return
    if sink.path.is_relative_to(data_dir.absolute()):
        draft.problems.append(
            f"KKP_CHECKPOINT_SINK: {sink.path} lies in the data directory, so whoever restores that restores "
            "both; give a file elsewhere, best on another machine's disk, or a command"
        )


def _check_policy_path(draft: Draft) -> None:
    path = draft.texts["KKP_POLICY_PATH"]
    if path and not Path(path).exists():
        draft.problems.append(
            f"KKP_POLICY_PATH: {path} does not exist; give a Rego file or a bundle directory"
        )


_DECIDES_IN_PROCESS = "it decides with the policy in process; unset it"
_FOR_SERVE = "it is for `kkp serve`; unset it"

DEV = Way(
    "`kkp dev`",
    refused={
        "KKP_MASTER_KEY_KMS": "give KKP_MASTER_KEY or KKP_MASTER_KEY_FILE instead",
        "KKP_OPA_URL": _DECIDES_IN_PROCESS,
        "KKP_OPA_TIMEOUT_MS": _DECIDES_IN_PROCESS,
        "KKP_OPA_CA_FILE": _DECIDES_IN_PROCESS,
        "KKP_POLICY_RULE": _DECIDES_IN_PROCESS,
        "KKP_TLS_CERT_FILE": _FOR_SERVE,
        "KKP_TLS_KEY_FILE": _FOR_SERVE,
        "KKP_CERTIFICATES": _FOR_SERVE,
        "KKP_CLIENT_CA_FILE": _FOR_SERVE,
        "KKP_CLIENT_CERT": _FOR_SERVE,
        "KKP_FORWARDED_CLIENT_CERT": _FOR_SERVE,
        "KKP_TRUSTED_PROXIES": _FOR_SERVE,
        "KKP_DRAIN_SECS": _FOR_SERVE,
        "KKP_WORKERS": _FOR_SERVE,
    },
    rules=(_check_dev_listener, _check_policy_path),
)
SERVE = Way(
    "`kkp serve`",
    defaults={"KKP_LISTEN_ADDR": "0.0.0.0:8080", "KKP_METRICS_ADDR": "127.0.0.1:9464"},
    required={
        "KKP_ISSUER": "the https URL that callers know this KKP by",
        "KKP_OPA_URL": "OPA's address, such as http://127.0.0.1:8181",
        "KKP_BACKENDS": "a list of name=uri; there is no default",
        "KKP_CHECKPOINT_SINK": "file:/path/to/checkpoints or command:/path/to/program",
    },
    refused={
        "KKP_POLICY_PATH": "OPA owns the policy; unset it, and give OPA the bundle",
        "KKP_DEV_ALLOW_REMOTE": "it is for `kkp dev`; unset it",
    },
    refused_schemes={"memory": "an emulator for development; give a real backend's URI"},
    rules=(_check_tls, _check_client_certificates, _check_issuer, _check_sink, _check_state_exists),
)
COMMAND = Way("a command")
