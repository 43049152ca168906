"""What OPA and the in-process engine decide differently, found in the syntax tree and refused (pure).

Each rule here was found by asking both the same; `tests/integration/test_engines_agree.py` asks again. A
policy that is refused has a form that both understand alike, which the refusal names.

- OPA evaluates the values in a `not` before the negation: where one is undefined, so is the whole body. Here
  only the negated expression is undefined, and the `not` holds. So a `not` must have values that can't be
  undefined. Exempt is what OPA leaves in the negation too: a reference alone, and `==` between references.
- Where a function's value is undefined, OPA goes on to its next `else`; this engine is undefined, or true.
- `in` with an undefined side is false here and undefined in OPA, which shows where it is used as a value.
- In `every`, this engine takes a variable of the `every` for a new one: `=` assigns to it, and an index
  iterates, so that a `not` around it is undefined.
- A name that only a `not` mentions is unsafe in OPA; here an index of that name iterates.
- A minus sign before anything but a number is an error here.
- Patterns: letter classes have all of Unicode here and ASCII in OPA, set operations exist only here, and
  globs with other separators than one `/` or `.` match beyond them.
- Fractions are binary here and decimal in OPA, and a set is before an object here and after it in OPA.

What the tree can't tell remains, and is listed in `policy/README.md`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from kkp.authz.tree import (
    REFERENCES,
    Member,
    Module,
    RulePath,
    computed_parts,
    constant_of,
    leading_names,
    line_of,
    members_of,
    open_node,
    resolve,
    segments_of,
)
from kkp.errors import PolicyLoadError
from kkp.model import JSON

# What every input has (`policy/schemas/input.json`).
ALWAYS_SENT = frozenset(
    """
    action
    caller caller.id caller.kind caller.roles caller.issuer caller.method caller.attributes caller.grants
    claims
    request request.backend request.key_id request.context request.envelope
    environment environment.time environment.client_ip
    """.split()  # noqa: SIM905  a list of words reads better than twenty quoted lines
)

_SCALARS = frozenset({"String", "RawString", "Number", "Bool", "Null"})
_COMPREHENSIONS = frozenset({"ArrayCompr", "SetCompr", "ObjectCompr"})
_UNORDERED = frozenset({"Set", "Object", "SetCompr", "ObjectCompr"})
_OPERATORS = frozenset({"ArithExpr", "BinExpr", "BoolExpr", "Membership"})
_UNDEFINED_OF_NOTHING = (["max"], ["min"])
# Letter classes and boundaries, flags but `(?i)`, set operations, a class within a class, a repetition that
# has no minimum or is repeated itself.
_ENGINES_OWN_REGEX = re.compile(r"\\[A-Za-z]|\(\?(?!:|i\))|&&|--|~~|\[[^\]]*\[|\{,|[*+?}]\??[*+{]|[*+?}]\?\?")
_ENGINES_OWN_GLOB = re.compile(r"\*\*|[?\[\]{}\\]")
_SEPARATORS: tuple[list[str | None], ...] = ([], ["/"], ["."])

_BIND = (
    "OPA decides this `not` differently where a value in it is undefined; "
    "bind the value first (`x := …`, then `not … x …`), or negate a rule of its own"
)
_NOT_UNEQUAL = "`not x != y` is decided differently by OPA where x or y is undefined; write `x == y`"
_ELSE = (
    "OPA goes on to the `else` of a function where the value before it is undefined; "
    "bind the value in the body (`if { …; x := … }`)"
)
_UNIFIED = "`=` in `every` is decided differently by OPA; write `==`"
_INDEXED = (
    "`not` in `every` is decided differently by OPA where the value has an index; "
    "negate a function of its own"
)
_MEMBERSHIP = (
    "`in` as a value is decided differently by OPA where a side is undefined; "
    "bind the sides first (`x := …`), or make it a rule of its own"
)
_MINUS = "a minus sign before anything but a number fails in process; write `0 - x`"
_PATTERN = (
    "the pattern may match differently in OPA; write it as a constant, "
    "with `[0-9]` for `\\d` and no flags but `(?i)` and no classes within classes"
)
_GLOB = (
    "the glob may match differently in OPA; write a constant without `?`, `**` and classes, "
    'with `[]`, `["/"]` or `["."]` as the separators'
)
_FRACTION = "OPA reckons with decimal fractions, the engine in process with binary ones; use whole numbers"
_ORDER = "OPA orders objects and sets differently; compare numbers or strings"


@dataclass(frozen=True, slots=True)
class Policy:
    """What of a policy is known before it is asked.

    Attributes:
        certain_rules: The rules that have a value for every input.
        data: The policy's data.
    """

    certain_rules: frozenset[RulePath]
    data: Mapping[str, JSON]

    def has(self, path: RulePath) -> bool:
        """Whether this path below `data` has a value for every input."""
        if path in self.certain_rules:
            return True
        node: JSON = self.data
        for name in path:
            if not isinstance(node, dict) or name not in node:
                return False
            node = node[name]
        return True


def check_agreement(module: Module, rule: JSON, members: Sequence[Member], policy: Policy) -> None:
    """Refuse a rule, given with all its members, that OPA may decide differently.

    Raises:
        PolicyLoadError: With file, line, the reason and what to write instead.
    """
    scope = _Scope(module, frozenset(_bound_names(module, rule)), policy)
    for node, reason in _disagreements(scope, members):
        raise PolicyLoadError(f"{module.file}:{line_of(node)}: {reason}")


def _disagreements(scope: _Scope, members: Sequence[Member]) -> Iterator[tuple[JSON, str]]:
    statements = frozenset(id(statement) for statement in _statements(members))
    for name, content in members:
        match name:
            case "NotExpr" if not scope.is_certain_negation(content["expr"]):
                yield content, _NOT_UNEQUAL if _is_unequal(content["expr"]) else _BIND
            case "Every":
                yield from _disagreements_of_every(content["query"])
            case "Membership" if id(content) not in statements and not scope.are_certain(_sides(content)):
                yield content, _MEMBERSHIP
            case "Spec" if not scope.are_certain(list(_values_before_else(content))):
                yield content, _ELSE
            case "Call":
                yield from _disagreements_of_call(content)
            case "UnaryExpr" | "ArithExpr" | "BoolExpr":
                yield from _disagreements_of_operator(name, content)


def _values_before_else(rule: JSON) -> Iterator[JSON]:
    """Yield the values that a function has in front of an `else`; without one written, it is true."""
    kind, head = open_node(rule["head"])
    if kind == "Func":
        assignments = [head["assign"], *(body["assign"] for body in rule["bodies"][1:])]
        yield from (assignment["value"] for assignment in assignments[:-1] if assignment)


def _statements(members: Sequence[Member]) -> Iterator[JSON]:
    """Yield what stands alone in a body, negated or not: there, false and undefined are the same."""
    for name, content in members:
        if name in {"Expr", "NotExpr"}:
            yield from content["expr"].values()


def _disagreements_of_every(query: JSON) -> Iterator[tuple[JSON, str]]:
    for name, content in members_of(query):
        if name == "AssignExpr" and content["op"] == "Eq":
            yield content, _UNIFIED
        elif name == "NotExpr" and any(_is_computed_index(*member) for member in members_of(content)):
            yield content, _INDEXED


def _is_computed_index(name: str, content: JSON) -> bool:
    return name == "RefBrack" and open_node(content["index"])[0] not in _SCALARS


def _disagreements_of_operator(name: str, content: JSON) -> Iterator[tuple[JSON, str]]:
    if name == "UnaryExpr":
        yield content, _MINUS
    elif name == "ArithExpr" and any(_is_fraction(side) for side in _sides(content)):
        yield content, _FRACTION
    elif name == "BoolExpr" and content["op"] not in {"Eq", "Ne"} and _has_unordered(content):
        yield content, _ORDER


def _disagreements_of_call(call: JSON) -> Iterator[tuple[JSON, str]]:
    function = ".".join(leading_names(segments_of(call["fcn"])))
    arguments = call["params"]
    if function.startswith("regex.") and not _is_plain(_ENGINES_OWN_REGEX, arguments[0]):
        yield call, _PATTERN
    if function == "glob.match" and not (
        _is_plain(_ENGINES_OWN_GLOB, arguments[0]) and _separators(arguments[1]) in _SEPARATORS
    ):
        yield call, _GLOB


def _is_plain(special: re.Pattern[str], pattern: JSON) -> bool:
    text = constant_of(pattern)
    return text is not None and special.search(text) is None


def _separators(argument: JSON) -> list[str | None] | None:
    kind, content = open_node(argument)
    return [constant_of(item) for item in content["items"]] if kind == "Array" else None


def _is_fraction(node: JSON) -> bool:
    kind, content = open_node(node)
    return kind == "Number" and isinstance(content["value"], float)


def _has_unordered(comparison: JSON) -> bool:
    return any(open_node(side)[0] in _UNORDERED for side in _sides(comparison))


def _is_unequal(node: JSON) -> bool:
    kind, content = open_node(node)
    return kind == "BoolExpr" and content["op"] == "Ne"


def _values(kind: str, content: JSON) -> list[JSON] | None:
    """Return the values that a value is made of; None where its form is not known."""
    if kind in _SCALARS or kind in _COMPREHENSIONS:
        return []
    if kind in {"Array", "Set"}:
        return list(content["items"])
    if kind == "Object":
        return [value for _, *pair in content["fields"] for value in pair]
    if kind == "Call":
        return list(content["params"])
    return _sides(content) if kind in _OPERATORS else None


def _sides(content: JSON) -> list[JSON]:
    return [content[name] for name in ("key", "lhs", "rhs", "value", "collection") if content.get(name)]


def _bound_names(module: Module, rule: JSON) -> Iterator[str]:
    """Yield every name that stands outside of the negations, and those of each `every`."""
    stack = [(rule, False)]
    while stack:
        node, negated = stack.pop()
        if isinstance(node, list):
            stack.extend((item, negated) for item in node)
        elif isinstance(node, dict):
            if "Var" in node and not negated:
                yield node["Var"]["value"]
            if "Every" in node:
                yield from _names_of_every(module, node["Every"])
            # A comprehension inside a negation binds names of its own.
            stack.extend(
                (content, name == "NotExpr" or (negated and name not in _COMPREHENSIONS))
                for name, content in node.items()
                if isinstance(content, (dict, list)) and name != "span"
            )


def _names_of_every(module: Module, every: JSON) -> Iterator[str]:
    for span in (every["key"], every["value"]):
        if span is not None:
            yield module.source[span["start"] : span["end"]].decode()


@dataclass(frozen=True, slots=True)
class _Scope:
    """What can't be undefined in one rule."""

    module: Module
    bound: frozenset[str]
    policy: Policy

    def is_certain_negation(self, negated: JSON) -> bool:
        """Whether OPA, too, finds undefined only what it leaves inside the negation."""
        kind, content = open_node(negated)
        if kind in REFERENCES:
            return self._is_reachable(negated)
        if kind in {"BoolExpr", "AssignExpr"} and content["op"] == "Eq":
            return all(self._is_reachable(side) for side in _sides(content))
        return self.are_certain(_values(kind, content))

    def are_certain(self, values: Sequence[JSON] | None) -> bool:
        """Whether none of these can be undefined; None is a form that is not known."""
        return values is not None and all(self._is_certain(value) for value in values)

    def _is_reachable(self, node: JSON) -> bool:
        """Whether all inside a reference is certain, if not the reference itself."""
        if open_node(node)[0] in REFERENCES:
            return self.are_certain(list(computed_parts(node)))
        return self._is_certain(node)

    def _is_certain(self, node: JSON) -> bool:
        kind, content = open_node(node)
        if kind in REFERENCES:
            return self._is_certain_reference(segments_of(node))
        if kind == "Call" and not self._is_certain_function(segments_of(content["fcn"])):
            return False
        return self.are_certain(_values(kind, content))

    def _is_certain_reference(self, segments: Sequence[str | None]) -> bool:
        head, *members = names = leading_names(segments)
        if len(names) < len(segments):
            return False
        path = resolve(self.module, names)
        if path is not None:
            return self.policy.has(path)
        if head == "input" or head in self.module.aliases:
            absolute = [*self.module.aliases.get(head, ("input",)), *members]
            return absolute == ["input"] or ".".join(absolute[1:]) in ALWAYS_SENT
        return head in self.bound and head != "_" and not members

    def _is_certain_function(self, segments: Sequence[str | None]) -> bool:
        is_builtin = resolve(self.module, segments) is None
        return is_builtin and segments not in _UNDEFINED_OF_NOTHING
