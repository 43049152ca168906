"""The policy that follows its files: real files on a real disk, looked at step by step."""

from __future__ import annotations

import asyncio
import gc
import json
import logging
import random
import shutil
import sys
from collections.abc import Awaitable, Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from regorus import Engine  # type: ignore[import-untyped]  # the wheel carries no stubs

from kkp.authz.embedded import EmbeddedPolicy, PolicySource, default_policy_path
from kkp.authz.reloading import POLL_SECONDS, ReloadingPolicy
from kkp.errors import PolicyLoadError, PolicyUnavailableError
from kkp.model import PolicyInput

NO = "package kkp.authz\n\ndefault allow := false\n"
YES = "package kkp.authz\n\ndefault allow := true\n"
DOCUMENT = """package kkp.authz

default decision := {"allow": true, "reasons": ["test.granted"], "obligations": {}}
"""


def question(**members: Any) -> PolicyInput:
    return PolicyInput(json.dumps(members).encode())


def write(path: Path, text: str) -> None:
    path.write_text(text)


async def allows(policy: ReloadingPolicy) -> bool:
    return policy.answer(question()).allow


async def settle(policy: ReloadingPolicy) -> None:
    """Look twice, which is what it takes."""
    await policy.look()
    await policy.look()


async def until(condition: Callable[[], Awaitable[bool]]) -> None:
    async with asyncio.timeout(30):
        while not await condition():  # noqa: ASYNC110  nothing in the policy tells of a change
            await asyncio.sleep(POLL_SECONDS / 10)


@pytest.fixture(autouse=True)
def collected_here() -> Iterator[None]:
    """Engines that other tests left in their tracebacks are dropped on this thread, never on the reader's."""
    gc.collect()
    gc.disable()
    yield
    gc.collect()
    gc.enable()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    file = tmp_path / "policy.rego"
    file.write_text(NO)
    return file


# What is taken.


async def test_a_good_file_is_in_force_from_the_second_look_on(path: Path) -> None:
    policy = ReloadingPolicy.load(path, {})
    before = policy.revision
    write(path, YES)
    assert not await allows(policy)
    await policy.look()
    assert not await allows(policy)
    await policy.look()
    decision = policy.answer(question())
    assert decision.allow
    assert decision.revision == policy.revision == EmbeddedPolicy.load(path, {}).revision != before
    assert policy.warning is None


async def test_the_task_puts_a_good_file_in_force_by_itself(path: Path) -> None:
    policy = ReloadingPolicy.load(path, {})
    task = asyncio.create_task(policy.run())
    write(path, YES)
    await until(partial(allows, policy))
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


@pytest.mark.promise(21)
def test_two_looks_and_a_load_leave_room_in_the_second_that_is_promised() -> None:
    assert 2 * POLL_SECONDS <= 0.5


async def test_the_rule_that_is_asked_goes_with_the_policy(path: Path) -> None:
    policy = ReloadingPolicy.load(path, {})
    assert policy.answer(question()).reasons == ("authz.deny",)
    write(path, DOCUMENT)
    await settle(policy)
    assert policy.answer(question()).reasons == ("test.granted",)
    write(path, NO)
    await settle(policy)
    assert policy.answer(question()).reasons == ("authz.deny",)


async def test_the_settings_are_laid_over_every_policy(tmp_path: Path) -> None:
    root = tmp_path / "bundle"
    shutil.copytree(default_policy_path(), root)
    policy = ReloadingPolicy.load(root, {"bearer_tokens": "any"})
    (root / "kkp/more").mkdir()
    (root / "kkp/more/data.json").write_text("{}")
    await settle(policy)
    assert policy.revision == EmbeddedPolicy.load(root, {"bearer_tokens": "any"}).revision


async def test_a_swap_of_a_mounted_configmap_is_taken_whole(tmp_path: Path) -> None:
    for version, value in (("..1", "false"), ("..2", "true")):
        (tmp_path / version / "kkp/answer").mkdir(parents=True)
        (tmp_path / version / "kkp/answer/data.json").write_text(f'{{"value": {value}}}')
        rule = "package kkp.authz\n\ndefault allow := false\n\nallow if data.kkp.answer.value\n"
        (tmp_path / version / "authz.rego").write_text(rule)
    (tmp_path / "..data").symlink_to("..1")
    (tmp_path / "kkp").symlink_to("..data/kkp")
    (tmp_path / "authz.rego").symlink_to("..data/authz.rego")
    policy = ReloadingPolicy.load(tmp_path, {})
    assert not await allows(policy)

    (tmp_path / "..data_tmp").symlink_to("..2")
    (tmp_path / "..data_tmp").replace(tmp_path / "..data")
    shutil.rmtree(tmp_path / "..1")
    await settle(policy)
    assert await allows(policy)
    assert policy.warning is None


async def test_a_directory_that_loses_a_file_is_another_policy_if_it_still_is_one(tmp_path: Path) -> None:
    (tmp_path / "authz.rego").write_text(NO + "\nallow if data.kkp.answer.value\n")
    (tmp_path / "answer.rego").write_text("package kkp.answer\n\nvalue := true\n")
    policy = ReloadingPolicy.load(tmp_path, {})
    assert await allows(policy)
    (tmp_path / "answer.rego").unlink()
    await settle(policy)
    assert not await allows(policy)
    assert policy.warning is None


