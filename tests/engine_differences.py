"""What the in-process engine and OPA decide differently: rules, an input, and what the refusal says."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple


def rego(rules: str) -> str:
    """Return a policy of these rules; what they import comes first."""
    lines = rules.splitlines()
    imports = [line for line in lines if line.startswith("import ")]
    rest = [line for line in lines if line not in imports]
    return "\n".join(["package kkp.authz", *imports, "default allow := false", *rest, ""])


class Difference(NamedTuple):
    """One form.

    Attributes:
        rules: Decide differently on the input.
        claims: The input's `claims`; the rest of it is what a request has.
        refusal: What the refusal says, as a regular expression.
        instead: The same as the refusal advises to write it: both agree.
    """

    rules: str
    claims: Mapping[str, object]
    refusal: str
    instead: str


_BIND = r"OPA decides this `not` differently where a value in it is undefined; bind the value first"
_INDEXED = r"`not` in `every` is decided differently by OPA where the value has an index; negate a function"
_UNIFIED = r"`=` in `every` is decided differently by OPA; write `==`"
_VALUE = r"`in` as a value is decided differently by OPA where a side is undefined; bind the sides first"
_PATTERN = r"the pattern may match differently in OPA; write it as a constant"
_GLOB = r"the glob may match differently in OPA; write a constant without `\?`"

DIFFERENCES = {
    "a negated inequality with a missing member": Difference(
        "allow if not input.claims.x != 1",
        {},
        r"`not x != y` is decided differently by OPA where x or y is undefined; write `x == y`",
        "allow if input.claims.x == 1",
    ),
    "a negated order with a missing member": Difference(
        "allow if not input.claims.x < 1", {}, _BIND, "allow if { x := input.claims.x; not x < 1 }"
    ),
    "a negated membership of a missing member": Difference(
        'allow if not input.claims.sub in ["x"]',
        {},
        _BIND,
        'allow if not blocked\nblocked if input.claims.sub in ["x"]',
    ),
    "a negated membership in a missing collection": Difference(
        'allow if not "x" in input.claims.ops',
        {},
        _BIND,
        'allow if { ops := input.claims.ops; not "x" in ops }',
    ),
    "a negated membership in data that there is none of": Difference(
        "allow if not input.action in data.own.blocked",
        {},
        _BIND,
        "allow if { blocked := data.own.blocked; not input.action in blocked }",
    ),
    "a negated call of a built-in with a missing member": Difference(
        'allow if not startswith(input.claims.key_id, "x")',
        {},
        _BIND,
        'allow if { key := input.claims.key_id; not startswith(key, "x") }',
    ),
    "a negated call of a function with a missing member": Difference(
        "f(x) if x == 1\nallow if not f(input.claims.x)",
        {},
        _BIND,
        "f(x) if x == 1\nallow if not one\none if f(input.claims.x)",
    ),
    "a negated call of a function of an undefined function": Difference(
        "f(x) if x == 1\ng(x) := x if input.claims.x\nallow if not f(g(1))",
        {},
        _BIND,
        "f(x) if x == 1\ng(x) := x if input.claims.x\nallow if { y := g(1); not f(y) }",
    ),
    "a negated call with a rule that may be undefined": Difference(
        "f(x) if x == 1\nm := 1 if input.claims.x\nallow if not f(m)",
        {},
        _BIND,
        "f(x) if x == 1\nm := 1 if input.claims.x\nallow if { y := m; not f(y) }",
    ),
    "a negated equality with a call that may be undefined": Difference(
        "f(x) := 3 if input.claims.x\nallow if not f(1) == 2",
        {},
        _BIND,
        "f(x) := 3 if input.claims.x\nallow if { y := f(1); not y == 2 }",
    ),
    "a negated equality with the largest of nothing": Difference(
        "allow if not max([]) == 1", {}, _BIND, "allow if { x := max([]); not x == 1 }"
    ),
    "a negated equality with a list of a missing member": Difference(
        "allow if not [input.claims.x] == [1]", {}, _BIND, "allow if not input.claims.x == 1"
    ),
    "a negated equality with an object of a missing member": Difference(
        'allow if not {"x": input.claims.x} == {"x": 1}', {}, _BIND, "allow if not input.claims.x == 1"
    ),
    "a negated equality with a sum of a missing member": Difference(
        "allow if not input.claims.x + 1 == 2", {}, _BIND, "allow if not input.claims.x == 1"
    ),
    "a negated equality with a comparison inside": Difference(
        "allow if not (input.claims.x == 1) == true", {}, _BIND, "allow if not input.claims.x == 1"
    ),
    "a negated index by a missing member": Difference(
        "allow if not input.claims[input.claims.name]",
        {},
        _BIND,
        "allow if { name := input.claims.name; not input.claims[name] }",
    ),
    "a negated index of a set by a missing member": Difference(
        'names contains "x"\nallow if not names[input.claims.name]',
        {},
        _BIND,
        'names contains "x"\nallow if { name := input.claims.name; not names[name] }',
    ),
    "a negated member of a local value": Difference(
        "allow if { claims := input.claims; not claims.x in [1] }",
        {},
        _BIND,
        "allow if { x := input.claims.x; not x in [1] }",
    ),
    "a negated inequality in a comprehension": Difference(
        "allow if count([1 | not input.claims.x != 1]) == 1",
        {},
        r"`not x != y` is decided",
        "allow if count([1 | input.claims.x == 1]) == 1",
    ),
    "an index by a variable of every in a not": Difference(
        'allow if { every n, v in {"x": 1} { not input.claims[n] == v } }',
        {},
        _INDEXED,
        'has(n, v) if input.claims[n] == v\nallow if { every n, v in {"x": 1} { not has(n, v) } }',
    ),
    "an index by a variable of every in a not in a comprehension": Difference(
        'allow if { every n in ["x"] { x := [1 | not input.claims[n]]; x == [1] } }',
        {},
        _INDEXED,
        'has(n) if input.claims[n]\nallow if { every n in ["x"] { x := [1 | not has(n)]; x == [1] } }',
    ),
    "an index by a variable of an outer every": Difference(
        'allow if { every n in ["x"] { every v in [1] { not input.claims[n] == v } } }',
        {},
        _INDEXED,
        "has(n, v) if input.claims[n] == v\n"
        'allow if { every n in ["x"] { every v in [1] { not has(n, v) } } }',
    ),
    "a unification in every": Difference(
        "allow if { every n in [1] { input.claims.x = n } }",
        {"x": 2},
        _UNIFIED,
        "allow if { every n in [1] { input.claims.x == n } }",
    ),
    "a unification of lists in every": Difference(
        "allow if { every n in [1] { [n] = [input.claims.x] } }",
        {"x": 2},
        _UNIFIED,
        "allow if { every n in [1] { [n] == [input.claims.x] } }",
    ),
    "a membership that is bound": Difference(
        "allow if { x := (1 in input.claims.ops); not x }",
        {},
        _VALUE,
        "allow if { ops := input.claims.ops; x := (1 in ops); not x }",
    ),
    "a membership that is compared": Difference(
        "allow if (input.claims.x in [1]) == false",
        {},
        _VALUE,
        "allow if { x := input.claims.x; (x in [1]) == false }",
    ),
    "a membership that is handed to a function": Difference(
        "f(x) if x == false\nallow if f(1 in input.claims.ops)",
        {},
        _VALUE,
        "f(x) if x == false\nallow if { ops := input.claims.ops; f(1 in ops) }",
    ),
    "an undefined value before an else of a function": Difference(
        "f(x) := input.claims.x if x == 1 else := true\nallow if f(1)",
        {},
        r"OPA goes on to the `else` of a function where the value before it is undefined; bind the value",
        "f(x) := y if { x == 1; y := input.claims.x } else := true\nallow if f(1)",
    ),
    "an undefined value between two elses of a function": Difference(
        "f(x) if { x == 2 } else := input.claims.x if { x == 1 } else := false\nallow if f(1)",
        {},
        r"OPA goes on to the `else` of a function where the value before it is undefined; bind the value",
        "f(x) if { x == 2 } else := y if { x == 1; y := input.claims.x } else := false\nallow if f(1)",
    ),
    "a minus sign before a member": Difference(
        "allow if -input.claims.x == -1",
        {"x": 1},
        r"a minus sign before anything but a number fails in process; write `0 - x`",
        "allow if 0 - input.claims.x == -1",
    ),
    "a fraction in a sum": Difference(
        "allow if 0.1 + 0.2 == 0.3",
        {},
        r"OPA reckons with decimal fractions, the engine in process with binary ones; use whole numbers",
        "allow if 1 + 2 == 3",
    ),
    "an order of an object and a set": Difference(
        'allow if {"x": 1} < {1}',
        {},
        r"OPA orders objects and sets differently; compare numbers or strings",
        'allow if "x" < "y"',
    ),
    "a pattern with a letter class": Difference(
        r"allow if regex.match(`^\d$`, input.claims.x)",
        {"x": "\N{ARABIC-INDIC DIGIT THREE}"},
        _PATTERN,
        "allow if regex.match(`^[0-9]$`, input.claims.x)",
    ),
    "a pattern with a flag": Difference(
        'allow if regex.match("(?x)^x $", input.claims.x)',
        {"x": "x"},
        _PATTERN,
        'allow if regex.match("(?i)^X$", input.claims.x)',
    ),
    "a pattern with a set operation": Difference(
        'allow if regex.match("^[a-z&&b]$", input.claims.x)',
        {"x": "c"},
        _PATTERN,
        'allow if regex.match("^[a-z&b]$", input.claims.x)',
    ),
    "a pattern with a class within a class": Difference(
        'allow if regex.match("^[a[b]]$", input.claims.x)',
        {"x": "a"},
        _PATTERN,
        'allow if regex.match("^[ab]$", input.claims.x)',
    ),
    "a pattern that repeats a repetition": Difference(
        'allow if regex.match("^a+*$", input.claims.x)',
        {"x": "a"},
        _PATTERN,
        'allow if regex.match("^a*$", input.claims.x)',
    ),
    "a pattern that is not written down": Difference(
        "allow if regex.match(input.claims.pattern, input.claims.x)",
        {"pattern": "[a-z&&b]", "x": "c"},
        _PATTERN,
        'allow if regex.match("[a-z]", input.claims.x)',
    ),
    "a glob with another separator": Difference(
        'allow if glob.match("orders:*", [":"], input.claims.x)',
        {"x": "orders:a:b"},
        _GLOB,
        'allow if glob.match("orders/*", ["/"], input.claims.x)',
    ),
    "a glob with a double star": Difference(
        'allow if glob.match("***", ["."], input.claims.x)',
        {"x": "a.:ab"},
        _GLOB,
        'allow if glob.match("*.*", ["."], input.claims.x)',
    ),
    "a glob with a class": Difference(
        'allow if glob.match("[^a]", [], input.claims.x)',
        {"x": "b"},
        _GLOB,
        'allow if glob.match("b*", [], input.claims.x)',
    ),
    "a glob with a question mark": Difference(
        'allow if glob.match("?", [], input.claims.x)',
        {"x": "é"},
        _GLOB,
        'allow if glob.match("*", [], input.claims.x)',
    ),
    "a glob that is not written down": Difference(
        "allow if glob.match(input.claims.glob, [], input.claims.x)",
        {"glob": "[^a]", "x": "b"},
        _GLOB,
        'allow if glob.match("b*", [], input.claims.x)',
    ),
}

USUAL = {
    "an allow unless denied": "allow if not deny\ndeny if input.claims.x != 1",
    "an allow unless there is a denial": "allow if count(deny) == 0\ndeny contains 1 if not input.claims.x",
    "a negated member": "allow if not input.claims.x",
    "a negated equality of a member": 'allow if not input.claims.x == "y"',
    "a negated equality of two members": "allow if not input.claims.x == input.request.context.x",
    "a negated unification": 'allow if not input.claims.x = "y"',
    "a negated inequality of what is always sent": 'allow if not input.action != "decrypt"',
    "a negated membership of what is always sent": 'allow if not input.action in {"rotate_key"}',
    "a negated membership of what is imported": (
        'import input.caller as who\nimport input.claims\nallow if { not who.id in {"x"}; not claims.x }'
    ),
    "a negated membership in data": "allow if not input.action in data.own.list",
    "a negated membership of a set": "names contains 1 if input.claims.x\nallow if not input.action in names",
    "a negated membership in a constant": 'names := ["x", {"y": 1}]\nallow if not input.action in names',
    "a negated call with a default rule": (
        "default m := 1\nm := 2 if input.claims.x\nf(x) if x == 1\nallow if not f(m)"
    ),
    "a negated call with what is iterated": (
        'f(x) if x == "x"\nallow if { some role in input.caller.roles; not f(role) }'
    ),
    "a negated call with an argument": 'f(x) if { not startswith(x, "x") }\nallow if f(input.action)',
    "a negated key of an object": 'allow if not "x" in object.keys(input.claims)',
    "a negated member with a fallback": 'allow if not object.get(input.claims, "x", 1) == 1',
    "a negated count of a comprehension": "allow if not count([x | some x in input.caller.roles; x]) == 0",
    "a negated index by what is always sent": "allow if not input.claims[input.action]",
    "a negated variable of every": 'allow if { every role in input.caller.roles { not role in {"x"} } }',
    "an index by a variable of every": 'allow if { every n, v in {"x": 1} { input.claims[n] == v } }',
    "a membership that is bound": 'allow if { x := (input.action in ["decrypt"]); x == true }',
    "a rule whose value before an else is a member": (
        "r := input.claims.x if input.action else := 0\nallow if r == 0"
    ),
    "a function that ends in a member": (
        "f(x) := 1 if x == 1 else := input.claims.x\nallow if not m\nm if f(2)"
    ),
    "a negative number": "allow if -1 < 0",
    "an arithmetic of whole numbers": "allow if input.claims.x * 2 + 1 == 3",
    "a comparison with a fraction": "allow if input.claims.x < 0.5",
    "an anchored pattern": "allow if regex.match(`^(?:de|en)crypt[a-z0-9_.-]*\\.?$`, input.action)",
    "a glob of key ids": 'allow if glob.match("alias/orders-*", ["/"], input.request.key_id)',
}
