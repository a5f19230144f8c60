"""Collects from the pack's Python code the sentences that a run may send to its sampler node.

The code is read, not run: `Sentences` follows the texts that are passed to the functions of `PASSES_ON` back
to the constants and f-strings that they come from, through variables, parameters and results of functions. A
value that is only known in a run, such as a number, becomes `VALUE`.
"""

from __future__ import annotations

import ast
import importlib
import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

from ras_pack.ras_core.kv.formats import automatic

from support.comfy import PACK, ROOT

VALUE = "7"
FOLDERS = ("ras_core/graphs", "ras_core/host", "ras_core/kv", "ras_core/method", "ras_core/models")
FOLDERS += ("ras_core/run", "nodes")

PASSES_ON = ("go_dense", "warn", "note", "remark", "RegionalAbort", "empty")
"""Functions whose first argument is a sentence of a run, or an error whose message becomes one."""

FIELDS = {"plan", "reason", "remark", "shortfall"}
"""Fields with sentences. They are collected where the objects are made."""

SEARCHED = {("_counted", "ras_core/run/recorder.py"), ("small_image_reason", "nodes/live.py")}
"""Functions that change a note of a run, or take the place of one: their results are collected too."""

NAMESAKES = {
    ("describe", "ras_core/method/plan_set.py"),
    ("obstacle", "ras_core/graphs/code_identity.py"),
    ("obstacle", "ras_core/graphs/residency.py"),
}
"""Functions whose texts are only logged; other functions of the same name give sentences."""

Function = ast.FunctionDef | ast.AsyncFunctionDef


@dataclass(frozen=True)
class Place:
    """The function and the file that an expression is in; no function at the top of a file."""

    path: str
    function: Function | None

    @cached_property
    def constants(self) -> dict:
        """The values of the file's own names."""
        module = self.path.removesuffix(".py").removesuffix("/__init__").replace("/", ".")
        return vars(importlib.import_module(f"{PACK}.{module}"))


