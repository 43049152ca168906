"""What a Rego policy's syntax tree says, read before the policy is ever evaluated (pure).

The in-process engine has faults that a policy could fall into without anyone noticing: built-ins that are
undefined where OPA has a value, data that overrides a rule, recursion that ends the process. Each is found
here, in the tree, and the policy is refused. Where the tree does not prove a policy harmless it is refused
too: a policy that this engine can't run belongs to an OPA.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cache

from kkp.authz.agreement import Policy, check_agreement
from kkp.authz.tree import (
    REFERENCES,
    Member,
    Module,
    RulePath,
    computed_parts,
    first_line,
    line_of,
    members_of,
    open_node,
    resolve,
    segments_of,
    static_path,
)
from kkp.errors import PolicyLoadError
from kkp.model import JSON

# Each was called with good and with bad arguments: it gives OPA's value for the good, and an error, never
# undefined, for the bad. (`max` and `min` of nothing are undefined in OPA as well.) What is missing here is
# missing on purpose: `sprintf` and `object.subset` answer where OPA raises, `regex.replace` and `json.patch`
# are undefined on bad arguments, `json.marshal`, `regex.split` and `strings.replace_n` give other values,
# `http.send`, `opa.runtime` and `uuid.parse` fail open, `time.now_ns` and `rand.intn` would make a decision
# that can't be replayed, `print` and `trace` would write the input down.
SAFE_BUILTINS = frozenset(
    """
    abs ceil count floor max min numbers.range product round sort sum to_number
    array.concat array.reverse array.slice
    concat contains endswith format_int indexof lower replace split startswith strings.any_prefix_match
    strings.any_suffix_match strings.reverse substring trim trim_left trim_prefix
    trim_right trim_space trim_suffix upper
    intersection union
    object.filter object.get object.keys object.remove object.union
    is_array is_boolean is_null is_number is_object is_set is_string type_name
    regex.find_n regex.is_valid regex.match glob.match glob.quote_meta
    base64.decode base64.encode base64url.decode base64url.encode base64url.encode_no_pad
    hex.decode hex.encode json.is_valid json.unmarshal
    net.cidr_contains net.cidr_is_valid
    time.add_date time.clock time.date time.parse_duration_ns time.parse_ns time.parse_rfc3339_ns time.weekday
    """.split()  # noqa: SIM905  a list of words reads better than ninety quoted lines
)

_KEYWORDS = frozenset({"if", "contains", "in", "every"})
_MAX_CHAIN = 100  # rules that evaluate one another, one inside the next: the engine recurses for each


@dataclass(frozen=True, slots=True)
class PolicySyntax:
    """The rules of a policy and what each refers to."""

    modules: tuple[Module, ...]

    @classmethod
    def read(cls, trees: Sequence[JSON]) -> PolicySyntax:
        """Read the engine's syntax trees.

        Raises:
            PolicyLoadError: A tree has a form that is not understood.
        """
        with _unknown_forms_refused():
            return cls(tuple(_share_names([_read_module(tree) for tree in trees])))

    @property
    def rule_paths(self) -> frozenset[RulePath]:
        """Every rule's path below `data`."""
        return frozenset(path for module in self.modules for path, _ in module.rules)

    @property
    def functions(self) -> frozenset[RulePath]:
        """The path below `data` of every function."""
        return frozenset(path for module in self.modules for path, tree in module.rules if _is_function(tree))

    def check(self, data: Mapping[str, JSON]) -> None:
        """Refuse what the in-process engine can't be trusted with.

        Raises:
            PolicyLoadError: The policy calls a built-in that is not on the list, uses `with`, is recursive,
                is shadowed by the data, or has a form that OPA decides differently.
        """
        functions = self.functions
        with _unknown_forms_refused():
            policy = Policy(frozenset(self._certain_rules()), data)
            for module in self.modules:
                for _, tree in module.rules:
                    members = members_of(tree)
                    _check_with(module, members)
                    _check_calls(module, members, functions)
                    check_agreement(module, tree, members, policy)
            _check_recursion(self._graph())
        _check_shadowing(self.rule_paths, data)

    def check_legacy(self) -> None:
        """Refuse a v0 policy that mixes in words of v1: `allow if { … }` would there allow everything.

        Raises:
            PolicyLoadError: A rule is named like a keyword, or has neither a value nor a body.
        """
        for module in self.modules:
            for path, tree in module.rules:
                if path[-1] in _KEYWORDS or _is_bare(tree):
                    raise PolicyLoadError(
                        f"{module.file}:{line_of(tree)}: old Rego syntax mixed with new; use `import rego.v1`"
                    )

    def _certain_rules(self) -> Iterator[RulePath]:
        for module in self.modules:
            yield from (path for path, tree in module.rules if _has_value(tree))

    def _graph(self) -> dict[RulePath, set[RulePath]]:
        paths = self.rule_paths
        graph: dict[RulePath, set[RulePath]] = {path: set() for path in paths}

        @cache
        def reached(target: RulePath) -> frozenset[RulePath]:
            return frozenset(rule for rule in paths if _overlap(rule, target))

        for module in self.modules:
            for path, tree in module.rules:
                graph[path].update(*map(reached, _targets(module, tree)))
        return graph


