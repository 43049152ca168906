"""`deploycheck`, which `make deploy-check` builds: what is spoilt in deploy/ it finds."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

from kkp import __version__
from tests.opa import NOT_SHIPPED, ROOT

GUIDE = ROOT / "docs/deploying.md"
BUILT = ROOT / ".tools/bin/deploycheck"
CHECK = str(BUILT) if os.access(BUILT, os.X_OK) else shutil.which("deploycheck")

pytestmark = pytest.mark.skipif(
    CHECK is None, reason="no deploycheck here: `make deploy-check` builds it where Go is"
)


def check(directory: Path) -> subprocess.CompletedProcess[str]:
    assert CHECK is not None
    return subprocess.run([CHECK, directory], capture_output=True, text=True, check=False, timeout=60)  # noqa: S603  our own


COMPOSE, KUSTOMIZATION = "compose.yaml", "kubernetes/kustomization.yaml"
SHARED = "    network_mode: service:pod-1\n"
SPOILT = {
    "an instruction that there is not": (
        "Dockerfile",
        "STOPSIGNAL",
        "STOPSIGN",
        "unknown instruction: STOPSIGN",
    ),
    "a secret in the image": ("Dockerfile", "HOME=/var/lib/kkp", "DB_PASSWORD=x", "SecretsUsedInArgOrEnv"),
    "a variable that nobody set": ("Dockerfile", "WORKDIR /var", "WORKDIR $NOWHERE/var", "UndefinedVar"),
    "a member that compose does not know": (COMPOSE, "read_only:", "readonly:", "readonly"),
    "a service that there is not": (COMPOSE, "depends_on: [pod-1]", "depends_on: [pod-3]", "pod-3"),
    "a secret that is not defined": (COMPOSE, "secrets: [master.key,", "secrets: [lost.key,", "lost.key"),
    "two networks of one service": (COMPOSE, SHARED, f"{SHARED}    networks: [edge]\n", "network_mode"),
    "a manifest that is not there": (KUSTOMIZATION, "- service.yaml", "- services.yaml", "services.yaml"),
    "a member that kustomize does not know": (KUSTOMIZATION, "images:", "image:", "image"),
    "a manifest that is no YAML": ("kubernetes/service.yaml", "ports:", "ports: [", "service.yaml"),
}


@pytest.mark.parametrize(("name", "good", "spoilt", "told"), SPOILT.values(), ids=SPOILT)
def test_it_refuses(name: str, good: str, spoilt: str, told: str, tmp_path: Path) -> None:
    directory = tmp_path / "deploy"
    shutil.copytree(ROOT / "deploy", directory, ignore=NOT_SHIPPED)
    text = (directory / name).read_text()
    assert good in text
    (directory / name).write_text(text.replace(good, spoilt, 1))
    refused = check(directory)
    assert refused.returncode == 1
    assert told in refused.stderr


def guides_overlay(number: int) -> str:
    """Return one of the YAML blocks of the guide, in order."""
    blocks = re.findall(r"^```yaml\n(.*?)^```", GUIDE.read_text(), re.DOTALL | re.MULTILINE)
    assert len(blocks) == 2
    return str(blocks[number])


@pytest.mark.parametrize("release", ["first", "next"])
def test_the_guides_overlay_sets_what_it_says(release: str, tmp_path: Path) -> None:
    shutil.copytree(ROOT / "deploy", tmp_path / "kkp/deploy", ignore=NOT_SHIPPED)
    for name in ("Dockerfile", "compose.yaml"):
        shutil.copy(ROOT / "deploy" / name, tmp_path)
    overlay = guides_overlay(0)
    if release == "next":
        overlay += guides_overlay(1).removeprefix("patches:\n")
    (tmp_path / "kubernetes").mkdir()
    (tmp_path / "kubernetes/kustomization.yaml").write_text(overlay)
    finished = check(tmp_path)
    assert (finished.returncode, finished.stderr) == (0, "")
    made = {(each["kind"], each["metadata"]["name"]): each for each in yaml.safe_load_all(finished.stdout)}
    assert (("Job", "kkp-init") in made) == (release == "first")
    (settings,) = (each["data"] for (kind, name), each in made.items() if name.startswith("kkp-settings-"))
    assert settings["KKP_BACKENDS"] == "aws=aws-kms://eu-west-1"
    assert settings["KKP_OPA_URL"] == "http://127.0.0.1:8181"
    pod = made["StatefulSet", "kkp"]["spec"]["template"]["spec"]
    assert pod["containers"][0]["image"] == f"registry.example/kkp:{__version__}"
    assert pod["initContainers"][0]["env"][0] == {
        "name": "KKP_BUNDLE_URL",
        "value": "https://bundles.example/kkp",
    }


def test_it_renders_what_is_shipped() -> None:
    finished = check(ROOT / "deploy")
    assert (finished.returncode, finished.stderr) == (0, "")
    assert "kind: StatefulSet" in finished.stdout
