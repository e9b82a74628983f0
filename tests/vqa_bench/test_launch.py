"""What a launcher asks for behind the configuration's back is refused before anything is trained."""

import pytest

from vqa_bench import launch
from vqa_bench.config import LoopConfig
from vqa_bench.errors import UserError

CONFIG = LoopConfig(steps=1, learning_rate=1.0)


@pytest.mark.parametrize(
    ("name", "value", "instead"),
    [
        ("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "4", "train.accumulate"),
        ("ACCELERATE_DYNAMO_BACKEND", "inductor", "train.compile"),
        ("ACCELERATE_DYNAMO_BACKEND", "INDUCTOR", "train.compile"),
        ("ACCELERATE_USE_FSDP", "true", "train.parallel: fsdp"),
    ],
)
def test_settings_of_a_launcher_are_refused(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str, instead: str
) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(UserError) as error:
        launch.start(CONFIG)
    message = str(error.value)
    assert f"{name}={value}" in message
    assert f"set {instead}" in message
    assert "\n" not in message


def test_what_accelerate_sets_by_itself_is_no_setting(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every `accelerate launch` sets these; their defaults change nothing."""
    for name, value in (
        ("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "1"),
        ("ACCELERATE_DYNAMO_BACKEND", "no"),
        ("ACCELERATE_DYNAMO_BACKEND", "NO"),
        ("ACCELERATE_USE_FSDP", "false"),
    ):
        monkeypatch.setenv(name, value)
        accelerator = launch.start(CONFIG)
        assert accelerator.num_processes == 1
        assert accelerator.gradient_accumulation_steps == 1


@pytest.mark.parametrize("value", ["two", "0", "-1", ""])
def test_a_number_of_processes_that_is_none(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    monkeypatch.setenv("WORLD_SIZE", value)
    with pytest.raises(UserError, match="expected a number of processes in WORLD_SIZE"):
        launch.world()
