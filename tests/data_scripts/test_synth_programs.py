"""The executor against hand-made vectors and real questions, and the tables of answers and types."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from data_scripts.errors import DataError
from data_scripts.synth.draws import Filling
from data_scripts.synth.families import FAMILIES
from data_scripts.synth.programs import (
    ANSWERS,
    FUNCTIONS,
    GROUP_OF_TYPE,
    GROUPS,
    QUESTION_TYPES,
    IllPosed,
    execute,
    normalise_answer,
    question_type,
)
from data_scripts.synth.questions import write_program
from data_scripts.synth.text import phrase_of


def thing(size: str, color: str, material: str, shape: str) -> dict[str, str]:
    return {"size": size, "color": color, "material": material, "shape": shape}


# From left to right: 0, 1, 2; from back to front: 2, 0, 1.
SCENE = {
    "objects": [
        thing("large", "red", "metal", "cube"),
        thing("small", "red", "rubber", "sphere"),
        thing("small", "blue", "metal", "sphere"),
    ],
    "relationships": {
        "left": [[], [0], [0, 1]],
        "right": [[1, 2], [2], []],
        "behind": [[2], [0, 2], []],
        "front": [[1], [], [0, 1]],
    },
}


def chain(*calls: str) -> list[dict[str, Any]]:
    """A program from "function" or "function literal" or "function literal @input..." words, each fed by the last."""
    nodes: list[dict[str, Any]] = []
    for call in calls:
        function, *rest = call.split()
        inputs = [int(word[1:]) for word in rest if word.startswith("@")]
        literals = [word for word in rest if not word.startswith("@")]
        if not inputs and FUNCTIONS[function].inputs:
            inputs = [len(nodes) - 1]
        nodes.append({"function": function, "inputs": inputs, "value_inputs": literals})
    return nodes


RED = ("scene", "filter_color red")
CUBE = ("scene", "filter_shape cube", "unique")
BLUE_AFTER_CUBE = (*CUBE, "scene", "filter_color blue", "unique")  # objects at nodes 2 and 5


@pytest.mark.parametrize(
    ("calls", "answer"),
    [
        (("scene", "count"), "3"),
        ((*RED, "count"), "2"),
        ((*RED, "filter_size small", "exist"), "yes"),
        ((*RED, "filter_size small", "filter_material metal", "exist"), "no"),
        ((*CUBE, "query_size"), "large"),
        ((*CUBE, "query_color"), "red"),
        ((*CUBE, "query_material"), "metal"),
        (("scene", "filter_color blue", "unique", "query_shape"), "sphere"),
        ((*CUBE, "relate right", "count"), "2"),
        ((*CUBE, "relate left", "exist"), "no"),
        ((*CUBE, "relate behind", "unique", "query_color"), "blue"),
        ((*CUBE, "relate front", "unique", "query_material"), "rubber"),
        ((*CUBE, "same_size", "count"), "0"),
        ((*CUBE, "same_color", "unique", "query_shape"), "sphere"),
        ((*CUBE, "same_material", "unique", "query_color"), "blue"),
        ((*CUBE, "same_shape", "exist"), "no"),
        ((*BLUE_AFTER_CUBE, "query_size @2", "query_size @5", "equal_size @6 @7"), "no"),
        ((*BLUE_AFTER_CUBE, "query_material @2", "query_material @5", "equal_material @6 @7"), "yes"),
        ((*BLUE_AFTER_CUBE, "query_color @2", "query_color @5", "equal_color @6 @7"), "no"),
        ((*BLUE_AFTER_CUBE, "query_shape @2", "query_shape @5", "equal_shape @6 @7"), "no"),
        ((*RED, *RED, "union @1 @3", "count"), "2"),
        ((*RED, "scene", "filter_shape sphere", "intersect @1 @3", "count"), "1"),
        ((*RED, "scene", "filter_shape sphere", "union @1 @3", "count"), "3"),
        ((*RED, "count", "scene", "count", "less_than @2 @4"), "yes"),
        ((*RED, "count", "scene", "count", "greater_than @2 @4"), "no"),
        ((*RED, "count", "scene", "filter_shape sphere", "count", "equal_integer @2 @5"), "yes"),
    ],
)
def test_every_function_on_a_small_scene(calls: tuple[str, ...], answer: str) -> None:
    program = chain(*calls)
    assert execute(program, SCENE) == answer
    assert execute([{**node, "_output": object()} for node in program], SCENE) == answer
    renamed = [{("type" if key == "function" else key): value for key, value in node.items()} for node in program]
    assert execute(renamed, SCENE) == answer


@pytest.mark.parametrize(
    "calls", [(*RED, "unique", "query_size"), ("scene", "filter_color cyan", "unique", "query_size")]
)
def test_unique_of_none_or_several_is_ill_posed(calls: tuple[str, ...]) -> None:
    with pytest.raises(IllPosed, match="exactly one object"):
        execute(chain(*calls), SCENE)


@pytest.mark.parametrize(
    ("program", "message"),
    [
        ([], "got nothing"),
        ([{"function": "paint", "inputs": []}], "got 'paint'"),
        ([{"inputs": []}], "got None"),
        (chain("scene"), "ends in one of"),
        (chain("scene", "filter_color teal", "count"), "one of gray"),
        (chain("scene", "filter_color", "count"), "one of gray"),
        (chain("scene", "count red"), "no literal"),
        (chain("scene", "query_size"), r"inputs \('object',\)"),
        (chain("scene", "count @0 @0"), "inputs"),
        (chain("scene", "count @1"), "earlier nodes"),
        (chain("scene", "scene", "count @0", "union @0 @2", "count"), "inputs"),
    ],
)
def test_malformed_programs_are_refused(program: list[dict[str, Any]], message: str) -> None:
    with pytest.raises(DataError, match=message) as error:
        execute(program, SCENE)
    assert not isinstance(error.value, IllPosed)
    assert "\n" not in str(error.value)


def test_tables() -> None:
    assert len(ANSWERS) == len(set(ANSWERS)) == 28
    assert ANSWERS[:3] == ("yes", "no", "0")
    assert ANSWERS[12:20] == ("10", "cube", "sphere", "cylinder", "small", "large", "rubber", "metal")
    assert ANSWERS[20:] == ("gray", "red", "blue", "green", "brown", "purple", "cyan", "yellow")
    assert len(QUESTION_TYPES) == 13
    assert Counter(GROUP_OF_TYPE.values()) == dict(zip(GROUPS, (1, 1, 3, 4, 4), strict=True))
    assert question_type(chain("scene", "count")) == "count"


@pytest.mark.parametrize(("value", "answer"), [(True, "yes"), (False, "no"), (0, "0"), (10, "10"), ("cube", "cube")])
def test_answers_of_the_public_generator_are_normalised(value: bool | int | str, answer: str) -> None:
    assert normalise_answer(value) == answer


def skeleton(program: list[dict[str, Any]], node: int = -1) -> Any:
    """The tree of a program without its filters and literals."""
    function, inputs = program[node]["function"], program[node]["inputs"]
    if function.startswith("filter_"):
        return skeleton(program, inputs[0])
    return (function, *(skeleton(program, i) for i in inputs))


def empty_program(family: int) -> list[dict[str, Any]]:
    filling = Filling()
    filling.phrases = dict.fromkeys(range(1, 10), phrase_of({}))
    filling.relations = ["left"] * 4
    return write_program(FAMILIES[family], filling)


def test_real_questions(real_clevr: Path | None) -> None:
    """All 2,000 real questions get their answer, and each has the skeleton of our family of its number."""
    if real_clevr is None:
        # Two questions in the release's form, made by hand.
        scenes: dict[int, Any] = {0: SCENE}
        program = chain(*CUBE, "same_shape", "exist"), chain(*CUBE, "same_color", "filter_size small", "exist")
        questions: list[dict[str, Any]] = [
            {"image_index": 0, "question_family_index": 39, "program": program[0], "answer": "no"},
            {"image_index": 0, "question_family_index": 45, "program": program[1], "answer": "yes"},
        ]
    else:
        scene_list = json.loads((real_clevr / "scenes/CLEVR_val_scenes.json").read_text())["scenes"]
        scenes = {scene["image_index"]: scene for scene in scene_list}
        questions = json.loads((real_clevr / "questions/CLEVR_val_questions.json").read_text())["questions"]
        assert len(questions) == 2_000
    for question in questions:
        assert execute(question["program"], scenes[question["image_index"]]) == question["answer"]
        assert skeleton(question["program"]) == skeleton(empty_program(question["question_family_index"]))


def test_every_family_ends_in_its_type() -> None:
    assert len(FAMILIES) == 90
    for index, family in enumerate(FAMILIES):
        assert question_type(empty_program(index)) == family.type
