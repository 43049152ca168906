"""What deploy/ has for containers agrees with the code, with itself, and with what is tested.

That it runs is shown by tests/integration/test_deploy.py; that its formats are right, by `make deploy-check`.
"""

from __future__ import annotations

import json
import re
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import kubernetes_validate  # type: ignore[import-untyped]  # it has no stubs
import pytest
import yaml

from kkp import __version__
from kkp.config import load
from kkp.kms import SCHEMES
from kkp.ways import COMMAND
from kkp.web.public import PUBLIC_ROUTES
from tests import locks
from tests.containers import (
    COMPOSE,
    DEPLOY,
    composed,
    containers,
    in_pod,
    instructions,
    manifest,
    opa_files,
    pod,
    settings_env,
)
from tests.opa import ROOT, readme_commands

SERVICES: dict[str, Any] = COMPOSE["services"]
REPLICAS = ("kkp-1", "kkp-2")
DOCKERFILE = instructions((DEPLOY / "Dockerfile").read_text())
KUBERNETES = DEPLOY / "kubernetes"
UNDER_WAY_SECONDS = 2 * 5  # aiohttp takes twice its shutdown_timeout at most
PODS = {name: pod(f"{name}.yaml") for name in ("statefulset", "init")}
CONTAINERS = {
    f"{name}: {each}": container
    for name, spec in PODS.items()
    for each, container in containers(spec).items()
}


# The locks.


@pytest.mark.parametrize("path", [locks.RUNTIME, locks.BUILD], ids=lambda path: path.name)
def test_a_lock_is_what_of_requirements_lock_it_takes(path: Path) -> None:
    assert path.read_text() == locks.files()[path], "run: .venv/bin/python -m tests.locks"


def test_an_image_gets_what_kkp_imports_and_no_tool_of_development() -> None:
    runtime, build = (locks.pins(path.read_text()).keys() for path in (locks.RUNTIME, locks.BUILD))
    assert {"aiohttp", "boto3", "azure-identity", "google-cloud-kms", "sqlalchemy"} <= runtime
    assert not {"pytest", "mypy", "ruff", "moto", "hatchling", "kubernetes-validate"} & runtime
    assert "hatchling" in build


# The image.


def test_what_is_copied_into_the_build_is_there_and_not_ignored() -> None:
    sources = [
        source
        for name, arguments in DOCKERFILE
        if name == "COPY" and "--from" not in arguments
        for source in arguments.split()[:-1]
    ]
    ignored, *kept = [
        line for line in (ROOT / ".dockerignore").read_text().splitlines() if not line.startswith("#")
    ]
    assert ignored == "*"
    assert sorted(f"!{source}" for source in sources) == sorted(line for line in kept if line[0] == "!")
    assert all((ROOT / source).exists() for source in sources)


@pytest.mark.parametrize("name", ["kkp/__pycache__/app.cpython-311.pyc", "policy/x.pyc"])
def test_no_bytecode_of_this_machine_is_copied(name: str) -> None:
    patterns = [
        line.removeprefix("**/") for line in (ROOT / ".dockerignore").read_text().splitlines() if "**" in line
    ]
    assert any(fnmatch(part, pattern) for part in Path(name).parts for pattern in patterns)


def test_attack_no_shell_no_download_and_no_name_from_an_index_goes_into_the_image() -> None:
    names = {name for name, _ in DOCKERFILE}
    assert names <= {
        "ARG", "FROM", "ENV", "WORKDIR", "COPY", "RUN", "LABEL", "USER", "EXPOSE", "STOPSIGNAL",
        "ENTRYPOINT", "CMD",
    }  # fmt: skip
    commands = [
        json.loads(arguments) for name, arguments in DOCKERFILE if name in {"RUN", "ENTRYPOINT", "CMD"}
    ]
    installs = [command for command in commands if "install" in command and "pip" in command]
    assert len(installs) == 3
    for command in installs:
        assert "--no-deps" in command
        assert "--no-index" in command or {"--require-hashes", "-r"} <= set(command)
    assert not any({"sh", "bash", "curl", "wget"} & set(command) for command in commands)