@dataclass(frozen=True, slots=True)
class RulePlaces:
    """Which rule a line belongs to: each reaches from its first line to the next one's.

    Attributes:
        starts: By file, the first line of every rule and its path below `data`, in order. None is for what
            has no value to ask for by its name: a function, or a name that is no word.
    """

    starts: Mapping[str, Sequence[tuple[int, RulePath | None]]]

    @classmethod
    def read(cls, syntax: PolicySyntax) -> RulePlaces:
        """Read them from the tree."""
        functions = syntax.functions
        return cls(
            {
                module.file: sorted(
                    ((_starts_at(tree), _askable(path, functions)) for path, tree in module.rules),
                    key=lambda start: start[0],
                )
                for module in syntax.modules
            }
        )

    def at(self, lines: Iterable[tuple[str, int]]) -> set[RulePath]:
        """Return the rules that these lines of these files belong to."""
        found = set()
        for file, line in lines:
            starts = self.starts.get(file, ())
            position = bisect_right(starts, line, key=lambda start: start[0])
            path = starts[position - 1][1] if position else None
            if path is not None:
                found.add(path)
        return found


def _starts_at(rule: JSON) -> int:
    _, content = open_node(rule)
    line: int = content["span"]["line"]
    return line


def _askable(path: RulePath, functions: frozenset[RulePath]) -> RulePath | None:
    return path if path not in functions and all(map(str.isidentifier, path)) else None


@contextmanager
def _unknown_forms_refused() -> Iterator[None]:
    try:
        yield
    except (LookupError, TypeError, ValueError) as error:
        raise PolicyLoadError("The policy's syntax tree has a form that KKP does not know.") from error


def _read_module(tree: JSON) -> Module:
    ast = tree["ast"]
    package = tuple(static_path(ast["package"]["refr"]))
    source = tree["source"]["contents"].encode()
    return Module(
        file=tree["source"]["file"],
        source=source,
        package=package,
        aliases=dict(_read_import(entry, source) for entry in ast["imports"]),
        rules=[(package + tuple(static_path(_head_reference(rule))), rule) for rule in ast["rules"]],
    )


def _share_names(modules: Sequence[Module]) -> Iterator[Module]:
    for module in modules:
        siblings = (other for other in modules if other.package == module.package)
        depth = len(module.package) + 1
        names = (path[:depth] for sibling in siblings for path, _ in sibling.rules)
        yield replace(module, package_rules=frozenset(names))


def _read_import(entry: JSON, source: bytes) -> tuple[str, RulePath]:
    path = tuple(static_path(entry["refr"]))
    span = entry.get("as")
    # The tree has only the place of an alias; its name is in the source.
    return (source[span["start"] : span["end"]].decode() if span else path[-1]), path


def _head_reference(rule: JSON) -> JSON:
    kind, content = open_node(rule)
    if kind == "Default":
        return content["refr"]
    _, head = open_node(content["head"])
    return head["refr"]


