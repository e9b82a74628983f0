"""The functional programs of CLEVR: their functions, an executor, and the tables of answers and question types.

This is the meaning of a question. It knows scenes as the release stores them (`objects`, `relationships`) and
nothing of how scenes, texts or pictures are made.

Source of the semantics: the CLEVR paper (arXiv 1612.06890), checked against questions of the release.
"""

import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from data_scripts.errors import DataError

ATTRIBUTES: dict[str, tuple[str, ...]] = {
    "size": ("small", "large"),
    "color": ("gray", "red", "blue", "green", "brown", "purple", "cyan", "yellow"),
    "material": ("rubber", "metal"),
    "shape": ("cube", "sphere", "cylinder"),
}
RELATIONS = ("left", "right", "behind", "front")

ANSWERS: tuple[str, ...] = (
    "yes",
    "no",
    *(str(number) for number in range(11)),
    *ATTRIBUTES["shape"],
    *ATTRIBUTES["size"],
    *ATTRIBUTES["material"],
    *ATTRIBUTES["color"],
)

GROUP_OF_TYPE: dict[str, str] = {
    "exist": "exist",
    "count": "count",
    "equal_integer": "compare_integer",
    "less_than": "compare_integer",
    "greater_than": "compare_integer",
    **{f"query_{attribute}": "query" for attribute in ATTRIBUTES},
    **{f"equal_{attribute}": "compare_attribute" for attribute in ATTRIBUTES},
}
QUESTION_TYPES: tuple[str, ...] = tuple(GROUP_OF_TYPE)
GROUPS: tuple[str, ...] = ("exist", "count", "compare_integer", "query", "compare_attribute")

Node = Mapping[str, Any]
Program = Sequence[Node]
Scene = Mapping[str, Any]
Value = Any  # a sorted list of object indices, one index, an int, a bool, or an attribute value


class IllPosed(DataError):  # noqa: N818 (the field says "an ill-posed question")
    """A question that has no answer on this scene: `unique` met none or several objects."""


@dataclass(frozen=True)
class Function:
    """One function of the language: the kinds of its inputs, of its output, and what it does.

    `apply` is called with the scene, then the inputs, then the literal where `literals` names the allowed ones.
    """

    inputs: tuple[str, ...]
    output: str
    apply: Callable[..., Value]
    literals: tuple[str, ...] = ()


def _unique(_: Scene, members: list[int]) -> int:
    if len(members) != 1:
        raise IllPosed(f"expected exactly one object for `unique`, got {len(members)}: drop the question")
    return members[0]


def _filter(attribute: str) -> Function:
    def apply(scene: Scene, members: list[int], value: str) -> list[int]:
        return [i for i in members if scene["objects"][i][attribute] == value]

    return Function(("set",), "set", apply, ATTRIBUTES[attribute])


def _query(attribute: str) -> Function:
    return Function(("object",), attribute, lambda scene, i: scene["objects"][i][attribute])


def _same(attribute: str) -> Function:
    def apply(scene: Scene, i: int) -> list[int]:
        objects = scene["objects"]
        return [j for j in range(len(objects)) if j != i and objects[j][attribute] == objects[i][attribute]]

    return Function(("object",), "set", apply)


def _compare(kind: str, comparison: Callable[[Value, Value], bool]) -> Function:
    return Function((kind, kind), "bool", lambda _, a, b: comparison(a, b))


FUNCTIONS: dict[str, Function] = {
    "scene": Function((), "set", lambda scene: list(range(len(scene["objects"])))),
    "unique": Function(("set",), "object", _unique),
    "relate": Function(
        ("object",), "set", lambda scene, i, relation: sorted(scene["relationships"][relation][i]), RELATIONS
    ),
    "union": Function(("set", "set"), "set", lambda _, a, b: sorted({*a, *b})),
    "intersect": Function(("set", "set"), "set", lambda _, a, b: sorted({*a} & {*b})),
    "count": Function(("set",), "integer", lambda _, members: len(members)),
    "exist": Function(("set",), "bool", lambda _, members: bool(members)),
    "equal_integer": _compare("integer", operator.eq),
    "less_than": _compare("integer", operator.lt),
    "greater_than": _compare("integer", operator.gt),
    "equal_object": _compare("object", operator.eq),
}
for _attribute in ATTRIBUTES:
    FUNCTIONS[f"filter_{_attribute}"] = _filter(_attribute)
    FUNCTIONS[f"query_{_attribute}"] = _query(_attribute)
    FUNCTIONS[f"same_{_attribute}"] = _same(_attribute)
    FUNCTIONS[f"equal_{_attribute}"] = _compare(_attribute, operator.eq)


def function_name(node: Node) -> str:
    """The function of a node in either dialect: `function` (the release) or `type` (the public generator).

    Raises:
        DataError: the node has neither key, or names an unknown function.
    """
    name = node.get("function", node.get("type"))
    if name not in FUNCTIONS:
        raise DataError(f"expected a CLEVR function in a program node, got {name!r}: is this a CLEVR program?")
    return str(name)


def question_type(program: Program) -> str:
    """The question's type, one of `QUESTION_TYPES`: the name of its last function (CLEVR paper, section 4).

    Raises:
        DataError: the program is empty or does not end in an answer.
    """
    name = function_name(program[-1]) if program else "nothing"
    if name not in GROUP_OF_TYPE:
        raise DataError(f"expected a program that ends in one of {', '.join(QUESTION_TYPES)}, got {name}")
    return name


def normalise_answer(value: bool | int | str) -> str:
    """An answer as the release spells it: yes/no for truth values, decimal digits for numbers."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    return str(value)


def execute(program: Program, scene: Scene) -> str:
    """Run a program on a scene and spell the answer as the release does.

    Args:
        program: topologically sorted nodes, the last one being the output. Keys other than `function` (or `type`),
            `inputs` and `value_inputs` are ignored.
        scene: a scene of the release's schema.

    Raises:
        IllPosed: a `unique` met none or several objects.
        DataError: an unknown function, or inputs that do not fit it.
    """
    question_type(program)
    return normalise_answer(run(program, scene)[-1])


def run(program: Program, scene: Scene) -> list[Value]:
    """The output of every node of a program, in order; errors as in `execute`."""
    outputs: list[Value] = []
    kinds: list[str] = []
    for position, node in enumerate(program):
        name = function_name(node)
        function = FUNCTIONS[name]
        inputs = node["inputs"]
        if not all(0 <= i < position for i in inputs):
            raise DataError(f"expected {name} at node {position} to read earlier nodes, got inputs {list(inputs)}")
        got = tuple(kinds[i] for i in inputs)
        if got != function.inputs:
            raise DataError(f"expected inputs {function.inputs} for {name} at node {position}, got {got}")
        arguments = [outputs[i] for i in inputs] + _literals(name, function, node)
        outputs.append(function.apply(scene, *arguments))
        kinds.append(function.output)
    return outputs


def _literals(name: str, function: Function, node: Node) -> list[str]:
    literals = list(node.get("value_inputs") or [])
    if len(literals) != (1 if function.literals else 0) or any(v not in function.literals for v in literals):
        wanted = f"one of {', '.join(function.literals)}" if function.literals else "no literal"
        raise DataError(f"expected {wanted} in value_inputs of {name}, got {literals}")
    return literals
