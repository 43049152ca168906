"""No secret in what `kkp serve` and its OPA say: log, output, audit export, metrics, errors, decision log.

The canaries and the walk are those of `http/test_no_secret_leaks.py`. Here a real server is asked, beside an
OPA with the configuration that is shipped: while everything works, while the disk is full, and without OPA.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from contextlib import ExitStack
from pathlib import Path

from tests.harness import Client
from tests.http.test_no_secret_leaks import CLEAR, Scene, exercise, new_scene
from tests.integration.process import Server, kkp, records
from tests.integration.test_audit_faults import injected, needs_strace
from tests.integration.test_opa_bundles import build, new_release, serving_bundles, shipped
from tests.integration.test_serve import serving_with_root, until_status
from tests.opa import require_opa

SUCCEEDED = {
    "issue_token", "encrypt", "decrypt", "rewrap", "generate_data_key", "release_data_key",
    "introspect_token", "revoke_token", "manage_identity", "rotate_signing_key", "read_audit",
}  # fmt: skip
# What OPA was asked about and its mask lets through: who, and on which key.
LOGGED_BY_OPA = {"caller", "backend", "missing key id", "disabled key id", "key to move to"}


async def codes(scene: Scene) -> set[str]:
    """Walk, and return with which codes requests were refused on the way."""
    before = len(scene.errors)
    await exercise(scene)
    return {answer.json["code"] for answer in scene.errors[before:]}


async def metrics_page(server: Server) -> str:
    found = re.search(r"^Metrics are at (\S+)$", server.banner, re.MULTILINE)
    assert found is not None
    async with server.session.get(found[1]) as response:
        assert response.status == 200
        return await response.text()


def canaries_in(scene: Scene, texts: Iterable[str]) -> set[str]:
    return scene.canaries.found_in("\n".join(texts).encode())


@needs_strace
async def test_no_canary_comes_out_of_a_server_and_its_opa(tmp_path: Path) -> None:
    require_opa()
    release = new_release(tmp_path / "release")
    async with serving_bundles(build(release, "1")) as bundles:
        with ExitStack() as sidecar:
            opa = sidecar.enter_context(shipped(release, bundles, tmp_path))
            running = serving_with_root(tmp_path, opa.url, KKP_METRICS_ADDR="127.0.0.1:0")
            async with running as server:
                await until_status(server, "/readyz", 200)
                scene = await new_scene(Client(server.session, server.data_dir), sealing_key="default")
                assert {"policy_denied", "invalid_request", "unknown_key"} <= await codes(scene)
                async with injected(server, "pwrite64:error=ENOSPC"):
                    assert "audit_unavailable" in await codes(scene)
                await until_status(server, "/readyz", 200)
                sidecar.close()
                assert "policy_unavailable" in await codes(scene)
                metrics = await metrics_page(server)
                exported = await kkp(tmp_path, "audit", "export")
                assert await server.stop() == 0
    allowed = re.findall(r'^kkp_decisions_total{action="(\w+)",verdict="allow"} [1-9]', metrics, re.MULTILINE)
    assert set(allowed) >= SUCCEEDED
    answers = [answer.raw.decode() for answer in scene.errors]
    headers = [value for answer in scene.errors for value in answer.headers.values()]
    assert "the audit store fails" in server.log
    for said in (answers, headers, [server.banner], [server.log], [metrics]):
        assert canaries_in(scene, said) == set()
    lines = [json.loads(line) for line in opa.log.splitlines()]
    assert {line["input"]["action"] for line in lines if line.get("input")} > {"issue_token", "decrypt"}
    assert canaries_in(scene, [opa.log]) == LOGGED_BY_OPA
    assert exported.code == 0, exported
    kept = [json.loads(line) for line in exported.out.splitlines()]
    exported_records = [line.pop("record") for line in kept]
    assert canaries_in(scene, [json.dumps(kept), exported.err]) == set()
    for name, found in scene.canaries.found_by_field(
        (*exported_records, *records(tmp_path / ".kkp/kkp.db"))
    ).items():
        assert all(name in CLEAR.get(each, ()) for each in found), (name, found)
