"""What deploy/ has for containers, read from its files and run as plain processes in bubblewrap's sandbox.

There is no daemon and no image. A container's command, environment and mounts are those that compose.yaml,
the Kubernetes base and the Dockerfile say, to the letter. Its root file system is read-only and holds this
machine's programs in the place of an image's; it runs as a user that is not root, without a capability, and
writes where a volume is mounted for it and nowhere else.

Two things are other than in a container: the network is this machine's, so addresses are exchanged for free
ones (`Elsewhere`), and as a sandbox knows one user only, what it is handed is that user's own.
"""

from __future__ import annotations

import json
import shlex
import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import pytest
import yaml

from tests.opa import ROOT, require_opa

DEPLOY: Final = ROOT / "deploy"
COMPOSE: Final[dict[str, Any]] = yaml.safe_load((DEPLOY / "compose.yaml").read_text())
_IMAGE_BIN: Final = "/opt/kkp/bin"
_KUBERNETES: Final = DEPLOY / "kubernetes"
# What resolves names, finds libraries and knows authorities.
_OF_ETC: Final = ("/etc/hosts", "/etc/ld.so.cache", "/etc/nsswitch.conf", "/etc/resolv.conf", "/etc/ssl")
_VENV_BIN: Final = Path(sys.executable).parent


def instructions(dockerfile: str) -> list[tuple[str, str]]:
    """Return the instructions of a Dockerfile with what follows each, comments and continuations resolved."""
    lines = (line for line in dockerfile.splitlines() if not line.lstrip().startswith("#"))
    text = "\n".join(lines).replace("\\\n", " ")
    found = (line.strip().partition(" ") for line in text.splitlines() if line.strip())
    return [(name, arguments.strip()) for name, _, arguments in found]


def manifest(name: str) -> dict[str, Any]:
    """Return one file of the Kubernetes base."""
    document: dict[str, Any] = yaml.safe_load((_KUBERNETES / name).read_text())
    return document


def settings_env() -> dict[str, str]:
    """Return what `settings.env` sets."""
    lines = (_KUBERNETES / "settings.env").read_text().splitlines()
    return dict(line.split("=", 1) for line in lines if line and not line.startswith("#"))


def opa_files() -> dict[str, Path]:
    """Return the files of OPA's ConfigMap by their keys."""
    kustomization = yaml.safe_load((DEPLOY / "opa/kustomization.yaml").read_text())
    (generator,) = kustomization["configMapGenerator"]
    pairs = (entry.rpartition("=") for entry in generator["files"])
    return {key or path: DEPLOY / "opa" / path for key, _, path in pairs}


@dataclass(frozen=True)
class Mount:
    """A file or directory of this machine, and where a container sees it."""

    source: Path
    target: str
    is_writable: bool = False


@dataclass(frozen=True)
class Container:
    """What a container's runtime is told.

    Attributes:
        command: The image's entry point and the arguments.
        environ: The image's, and then its own.
        mounts: Outermost first.
        tmpfs: Directories in memory.
    """

    command: Sequence[str]
    environ: Mapping[str, str]
    mounts: Sequence[Mount]
    tmpfs: Sequence[str]

    def sandboxed(self, elsewhere: Elsewhere, *command: str) -> list[str]:
        """Return the command line that runs it, or another command in its place, as a plain process."""
        arguments = [elsewhere.text(argument) for argument in command or self.command]
        environ = {
            **{name: elsewhere.text(value) for name, value in self.environ.items()},
            **elsewhere.environ,
        }
        return [
            *_confined(),
            *(option for target in self.tmpfs for option in ("--tmpfs", target)),
            *_programs(),  # the checkout may lie in /tmp
            *(option for mount in self.mounts for option in _bind(mount)),
            *("--remount-ro", "/"),
            *(option for name, value in environ.items() for option in ("--setenv", name, value)),
            *("--", *arguments),
        ]


@dataclass(frozen=True)
class Elsewhere:
    """What is not where the files say, because the network is this machine's.

    Attributes:
        replaced: Addresses, by what the files have in their place.
        environ: What a container of its own would not need.
    """

    replaced: Mapping[str, str]
    environ: Mapping[str, str] = field(default_factory=dict)

    def text(self, text: str) -> str:
        """Return a text of a file with the addresses of here."""
        for theirs, ours in self.replaced.items():
            text = text.replace(theirs, ours)
        return text


def require_sandbox() -> str:
    """Return bubblewrap's path; skip the test where there is none."""
    binary = shutil.which("bwrap")
    if binary is None:
        pytest.skip("no bubblewrap here; on Debian: apt install bubblewrap")
    return binary


