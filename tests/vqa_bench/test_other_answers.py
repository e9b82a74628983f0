"""A data set with answers, types and questions of its own through the whole pipeline; and who may be asked for what."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.vqa_bench.cells import PIXELS, TRAIN, make_cell, make_model, make_shard
from tests.vqa_bench.data.other_folder import OWN_ANSWERS, make_other_folder, write_answers
from tests.vqa_bench.experiments import CNN
from tests.vqa_bench.test_cli import fails
from vqa_bench.cli import main
from vqa_bench.config import DataConfig, parse
from vqa_bench.data.answers import CLEVR_ANSWERS, Answers
from vqa_bench.data.encodings import parse_spec
from vqa_bench.data.serialize import serialize
from vqa_bench.data.shards import Shard, open_shard
from vqa_bench.errors import UserError
from vqa_bench.matrix import Source, Warehouse
from vqa_bench.matrix.cells import Cell
from vqa_bench.matrix.prepare import prepare
from vqa_bench.models import build, check_answers
from vqa_bench.runs import PREDICTIONS, RESULT, load_model, read_json
from vqa_bench.scoring.evaluate import evaluate
from vqa_bench.scoring.predictions import read_predictions
from vqa_bench.train import train

OWN = Answers(OWN_ANSWERS)
FEW_STEPS = {"train": TRAIN | {"steps": 3}}
TEXT = {"sequence": {"answer": "text"}}


@pytest.fixture(scope="module")
def warehouse(tmp_path_factory: pytest.TempPathFactory) -> Warehouse:
    folder = tmp_path_factory.mktemp("other")
    make_other_folder(folder / "photos", {"train": 16, "val": 6})
    write_answers(folder / "answers.txt")
    return Warehouse(folder / "data", lambda config: Source(Path(str(config.folder))), 1)


def data(warehouse: Warehouse, **changes: Any) -> DataConfig:
    folder = warehouse.data.parent
    return parse(DataConfig, {"folder": folder / "photos", "answers": folder / "answers.txt"} | changes, "test")


@pytest.fixture(scope="module")
def shard(warehouse: Warehouse) -> Shard:
    return warehouse.shard(data(warehouse), PIXELS)


@pytest.fixture(scope="module")
def clevr(tmp_path_factory: pytest.TempPathFactory) -> Shard:
    return make_shard(tmp_path_factory.mktemp("clevr"))


@pytest.mark.parametrize(
    ("model", "changes"),
    [("mblm", FEW_STEPS), ("mblm", FEW_STEPS | TEXT), (CNN, FEW_STEPS), ("majority", {})],
    ids=["letters", "text", "CNN+LSTM", "majority"],
)
def test_trained_asked_and_written_down(shard: Shard, tmp_path: Path, model: Any, changes: dict[str, Any]) -> None:
    cell = make_cell(model, **changes)
    trained = train(cell, shard, tmp_path)
    result = evaluate(trained, shard, tmp_path)
    assert trained.answers == load_model(tmp_path).answers == OWN
    assert result["answers"] == read_json(tmp_path / RESULT)["answers"] == list(OWN_ANSWERS)
    predictions = read_predictions(tmp_path / PREDICTIONS, OWN)
    split = shard.split("test")
    assert [p.answer for p in predictions] == split.answer
    assert [p.question_type for p in predictions] == split.question_type == ["Farbe", "ja/nein", "question"] * 6
    assert {p.program_length for p in predictions} == {p.num_objects for p in predictions} == {None}
    assert all(len(p.log_probs) == 4 and p.prediction in OWN_ANSWERS for p in predictions)
    overall = result["metrics"]["overall"]
    assert (overall["n"], overall["images"]) == (18, 6)
    assert overall["accuracy"] == np.mean([p.prediction == p.answer for p in predictions])
    assert set(result["metrics"]["types"]) == {"Farbe", "ja/nein", "question"}


def test_what_is_kept_of_a_model_names_only_answers_that_are_not_clevrs(shard: Shard, clevr: Shard) -> None:
    for model in ("mblm", CNN):
        assert make_model(make_cell(model), shard).built["answers"] == list(OWN_ANSWERS)
        assert "answers" not in make_model(make_cell(model), clevr).built
        assert make_model(make_cell(model), clevr).answers == CLEVR_ANSWERS


# -- who may be asked for what --------------------------------------------------------------------------------------


@pytest.mark.parametrize(("model", "known"), [("mblm", "letter"), (CNN, "place")], ids=["letters", "CNN+LSTM"])
def test_places_and_letters_mean_nothing_among_other_answers(
    shard: Shard, clevr: Shard, tmp_path: Path, model: Any, known: str
) -> None:
    asked = make_model(make_cell(model), clevr)
    assert check_answers(asked, clevr) == CLEVR_ANSWERS
    message = (
        rf"expected the 28 answers that cell was trained on, in their order, as it knows them by {known} only, got "
        r".*photos.* with 4, of which 'reddish' is new; name its own with --answers, or train on data with these"
    )
    with pytest.raises(UserError, match=message):
        evaluate(asked, shard, tmp_path)
    own = make_model(make_cell(model), shard)
    assert check_answers(own, shard) == check_answers(own, clevr, OWN) == OWN
    with pytest.raises(UserError, match="got a list with the same in another order"):
        check_answers(own, shard, Answers(tuple(reversed(OWN_ANSWERS))))
    with pytest.raises(UserError, match="got a list with 3 of them"):
        check_answers(own, shard, Answers(OWN_ANSWERS[:3]))


def test_what_writes_text_can_be_asked_for_anything(shard: Shard, clevr: Shard, tmp_path: Path) -> None:
    model = make_model(make_cell(**TEXT), clevr)
    assert check_answers(model, shard) == OWN
    result = evaluate(model, shard, tmp_path, training={})
    assert result["answers"] == list(OWN_ANSWERS)
    assert result["metrics"]["overall"]["n"] == 18
    # The same scores as from a model of the same weights that was made for these answers.
    twin = build(model.cell, model.built | {"answers": list(OWN_ANSWERS)}).double().eval()
    twin.load_state_dict(model.state_dict())
    (tmp_path / "twin").mkdir()
    evaluate(twin, shard, tmp_path / "twin", training={}, run=tmp_path)
    for ours, its in zip(*(read_predictions(p / PREDICTIONS, OWN) for p in (tmp_path, tmp_path / "twin")), strict=True):
        assert ours.log_probs == its.log_probs


def test_a_question_that_never_fits_is_found_before_training(tmp_path: Path) -> None:
    source = make_other_folder(tmp_path / "photos", {"train": 2, "val": 1})
    serialize(source, parse_spec(PIXELS), tmp_path / "shard", workers=1, answers=OWN)
    roomy = make_model(make_cell(), open_shard(tmp_path / "shard"))
    roomy.check(open_shard(tmp_path / "shard"))
    text = source / "questions" / "CLEVR_val_questions.json"
    text.write_text(text.read_text().replace("Wie ist das", "Wie " * 300 + "ist das"))
    serialize(source, parse_spec(PIXELS), tmp_path / "long", workers=1, answers=OWN)
    with pytest.raises(UserError, match=r"at most 720 bytes \(the model's context\), got .* for a question of 12\d\d "):
        roomy.check(open_shard(tmp_path / "long"))


# -- configuration --------------------------------------------------------------------------------------------------


def test_a_shard_has_the_configured_answers_or_is_refused(warehouse: Warehouse, shard: Shard, tmp_path: Path) -> None:
    assert shard.answers == warehouse.shard(data(warehouse), PIXELS).answers == OWN
    with pytest.raises(UserError, match=r"with the answers that the configuration names, CLEVR's \(28\), got 4 that"):
        warehouse.shard(data(warehouse, answers=None), PIXELS)
    other = write_answers(tmp_path / "other.txt", OWN_ANSWERS[::-1])
    with pytest.raises(
        UserError, match=rf"those of {other} \(4\), got 4 that are not the same; change data\.answers, or"
    ):
        warehouse.shard(data(warehouse, answers=other), PIXELS)
    with pytest.raises(UserError, match="got 'red'; list all answers"):
        warehouse.shard(data(warehouse, answers=write_answers(tmp_path / "few.txt", ("ja", "nein"))), "pixels:2x2")
    with pytest.raises(UserError, match="expected a file with one answer a line, got"):
        warehouse.shard(data(warehouse, answers=tmp_path / "none.txt"), PIXELS)


def test_the_generators_answers_are_clevrs() -> None:
    with pytest.raises(
        UserError, match=r"expected `answers` for a folder or a plugin's data only, got own\.txt for synth"
    ):
        parse(DataConfig, {"synth": {"preset": "mini"}, "answers": "own.txt"}, "test")
    config = parse(DataConfig, {"custom": {"name": "mine"}, "answers": "own.txt"}, "test")
    assert config.answers == Path("own.txt")


def test_a_run_is_recognised_by_its_candidates(warehouse: Warehouse, shard: Shard, tmp_path: Path) -> None:
    """The shards' files are the same for any order of the answers."""
    cell, folder = make_cell(), warehouse.data.parent
    reordered = Warehouse(tmp_path, warehouse.find, 1)
    other = reordered.shard(data(warehouse, answers=write_answers(tmp_path / "other.txt", OWN_ANSWERS[::-1])), PIXELS)
    assert other.manifest.files == shard.manifest.files
    keys = [Cell(cell, one, folder / "run").key for one in (shard, other)]
    assert keys[0].keys() == {"outcome", "data", "answers"}
    assert [name for name in keys[0] if keys[0][name] != keys[1][name]] == ["answers"]
    assert "answers" not in Cell(cell, make_shard(tmp_path), folder / "run").key


