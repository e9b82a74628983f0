"""Plugins: what their files register is there, in other processes too; errors are one line; the README's example."""

import hashlib
import json
import pickle
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from mblm import block_registry
from tests.vqa_bench.data.clevr_folder import make_clevr_folder
from vqa_bench import plugins
from vqa_bench.config import DataConfig, TextDataConfig, load_matrix, parse
from vqa_bench.data.clevr import ClevrFolder
from vqa_bench.data.custom import DATASETS, TEXTS, WHOLE, register_dataset, register_text
from vqa_bench.data.encodings import KINDS, parse_spec
from vqa_bench.errors import UserError
from vqa_bench.models.custom import MODELS, Sizes
from vqa_bench.plugins import load_plugins, loaded

ROOT = Path(__file__).resolve().parents[2]

ENCODING = """
from dataclasses import dataclass
from PIL import Image
from vqa_bench.data.encodings import Spec, register

@register
@dataclass(frozen=True, kw_only=True)
class Backwards(Spec):
    kind = "backwards"

    def encode(self, image):
        return self.picture(image).tobytes()[::-1]

    def decode(self, data):
        return Image.frombytes("RGB", self.size, data[::-1])
"""


@pytest.fixture(autouse=True)
def registries(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever a test registers is forgotten after it."""
    monkeypatch.setattr(block_registry, "_blocks", list(block_registry._blocks))
    for name in ("_loaded", "_files"):
        monkeypatch.setattr(plugins, name, {})
    for registry in (KINDS, DATASETS.entries, TEXTS.entries, MODELS.entries):
        for key in list(registry):
            monkeypatch.setitem(registry, key, registry[key])


@pytest.fixture(autouse=True)
def forget() -> Iterator[None]:
    """Kinds and makers that were not there before."""
    before = [(registry, set(registry)) for registry in (KINDS, DATASETS.entries, TEXTS.entries, MODELS.entries)]
    yield
    for registry, names in before:
        for name in set(registry) - names:
            del registry[name]  # type: ignore[attr-defined]


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


# -- files ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["ünïcode 日本/my own, v1.2.py", "random.py"])
def test_a_file_is_loaded_once_and_named_by_its_hash(tmp_path: Path, name: str) -> None:
    file = write(tmp_path / name, ENCODING + f"\nwith open({str(tmp_path / 'log')!r}, 'a') as f: f.write('x')\n")
    load_plugins([file])
    load_plugins([file])
    assert (tmp_path / "log").read_text() == "x"
    assert loaded() == {file.name: hashlib.sha256(file.read_bytes()).hexdigest()}
    spec = parse_spec("backwards:2x1")
    picture = Image.frombytes("RGB", (2, 1), bytes(range(6)))
    assert spec.encode(picture) == bytes(range(6))[::-1]
    assert spec.decode(spec.encode(picture)).tobytes() == bytes(range(6))
    # A process that was never told of the plugin reads the pickle: the name of the module is enough.
    program = "import pickle, sys; print(pickle.load(sys.stdin.buffer))"
    done = subprocess.run([sys.executable, "-c", program], input=pickle.dumps(spec), capture_output=True, check=True)
    assert done.stdout.decode().strip() == "backwards:2x1"


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("import json\n\nx = 1 / 0\n", r"ZeroDivisionError: division by zero at line 3"),
        ("def f():\n    return missing\n\nf()\n", r"NameError: name 'missing' is not defined at line 2"),
        ("import json\njson.loads('{')\n", r"JSONDecodeError: .* at line 2"),
        ("x = 1\ny = = 2\n", r"SyntaxError: invalid syntax.* at line 2"),
        ("import no_such_package\n", r"ModuleNotFoundError: No module named 'no_such_package' at line 1"),
        ("import sys\nsys.exit(3)\n", r"SystemExit: 3 at line 2"),
        (ENCODING.replace('"backwards"', '"pixels"'), r"ValueError: expected a kind other than .* at line 6"),
    ],
)
def test_an_error_is_one_line_with_its_place(tmp_path: Path, text: str, fault: str) -> None:
    file = write(tmp_path / "mine.py", text)
    with pytest.raises(UserError, match=rf"expected .*mine.py to be importable as a plugin, got {fault}; correct it"):
        load_plugins([file])


def test_what_is_no_plugin(tmp_path: Path) -> None:
    for path in (tmp_path / "none.py", tmp_path, write(tmp_path / "text.txt", "")):
        with pytest.raises(UserError, match=r"expected a Python file as a plugin, got .*, which is none"):
            load_plugins([path])
    files = [write(tmp_path / folder / "mine.py", "") for folder in ("a", "b")]
    with pytest.raises(UserError, match=r"names of their own, got .*a/mine.py and .*b/mine.py; rename one"):
        load_plugins(files)


def test_installed_packages_bring_plugins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code = write(tmp_path / "vqa_bench_backwards.py", ENCODING)
    info = tmp_path / "backwards-1.5.dist-info"
    write(info / "METADATA", "Metadata-Version: 2.1\nName: backwards\nVersion: 1.5\n")
    write(info / "entry_points.txt", "[vqa_bench.plugins]\nreversal = vqa_bench_backwards\n")
    monkeypatch.syspath_prepend(tmp_path)
    load_plugins()
    assert str(parse_spec("backwards:2x1")) == "backwards:2x1"
    assert loaded() == {"reversal (backwards 1.5)": hashlib.sha256(code.read_bytes()).hexdigest()}
    write(info / "entry_points.txt", "[vqa_bench.plugins]\nreversal = vqa_bench_elsewhere\n")
    with pytest.raises(UserError, match=r"the plugin reversal of backwards 1.5 to be importable, got ModuleNotFound"):
        load_plugins()


# -- data -----------------------------------------------------------------------------------------------------------


def test_data_is_made_once_for_its_options(tmp_path: Path) -> None:
    calls = []

    @register_dataset("noise")
    def noise(options: dict[str, Any], folder: Path, workers: int) -> None:
        calls.append((options, workers))
        made = make_clevr_folder(folder / "inner", options["images"])
        for part in sorted(made.iterdir()):
            part.rename(folder / part.name)
        made.rmdir()

    options = {"images": {"train": 2, "val": 1}, "note": "ü"}
    out = DATASETS.make("noise", options, tmp_path, workers=3)
    assert out == DATASETS.folder("noise", {"note": "ü", "images": {"val": 1, "train": 2}}, tmp_path)
    assert DATASETS.make("noise", options, tmp_path, workers=1) == out
    assert calls == [(options, 3)]
    assert json.loads((out / WHOLE).read_text()) == {"name": "noise", "options": options}
    other = DATASETS.make("noise", {"images": {"train": 1}}, tmp_path, workers=1)
    assert other != out
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([out.name, other.name])


def test_data_that_is_not_what_it_should_be(tmp_path: Path) -> None:
    @register_dataset("empty")
    def empty(options: dict[str, Any], folder: Path, workers: int) -> None:
        if options:
            raise ZeroDivisionError("of its own")

    @register_text("quiet")
    def quiet(options: dict[str, Any], folder: Path, workers: int) -> None:
        write(folder / "train" / "a.md", "text")

    with pytest.raises(UserError, match=r"data set 'empty': expected a CLEVR folder with images/ and questions/"):
        DATASETS.make("empty", {}, tmp_path, workers=1)
    with pytest.raises(ZeroDivisionError):
        DATASETS.make("empty", {"any": 1}, tmp_path, workers=1)
    with pytest.raises(UserError, match=r"text 'quiet': expected texts as train/\*.txt"):
        TEXTS.make("quiet", {}, tmp_path, workers=1)
    with pytest.raises(UserError, match=r"expected a plugin's data set by its name \(empty\), got 'quiet'"):
        DATASETS.make("quiet", {}, tmp_path, workers=1)
    assert list(tmp_path.iterdir()) == []


def test_names_are_taken_once() -> None:
    def one(options: dict[str, Any], folder: Path, workers: int) -> None: ...

    def two(options: dict[str, Any], folder: Path, workers: int) -> None: ...

    assert register_text("books")(one) is one
    register_text("books")(one)  # as when a cell of a notebook is run again
    with pytest.raises(ValueError, match=r"not taken, got 'books', which .*one has"):
        register_text("books")(two)
    with pytest.raises(ValueError, match=r"expected a name of small letters"):
        register_text("My books")


def test_configurations_name_one_source() -> None:
    config = parse(DataConfig, {"custom": {"name": "sheets", "options": {"images": {"train": 1}}}}, "test")
    assert config.custom is not None
    assert (config.custom.name, config.custom.options) == ("sheets", {"images": {"train": 1}})
    with pytest.raises(UserError, match=r"expected one of synth, folder, custom, got folder and custom"):
        parse(DataConfig, {"custom": {"name": "sheets"}, "folder": "x"}, "test")
    with pytest.raises(UserError, match=r"expected one of synth_text, folder, custom, got none"):
        parse(TextDataConfig, {}, "test")


# -- the example ----------------------------------------------------------------------------------------------------


def example(name: str) -> str:
    """The code block of the README that follows the comment `<!-- tested: name -->`."""
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    found = re.search(rf"<!-- tested: {re.escape(name)} -->\s*```\w+\n(.*?)```", readme, re.DOTALL)
    assert found is not None, f"expected README.md to hold the example {name}"
    return found[1]


def test_the_example_of_the_readme_registers_what_it_says(tmp_path: Path) -> None:
    load_plugins([write(tmp_path / "my.py", example("my.py"))])
    config = load_matrix(write(tmp_path / "my.yaml", example("my.yaml")))
    spec, custom = parse_spec(config.cells[0].encoding or ""), config.data.custom
    assert spec.encode(Image.new("RGB", (32, 24), "white")) == b"\xff" * 48
    assert spec.decode(bytes(range(48))).getpixel((7, 5)) == (47, 47, 47)
    assert custom is not None
    made = DATASETS.make(custom.name, {"images": {"train": 5, "val": 1}}, tmp_path, workers=1)
    assert [question.answer for question in ClevrFolder(made).questions("train")][1:] == [
        "red",
        "cyan",
        "yellow",
        "blue",
    ]
    net = MODELS.expect("glance")({"width": 4}, Sizes(words=5, answers=28, image=(6, 8)))
    logits = net(torch.rand(2, 3, 6, 8), torch.randint(5, (2, 3, 7)), torch.full((2, 3), 7))
    assert logits.shape == (2, 3, 28)
    stage = block_registry.parse({"block_type": "convolution", "kernel": 3}).to_model(8, 2)
    x = torch.randn(2, 9, 8)
    changed = x.clone()
    changed[:, 5:] = 0
    assert torch.equal(stage(x)[:, :5], stage(changed)[:, :5])
    assert stage(x).shape == x.shape


@pytest.mark.slow
def test_the_example_of_the_readme_runs(tmp_path: Path) -> None:
    """An encoding, a stage and a data set of one file, through the command line, with worker processes."""
    plugin = write(tmp_path / "my.py", example("my.py"))
    write(tmp_path / "my.yaml", example("my.yaml"))
    command = [sys.executable, "-m", "vqa_bench", "matrix", "my.yaml", "--plugin", "my.py", "--workers", "2"]
    environment = {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "PATH": ""}
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stderr
    for name in ("glance", "convolution"):
        run = tmp_path / "runs" / "sheets" / name
        result = json.loads((run / "result.json").read_text())
        assert result["metrics"]["overall"]["accuracy"] > 0.9  # four colours, told apart by their brightness
    provenance = json.loads((run / "provenance.json").read_text())
    assert provenance["plugins"] == {"my.py": hashlib.sha256(plugin.read_bytes()).hexdigest()}