def composed(name: str, place: Path) -> Container:
    """Return a service of compose.yaml, with its secrets, its bundle and its volumes in a place."""
    service = COMPOSE["services"][name]
    entry_point, environ = _image(service["image"])
    secrets = (
        Mount(place / COMPOSE["secrets"][key]["file"], f"/run/secrets/{key}")
        for key in service.get("secrets", [])
    )
    return Container(
        command=[*entry_point, *service["command"]],
        environ={**environ, **service.get("environment", {})},
        mounts=[*secrets, *(_volume(text, place) for text in service["volumes"])],
        tmpfs=[text.partition(":")[0] for text in service.get("tmpfs", [])],
    )


def _volume(text: str, place: Path) -> Mount:
    source, target, *mode = text.split(":")
    if not source.startswith("."):
        return Mount(place / "volumes" / source, target, is_writable=mode != ["ro"])
    path = DEPLOY / source if (DEPLOY / source).exists() else place / source
    return Mount(path, target, is_writable=mode != ["ro"])


def pod(name: str) -> dict[str, Any]:
    """Return the pod of a manifest."""
    spec: dict[str, Any] = manifest(name)["spec"]["template"]["spec"]
    return spec


def containers(spec: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Return what a pod runs, by name."""
    return {each["name"]: each for each in [*spec.get("initContainers", []), *spec["containers"]]}


def in_pod(name: str, place: Path, manifest_name: str = "statefulset.yaml") -> Container:
    """Return a container of a manifest's pod; what its volumes hold lies in a place, by their names."""
    spec = pod(manifest_name)
    container = containers(spec)[name]
    entry_point, environ = _image(container["image"])
    own = {pair["name"]: pair["value"] for pair in container.get("env", [])}
    empty = {volume["name"] for volume in spec["volumes"] if "emptyDir" in volume}
    return Container(
        command=[*entry_point, *container["args"]],
        environ={**environ, **(settings_env() if "envFrom" in container else {}), **own},
        mounts=[_pod_mount(each, place) for each in container["volumeMounts"] if each["name"] not in empty],
        tmpfs=[each["mountPath"] for each in container["volumeMounts"] if each["name"] in empty],
    )


def _pod_mount(mount: Mapping[str, Any], place: Path) -> Mount:
    source = opa_files()[mount["subPath"]] if mount["name"] == "opa" else place / mount["name"]
    return Mount(source, mount["mountPath"], is_writable=not mount.get("readOnly", False))


def _image(name: str) -> tuple[list[str], dict[str, str]]:
    """Return the entry point and the environment of an image: of KKP's as the Dockerfile says."""
    if "opa" in name:
        return ["/opa"], {}
    written = dict(instructions((DEPLOY / "Dockerfile").read_text()))  # the last of each, as in the image
    environ = dict(pair.split("=", 1) for pair in shlex.split(written["ENV"]))
    return json.loads(written["ENTRYPOINT"]), environ


def _confined() -> list[str]:
    """Return the sandbox and what of the image the Dockerfile makes."""
    return [
        require_sandbox(), "--die-with-parent", "--unshare-user", "--uid", "65532", "--gid", "65532",
        "--unshare-pid", "--as-pid-1", "--unshare-ipc", "--cap-drop", "ALL", "--clearenv",
        "--proc", "/proc", "--dev", "/dev",
        "--perms", "0700", "--dir", "/var/lib/kkp", "--chdir", "/var/lib/kkp",
    ]  # fmt: skip


def _programs() -> Iterator[str]:
    """Yield what takes the place of an image's programs: this machine's, this checkout, and an OPA."""
    yield from ("--ro-bind", "/usr", "/usr")
    yield from (option for path in _OF_ETC for option in ("--ro-bind-try", path, path))
    yield from _libraries()
    yield from ("--ro-bind", str(ROOT), str(ROOT), "--ro-bind", str(_VENV_BIN), _IMAGE_BIN)
    yield from ("--ro-bind", require_opa(), "/opa")


def _libraries() -> Iterator[str]:
    for path in map(Path, ("/bin", "/lib", "/lib64")):
        if path.is_symlink():
            yield from ("--symlink", str(path.readlink()), str(path))
        elif path.exists():
            yield from ("--ro-bind", str(path), str(path))
    if not Path(sys.base_prefix).is_relative_to("/usr"):
        yield from ("--ro-bind", sys.base_prefix, sys.base_prefix)


def _bind(mount: Mount) -> tuple[str, str, str]:
    return ("--bind" if mount.is_writable else "--ro-bind", str(mount.source), mount.target)