def test_many_answers_are_checked_and_their_work_estimated(tmp_path: Path) -> None:
    names = [f"Antwort Nummer {n}" for n in range(200)]
    make_other_folder(tmp_path / "photos", {"train": 80, "val": 6}, answers=names)
    config = {"folder": tmp_path / "photos", "answers": write_answers(tmp_path / "answers.txt", names)}
    stock = Warehouse(tmp_path / "data", lambda config: Source(Path(str(config.folder))), 1)
    cells = [make_cell(**TEXT), make_cell(CNN, name="cnn")]
    prepare(parse(DataConfig, config, "test"), cells, [], tmp_path / "runs", stock)
    with pytest.raises(UserError, match="cell cell: expected at most 62 answers for one letter each, got 200; set"):
        prepare(parse(DataConfig, config, "test"), [make_cell()], [], tmp_path / "runs", stock)


# -- commands -------------------------------------------------------------------------------------------------------


def test_the_commands_take_and_show_them(
    warehouse: Warehouse, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = warehouse.data.parent
    command = ["serialize", folder / "photos", "--encoding", PIXELS, "--out", tmp_path / "shard", "--workers", 1]
    assert "expected one of the 28 answers" in fails(capsys, *command)
    assert main([str(a) for a in (*command, "--answers", folder / "answers.txt")]) == 0
    assert main(["inspect", str(tmp_path / "shard"), "--sample", "1"]) == 0
    assert "reddish, written as '1'" in capsys.readouterr().out


def test_too_many_for_letters_are_inspected_as_text(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    names = [f"answer {n}" for n in range(70)]
    source = make_other_folder(tmp_path / "photos", {"val": 3}, answers=names)
    command = ["serialize", source, "--encoding", PIXELS, "--out", tmp_path / "shard", "--workers", 1]
    assert main([str(a) for a in (*command, "--answers", write_answers(tmp_path / "answers.txt", names))]) == 0
    assert main(["inspect", str(tmp_path / "shard")]) == 0
    assert "answer as text" in capsys.readouterr().out
    assert main(["inspect", str(tmp_path / "shard"), "--sample", "0"]) == 0
    assert "answer 0, written as 'answer 0'" in capsys.readouterr().out
    assert "at most 62 answers for one letter each, got 70" in fails(
        capsys, "inspect", tmp_path / "shard", "--answer", "letter"
    )
