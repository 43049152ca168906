"""What the README tells a reader to type does, as it stands there, what it says."""

from __future__ import annotations

import asyncio
import base64
import json
import os
import re
import shutil
import signal
import socket
import sys
from collections.abc import Callable, Mapping
from contextlib import AsyncExitStack, closing
from pathlib import Path
from typing import Any

import pytest

from kkp.model import Grant, Identity
from tests.emulators import azure
from tests.emulators.clouds import CLOUDS
from tests.harness import running
from tests.integration.process import KKP, NO_SETTINGS, environment, names, serving
from tests.opa import POLICY, require_opa

README = Path(__file__).parents[2] / "README.md"
ADDRESS = "127.0.0.1:8080"
_HANG_SECONDS = 60


def commands(marker: str, document: Path = README) -> list[str]:
    """Return the shell blocks between a marker and its end, as they stand."""
    tested = re.search(rf"<!-- tested: {marker} -->(.*?)<!-- end -->", document.read_text(), re.DOTALL)
    assert tested is not None, f"{document.name} has no `<!-- tested: {marker} -->` … `<!-- end -->`"
    blocks = re.findall(r"^```sh\n(.*?)^```", tested[1], re.DOTALL | re.MULTILINE)
    assert blocks
    return blocks


def free_address() -> str:
    """Return the README's address with another port: other tests run at the same time."""
    with closing(socket.socket()) as probe:
        probe.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{probe.getsockname()[1]}"


async def shell(directory: Path, script: str, *, environ: Mapping[str, str] = NO_SETTINGS) -> str:
    """Run a script to its end, with these variables, and return what it prints."""
    started = await asyncio.create_subprocess_exec(
        "bash",
        "-euo",
        "pipefail",
        "-c",
        script,
        cwd=directory,
        env=environment(environ),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        start_new_session=True,
    )
    try:
        out, err = await asyncio.wait_for(started.communicate(), _HANG_SECONDS)
    finally:
        if started.returncode is None:
            os.killpg(started.pid, signal.SIGKILL)  # what it had started is in its group
            await started.wait()
    assert started.returncode == 0, (out.decode(), err.decode())
    return out.decode()


async def run(
    directory: Path,
    blocks: list[str],
    settings: Mapping[str, str] = NO_SETTINGS,
    *,
    executable: Path = KKP,
) -> str:
    """Run shell blocks beside a server, from where a checkout would be, and return what they print.

    A reader has `KKP` and `KEY` from the first block.
    """
    (directory / ".venv").symlink_to(sys.prefix)
    address = free_address()
    environ = {"KKP_LISTEN_ADDR": address, "KKP_ISSUER": ""}
    async with serving(directory, executable=executable, environ={**environ, **settings}) as server:
        script = "\n".join([_first_lines(), *blocks]).replace(ADDRESS, address)
        printed = await shell(directory, script, environ=environ)
        assert await server.stop() == 0
    return printed


def _first_lines() -> str:
    """Return what the round trip defines before it does anything."""
    return commands("round trip")[0].partition("\n\n")[0]


def content(path: Path) -> bytes:
    return path.read_bytes()


def check_opened(directory: Path) -> None:
    """Hold what the round trip opened against the file that it sealed."""
    source = re.search(r"base64 -w0 (/[^\s)]+)\)", "".join(commands("round trip")))
    assert source is not None
    opened = {name: content(directory / name) for name in names(directory) if name.startswith("opened-")}
    expected = content(Path(source[1]))
    assert opened == {f"opened-{backend}": expected for backend in ("aws", "azure", "gcp")}


async def test_files_of_any_size_come_back(tmp_path: Path) -> None:
    printed = await run(tmp_path, [*commands("files"), 'echo "$TOKEN"'])
    assert content(tmp_path / "again.tar") == content(tmp_path / "backup.tar")
    assert re.fullmatch(r"[\w-]+\.[\w-]+\.[\w-]+\n", printed)


async def test_the_round_trip_gives_back_the_file(tmp_path: Path) -> None:
    await run(tmp_path, commands("round trip"))
    check_opened(tmp_path)


