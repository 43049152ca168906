"""Rego in process, by regorus: for `kkp dev` and the tests. Production asks an OPA.

The engine evaluates well, but it fails open or ends the process where a policy leaves its safe part. So
everything that leads there is refused when the policy is loaded (`kkp.authz.syntax` reads the tree), and a
policy that gives no usable answer to an empty input is refused as well. These rules hold afterwards:

- One engine, one thread: the one that loaded it. Another thread gets `PolicyUnavailableError`, before the
  engine is touched; a panic of the engine never leaves this module.
- The input is cleared after each question, so a question that can't be set never sees the previous one.
- No text of the engine reaches an error of a decision: its messages quote the input.
- What the latest few different answers mean is kept: a policy gives the same ones again and again. Only the
  answer is remembered, never the question, which is put to the engine each time.
- Undefined comes back as the text `<undefined>`, null as null, sets as sorted lists. No shape of a decision
  admits the first two.
- There is no deadline: the policy is the operator's own, and what it may call is bounded.
"""

from __future__ import annotations

import hashlib
import os
import re
import threading
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import NoReturn, final

import msgspec
import regorus  # type: ignore[import-untyped]  # the wheel carries no stubs

from kkp.authz.base import interpret
from kkp.authz.syntax import PolicySyntax, RulePlaces
from kkp.errors import PolicyLoadError, PolicyUnavailableError
from kkp.model import JSON, Decision, Explanation, PolicyInput

_PACKAGE = ("kkp", "authz")
_MAX_FILES = 256
_MAX_FILE_BYTES = 256 * 1024
_MAX_TOTAL_BYTES = 1024 * 1024
_MAX_NESTING = 12  # the engine's parser takes time exponential in it
_NO_INPUT = "null"
_MAX_ANSWERS = 64
# The allow-list already keeps these out; should the engine reach one all the same, it is an error there and
# not undefined, which a `not` would turn into an allow.
_REFUSED_BUILTINS = {"http.send": 1, "json.patch": 2, "opa.runtime": 0, "regex.replace": 3, "uuid.parse": 1}

# How the parser complains of a rule like `allow { … }`.
_LEGACY_HINT = "keyword is required before rule"

_PLACE = re.compile(r"^\s*--> (.+):(\d+):\d+$", re.MULTILINE)
_ERROR = re.compile(r"^error: (.+)$", re.MULTILINE)


def default_policy_path() -> Path:
    """Return the bundled policy: inside an installed package, or the checkout's `policy/`."""
    package = Path(__file__).resolve().parent.parent
    installed = package / "_policy"
    return installed if installed.is_dir() else package.parent / "policy"


