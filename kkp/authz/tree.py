"""How the in-process engine's syntax tree is read: its nodes, its references and what they name (pure).

The tree is the engine's own JSON. Every node is an object with one member, its kind; the kinds that matter
here are `Var`, `RefDot` and `RefBrack` (references), `Call`, and the heads of rules.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from kkp.model import JSON

RulePath: TypeAlias = tuple[str, ...]
Member: TypeAlias = tuple[str, JSON]

REFERENCES = frozenset({"Var", "RefDot", "RefBrack"})


@dataclass(frozen=True, slots=True)
class Module:
    """One file of a policy."""

    file: str
    source: bytes  # as UTF-8, because a span counts in bytes
    package: RulePath
    aliases: Mapping[str, RulePath]  # local name -> imported path, `data` or `input` first
    rules: Sequence[tuple[RulePath, JSON]]  # path under `data` and the rule's tree
    package_rules: frozenset[RulePath] = frozenset()  # of every file of the package: each sees them all


def open_node(node: JSON) -> tuple[str, JSON]:
    """Return a node's kind and its content."""
    ((kind, content),) = node.items()
    return kind, content


def static_path(node: JSON) -> list[str]:
    """Return the constant names that a reference begins with."""
    return leading_names(segments_of(node))


def segments_of(node: JSON) -> list[str | None]:
    """Return a reference's names from left to right, None for each that is computed."""
    reversed_names: list[str | None] = []
    kind, content = open_node(node)
    while kind in {"RefDot", "RefBrack"}:
        reversed_names.append(content["field"][1] if kind == "RefDot" else constant_of(content["index"]))
        kind, content = open_node(content["refr"])
    reversed_names.append(content["value"] if kind == "Var" else None)
    return reversed_names[::-1]


def constant_of(index: JSON) -> str | None:
    """Return the text that a node is, None if it is anything else."""
    kind, content = open_node(index)
    return content["value"] if kind in {"String", "RawString"} else None


def members_of(tree: JSON) -> list[Member]:
    """Return every member of every object in the tree that is a tree itself: most are the numbers of spans.

    With a stack, because trees may be deep. Nothing is looked for in a span: half of all objects are spans.
    """
    members: list[Member] = []
    stack = [tree]
    while stack:
        node = stack.pop()
        if isinstance(node, dict):
            trees = [member for member in node.items() if isinstance(member[1], (dict, list))]
            members += trees
            stack += [content for name, content in trees if name != "span"]
        elif isinstance(node, list):
            stack += node
    return members


def line_of(tree: JSON) -> int:
    """Return the first line of what the tree says, counted from 1."""
    return first_line(members_of(tree))


def first_line(members: Sequence[Member]) -> int:
    """Return the first line of a tree with these members, counted from 1."""
    return min((content["line"] for name, content in members if name == "span"), default=0)


def resolve(module: Module, segments: Sequence[str | None]) -> RulePath | None:
    """Return the path below `data` that a reference begins with; None if it is not of `data`."""
    head, *_ = names = leading_names(segments) or [""]
    if head == "data":
        return tuple(names[1:])
    if head in module.aliases:
        path = (*module.aliases[head], *names[1:])
        return path[1:] if path[0] == "data" else None
    if (*module.package, head) in module.package_rules:
        return (*module.package, *names)
    return None


def leading_names(segments: Sequence[str | None]) -> list[str]:
    """Return the names before the first that is computed."""
    names: list[str] = []
    for segment in segments:
        if segment is None:
            break
        names.append(segment)
    return names


def computed_parts(reference: JSON) -> Iterator[JSON]:
    """Yield what stands inside a reference: its indices, and its base if that is not a name."""
    kind, content = open_node(reference)
    while kind in {"RefDot", "RefBrack"}:
        if kind == "RefBrack":
            yield content["index"]
        kind, content = open_node(content["refr"])
    if kind != "Var":
        yield {kind: content}