async def test_a_touched_file_is_the_same_policy(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    policy = ReloadingPolicy.load(path, {})
    path.with_suffix(".new").write_text(NO)
    path.with_suffix(".new").replace(path)
    await settle(policy)
    assert caplog.text == ""


# What is refused.


def lose(path: Path) -> None:
    path.unlink()


def empty(path: Path) -> None:
    write(path, "")


def cut_in_a_rule(path: Path) -> None:
    write(path, YES[:-3])


def cut_before_its_default(path: Path) -> None:
    write(path, "package kkp.authz\n")


def no_default(path: Path) -> None:
    write(path, "package kkp.authz\n\nallow if input.yes\n")


def no_decision(path: Path) -> None:
    write(path, "package kkp.authz\n\ndefault decision := true\n")


def unsafe_builtin(path: Path) -> None:
    write(path, NO + '\nallow if http.send({"method": "get", "url": "http://x"})\n')


def no_text(path: Path) -> None:
    path.write_bytes(b"\xff\xfe")


def too_large(path: Path) -> None:
    write(path, YES + "#" * 256 * 1024)


def an_empty_directory(path: Path) -> None:
    path.unlink()
    path.mkdir()


def a_circle(path: Path) -> None:
    path.unlink()
    path.symlink_to(path)


def clear(path: Path) -> None:
    if path.is_dir():
        path.rmdir()
    path.unlink(missing_ok=True)


REFUSED: dict[str, tuple[Callable[[Path], None], str]] = {
    "a file that is gone": (lose, "No such file"),
    "an empty file": (empty, "policy.rego"),
    "a file cut in a rule": (cut_in_a_rule, "policy.rego:3"),
    "a file cut after its first line": (cut_before_its_default, "neither `decision` nor `allow`"),
    "a policy without a default": (no_default, "no default"),
    "a decision of another shape": (no_decision, "no usable default"),
    "a built-in that fails open": (unsafe_builtin, "http.send"),
    "bytes that are no text": (no_text, "not UTF-8"),
    "a file that is too large": (too_large, "larger than"),
    "a directory without a policy": (an_empty_directory, "holds no policy"),
    "a link that leads to itself": (a_circle, "can't be read"),
}


@pytest.mark.parametrize("case", REFUSED)
async def test_refused_is(path: Path, caplog: pytest.LogCaptureFixture, case: str) -> None:
    break_it, reason = REFUSED[case]
    policy = ReloadingPolicy.load(path, {})
    before = policy.revision
    break_it(path)
    await settle(policy)
    assert (policy.revision, await allows(policy)) == (before, False)
    assert policy.warning is not None
    (record,) = caplog.records
    assert record.levelno == logging.ERROR
    assert reason in record.getMessage()
    assert before in record.getMessage()

    await settle(policy)
    assert len(caplog.records) == 1  # loud, and once

    clear(path)
    write(path, YES)
    await settle(policy)
    assert await allows(policy)
    assert policy.warning is None


@pytest.mark.parametrize("name", ["authz.rego", "sub/deny.rego", "sub"])
async def test_a_bundle_of_which_a_part_may_not_be_read_is_refused(unprivileged: Path, name: str) -> None:
    (unprivileged / "sub").mkdir()
    (unprivileged / "authz.rego").write_text(YES)
    (unprivileged / "sub/deny.rego").write_text("package kkp.deny\n")
    policy = ReloadingPolicy.load(unprivileged, {})
    mode = (unprivileged / name).stat().st_mode
    (unprivileged / name).chmod(0)
    await settle(policy)
    assert policy.warning is not None
    with pytest.raises(PolicyLoadError, match="Permission denied"):
        EmbeddedPolicy.load(unprivileged, {})
    (unprivileged / name).chmod(mode)
    await settle(policy)
    assert policy.warning is None


async def test_a_broken_file_that_is_taken_back_leaves_no_warning(
    path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    policy = ReloadingPolicy.load(path, {})
    empty(path)
    await settle(policy)
    write(path, NO)
    await settle(policy)
    assert policy.warning is None
    assert "is what is on disk again" in caplog.records[-1].getMessage()
    assert caplog.records[-1].levelname == "INFO"


async def test_each_new_fault_is_told(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    policy = ReloadingPolicy.load(path, {})
    for break_it in (empty, no_default, no_text):
        break_it(path)
        await settle(policy)
    assert [record.levelno for record in caplog.records] == [logging.ERROR] * 3


async def test_a_panic_of_the_engine_refuses_the_policy(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Panic(BaseException):
        """As the engine raises it."""

    def panic(engine: Engine, rule: str, revision: str) -> EmbeddedPolicy:
        raise Panic

    policy = ReloadingPolicy.load(path, {})
    write(path, YES)
    with monkeypatch.context() as patched:
        patched.setattr(EmbeddedPolicy, "__init__", panic)
        await settle(policy)
    assert not await allows(policy)
    assert policy.warning is not None


async def test_the_engine_of_a_refused_policy_is_dropped_on_the_thread_that_made_it(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The engine complains where the garbage collector, which runs on any thread, is the one to drop it."""
    gc.collect()  # what other tests left is not this one's
    complaints: list[object] = []
    monkeypatch.setattr(sys, "unraisablehook", complaints.append)
    policy = ReloadingPolicy.load(path, {})
    gc.disable()
    try:
        for break_it in (empty, cut_before_its_default, no_default, no_decision, unsafe_builtin):
            break_it(path)
            await settle(policy)
            assert policy.warning is not None
        await asyncio.to_thread(gc.collect)
    finally:
        gc.enable()
    assert complaints == []


async def test_nothing_ends_the_task(
    path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def out_of_memory(_: Path) -> PolicySource:
        raise MemoryError

    async def is_logged() -> bool:
        return "MemoryError" in caplog.text

    policy = ReloadingPolicy.load(path, {})
    with monkeypatch.context() as patched:
        patched.setattr(PolicySource, "read", out_of_memory)
        task = asyncio.create_task(policy.run())
        await until(is_logged)
    write(path, YES)
    await until(partial(allows, policy))
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


# What is half-written.


async def test_a_file_that_grows_is_left_alone_until_it_stands_still(path: Path) -> None:
    """Each of its beginnings is a good policy, and lets everybody in: the rule that denies comes last."""
    policy = ReloadingPolicy.load(path, {})
    whole = "package kkp.authz\n\ndefault allow := true\n\nallow := false if input == {}\n\n# the end\n"
    lines = whole.splitlines(keepends=True)
    for end in range(1, len(lines)):
        write(path, "".join(lines[:end]))
        await policy.look()
        assert not await allows(policy)
    assert policy.warning is not None
    assert "come to rest" in policy.warning
    write(path, whole)
    await settle(policy)
    assert policy.warning is None
    assert policy.revision == EmbeddedPolicy.load(path, {}).revision
    assert not await allows(policy)


async def test_a_directory_that_is_copied_into_place_is_left_alone_until_it_stands_still(
    tmp_path: Path,
) -> None:
    root = tmp_path / "bundle"
    root.mkdir()
    (root / "authz.rego").write_text(NO)
    policy = ReloadingPolicy.load(root, {})
    before = policy.revision
    (root / "authz.rego").write_text(YES + "\nallow := false if data.kkp.deny.all\n")
    await policy.look()
    (root / "deny.rego").write_text("package kkp.deny\n")
    await policy.look()
    (root / "deny.rego").write_text("package kkp.deny\n\nall := true\n")
    await policy.look()
    assert policy.revision == before
    await policy.look()
    assert policy.revision != before
    assert not await allows(policy)


# The old one is dead.


@pytest.mark.promise(21)
async def test_the_former_engine_answers_nothing(path: Path) -> None:
    policy = ReloadingPolicy.load(path, {})
    former = policy._policy
    write(path, YES)
    await settle(policy)
    with pytest.raises(PolicyUnavailableError):
        former.answer(question())


async def test_closed_it_answers_nothing(path: Path) -> None:
    policy = ReloadingPolicy.load(path, {})
    await policy.ping()
    await policy.close()
    with pytest.raises(PolicyUnavailableError):
        await policy.ping()
    with pytest.raises(PolicyUnavailableError):
        policy.answer(question())


FIELDS = ("action", "caller", "backend", "key_id", "audience", "environment")
STRICT = (
    NO
    + """
allow if {
	input.action == "decrypt"
	input.caller == data.kkp.who.name
	input.backend == "aws"
	input.key_id == "alias/orders"
	input.audience == "orders-db"
	input.environment == "prod"
}
"""
)


@pytest.mark.promise(21)
async def test_of_5000_pairs_that_differ_in_one_field_none_gets_the_others_answer(tmp_path: Path) -> None:
    """And a question that was allowed by the policy of before is denied by the next one."""
    (tmp_path / "authz.rego").write_text(STRICT)
    (tmp_path / "kkp/who").mkdir(parents=True)
    who = tmp_path / "kkp/who/data.json"
    who.write_text('{"name": "orders"}')
    policy = ReloadingPolicy.load(tmp_path, {})
    values = ("decrypt", "orders", "aws", "alias/orders", "orders-db", "prod")
    good: dict[str, Any] = dict(zip(FIELDS, values, strict=True))
    chosen = random.Random(21)
    for _ in range(5000):
        field = chosen.choice(FIELDS)
        other = {**good, field: chosen.choice([good[field] + "x", good[field].upper(), "", None, 1, ["x"]])}
        pair = [(good, True), (other, False)]
        chosen.shuffle(pair)
        for document, expected in pair:
            assert policy.answer(question(**document)).allow is expected
    who.write_text('{"name": "billing"}')
    await settle(policy)
    assert not policy.answer(question(**good)).allow
    assert policy.answer(question(**{**good, "caller": "billing"})).allow
