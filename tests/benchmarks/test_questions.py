"""The measures of questions against small hand-made cases, and the two scripts about the generator at toy size."""

import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from benchmarks import generator, questions
from benchmarks import question_measures as measures
from data_scripts.synth.generate import generate
from data_scripts.synth.programs import GROUPS, QUESTION_TYPES, execute


def node(function: str, *inputs: int, value: str | None = None) -> dict[str, Any]:
    return {"function": function, "inputs": list(inputs), "value_inputs": [] if value is None else [value]}


COUNT = [node("scene"), node("filter_color", 0, value="red"), node("count", 1)]
SCENE = {
    "objects": [
        {"color": "red", "shape": "cube"},
        {"color": "red", "shape": "sphere"},
        {"color": "blue", "shape": "cube"},
    ],
    "relationships": {
        "left": [[], [0], [0, 1]],
        "right": [[1, 2], [2], []],
        "front": [[1, 2], [2], []],
        "behind": [[], [0], [0, 1]],
    },
}


def question(text: str, answer: str, program: list[dict[str, Any]] = COUNT, image: int = 0) -> dict[str, Any]:
    return {
        "question": text,
        "answer": answer,
        "program": program,
        "image_index": image,
        "question_family_index": 84,
    }


def test_entropy() -> None:
    assert measures.entropy(["a"] * 5) == 0
    assert measures.entropy(["a", "b", "c", "d"]) == pytest.approx(2)
    assert measures.entropy(["a"] * 3 + ["b"]) == pytest.approx(-(0.75 * math.log2(0.75) + 0.25 * math.log2(0.25)))


def test_entropy_of_subsets_is_that_of_small_samples() -> None:
    """Four even values seen 8 times each show less than two bits: about 3 / (2 n ln 2) less."""
    labels = ["a", "b", "c", "d"] * 1_000
    assert measures.entropy_of_size(labels, 32) == pytest.approx(2 - 3 / (2 * 32 * math.log(2)), abs=0.02)
    assert measures.entropy_of_size(labels, 4_000) == pytest.approx(2)


def test_canonical_texts() -> None:
    one = measures.canonical("Can you see big shiny balls on the left side of a matte block?")
    assert one == measures.canonical("Can you see large metal spheres to the left of a rubber cube?")
    assert one == "can you see large metal spheres left of a rubber cube"
    assert measures.canonical("an object") == measures.canonical("an thing") != measures.canonical("objects")


def test_faults_are_found() -> None:
    two_reds = [node("scene"), node("filter_color", 0, value="red"), node("unique", 1), node("query_shape", 2)]
    asked = measures.Asked(
        [
            question("How many red things?", "2"),
            question("How many red objects?", "3"),
            question("Which shape has the red thing?", "cube", two_reds),
            question("How many red things?", "2"),
        ],
        {0: SCENE, 1: SCENE},
    )
    assert measures.faults(asked) == measures.Faults(
        wrong=1, ill_posed=1, contradictions=1, repeated=1, not_ten=2, degenerate=0
    )


@pytest.mark.parametrize(("shape", "relation", "degenerate"), [("cube", "right", False), ("sphere", "left", True)])
def test_degenerate_intersections_are_found(shape: str, relation: str, degenerate: bool) -> None:
    """Behind the blue thing are 0 and 1; 1 and 2 are right of the red cube, only 0 is left of the red sphere."""
    program = [
        node("scene"),
        node("filter_color", 0, value="red"),
        node("filter_shape", 1, value=shape),
        node("unique", 2),
        node("relate", 3, value=relation),
        node("scene"),
        node("filter_color", 5, value="blue"),
        node("unique", 6),
        node("relate", 7, value="behind"),
        node("intersect", 4, 8),
        node("count", 9),
    ]
    assert execute(program, SCENE) == "1"
    assert measures.is_degenerate(question("", "1", program), SCENE) is degenerate


