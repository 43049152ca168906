"""The systemd unit that is shipped says what the code does."""

from __future__ import annotations

import re
from pathlib import Path

from kkp.config import load
from kkp.ways import COMMAND
from kkp.workers.supervisor import Limits
from tests.opa import readme_commands

SYSTEMD = Path(__file__).parents[2] / "deploy/systemd"
UNIT = (SYSTEMD / "kkp.service").read_text()
OPA_UNIT = (SYSTEMD / "opa.service").read_text()


def test_it_waits_for_longer_than_the_end_takes() -> None:
    found = re.search(r"^TimeoutStopSec=([0-9]+)$", UNIT, re.MULTILINE)
    assert found is not None
    under_way_seconds = 2 * 5  # aiohttp takes twice its shutdown_timeout at most
    longest_seconds = max(under_way_seconds, Limits().end_seconds)
    assert int(found[1]) > load({}, COMMAND, schemes=("memory", "local")).drain_seconds + longest_seconds


def test_only_the_supervisor_is_told_to_stop() -> None:
    assert re.search(r"^KillMode=mixed$", UNIT, re.MULTILINE)


def test_a_worker_for_which_memory_runs_out_does_not_end_the_others() -> None:
    assert re.search(r"^OOMPolicy=continue$", UNIT, re.MULTILINE)


def test_a_configuration_that_can_not_be_used_is_not_tried_for_ever() -> None:
    assert re.search(r"^RestartPreventExitStatus=2$", UNIT, re.MULTILINE)


def test_attack_nothing_is_installed_by_a_name_that_anybody_could_take() -> None:
    installs = re.findall(r"pip install (.*)$", UNIT, re.MULTILINE)
    assert installs == ["--require-hashes --no-deps -r requirements.lock", "--no-deps --no-build-isolation ."]


def test_what_it_sets_is_a_setting() -> None:
    names = set(re.findall(r"\bKKP_[A-Z_]+", UNIT))
    assert (
        load(dict.fromkeys(names - {"KKP_CONFIG"}, ""), COMMAND, schemes=("memory", "local")).warnings == ()
    )


def test_what_is_made_before_the_first_start_is_what_systemd_makes() -> None:
    found = re.search(r"^#   install -d -o kkp -g kkp -m 0700 (.*)$", UNIT, re.MULTILINE)
    assert found is not None
    directories = dict(re.findall(r"^(State|Logs)Directory=(\S+)$", UNIT, re.MULTILINE))
    assert found[1].split() == [f"/var/lib/{directories['State']}", f"/var/log/{directories['Logs']}"]


def test_opa_runs_by_the_command_of_its_own_page() -> None:
    (line,) = (command for command in readme_commands() if " opa run " in command)
    said = line.partition(" opa ")[2].replace("'", "").replace("perm 770", "perm 700")
    for there, here in {
        "/run/opa.sock": "/run/kkp-opa/opa.sock",
        "key=policy-signing": "key=/etc/kkp/opa/policy-signing",
        "deploy/opa": "/etc/kkp/opa",
    }.items():
        said = said.replace(there, here)
    assert f"\nExecStart=/usr/local/bin/opa {said}\n" in OPA_UNIT
    assert "\nRuntimeDirectory=kkp-opa\n" in OPA_UNIT