def test_the_image_runs_as_a_number_that_is_not_root_and_ends_by_the_signal_that_drains() -> None:
    written = dict(DOCKERFILE)
    assert written["USER"] == "65532:65532"
    assert written["STOPSIGNAL"] == "SIGTERM"
    assert json.loads(written["CMD"]) == ["serve"]
    assert written["EXPOSE"] == settings_env()["KKP_LISTEN_ADDR"].rpartition(":")[2]


def test_the_base_image_has_the_python_that_the_locks_are_for() -> None:
    bases = [arguments for name, arguments in DOCKERFILE if name == "FROM"]
    assert bases == ["${PYTHON_IMAGE} AS build", "${PYTHON_IMAGE}"]
    default = dict(DOCKERFILE)["ARG"].partition("=")[2]
    assert default.startswith(f"docker.io/library/python:{locks.IMAGE_PYTHON}-slim-")


# Releases.


def test_every_image_of_kkp_is_this_release() -> None:
    assert {SERVICES[name]["image"] for name in ("init", *REPLICAS)} == {f"kkp:{__version__}"}
    images = {image["name"]: image["newTag"] for image in manifest("kustomization.yaml")["images"]}
    assert images["kkp"] == __version__
    assert f"-t kkp:{__version__} ." in (DEPLOY / "Dockerfile").read_text()
    assert f"-t kkp:{__version__} ." in (ROOT / "docs/deploying.md").read_text()


def test_opa_is_the_release_that_the_tests_build() -> None:
    (version,) = re.findall(
        r"^\tgithub\.com/open-policy-agent/opa v(\S+)",
        (ROOT / "tests/tools/go.mod").read_text(),
        re.MULTILINE,
    )
    assert {SERVICES[name]["image"] for name in ("opa-1", "opa-2")} == {
        f"docker.io/openpolicyagent/opa:{version}-static"
    }
    images = {image["name"]: image["newTag"] for image in manifest("kustomization.yaml")["images"]}
    assert images["docker.io/openpolicyagent/opa"] == f"{version}-static"


def test_no_image_goes_by_a_tag_that_means_another_one_tomorrow() -> None:
    for service in SERVICES.values():
        assert re.search(r":[0-9]", service["image"]), service["image"]


# Settings.


@pytest.mark.parametrize(
    "environ", [SERVICES["kkp-1"]["environment"], settings_env()], ids=["compose", "kubernetes"]
)
def test_what_is_set_is_a_setting_and_can_be_used(environ: dict[str, str]) -> None:
    assert all(name.startswith("KKP_") for name in environ)
    assert load(environ, COMMAND, schemes=SCHEMES).warnings == ()


@pytest.mark.parametrize("name", REPLICAS)
def test_compose_waits_for_longer_than_the_end_takes(name: str) -> None:
    drain = load(SERVICES[name]["environment"], COMMAND, schemes=SCHEMES).drain_seconds
    assert int(SERVICES[name]["stop_grace_period"].removesuffix("s")) > drain + UNDER_WAY_SECONDS


def test_kubernetes_waits_for_longer_than_the_end_takes() -> None:
    drain = load(settings_env(), COMMAND, schemes=SCHEMES).drain_seconds
    assert PODS["statefulset"]["terminationGracePeriodSeconds"] > drain + UNDER_WAY_SECONDS
    probe = CONTAINERS["statefulset: kkp"]["readinessProbe"]
    assert probe["periodSeconds"] * probe["failureThreshold"] < drain


# Compose.


def test_the_replicas_of_compose_differ_by_nothing_but_where_they_are() -> None:
    one, two = (
        {key: value for key, value in SERVICES[name].items() if key not in {"network_mode", "depends_on"}}
        for name in REPLICAS
    )
    assert one == two
    assert SERVICES["opa-1"]["command"] == SERVICES["opa-2"]["command"]


@pytest.mark.parametrize("number", [1, 2])
def test_a_replica_and_its_opa_share_a_network_that_outlives_both(number: int) -> None:
    kkp, opa = SERVICES[f"kkp-{number}"], SERVICES[f"opa-{number}"]
    assert kkp["network_mode"] == opa["network_mode"] == f"service:pod-{number}"
    assert kkp["environment"]["KKP_OPA_URL"] == "http://127.0.0.1:8181"
    assert "--addr=127.0.0.1:8181" in opa["command"]
    assert all(port.startswith("127.0.0.1:") for port in SERVICES[f"pod-{number}"]["ports"])


