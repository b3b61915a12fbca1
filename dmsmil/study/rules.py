"""What a parameter may be: its type, and the rules that stand in its comment after semicolons.

at least 1; above 0; below 1; from 0 to 1        a number, which is never nan or infinite
one of last, val_loss; one of empty, brca        a word (empty: "")
not empty; a name of letters, digits, - _ .      a text
one or more; two or more; each once; ascending   a list; `each at least 1` holds for each of its values
"""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from dmsmil.jobs.files import InputError
from dmsmil.study.place import is_name

NUMBER = r"(\d+(?:\.\d+)?)"
RULES: dict[str, Callable[..., bool]] = {
    f"at least {NUMBER}": lambda value, least: value >= float(least),
    f"above {NUMBER}": lambda value, least: value > float(least),
    f"below {NUMBER}": lambda value, most: value < float(most),
    f"from {NUMBER} to {NUMBER}": lambda value, least, most: float(least) <= value <= float(most),
    "one of (.+)": lambda value, words: (value or "empty") in words.split(", "),
    "not empty": lambda value: value.strip() != "",
    r"a name of letters, digits, - _ \.": is_name,
    "one or more": lambda values: len(values) >= 1,
    "two or more": lambda values: len(values) >= 2,
    "each once": lambda values: all(values.count(value) == 1 for value in values),
    "ascending": lambda values: values == sorted(values) and len(set(values)) == len(values),
}


@dataclass(frozen=True)
class Parameter:
    """One parameter of a notebook: its type (of a list, also that of its values, where it has one), its default, and
    the comment beside it: what it is, then its rules."""

    name: str
    type: type
    default: object
    help: str
    rules: tuple[str, ...] = ()
    values: type | None = None

    def problem(self, value: object) -> str:
        """What is wrong with a value, in one line that says what to write instead; or nothing."""
        parts = value if self.values and isinstance(value, list) else []
        if not is_a(self.type, value) or not all(is_a(self.values, part) for part in parts):
            kind = self.type.__name__ + (f" of {self.values.__name__}" if self.values else "")
            return f"'{self.name}' must be {kind}, got {_short(value)}" + next(_hints(self, value, parts), "")
        if not all(math.isfinite(number) for number in [value, *parts] if isinstance(number, float)):
            return f"'{self.name}' must be a number, got {_short(value)}"
        if odd := next(_numbered(value), None):
            return f"'{self.name}' has {odd}, where an option must be called by its name"
        if any(isinstance(part, str) and not part.isprintable() for part in [value, *parts]):
            return f"'{self.name}' is {_short(value)}, with a tab or line break (write Windows paths without quotes)"
        for rule in self.rules:
            if not keeps(rule, value):
                return f"'{self.name}' is {_short(value)}, and its rule is: {rule}" + _near(rule, value)
        return ""

    def plain(self, value: object) -> object:
        """A value that has no problem, with whole numbers as float where the type is float."""
        if self.values is float:
            return [float(part) for part in value]
        return float(value) if self.type is float else value


def is_a(kind: type, value: object) -> bool:
    """Whether a value has a type: a whole number serves as float, and True as no number."""
    wanted = (int, float) if kind is float else kind
    return isinstance(value, wanted) and (kind is bool or not isinstance(value, bool))


def keeps(rule: str, value: object) -> bool:
    """Whether a value of the right type keeps a rule; InputError for a rule that is none."""
    for pattern, holds in RULES.items():
        if match := re.fullmatch(pattern, rule):
            return holds(value, *match.groups())
    if rule.startswith("each "):
        return all(keeps(rule.removeprefix("each "), part) for part in value)
    raise InputError(f"'{rule}' is no rule of a parameter: dmsmil/study/rules.py lists them")


def _numbered(value: object) -> Iterator[str]:
    """The keys of dicts, wherever in a value, that are no text."""
    if isinstance(value, dict):
        yield from (f"{key!r}: ..." for key in value if not isinstance(key, str))
    for part in value.values() if isinstance(value, dict) else value if isinstance(value, list) else []:
        yield from _numbered(part)


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."


def _hints(parameter: Parameter, value: object, parts: list) -> Iterator[str]:
    """What YAML may have made of what was meant: of a value, or of those of a list."""
    if value is None:
        nothing: dict[type, str] = {str: '""', list: "[]", dict: "{}"}
        yield f" (write {nothing.get(parameter.type, parameter.default)}, or leave the key out)"
    for text in [part for part in (value, *parts) if isinstance(part, str)]:
        if float in (parameter.type, parameter.values):
            if number := re.fullmatch(r"([-+]?\d+)(\.\d*)?e([-+]?)(\d+)", text, re.I):
                whole, rest, sign, power = number.groups()
                yield f" (YAML reads {text} as text: write {whole}{rest or '.0'}e{sign or '+'}{power})"
            if re.fullmatch(r"[-+]?\d+,\d+", text):
                yield f" (write {text.replace(',', '.')})"
    if parameter.type is str and not isinstance(value, (list, dict)):
        yield " (put it in quotes)"
    if parameter.values is int and parts:
        yield " (write whole numbers, such as [10, 20])"
    if parameter.type is list and not isinstance(value, list):
        yield f" (write [{value}])" if is_a(parameter.values or object, value) else " (write a list, such as [a, b])"


def _near(rule: str, value: object) -> str:
    near = difflib.get_close_matches(str(value), rule.removeprefix("one of ").split(", "), 1)
    return f" (did you mean '{near[0]}'?)" if near and rule.startswith("one of ") else ""