def _is_function(rule: JSON) -> bool:
    kind, content = open_node(rule)
    return kind == "Spec" and open_node(content["head"])[0] == "Func"


def _has_value(rule: JSON) -> bool:
    """Whether a rule has a value for every input: a set, a default, or a constant."""
    kind, content = open_node(rule)
    if kind == "Default":
        return open_node(content["refr"])[0] == "Var"
    head_kind, head = open_node(content["head"])
    if open_node(head["refr"])[0] != "Var" or head_kind == "Func":
        return False
    return head_kind == "Set" or (not content["bodies"] and not _refers(head["assign"]))


def _refers(value: JSON) -> bool:
    return any(name in {"Var", "Call"} for name, _ in members_of(value))


def _is_bare(rule: JSON) -> bool:
    kind, content = open_node(rule)
    if kind != "Spec" or content["bodies"]:
        return False
    head_kind, head = open_node(content["head"])
    return head_kind == "Compr" and head["assign"] is None


def _check_with(module: Module, members: Sequence[Member]) -> None:
    # `with` replaces inputs, data and built-ins for one expression: what it leads to can't be proven here.
    if any(name == "with_mods" and content for name, content in members):
        line = first_line(members)
        raise PolicyLoadError(f"{module.file}:{line}: `with` belongs in tests, not in a policy")


def _check_calls(module: Module, members: Sequence[Member], functions: frozenset[RulePath]) -> None:
    for name, content in members:
        if name != "Call":
            continue
        called = segments_of(content["fcn"])
        target = resolve(module, called)
        if target in functions:
            continue
        builtin = ".".join(segment or "?" for segment in called)
        if target is not None or builtin not in SAFE_BUILTINS:
            raise PolicyLoadError(
                f"{module.file}:{line_of(content)}: `{builtin}` can't be evaluated safely in process"
            )


def _targets(module: Module, rule: JSON) -> Iterator[RulePath]:
    """Yield every path below `data` that a rule refers to."""
    for reference in _references(rule):
        segments = segments_of(reference)
        target = resolve(module, segments)
        if target is not None:
            # The engine evaluates the whole of an imported package to reach one of its rules.
            alias = module.aliases.get(segments[0] or "")
            yield alias[1:] if alias else target


def _references(rule: JSON) -> Iterator[JSON]:
    """Yield every reference in a rule, the longest form of each, but not the rule's own name."""
    own_name = _head_reference(rule)
    stack = [rule]
    while stack:
        node = stack.pop()
        if isinstance(node, list):
            stack.extend(node)
        elif isinstance(node, dict) and REFERENCES & node.keys():
            stack.extend(computed_parts(node))
            if node is not own_name:
                yield node
        elif isinstance(node, dict):
            stack.extend(content for name, content in node.items() if name != "span")


def _overlap(one: RulePath, other: RulePath) -> bool:
    shorter = min(len(one), len(other))
    return one[:shorter] == other[:shorter]


def _check_shadowing(rules: frozenset[RulePath], data: Mapping[str, JSON]) -> None:
    for rule in sorted(rules):
        node: JSON = data
        for name in rule:
            if not isinstance(node, dict):
                raise PolicyLoadError(f"The data overrides the rule data.{'.'.join(rule)}")
            if name not in node:
                break
            node = node[name]
        else:
            raise PolicyLoadError(f"The data overrides the rule data.{'.'.join(rule)}")


def _check_recursion(graph: Mapping[RulePath, set[RulePath]]) -> None:
    """Peel off, again and again, the rules that refer to none left; what can't be peeled off is a cycle."""
    left = dict(graph)
    for _ in range(_MAX_CHAIN):
        free = {rule for rule, targets in left.items() if not targets & left.keys()}
        left = {rule: targets for rule, targets in left.items() if rule not in free}
        if not left:
            return
        if not free:
            names = ", ".join(f"data.{'.'.join(rule)}" for rule in sorted(left)[:3])
            raise PolicyLoadError(f"The policy is recursive near {names}")
    raise PolicyLoadError(f"The policy's rules refer to one another more than {_MAX_CHAIN} deep")