class Sentences:
    """The sentences in the code.

    Attributes:
        found: by sentence: the file and the line that passes it on.
        unknown: files and lines that pass a sentence on of which no constant part was found.
    """

    def __init__(self) -> None:
        self.found: dict[str, str] = {}
        self.unknown: list[str] = []
        self._under_way: set[tuple[ast.AST, str]] = set()
        self._calls: dict[str, list[tuple[ast.Call, Place]]] = {}
        self._functions: dict[str, list[tuple[Function, Place]]] = {}
        self._assigned: list[tuple[ast.expr, Place]] = []
        for path in sorted(file for folder in FOLDERS for file in (ROOT / folder).glob("*.py")):
            name = path.relative_to(ROOT).as_posix()
            self._read(ast.parse(path.read_text(encoding="utf-8")), Place(name, None))
        for text, place in itertools.chain(self._passed(), self._assigned, self._changed()):
            self._keep(text, place)

    def _read(self, node: ast.AST, place: Place) -> None:
        """List the calls and functions in a part of a file."""
        for each in ast.iter_child_nodes(node):
            if isinstance(each, Function):
                self._functions.setdefault(each.name, []).append((each, place))
                self._read(each, Place(place.path, each))
                continue
            if isinstance(each, ast.Call):
                self._calls.setdefault(_name(each.func), []).append((each, place))
            if isinstance(each, ast.Assign) and _name(each.targets[0]) == "reason":
                self._assigned.append((each.value, place))
            self._read(each, place)

    def _passed(self) -> Iterator[tuple[ast.expr, Place]]:
        """The texts that are passed on: to the functions of `PASSES_ON`, and as fields of objects."""
        for name in PASSES_ON:
            for call, place in self._calls.get(name, ()):
                if call.args and (name != "empty" or _is_trace(call)):
                    yield call.args[0], place
        for call, place in self._calls["RunSettings"] + self._calls["replace"]:
            given = {each.arg: each.value for each in call.keywords}
            if _name(call.func) == "RunSettings" and len(call.args) > 2:
                yield call.args[2], place
            if _name(call.func) == "RunSettings" or _name(call.args[0]) == "settings":
                yield from ((given[name], place) for name in FIELDS & given.keys())
        for call, place in self._calls["Choice"]:
            if len(call.args) > 2:  # not the format that the user chose, which is only logged
                yield call.args[1], place

    def _changed(self) -> Iterator[tuple[ast.expr, Place]]:
        for name, path in SEARCHED:
            for function, place in self._functions[name]:
                if place.path == path:
                    yield from ((each, Place(path, function)) for each in _returned(function))

    def _keep(self, text: ast.expr, place: Place) -> None:
        where = f"{place.path}:{text.lineno}"
        for sentence in self._texts(text, place):
            if sentence == VALUE and (place.function and place.function.name, place.path) not in SEARCHED:
                self.unknown.append(f"{where}: {ast.unparse(text)}")
            elif sentence not in ("", VALUE):
                self.found.setdefault(sentence, where)

    def _texts(self, node: ast.expr, place: Place) -> set[str]:
        """The texts that an expression may have as its value; none if they are collected elsewhere."""
        key = (node, place.path)
        if key in self._under_way:  # a function that calls itself, or one of the same name
            return set()
        self._under_way.add(key)
        try:
            read = getattr(self, f"_of_{type(node).__name__.lower()}", None)
            return {VALUE} if read is None else read(node, place)
        finally:
            self._under_way.discard(key)

    def _of_constant(self, node: ast.Constant, place: Place) -> set[str]:
        return set() if node.value is None else {str(node.value)}

    def _of_joinedstr(self, node: ast.JoinedStr, place: Place) -> set[str]:
        parts = [
            {VALUE} if getattr(each, "format_spec", None) else self._texts(each, place) or {VALUE}
            for each in node.values
        ]
        return {"".join(each) for each in itertools.product(*parts)}

    def _of_formattedvalue(self, node: ast.FormattedValue, place: Place) -> set[str]:
        return self._texts(node.value, place)

    def _of_ifexp(self, node: ast.IfExp, place: Place) -> set[str]:
        return self._texts(node.body, place) | self._texts(node.orelse, place)

    def _of_boolop(self, node: ast.BoolOp, place: Place) -> set[str]:
        return set().union(*(self._texts(each, place) for each in node.values))

    def _of_namedexpr(self, node: ast.NamedExpr, place: Place) -> set[str]:
        return self._texts(node.value, place)

    def _of_binop(self, node: ast.BinOp, place: Place) -> set[str]:
        sides = self._texts(node.left, place), self._texts(node.right, place)
        return {a + b for a, b in itertools.product(*sides)} if isinstance(node.op, ast.Add) else {VALUE}

    def _of_attribute(self, node: ast.Attribute, place: Place) -> set[str]:
        if node.attr == "text":  # of a K/V format; a run only says why it uses another one than the first
            return {each.text for each in automatic()[1:]}
        return set() if node.attr in FIELDS else {VALUE}

    def _of_name(self, node: ast.Name, place: Place) -> set[str]:
        if place.function is not None:
            if assigned := list(_assigned_to(node.id, place.function)):
                return set().union(*(self._texts(each, place) for each in assigned))
            if (number := _parameters(place.function).get(node.id)) is not None:
                return self._of_parameter(node.id, number, place)
        value = place.constants.get(node.id)
        return {str(value)} if isinstance(value, (str, int)) else {VALUE}

    def _of_parameter(self, name: str, number: int, place: Place) -> set[str]:
        found = set()
        calls = self._calls.get(place.function.name, ())
        for call, other in [each for each in calls if _may_call(place.function.name, place, each[1])]:
            named = [each.value for each in call.keywords if each.arg == name]
            given = named or call.args[number : number + 1]
            found = found.union(*(self._texts(each, other) for each in given))
        return found or {VALUE}

    def _of_call(self, node: ast.Call, place: Place) -> set[str]:
        name = _name(node.func)
        if name == "format":
            given = [self._texts(each, place) or {VALUE} for each in node.args]
            named = {each.arg: VALUE for each in node.keywords}
            frames = self._texts(node.func.value, place)
            return {frame.format(*each, **named) for frame in frames for each in itertools.product(*given)}
        if name in (
            "next",
            "shortened",
            "str",
        ):  # of an error's message, or of sentences assigned to `reason`
            return set()
        found, inner = set(), [each.elt for each in node.args if isinstance(each, ast.GeneratorExp)]
        found = found.union(*(self._texts(each, place) - {VALUE} for each in inner))
        functions = [each for each in self._known(name, place) if _gives_text(each[0])]
        for function, other in functions:
            at = Place(other.path, function)
            found = found.union(*(self._texts(each, at) for each in _returned(function)))
        return found if functions or inner else {VALUE}

    def _known(self, name: str, place: Place) -> list[tuple[Function, Place]]:
        """The functions of this name that may be called at this place."""
        return [
            each for each in self._functions.get(name, ())
            if _may_call(name, each[1], place) and (name, each[1].path) not in NAMESAKES
        ]  # fmt: skip


def _may_call(name: str, place: Place, caller: Place) -> bool:
    """Whether a function of a file may be called in another file."""
    return not name.startswith("_") or place.path == caller.path


def _name(node: ast.expr) -> str:
    """The last part of a dotted name."""
    return getattr(node, "attr", "") or getattr(node, "id", "")


def _is_trace(call: ast.Call) -> bool:
    return isinstance(call.func, ast.Attribute) and _name(call.func.value) == "Trace"


def _gives_text(function: Function) -> bool:
    return function.returns is not None and "str" in ast.unparse(function.returns).split(" | ")


def _returned(function: Function) -> list[ast.expr]:
    return [each.value for each in ast.walk(function) if isinstance(each, ast.Return) and each.value]


def _parameters(function: Function) -> dict[str, int]:
    """The positions of a function's parameters in a call."""
    names = [each.arg for each in function.args.args]
    return {name: i for i, name in enumerate(names[1:] if names[:1] == ["self"] else names)}


def _assigned_to(name: str, function: Function) -> Iterator[ast.expr]:
    """The values that a function assigns to a variable."""
    for each in ast.walk(function):
        if isinstance(each, ast.NamedExpr) and each.target.id == name:
            yield each.value
        elif isinstance(each, ast.Assign):
            target, value = each.targets[0], each.value
            if isinstance(target, ast.Tuple) and isinstance(value, ast.Tuple):
                pairs = zip(target.elts, value.elts, strict=False)
            else:
                pairs = [(target, value)]
            yield from (value for target, value in pairs if getattr(target, "id", None) == name)