@final
class EmbeddedPolicy:
    """A policy, loaded and proven usable. Made by `load`."""

    def __init__(self, engine: regorus.Engine, rule: str, revision: str, rules: RulePlaces) -> None:
        self._rules = rules
        self._engine: regorus.Engine | None = engine
        self._thread_id = threading.get_ident()
        self._rule = rule
        self._rule_path = _rule_path(rule)
        self._revision = revision
        # Of nothing that leads back here: in a circle, a collector on any thread would drop the engine.
        self._read = lru_cache(_MAX_ANSWERS)(partial(_read_answer, rule, revision))

    @classmethod
    def load(cls, path: Path, settings: Mapping[str, JSON]) -> EmbeddedPolicy:
        """Load a Rego file or a bundle directory, with `settings` laid over its `data.kkp.settings`.

        Raises:
            PolicyLoadError: It does not parse, is unsafe in this engine, or has no usable default.
        """
        return cls.build(PolicySource.read(path), settings)

    @classmethod
    def build(cls, source: PolicySource, settings: Mapping[str, JSON]) -> EmbeddedPolicy:
        """Make a policy of what was read, on the thread that will ask it; see `load`."""
        try:
            return cls._build(source, settings)
        except (KeyboardInterrupt, SystemExit):
            raise
        except PolicyLoadError as error:
            problem = str(error)
        except BaseException as failure:  # noqa: BLE001  the engine's panics are BaseExceptions
            problem = f"the engine failed on it ({type(failure).__name__})"
        # Out here, because the frames of a traceback hold the engine, and only this thread may drop one.
        raise PolicyLoadError(problem)

    @classmethod
    def _build(cls, source: PolicySource, settings: Mapping[str, JSON]) -> EmbeddedPolicy:
        files = source.files
        data = _merge_data(files, settings)
        engine, syntax = _parse(files, allow_legacy=source.is_single_file)
        syntax.check(data)
        rule = _choose_rule(syntax)
        _add_data(engine, data)
        policy = cls(engine, rule, _revision(files, settings), RulePlaces.read(syntax))
        policy._probe()
        return policy

    @property
    def revision(self) -> str:
        """A digest of every file that was loaded, and of the settings laid over them."""
        return self._revision

    def answer(self, policy_input: PolicyInput) -> Decision:
        """Evaluate the policy's rule on the input.

        Raises:
            PolicyUnavailableError: The policy gave no usable answer, or this is another thread.
        """
        return self._read(self._ask(policy_input.encoded))

    async def decide(self, policy_input: PolicyInput) -> Decision:
        """Do as `answer`."""
        return self.answer(policy_input)

    def explain(self, policy_input: PolicyInput) -> Explanation:
        """Do as `answer`, and name the rules that were looked at and have a value; functions are not named.

        Raises:
            PolicyUnavailableError: The policy gave no usable answer, or this is another thread.
        """
        decision = self.answer(policy_input)
        values = self._evaluate_traced(policy_input.encoded)
        return Explanation(
            decision, tuple(sorted(path for path, value in values.items() if _is_given(value)))
        )

    async def ping(self) -> None:
        """Evaluate the rule on an empty input.

        Raises:
            PolicyUnavailableError: It gives no usable answer any more.
        """
        self._read(self._ask(b"{}"))

    async def close(self) -> None:
        """Drop the engine; every later question is refused."""
        self._engine = None

    def _ask(self, encoded: bytes) -> str:
        """Return the rule's value on an input, as JSON."""
        engine = self._engine_of_this_thread()
        try:
            try:
                engine.set_input_json(encoded.decode())
                answer: str = engine.eval_rule_as_json(self._rule_path)
            finally:
                engine.set_input_json(_NO_INPUT)
        except BaseException as failure:  # noqa: BLE001  the engine's panics are BaseExceptions
            _refuse_answer(failure)
        return answer

    def _evaluate_traced(self, encoded: bytes) -> Mapping[str, JSON]:
        """Return the rules that the decision on an input looks at, each with its value."""
        engine = self._engine_of_this_thread()
        try:
            engine.set_enable_coverage(True)
            try:
                engine.set_input_json(encoded.decode())
                engine.eval_rule_as_json(self._rule_path)
                covered = _covered_lines(engine.get_coverage_report_as_json())
                return {
                    ".".join(path): engine.eval_rule(".".join(("data", *path)))
                    for path in self._rules.at(covered)
                }
            finally:
                engine.set_enable_coverage(False)
                engine.clear_coverage_data()
                engine.set_input_json(_NO_INPUT)
        except BaseException as failure:  # noqa: BLE001  the engine's panics are BaseExceptions
            _refuse_answer(failure)

    def _engine_of_this_thread(self) -> regorus.Engine:
        if threading.get_ident() != self._thread_id:
            raise PolicyUnavailableError("The in-process policy was asked from another thread.")
        if self._engine is None:
            raise PolicyUnavailableError("The in-process policy is closed.")
        return self._engine

    def _probe(self) -> None:
        engine = self._engine_of_this_thread()
        try:
            engine.set_input_json("{}")
            rows = engine.eval_query(self._rule_path)["result"]
        except Exception as error:  # noqa: BLE001  whatever it is, the policy can't be used
            raise PolicyLoadError(f"{self._rule_path} fails on an empty input: {_brief(error)}") from None
        finally:
            engine.set_input_json(_NO_INPUT)
        if not rows:
            raise PolicyLoadError(f"{self._rule_path} has no default: it is undefined on an empty input")
        try:
            self._read(self._ask(b"{}"))
        except PolicyUnavailableError as error:
            raise PolicyLoadError(f"{self._rule_path} has no usable default. {error}") from None


def _read_answer(rule: str, revision: str, answer: str) -> Decision:
    try:
        value = msgspec.json.decode(answer)
    except (msgspec.DecodeError, RecursionError) as error:
        _refuse_answer(error)
    return interpret(rule, value, revision)


def _refuse_answer(failure: BaseException) -> NoReturn:
    if isinstance(failure, (KeyboardInterrupt, SystemExit)):
        raise failure
    raise PolicyUnavailableError("The in-process policy failed to evaluate.") from None


def _covered_lines(report: str) -> Iterator[tuple[str, int]]:
    for file in msgspec.json.decode(report)["files"]:
        for line in file["covered"]:
            yield file["path"], line