@pytest.mark.parametrize("name", SERVICES)
def test_no_service_of_compose_is_root_or_can_become_more_than_it_is(name: str) -> None:
    service = SERVICES[name]
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert re.fullmatch(r"[1-9][0-9]*:[1-9][0-9]*", service["user"])
    assert not {"privileged", "cap_add", "pid", "ipc", "devices"} & service.keys()


def test_secrets_are_files_and_stand_in_no_environment() -> None:
    for service in SERVICES.values():
        for name, value in service.get("environment", {}).items():
            assert "PASSWORD" not in name or name.endswith("_FILE")
            assert name != "KKP_MASTER_KEY"
            assert not re.search(r"://[^/@]*:[^/@]*@", value)
    assert {secret["file"].rpartition("/")[0] for secret in COMPOSE["secrets"].values()} == {"./secrets"}


def test_postgresql_keeps_its_durability() -> None:
    assert "command" not in SERVICES["postgres"]
    assert not re.search(
        r"fsync|synchronous_commit|full_page_writes|no-sync", json.dumps(SERVICES["postgres"])
    )


# OPA.


def test_opa_is_started_as_its_page_says() -> None:
    (line,) = (command for command in readme_commands() if " opa run " in command)
    said = (
        re.sub(r"--([a-z-]+) (?!-)('[^']*'|\S+)", r"--\1=\2", line.partition(" opa ")[2])
        .replace("'", "")
        .split()
    )
    said = [option for option in said if not option.startswith("--unix-socket-perm")]
    ours = {
        "--addr=unix:///run/opa.sock": "--addr=127.0.0.1:8181",
        "--config-file=deploy/opa/config.yaml": "--config-file=/etc/opa/config.yaml",
        "deploy/opa/system": "/etc/opa/system",
    }
    expected = [ours.get(option, option) for option in said]
    key = "--set-file=keys.kkp-policy.key={}/policy-signing.pub"
    expected[expected.index(key.format("").replace("/", ""))] = key
    pod = [option.replace("/etc/opa/keys", "{}") for option in in_pod("opa", Path()).command[1:]]
    composed_one = [
        option.replace("/bundle/policy", "{}/policy") for option in composed("opa-1", Path()).command[1:]
    ]
    assert sorted(pod) == sorted(expected)
    assert sorted(composed_one) == sorted([*expected, "--set=bundles.kkp.resource=file:///bundle/kkp.tar.gz"])


def test_kubernetes_hands_opa_every_file_of_its_configuration() -> None:
    shipped = {path for path in (DEPLOY / "opa").rglob("*.rego") if not path.name.endswith("_test.rego")}
    assert set(opa_files().values()) == shipped | {DEPLOY / "opa/config.yaml"}
    mounted = {
        mount.target: mount.source for mount in in_pod("opa", Path()).mounts if mount.source.is_absolute()
    }
    assert mounted == {f"/etc/opa/{path.relative_to(DEPLOY / 'opa')}": path for path in opa_files().values()}


# Kubernetes.


@pytest.mark.parametrize("path", sorted(KUBERNETES.glob("*.yaml")), ids=lambda path: path.name)
@pytest.mark.parametrize("version", ["1.29", "1.37"])
def test_a_manifest_is_what_kubernetes_takes(path: Path, version: str) -> None:
    document = yaml.safe_load(path.read_text())
    if path.name != "kustomization.yaml":
        kubernetes_validate.validate(document, version, strict=True)
        assert document["kind"] != "Secret"


def test_a_manifest_with_a_wrong_member_would_be_refused() -> None:
    document = manifest("statefulset.yaml")
    document["spec"]["template"]["spec"]["containers"][0]["securityContext"]["readOnlyRootFileSystem"] = True
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(document, "1.37", strict=True)


