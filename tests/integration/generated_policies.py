"""Small policies made at random.

Negation, `in`, `every`, comprehensions, functions and rules of one's own, over members that an input may lack
or has with another type.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field

_MEMBERS = (
    "input.claims.x",
    "input.claims.y",
    "input.claims.deep.x",
    "input.request.context",
    "input.request.context.x",
    "input.request.key_id",
    "input.caller.attributes",
    "input.caller.roles",
    "input.action",
    "data.own.list",
    "data.own.missing",
)
_SCALARS = ("1", "2", '"x"', '"y"', "true", "false", "null", "[]", "{}", '["x"]', '{"x": 1}', "{1, 2}")
_EQUALITIES = ("==", "==", "!=")
_ORDERS = ("< 2", ">= 1", '< "y"', "<= null", '> ["w"]')  # of a collection of unknown kind, none
_NESTED = (
    "[TERM, 1]",
    '{"x": TERM}',
    'object.get(input.claims, "x", TERM)',
    'object.get(TERM, "x", 1)',
    "value_of(TERM)",
    "first(TERM)",
    "type_name(TERM)",
)
_DEPTH = 2
_HELPERS = """
default certain := 1
certain := 2 if input.claims.x == 1
uncertain := 1 if input.claims.x
set_of contains x if some x in input.caller.roles
set_of contains input.claims.y
object_of[key] := value if some key, value in input.request.context
value_of(x) := x if x != 2
is_one(x) if x == 1
default or_three(_) := 3
or_three(x) := x if x == 1
first(x) := 1 if { x == 1 } else := y if { x == 2; y := input.claims.y } else := 0
"""
_RULES = ("certain", "uncertain", "set_of", "object_of")


@dataclass
class _Body:
    """One body: its names and how deep it stands."""

    chance: random.Random
    depth: int = 0
    names: list[str] = field(default_factory=list)
    taken: list[int] = field(default_factory=lambda: [0])

    def new_name(self) -> str:
        self.taken[0] += 1
        return f"v{self.taken[0]}"

    def inner(self) -> _Body:
        return _Body(self.chance, self.depth + 1, list(self.names), self.taken)

    def text(self, least: int = 1, most: int = 3) -> str:
        return "; ".join(self.statement() for _ in range(self.chance.randint(least, most)))

    def statement(self) -> str:
        choice = self.chance.randrange(10)
        if choice < 3:
            return f"not {self.expression()}"
        if choice < 6:
            return self.expression()
        if choice == 6:
            return self.assignment()
        if choice == 7:
            return self.iteration()
        return self.every() if self.depth < _DEPTH else self.expression()

    def assignment(self) -> str:
        value, name = self.term(), self.new_name()
        self.names.append(name)
        return f"{name} {self.chance.choice([':=', ':=', '='])} {value}"

    def iteration(self) -> str:
        collection, key, value = self.collection(), self.new_name(), self.new_name()
        self.names.append(value)
        if self.chance.random() < 0.5:
            return f"some {value} in {collection}"
        self.names.append(key)
        return f"some {key}, {value} in {collection}"

    def every(self) -> str:
        collection, inside = self.collection(), self.inner()
        key, value = self.new_name(), self.new_name()
        inside.names += [key, value]
        # Each name is used, because OPA refuses one that is not.
        return f"every {key}, {value} in {collection} {{ {key} != 7; {value} != 8; {inside.text(1, 2)} }}"

    def expression(self) -> str:
        choice = self.chance.randrange(9)
        if choice < 3:
            return f"{self.term()} {self.chance.choice(_EQUALITIES)} {self.term()}"
        if choice == 3:
            return f"{self.reference()} {self.chance.choice(_ORDERS)}"
        if choice < 6:
            return f"{self.term()} in {self.collection()}"
        if choice == 6:
            return f"{self.chance.choice(['is_one', 'value_of', 'or_three', 'first'])}({self.term()})"
        if choice == 7:
            return f"{self.term()} = {self.term()}"
        return self.reference()

    def collection(self) -> str:
        if self.chance.random() < 0.5:
            return self.chance.choice(
                ['["x", "y"]', '{"x": 1, "y": 2}', "{1, 2}", "set_of", "object_of", "[]"]
            )
        return self.term()

    def reference(self) -> str:
        base = self.chance.choice([*_MEMBERS, *_RULES, *self.names])
        choice = self.chance.randrange(6)
        if choice == 0:
            return f"{base}.x"
        if choice == 1:
            index = self.chance.choice(["0", '"x"', *self.names, *_MEMBERS])
            return f"{base}[{index}]"
        return base

    def term(self) -> str:
        choice = self.chance.randrange(14)
        if choice < 6 or self.depth >= _DEPTH:
            return self.reference()
        if choice < 9:
            return self.chance.choice(_SCALARS)
        return self.nested(self.inner())

    def nested(self, inside: _Body) -> str:
        if self.chance.random() < 0.5:
            body = inside.text(1, 2)
            comprehension = self.chance.choice(
                ["[COMPREHENSION]", "{COMPREHENSION}", "count([COMPREHENSION])"]
            )
            return comprehension.replace("COMPREHENSION", f"{inside.term()} | {body}")
        if self.chance.random() < 0.2:
            return f"({inside.expression()})"
        return self.chance.choice(_NESTED).replace("TERM", inside.term())


def policy(chance: random.Random) -> str:
    """Return a policy whose `allow` is asked."""
    rules = "".join(f"allow if {{ {_Body(chance).text(1, 3)} }}\n" for _ in range(chance.randint(1, 2)))
    denied = f"denied if {{ {_Body(chance).text(1, 2)} }}\nallow if not denied\n"
    return (
        "package kkp.authz\nimport data.own\ndefault allow := false\n"
        + _HELPERS
        + (denied if chance.random() < 0.5 else rules)
    )