def _is_given(value: JSON) -> bool:
    """Tell whether a rule has a value. Undefined comes as None; a set to which nothing belongs is none."""
    return value is not None and value != set()


def _rule_path(rule: str) -> str:
    return ".".join(("data", *_PACKAGE, rule))


@dataclass(frozen=True, slots=True)
class _PolicyFile:
    name: str  # relative to the bundle
    text: str

    @property
    def is_data(self) -> bool:
        return self.name.endswith(".json")

    @property
    def folders(self) -> tuple[str, ...]:
        return tuple(self.name.split("/")[:-1])


@dataclass(frozen=True, slots=True)
class PolicySource:
    """A policy as it was read from disk, whole; two readings are equal if no byte of them differs."""

    files: tuple[_PolicyFile, ...]
    is_single_file: bool

    @classmethod
    def read(cls, path: Path) -> PolicySource:
        """Read a Rego file or a bundle directory.

        Raises:
            PolicyLoadError: It is missing, too large, or not all of it can be read.
        """
        try:
            is_single_file = path.is_file()
            root = path.parent if is_single_file else path
            names = [path.name] if is_single_file else list(_bundle_names(path))
            return cls(tuple(_read_files(root, names)), is_single_file)
        except OSError as error:
            raise PolicyLoadError(f"{path} can't be read: {error.strerror}") from error

    @property
    def roles(self) -> frozenset[str]:
        """The roles that the data has under `kkp.roles`; empty where a policy keeps them elsewhere.

        Raises:
            PolicyLoadError: The data can't be read.
        """
        document: JSON = _merge_data(self.files, {})
        for name in ("kkp", "roles"):
            document = document.get(name) if isinstance(document, dict) else None
        return frozenset(document) if isinstance(document, dict) else frozenset()


def _bundle_names(root: Path) -> Iterator[str]:
    """Yield the bundle's files. What is hidden belongs to a tool, or is a mount's former version."""
    for path in sorted(_walk(root)):
        name = path.relative_to(root).as_posix()
        if path.name in {"data.yaml", "data.yml"}:
            raise PolicyLoadError(f"{name}: only data.json is read in process")
        if path.name == "data.json" or (path.suffix == ".rego" and not path.name.endswith("_test.rego")):
            if not path.is_file():  # a link to nowhere, say: without it this would be another policy
                raise PolicyLoadError(f"{name} is no file")
            yield name


def _walk(root: Path) -> Iterator[Path]:
    """Yield what is not hidden and no directory; one that can't be entered is an error, not empty.

    A mounted ConfigMap links each of its directories at the top; links further down are not followed.
    """
    linked = [path for path in root.iterdir() if path.is_symlink() and path.is_dir()]
    for top in (root, *(path for path in linked if not path.name.startswith("."))):
        for folder, directories, names in os.walk(top, onerror=_raise):
            directories[:] = [name for name in directories if not name.startswith(".")]
            yield from (Path(folder, name) for name in names if not name.startswith("."))


def _raise(error: OSError) -> NoReturn:
    raise error


def _read_files(root: Path, names: list[str]) -> list[_PolicyFile]:
    if not names:
        raise PolicyLoadError(f"{root} holds no policy")
    if len(names) > _MAX_FILES:
        raise PolicyLoadError(f"The policy has more than {_MAX_FILES} files")
    files = [_PolicyFile(name, _read_text(root, name)) for name in names]
    if sum(len(file.text) for file in files) > _MAX_TOTAL_BYTES:
        raise PolicyLoadError(f"The policy is larger than {_MAX_TOTAL_BYTES} characters")
    return files


def _read_text(root: Path, name: str) -> str:
    with (root / name).open("rb") as stream:
        content = stream.read(_MAX_FILE_BYTES + 1)
    if len(content) > _MAX_FILE_BYTES:
        raise PolicyLoadError(f"{name} is larger than {_MAX_FILE_BYTES} bytes")
    try:
        return content.decode()
    except UnicodeDecodeError as error:
        raise PolicyLoadError(f"{name} is not UTF-8") from error


def _merge_data(files: Iterable[_PolicyFile], settings: Mapping[str, JSON]) -> dict[str, JSON]:
    data: dict[str, JSON] = {}
    for file in files:
        if file.is_data:
            _merge(data, _at(file.folders, _decode_data(file)), file.name)
    return _lay_over(data, settings)


def _lay_over(data: dict[str, JSON], settings: Mapping[str, JSON]) -> dict[str, JSON]:
    for name in settings:
        document: JSON = data
        for folder in ("kkp", "settings"):
            document = document.setdefault(folder, {})
            if not isinstance(document, dict):
                raise PolicyLoadError("data.kkp.settings is not an object")
        document[name] = settings[name]
    return data