def test_the_base_has_every_manifest() -> None:
    listed = {path for path in manifest("kustomization.yaml")["resources"] if path != "../opa"}
    assert listed == {path.name for path in KUBERNETES.glob("*.yaml")} - {"kustomization.yaml"}


@pytest.mark.parametrize("container", CONTAINERS.values(), ids=CONTAINERS)
def test_no_container_is_root_or_can_become_more_than_it_is(container: dict[str, Any]) -> None:
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    assert container["resources"]["limits"]["memory"]
    writable = {mount["name"] for mount in container["volumeMounts"] if not mount.get("readOnly")}
    assert writable <= {"checkpoints", "tmp"}


@pytest.mark.parametrize("spec", PODS.values(), ids=PODS)
def test_a_pod_runs_as_the_images_user_and_holds_no_token_of_kubernetes(spec: dict[str, Any]) -> None:
    context = spec["securityContext"]
    assert context["runAsNonRoot"] is True
    assert f"{context['runAsUser']}:{context['runAsGroup']}" == dict(DOCKERFILE)["USER"]
    assert context["fsGroup"] == context["runAsGroup"]
    assert context["seccompProfile"] == {"type": "RuntimeDefault"}
    assert spec["automountServiceAccountToken"] is False
    assert spec["enableServiceLinks"] is False
    assert not {"hostNetwork", "hostPID", "hostIPC", "hostUsers"} & spec.keys()


@pytest.mark.parametrize("name", ["startupProbe", "livenessProbe", "readinessProbe"])
def test_a_probe_asks_what_is_served(name: str) -> None:
    container = CONTAINERS["statefulset: kkp"]
    probe = container[name]["httpGet"]
    assert probe["path"] in {route.path for route in PUBLIC_ROUTES}
    assert (probe["path"] == "/readyz") == (name == "readinessProbe")
    assert probe["scheme"] == "HTTPS"
    (port,) = container["ports"]
    assert probe["port"] == port["name"]
    assert settings_env()["KKP_LISTEN_ADDR"].endswith(f":{port['containerPort']}")


def test_what_selects_the_pods_selects_them() -> None:
    labels = manifest("statefulset.yaml")["spec"]["template"]["metadata"]["labels"]
    assert manifest("service.yaml")["spec"]["selector"].items() <= labels.items()
    assert manifest("poddisruptionbudget.yaml")["spec"]["selector"]["matchLabels"].items() <= labels.items()
    (expression,) = manifest("networkpolicy.yaml")["spec"]["podSelector"]["matchExpressions"]
    named = {
        labels[expression["key"]],
        manifest("init.yaml")["spec"]["template"]["metadata"]["labels"][expression["key"]],
    }
    assert named == set(expression["values"])


def test_the_files_that_settings_name_are_mounted() -> None:
    targets = [mount.target for mount in in_pod("kkp", Path()).mounts]
    paths = [
        path
        for value in settings_env().values()
        for path in re.findall(r"(?:^|=|file:)(/(?:run|var)/\S+)", value)
    ]
    assert len(paths) == 6
    assert all(any(Path(path).is_relative_to(target) for target in targets) for path in paths)


def test_the_guide_names_every_secret_and_map_that_must_be_there() -> None:
    volumes = [volume for spec in PODS.values() for volume in spec["volumes"]]
    wanted = {volume["secret"]["secretName"] for volume in volumes if "secret" in volume}
    wanted |= {volume["configMap"]["name"] for volume in volumes if "configMap" in volume} - {"kkp-opa"}
    guide = (ROOT / "docs/deploying.md").read_text()
    assert wanted == set(re.findall(r"^\| (?:Secret|ConfigMap) `(\S+)`", guide, re.MULTILINE))


def test_the_guide_gives_away_every_secret_but_the_certificate_that_others_read() -> None:
    guide = (ROOT / "docs/deploying.md").read_text()
    given = set(re.findall(r"secrets/\S+", " ".join(re.findall(r"^sudo chown (.*)$", guide, re.MULTILINE))))
    files = {secret["file"].removeprefix("./") for secret in COMPOSE["secrets"].values()}
    assert files - given == {"secrets/tls.crt"}
    assert "\nchmod 644 secrets/tls.crt\n" in guide
