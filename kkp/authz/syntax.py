"""What a Rego policy's syntax tree says, read before the policy is ever evaluated (pure).

The in-process engine has faults that a policy could fall into without anyone noticing: built-ins that are
undefined where OPA has a value, data that overrides a rule, recursion that ends the process. Each is found
here, in the tree, and the policy is refused. Where the tree does not prove a policy harmless it is refused
too: a policy that this engine can't run belongs to an OPA.

The tree is the engine's own JSON. Every node is an object with one member, its kind; the kinds that matter
here are `Var`, `RefDot` and `RefBrack` (references), `Call`, and the heads of rules.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TypeAlias

from kkp.errors import PolicyLoadError
from kkp.model import JSON

RulePath: TypeAlias = tuple[str, ...]

# Each was called with good and with bad arguments: it gives OPA's value for the good, and an error, never
# undefined, for the bad. (`max` and `min` of nothing are undefined in OPA as well.) What is missing here is
# missing on purpose: `sprintf` and `object.subset` answer where OPA raises, `regex.replace` and `json.patch`
# are undefined on bad arguments, `http.send`, `opa.runtime` and `uuid.parse` fail open, `time.now_ns` and
# `rand.intn` would make a decision that can't be replayed, `print` and `trace` would write the input down.
SAFE_BUILTINS = frozenset(
    """
    abs ceil count floor max min numbers.range product round sort sum to_number
    array.concat array.reverse array.slice
    concat contains endswith format_int indexof lower replace split startswith strings.any_prefix_match
    strings.any_suffix_match strings.replace_n strings.reverse substring trim trim_left trim_prefix
    trim_right trim_space trim_suffix upper
    intersection union
    object.filter object.get object.keys object.remove object.union
    is_array is_boolean is_null is_number is_object is_set is_string type_name
    regex.find_n regex.is_valid regex.match regex.split glob.match glob.quote_meta
    base64.decode base64.encode base64url.decode base64url.encode base64url.encode_no_pad
    hex.decode hex.encode json.is_valid json.marshal json.unmarshal
    net.cidr_contains net.cidr_is_valid
    time.add_date time.clock time.date time.parse_duration_ns time.parse_ns time.parse_rfc3339_ns time.weekday
    """.split()  # noqa: SIM905  a list of words reads better than ninety quoted lines
)

_REFERENCES = frozenset({"Var", "RefDot", "RefBrack"})
_KEYWORDS = frozenset({"if", "contains", "in", "every"})
_MAX_CHAIN = 100  # rules that evaluate one another, one inside the next: the engine recurses for each


@dataclass(frozen=True, slots=True)
class _Module:
    file: str
    package: RulePath
    aliases: Mapping[str, RulePath]  # local name -> imported path, `data` or `input` first
    rules: Sequence[tuple[RulePath, JSON]]  # path under `data` and the rule's tree
    package_rules: frozenset[RulePath] = frozenset()  # of every file of the package: each sees them all


@dataclass(frozen=True, slots=True)
class PolicySyntax:
    """The rules of a policy and what each refers to."""

    modules: tuple[_Module, ...]

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
                or is shadowed by the data.
        """
        functions = self.functions
        with _unknown_forms_refused():
            for module in self.modules:
                for _, tree in module.rules:
                    _check_with(module, tree)
                    _check_calls(module, tree, functions)
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
                        f"{module.file}:{_line(tree)}: old Rego syntax mixed with new; use `import rego.v1`"
                    )

    def _graph(self) -> dict[RulePath, set[RulePath]]:
        paths = self.rule_paths
        graph: dict[RulePath, set[RulePath]] = {path: set() for path in paths}
        for module in self.modules:
            for path, tree in module.rules:
                for target in _targets(module, tree):
                    graph[path] |= {rule for rule in paths if _overlap(rule, target)}
        return graph


@contextmanager
def _unknown_forms_refused() -> Iterator[None]:
    try:
        yield
    except (KeyError, TypeError, ValueError) as error:
        raise PolicyLoadError("The policy's syntax tree has a form that KKP does not know.") from error


def _read_module(tree: JSON) -> _Module:
    ast = tree["ast"]
    package = tuple(_static_path(ast["package"]["refr"]))
    return _Module(
        file=tree["source"]["file"],
        package=package,
        aliases=dict(_read_import(entry, tree["source"]["contents"].encode()) for entry in ast["imports"]),
        rules=[(package + tuple(_static_path(_head_reference(rule))), rule) for rule in ast["rules"]],
    )


def _share_names(modules: Sequence[_Module]) -> Iterator[_Module]:
    for module in modules:
        siblings = (other for other in modules if other.package == module.package)
        depth = len(module.package) + 1
        names = (path[:depth] for sibling in siblings for path, _ in sibling.rules)
        yield replace(module, package_rules=frozenset(names))


