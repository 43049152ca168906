"""The wheel is whole: installed away from the checkout, it serves with the policy that it carries."""

from __future__ import annotations

import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

from tests.harness import grant
from tests.integration.process import TOKEN_REQUEST, serving

ROOT = Path(__file__).parents[2]


def build(directory: Path) -> Path:
    run(sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", directory, cwd=ROOT)
    (wheel,) = directory.glob("*.whl")
    return wheel


def install(wheel: Path, directory: Path) -> Path:
    """Install a wheel into a new environment that sees the locked packages, and return its `bin`."""
    run(sys.executable, "-m", "venv", "--without-pip", directory, cwd=directory.parent)
    python = directory / "bin" / "python"
    options = ["--no-deps", "--no-index", "--quiet", "--disable-pip-version-check"]
    run(sys.executable, "-m", "pip", "--python", python, "install", *options, wheel, cwd=directory.parent)
    # A path in a .pth file is searched, but the .pth files there, the editable install's too, are not read.
    (site_packages,) = directory.glob("lib/python3*/site-packages")
    (site_packages / "locked.pth").write_text(f"{sysconfig.get_path('purelib')}\n")
    return python.parent


def run(*command: str | Path, cwd: Path) -> str:
    finished = subprocess.run(command, cwd=cwd, check=False, capture_output=True, text=True)  # noqa: S603  our own command
    assert finished.returncode == 0, finished.stdout + finished.stderr
    return finished.stdout


async def test_a_wheel_installed_elsewhere_decides_by_the_policy_it_carries(tmp_path: Path) -> None:
    wheel = build(tmp_path / "dist")
    names = zipfile.ZipFile(wheel).namelist()
    assert "kkp/_policy/kkp/authz/authz.rego" in names
    assert "kkp/py.typed" in names
    assert not [name for name in names if name.startswith(("tests/", "benchmarks/"))]

    binaries = install(wheel, tmp_path / "venv")
    empty = tmp_path / "empty"
    empty.mkdir()
    migrations = (
        "from kkp.store.migrations import migration as m; print(m.Revisions(m.DIRECTORY).scripts[0].path)"
    )
    (baseline,) = run(binaries / "python", "-c", migrations, cwd=empty).splitlines()
    assert Path(baseline).is_relative_to(tmp_path / "venv")
    code = "import kkp, kkp.authz.embedded as e; print(kkp.__file__); print(e.default_policy_path())"
    for path in run(binaries / "python", "-c", code, cwd=empty).splitlines():
        assert Path(path).is_relative_to(tmp_path / "venv")

    async with serving(empty, executable=binaries / "kkp") as server:
        granted = (await server.add("orders")).json["service_key"]
        document = {"id": "idle", "roles": ["service"], "grants": [], "attributes": {}}
        bare = (await server.post("/identities", document, credential=server.root_key)).json["service_key"]
        assert (await server.mint(granted)).status == 200
        assert (await server.mint(bare)).problem() == "policy_denied"
        other = {**TOKEN_REQUEST, "key_id": "alias/billing"}
        assert (await server.post("/token", other, credential=granted)).problem() == "policy_denied"
        assert grant()["key_id"] == TOKEN_REQUEST["key_id"]
        assert await server.stop() == 0