def _decode_data(file: _PolicyFile) -> dict[str, JSON]:
    try:
        return msgspec.json.decode(file.text, type=dict[str, JSON])
    except (msgspec.MsgspecError, RecursionError) as error:
        raise PolicyLoadError(f"{file.name} is not a JSON object") from error


def _at(folders: Iterable[str], document: dict[str, JSON]) -> dict[str, JSON]:
    for folder in reversed(tuple(folders)):
        document = {folder: document}
    return document


def _merge(into: dict[str, JSON], addition: Mapping[str, JSON], name: str) -> None:
    for key, value in addition.items():
        if key not in into:
            into[key] = value
        elif isinstance(into[key], dict) and isinstance(value, dict):
            _merge(into[key], value, name)
        else:
            raise PolicyLoadError(f"{name}: another data file already gives `{key}` a value")


def _parse(files: Iterable[_PolicyFile], *, allow_legacy: bool) -> tuple[regorus.Engine, PolicySyntax]:
    sources = [file for file in files if not file.is_data]
    for source in sources:
        _check_nesting(source)
    try:
        return _parse_as(sources, legacy=False)
    except PolicyLoadError as error:
        if not allow_legacy or _LEGACY_HINT not in str(error):
            raise
        return _parse_legacy(sources, error)


def _parse_legacy(
    sources: list[_PolicyFile], modern_error: PolicyLoadError
) -> tuple[regorus.Engine, PolicySyntax]:
    """Try the syntax of before OPA 1.0. If that fails too, the error in today's syntax is the one to tell."""
    try:
        engine, syntax = _parse_as(sources, legacy=True)
    except PolicyLoadError:
        raise modern_error from None
    syntax.check_legacy()
    return engine, syntax


def _parse_as(sources: list[_PolicyFile], *, legacy: bool) -> tuple[regorus.Engine, PolicySyntax]:
    engine = regorus.Engine()
    engine.set_rego_v0(legacy)
    for name, arity in _REFUSED_BUILTINS.items():
        engine.add_extension(name, arity, _refuse_builtin)
    try:
        for source in sources:
            engine.add_policy(source.name, source.text)
        trees = msgspec.json.decode(engine.get_ast_as_json())
    except (RuntimeError, msgspec.MsgspecError, RecursionError) as error:
        raise PolicyLoadError(_brief(error)) from None
    return engine, PolicySyntax.read(trees)


def _refuse_builtin(*_: object) -> NoReturn:
    raise PolicyUnavailableError("The built-in is not available in process.")


def _check_nesting(source: _PolicyFile) -> None:
    """Bound the brackets, those in strings and comments included: a policy is far below the bound."""
    depth = 0
    for number, line in enumerate(source.text.splitlines(), start=1):
        for character in line:
            if character in "([{":
                depth += 1
            elif character in ")]}":
                depth = max(0, depth - 1)
            if depth > _MAX_NESTING:
                raise PolicyLoadError(f"{source.name}:{number}: brackets nest deeper than {_MAX_NESTING}")


def _choose_rule(syntax: PolicySyntax) -> str:
    for rule in ("decision", "allow"):
        if (*_PACKAGE, rule) in syntax.rule_paths:
            return rule
    raise PolicyLoadError("The policy defines neither `decision` nor `allow` in package kkp.authz")


def _add_data(engine: regorus.Engine, data: Mapping[str, JSON]) -> None:
    try:
        engine.add_data_json(msgspec.json.encode(data).decode())
    except RuntimeError:
        raise PolicyLoadError("The policy's data can't be loaded") from None


def _revision(files: Iterable[_PolicyFile], settings: Mapping[str, JSON]) -> str:
    """Digest names and contents, each after its length, so that no two policies share their bytes."""
    digest = hashlib.sha256()
    laid_over = msgspec.json.encode(settings, order="deterministic").decode()
    for part in (part for file in files for part in (file.name, file.text)):
        digest.update(b"%d:%s" % (len(part.encode()), part.encode()))
    digest.update(laid_over.encode())
    return f"sha256:{digest.hexdigest()[:16]}"


def _brief(error: Exception) -> str:
    """Return file, line and cause of an engine's message, without the frames and the source it adds."""
    text = str(error)
    place, cause = _PLACE.search(text), _ERROR.search(text)
    where = f"{place[1]}:{place[2]}: " if place else ""
    return where + (cause[1] if cause else "the policy does not parse")
