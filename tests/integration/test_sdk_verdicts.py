"""Both SDKs give one verdict: on every case of sdk/vectors, and on calls that nobody thought of.

Each SDK has a program that reads calls of its verifying functions, one a line, and answers verdicts. A call
holds all that a verdict depends on, the time too. They may differ in nothing: `code`, `reason`, claims, keys.
"""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple, TypeAlias

import pytest

from tests.promises import Recorder
from tests.scale import SCALE
from tests.typescript import program
from tests.vectors.altered_calls import Altered
from tests.vectors.calls import calls_of_cases
from tests.vectors.forging import HEADER, LIST_CLAIMS, LIST_TYPE, changed, compact, jws
from tests.vectors.key_sets import KEY_SETS

Call: TypeAlias = dict[str, Any]
Answer: TypeAlias = dict[str, Any]

SDK: Final = Path(__file__).resolve().parents[2] / "sdk"
TOKENS: Final = 500 * SCALE
OTHERS: Final = 100 * SCALE  # lists of revocations, and as many key sets
MAX_LIST_CHARACTERS: Final = 8 * 1024 * 1024
SECONDS: Final = 60.0 + 30.0 * SCALE  # far beyond what they take


class Program(NamedTuple):
    """What answers calls."""

    command: Sequence[str]
    directory: Path

    def answers(self, calls: Sequence[Call]) -> list[Answer]:
        lines = "".join(json.dumps(call) + "\n" for call in calls)
        ended = subprocess.run(  # noqa: S603  our own
            self.command,
            input=lines,
            capture_output=True,
            text=True,
            check=False,
            timeout=SECONDS,
            cwd=self.directory,
        )
        assert ended.returncode == 0, ended.stderr[-4000:]
        return [json.loads(line) for line in ended.stdout.split("\n") if line]


@pytest.fixture(scope="module")
def python() -> Program:
    if importlib.util.find_spec("kkp_client") is None:
        pytest.skip("the Python client is not installed here")
    return Program([sys.executable, "-m", "tests.verdicts"], SDK / "python")


@pytest.fixture(scope="module")
def typescript() -> Program:
    return Program(program("test/verdicts.js"), SDK / "typescript")


Compare: TypeAlias = Callable[[Sequence[Call]], tuple[list[Answer], list[str]]]


@pytest.fixture
def compare(python: Program, typescript: Program) -> Compare:
    """Return what answers calls, as Python does, and tells where TypeScript differs or either crashes."""

    def told(calls: Sequence[Call]) -> tuple[list[Answer], list[str]]:
        answers = list(zip(calls, python.answers(calls), typescript.answers(calls), strict=True))
        differing = [
            json.dumps({"call": call, "python": one, "typescript": other})
            for call, one, other in answers
            if written(one) != written(other) or "crash" in one
        ]
        return [one for _, one, _ in answers], differing

    return told


def written(answer: Answer) -> str:
    """Return an answer so that 1, 1.0 and true are three."""
    return json.dumps(answer, sort_keys=True)


def kinds(answers: Sequence[Answer]) -> Counter[str]:
    return Counter(answer.get("reason") or next(iter(answer)) for answer in answers)


@pytest.mark.promise(14)
def test_every_case_has_its_verdict_from_both(compare: Compare, record_promise: Recorder) -> None:
    cases = list(calls_of_cases())
    answers, differing = compare([call for call, _ in cases])
    wrong = [
        json.dumps({"call": call, "python": answer, "expected": expected})
        for (call, expected), answer in zip(cases, answers, strict=True)
        if written(answer) != written(expected)
    ]
    record_promise(14, "cases", len(cases), differences=len(differing), wrong=len(wrong))
    assert not differing, differing[0]
    assert not wrong, wrong[0]


@pytest.mark.promise(14)
def test_tokens_that_nobody_thought_of_have_one_verdict(compare: Compare, record_promise: Recorder) -> None:
    altered = Altered()
    answers, differing = compare([altered.token_call(number) for number in range(TOKENS)])
    record_promise(14, "fuzzed tokens", TOKENS, differences=len(differing))
    assert not differing, differing[0]
    # They get far enough: to what is behind the signature, and to the end.
    seen = kinds(answers)
    assert seen["claims"] >= TOKENS // 10
    assert (
        seen["revoked"] + seen["wrong_proof"] + seen["wrong_certificate"] + seen["not_bound"] >= TOKENS // 20
    )
    assert len(seen) >= 12


@pytest.mark.promise(14)
def test_lists_and_key_sets_that_nobody_thought_of_have_one_verdict(
    compare: Compare, record_promise: Recorder
) -> None:
    altered = Altered()
    calls = [
        call for number in range(OTHERS) for call in (altered.list_call(number), altered.key_set_call(number))
    ]
    answers, differing = compare(calls)
    record_promise(14, "fuzzed lists and key sets", len(calls), differences=len(differing))
    assert not differing, differing[0]
    seen = kinds(answers)
    assert seen["claims"] >= OTHERS // 10
    assert sum(bool(answer.get("keys")) for answer in answers) >= OTHERS // 10
    assert len(seen) >= 6


@pytest.mark.promise(14)
def test_a_list_may_have_8_mib_and_no_more(compare: Compare) -> None:
    """A case of its own: sdk/vectors has none of this size."""
    answers, differing = compare([list_of(MAX_LIST_CHARACTERS), list_of(MAX_LIST_CHARACTERS + 1)])
    assert not differing, differing[0][-1000:]
    assert kinds(answers) == {"claims": 1, "malformed": 1}


def list_of(characters: int) -> Call:
    """Return a call with a good list that is so long."""
    header = compact(changed(HEADER, typ=LIST_TYPE))
    empty = len(jws(header, compact(changed(LIST_CLAIMS, x=""))))
    near = (characters - empty) * 3 // 4
    for length, spaces in ((length, spaces) for length in range(near - 4, near + 4) for spaces in range(3)):
        made = jws(header + b" " * spaces, compact(changed(LIST_CLAIMS, x="x" * length)))
        if len(made) == characters:
            return {
                "kind": "revocation_list",
                "list": made,
                "key_set": KEY_SETS["two keys"],
                "fetched_at": LIST_CLAIMS["iat"],
                "issuer": LIST_CLAIMS["iss"],
                "now": LIST_CLAIMS["iat"],
                "leeway": 5,
                "highest_seq": None,
            }
    raise AssertionError(characters)