@pytest.mark.slow  # for the import of scikit-learn
def test_leakage_reads_what_the_text_gives_away() -> None:
    """Texts that name their answer are read; texts that say nothing are answered like the commonest answer."""
    open_texts = [question(f"Is it {word}?", word, image=i) for i in range(40) for word in ("yes", "no")]
    assert measures.leakage(open_texts, ngrams=1) == {"all": 100, "count": 100}
    closed = [question("Is it?", "yes" if i % 3 else "no", image=i) for i in range(60)]
    assert measures.leakage(closed, ngrams=2)["all"] == pytest.approx(100 * 40 / 60, abs=0.1)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Two generated folders in the release's layout: one to play the real one, and one to hold against it."""
    out = tmp_path_factory.mktemp("questions")
    for name, seed in (("real", 1), ("ours", 2)):
        generate("tiny", out / name, seed=seed, images={"train": 5, "val": 60}, pictures=False)
    return out / "real", out / "ours"


def test_rows(folders: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = []

    def play_leakage(asked: Sequence[dict[str, Any]], *, ngrams: int) -> dict[str, float]:
        sizes.append(len(asked))
        return {"all": 40.0 + len(sizes), "count": 30.0}

    monkeypatch.setattr(questions, "leakage", play_leakage)
    real, real_scenes = questions.read_real(folders[0])
    assert len(real_scenes) == 65
    rows = {row.what: row for row in questions.compare(measures.read(folders[1], "val"), real, real_scenes)}
    for name in ("wrong", "ill posed", "contradictions", "repeated", "degenerate"):
        assert rows[f"faults: {name}"].value == 0
        assert rows[f"faults: {name}"].reached is True
    for group in GROUPS:
        assert rows[f"mix: group {group}"].value < 5
    assert sum(rows[f"mix: type {kind}"].measured.median for kind in QUESTION_TYPES) == pytest.approx(100)
    leaked = rows["answered from words: all"]
    assert (leaked.measured.median, leaked.value, leaked.reached) == (42.0, 1.0, True)
    assert len(sizes) == 4
    assert sizes[0] == sizes[1] == len(real.questions)
    assert rows["scenes: least distance between outlines"].measured.median >= 0.25
    assert rows["questions: families"].measured.median > 20


def test_table_is_printed_and_recorded(
    folders: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    given = ["--real", str(folders[0]), "--data", str(folders[1])]
    monkeypatch.setattr(questions, "RECORDED", tmp_path)
    monkeypatch.setattr(questions, "leakage_rows", lambda ours, real: [])  # shown above
    questions.main(given)
    assert "| faults: wrong |" in capsys.readouterr().out
    assert not list(tmp_path.iterdir())
    questions.main([*given, "--record"])
    saved = json.loads((tmp_path / "questions-cpu" / "questions.json").read_text(encoding="utf-8"))
    assert saved["rows"][0]["what"] == "faults: wrong"


def test_questions_are_made_where_none_are_given(folders: tuple[Path, Path]) -> None:
    made = questions.make("tiny", 60, seed=2, workers=1)
    assert made == measures.read(folders[1], "val")


@pytest.mark.parametrize("arguments", [["--real", "no_such_folder"], ["--preset", "no_such_preset"]])
def test_what_is_missing_is_said(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        questions.main(arguments)
    assert stopped.value.code == 2
    assert "no_such" in capsys.readouterr().err


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="peak memory is read from Linux's /proc")
def test_generator_rows(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def here(name: str, arguments: Sequence[str], threads: int) -> dict[str, Any]:
        assert (name, threads) == (generator.MODULE, 1)
        capsys.readouterr()
        generator.main(arguments)
        measured: dict[str, Any] = json.loads(capsys.readouterr().out)
        return measured

    play: Callable[..., dict[str, Any]] = here
    monkeypatch.setattr(generator, "measure_apart", play)
    monkeypatch.setattr(generator, "SPEED", {"mini": (8, 150.0), "clevr": (1, 4.0)})
    monkeypatch.setattr(generator, "MEMORY", (2, 20))
    generator.main(["--workers", "1", "--repeats", "1"])
    lines = capsys.readouterr().out.splitlines()
    assert sum(line.startswith(("| mini, 1 workers", "| clevr, 1 workers")) for line in lines) == 2
    assert sum(line.startswith("| mini, peak memory") for line in lines) == 1
    with pytest.raises(SystemExit):
        generator.main(["--scale", "0.1", "--record"])