# How often each emulator was asked to seal, and to open.
ASKED: Mapping[str, Callable[[Any], tuple[int, int]]] = {
    "aws": lambda aws: (aws.operations.count("GenerateDataKey"), aws.operations.count("Decrypt")),
    "gcp": lambda gcp: (gcp.calls.count("Encrypt"), gcp.calls.count("Decrypt")),
    "azure": lambda vault: (
        sum(request.endswith("/wrapkey") for request in vault.requests),
        sum(request.endswith("/unwrapkey") for request in vault.requests),
    ),
    "vault": lambda vault: (
        vault.paths.count("/v1/transit/encrypt/orders"),
        vault.paths.count("/v1/transit/decrypt/orders"),
    ),
}


@pytest.mark.parametrize("gcp", ["gcp", "vault"])
async def test_the_round_trip_is_the_same_over_the_wires_of_the_clouds_by_their_own_sdks(
    gcp: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    backends = {"aws": "aws", "gcp": gcp, "azure": "azure"}
    own = tmp_path / "clouds"
    own.mkdir()
    async with AsyncExitStack() as stack:
        clouds = {
            backend: await stack.enter_async_context(CLOUDS[cloud](own, monkeypatch))
            for backend, cloud in backends.items()
        }
        uris = ",".join(f"{backend}={cloud.uri}" for backend, cloud in clouds.items())
        executable = azure.write_command(own / "kkp")
        await run(tmp_path, commands("round trip"), {"KKP_BACKENDS": uris}, executable=executable)
    check_opened(tmp_path)
    for backend, cloud in clouds.items():
        sealed, opened = ASKED[backends[backend]](cloud.emulator)
        assert sealed >= 1, backend
        assert opened >= 1, backend


async def test_an_envelope_of_it_moves_to_another_cloud(tmp_path: Path) -> None:
    printed = await run(tmp_path, commands("round trip") + commands("moving"))
    assert printed.splitlines()[-1] == "moved: the same bytes came back"


async def test_the_key_of_one_message_comes_back_for_its_envelope(tmp_path: Path) -> None:
    first, again = (await run(tmp_path, commands("data key"))).splitlines()
    assert len(base64.b64decode(first, validate=True)) == 32
    assert again == first


async def test_a_batch_is_sealed_and_opened(tmp_path: Path) -> None:
    assert await run(tmp_path, commands("batch")) == "one\ntwo\n"


async def test_a_token_of_it_verifies_offline_and_the_audit_log_is_clean(tmp_path: Path) -> None:
    printed = await run(tmp_path, commands("round trip") + commands("offline"))
    claims, checkpoints, verdict = printed.splitlines()[-3:]
    assert "'sub': 'root'" in claims
    assert checkpoints.startswith("checkpoints: ")
    assert verdict.startswith("clean: ")


async def test_a_service_of_its_own_gets_a_token_within_its_grant(tmp_path: Path) -> None:
    token, *listed = (await run(tmp_path, commands("identity"))).splitlines()
    assert json.loads(token)["kid"]
    assert listed[0].startswith("orders ")
    assert listed[1] == "    aws:alias/orders:encrypt,decrypt audience=orders-db environment=prod"
    assert re.fullmatch(r"    service key of [\d: -]+Z, does not expire", listed[2])
    assert listed[3].startswith("root ")


async def test_keys_are_listed_and_a_token_is_inspected_and_revoked(tmp_path: Path) -> None:
    printed = await run(tmp_path, commands("round trip") + commands("keys"))
    assert re.search(r"^generation 1  ACTIVE  ", printed, re.MULTILINE)
    assert re.search(r"^verified with the key ", printed, re.MULTILINE)
    assert printed.splitlines()[-1] == "{}"


async def test_production_starts_serves_and_ends_as_it_says(tmp_path: Path) -> None:
    (tmp_path / ".venv").symlink_to(sys.prefix)
    shutil.copytree(POLICY, tmp_path / "policy")
    script = "\n".join(commands("production"))
    for port in ("8443", "8181"):
        script = script.replace(port, free_address().rpartition(":")[2])
    # Its settings are all in the file that it writes.
    script = f"unset KKP_LISTEN_ADDR KKP_ISSUER\n{script}"
    checkout = names(tmp_path)
    path = f"{Path(require_opa()).parent}:{os.environ['PATH']}"
    printed = await shell(tmp_path, script, environ={"PATH": path})
    assert '"policy":"ok"' in printed
    opened, *_, verdict = printed.splitlines()[-3:]
    assert json.loads(opened)["plaintext"] == "hello", printed
    assert verdict.startswith("clean: ")
    assert names(tmp_path) == {*checkout, "production"}


async def test_without_opa_production_does_not_wait_for_ever(tmp_path: Path) -> None:
    (tmp_path / ".venv").symlink_to(sys.prefix)
    script = "\n".join(commands("production")).replace("8443", free_address().rpartition(":")[2])
    start, _, _ = script.partition("# Mint a token")
    start = re.sub(r"\bopa (?=run|>)", "no-such-opa ", start)
    assert start.count("no-such-opa") == 2
    printed = await shell(tmp_path, f"unset KKP_LISTEN_ADDR KKP_ISSUER\nexec 2>&1\n{start}\nkill $SERVER")
    assert "there is no opa on the PATH" in printed


def test_nothing_tells_to_install_kkp_by_its_name() -> None:
    """Whoever owns that name in a package index would get their code onto the machine."""
    checkout = README.parent
    told = [*checkout.glob("*.md"), *checkout.glob("docs/**/*.md"), *checkout.glob("kkp/**/*.py")]
    told += [path for path in checkout.glob("deploy/**/*") if path.is_file()]
    assert len(told) > 100
    for path in told:
        assert re.search(r"kkp\[(aws|azure|gcp)|pip install [^\n]*\bkkp\b", path.read_text()) is None, path


async def test_what_is_no_json_is_told_in_one_line(tmp_path: Path) -> None:
    script = f"{_first_lines()}\nprintf 'busy\nnow' | pick token 2>&1 || true"
    (tmp_path / ".kkp").mkdir()
    (tmp_path / ".kkp" / "root.key").touch()
    assert await shell(tmp_path, script) == "no token in the answer: 'busy\\nnow'\n"


async def test_an_export_verifies_with_its_checkpoints(tmp_path: Path) -> None:
    checkpoints, verdict = (await run(tmp_path, commands("round trip") + commands("export"))).splitlines()[
        -2:
    ]
    assert checkpoints.startswith("checkpoints: ")
    assert verdict.startswith("clean: ")


def save_sample(directory: Path) -> None:
    sample = re.search(r"^```rego\n(.*?)^```", README.read_text(), re.DOTALL | re.MULTILINE)
    assert sample is not None
    (directory / "sample.rego").write_text(sample[1])


async def test_the_sample_policy_decides_as_its_lines_say(tmp_path: Path) -> None:
    save_sample(tmp_path)
    opened, refused = (
        await run(tmp_path, commands("own policy"), {"KKP_POLICY_PATH": "sample.rego"})
    ).splitlines()
    assert opened == "hello"
    assert json.loads(refused)["code"] == "policy_denied"
    banner = content(tmp_path / "kkp.out").decode()
    assert "decides by sample.rego." in banner
    assert "Try, " not in banner  # as root, whom this policy refuses


async def test_the_sample_policy_keeps_to_the_grants(tmp_path: Path) -> None:
    save_sample(tmp_path)
    wish = {
        "audience": "orders-db",
        "backend": "aws",
        "key_id": "alias/orders",
        "policy_claims": {"environment": "prod"},
        "request_context": {"environment": "prod"},
    }
    async with running(tmp_path, KKP_POLICY_PATH=str(tmp_path / "sample.rego")) as kkp:
        granted = Identity("granted", ("service",), (Grant("aws", "alias/orders", ("decrypt",)),), {}, 0.0)
        stranger = Identity("stranger", ("service",), (), {}, 0.0)
        directory = kkp.services.add_identity._directory
        keys = {identity.id: await directory.add(identity) for identity in (granted, stranger)}
        assert (await kkp.post("/token", wish, credential=keys["granted"])).status == 200
        for name, changes in (
            ("stranger", {}),
            ("granted", {"key_id": "alias/billing"}),
            ("granted", {"request_context": {"environment": "dev"}}),
        ):
            refused = await kkp.post("/token", {**wish, **changes}, credential=keys[name])
            assert refused.problem() == "policy_denied"