def _read_import(entry: JSON, source: bytes) -> tuple[str, RulePath]:
    path = tuple(_static_path(entry["refr"]))
    span = entry.get("as")
    # The tree has only the place of an alias; its name is in the source.
    return (source[span["start"] : span["end"]].decode() if span else path[-1]), path


def _kind(node: JSON) -> tuple[str, JSON]:
    ((kind, content),) = node.items()
    return kind, content


def _head_reference(rule: JSON) -> JSON:
    kind, content = _kind(rule)
    if kind == "Default":
        return content["refr"]
    _, head = _kind(content["head"])
    return head["refr"]


def _is_function(rule: JSON) -> bool:
    kind, content = _kind(rule)
    return kind == "Spec" and _kind(content["head"])[0] == "Func"


def _is_bare(rule: JSON) -> bool:
    kind, content = _kind(rule)
    if kind != "Spec" or content["bodies"]:
        return False
    head_kind, head = _kind(content["head"])
    return head_kind == "Compr" and head["assign"] is None


def _static_path(node: JSON) -> list[str]:
    """Return the constant names that a reference begins with."""
    return _leading_names(_segments(node))


def _segments(node: JSON) -> list[str | None]:
    """Return a reference's names from left to right, None for each that is computed."""
    reversed_names: list[str | None] = []
    kind, content = _kind(node)
    while kind in {"RefDot", "RefBrack"}:
        reversed_names.append(content["field"][1] if kind == "RefDot" else _constant(content["index"]))
        kind, content = _kind(content["refr"])
    reversed_names.append(content["value"] if kind == "Var" else None)
    return reversed_names[::-1]


def _constant(index: JSON) -> str | None:
    kind, content = _kind(index)
    return content["value"] if kind in {"String", "RawString"} else None


def _nodes(tree: JSON) -> Iterator[tuple[str, JSON]]:
    """Yield every member of every object in the tree; a stack, because trees may be deep."""
    stack = [tree]
    while stack:
        node = stack.pop()
        if isinstance(node, dict):
            yield from node.items()
            stack.extend(node.values())
        elif isinstance(node, list):
            stack.extend(node)


def _line(tree: JSON) -> int:
    lines = [content["line"] for name, content in _nodes(tree) if name == "span"]
    return min(lines, default=0)


def _check_with(module: _Module, tree: JSON) -> None:
    # `with` replaces inputs, data and built-ins for one expression: what it leads to can't be proven here.
    if any(name == "with_mods" and content for name, content in _nodes(tree)):
        raise PolicyLoadError(f"{module.file}:{_line(tree)}: `with` belongs in tests, not in a policy")


def _check_calls(module: _Module, tree: JSON, functions: frozenset[RulePath]) -> None:
    for name, content in _nodes(tree):
        if name != "Call":
            continue
        called = _segments(content["fcn"])
        target = _resolve(module, called)
        if target in functions:
            continue
        builtin = ".".join(segment or "?" for segment in called)
        if target is not None or builtin not in SAFE_BUILTINS:
            raise PolicyLoadError(
                f"{module.file}:{_line(content)}: `{builtin}` can't be evaluated safely in process"
            )


def _resolve(module: _Module, segments: Sequence[str | None]) -> RulePath | None:
    """Return the path below `data` that a reference begins with; None if it is not of `data`."""
    head, *_ = names = _leading_names(segments) or [""]
    if head == "data":
        return tuple(names[1:])
    if head in module.aliases:
        path = (*module.aliases[head], *names[1:])
        return path[1:] if path[0] == "data" else None
    if (*module.package, head) in module.package_rules:
        return (*module.package, *names)
    return None


def _leading_names(segments: Sequence[str | None]) -> list[str]:
    names: list[str] = []
    for segment in segments:
        if segment is None:
            break
        names.append(segment)
    return names


def _targets(module: _Module, rule: JSON) -> Iterator[RulePath]:
    """Yield every path below `data` that a rule refers to."""
    for reference in _references(rule):
        segments = _segments(reference)
        target = _resolve(module, segments)
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
        elif isinstance(node, dict) and _REFERENCES & node.keys():
            stack.extend(_computed_parts(node))
            if node is not own_name:
                yield node
        elif isinstance(node, dict):
            stack.extend(node.values())


def _computed_parts(reference: JSON) -> Iterator[JSON]:
    """Yield what stands inside a reference: its indices, and its base if that is not a name."""
    kind, content = _kind(reference)
    while kind in {"RefDot", "RefBrack"}:
        if kind == "RefBrack":
            yield content["index"]
        kind, content = _kind(content["refr"])
    if kind != "Var":
        yield {kind: content}


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
