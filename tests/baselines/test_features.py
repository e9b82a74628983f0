"""Features on disk: what the network makes of each picture, found again by its bytes, and never half there."""

import json
import pickle
from pathlib import Path
from types import SimpleNamespace
from urllib.error import URLError

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image
from torch import Tensor
from torchvision.models.resnet import BasicBlock, ResNet

from tests.vqa_bench.cells import PIXELS, TRAIN, make_cell, make_shard
from vqa_bench.cli import main
from vqa_bench.data.encodings import parse_spec
from vqa_bench.data.loading import evaluation_groups
from vqa_bench.data.shards import Shard
from vqa_bench.errors import UserError
from vqa_bench.models import MODELS, build
from vqa_bench.models.extract import Extractor, extract, load_weights
from vqa_bench.models.features import FeatureFolder
from vqa_bench.runs import load_model
from vqa_bench.train import train

SIDE = 32
POOLED = {"kind": "cnn_lstm", "embedding": 8, "hidden": 16, "mlp_hidden": 16}
ATTENTIVE = {"kind": "cnn_lstm_sa", "embedding": 8, "hidden": 16, "attention_width": 8}


def small_resnet(weights: None = None) -> ResNet:
    """A network with the names of ResNet-101's layers."""
    assert weights is None
    return ResNet(BasicBlock, [1, 1, 1, 1], num_classes=2)


def weights_of(network: ResNet, seed: int = 0) -> dict[str, Tensor]:
    """Random weights whose features stay small, as those of a trained network do."""
    random = torch.Generator().manual_seed(seed)
    state = network.state_dict()
    for tensor in state.values():
        if tensor.dtype.is_floating_point and tensor.ndim > 1:
            tensor.normal_(0, tensor[0].numel() ** -0.5, generator=random)
    return state


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torchvision.models, "resnet101", small_resnet)


@pytest.fixture(scope="module")
def shard(tmp_path_factory: pytest.TempPathFactory) -> Shard:
    return make_shard(tmp_path_factory.mktemp("features"), train=12, val=4)


def extracted(shard: Shard, folder: Path, *, seed: int = 0, **options: object) -> Extractor:
    extractor = Extractor(weights_of(small_resnet(), seed))
    extract(shard, folder, extractor, side=SIDE, images_per_batch=4, **options)  # type: ignore[arg-type]
    return extractor


def test_every_picture_has_what_the_network_makes_of_it(shard: Shard, tmp_path: Path) -> None:
    calls: list[tuple[int, int]] = []
    extractor = extracted(shard, tmp_path, progress=lambda done, total: calls.append((done, total)))
    images = sum(len(shard.split(split)) for split in shard.manifest.splits)
    assert calls[-1] == (images, images)
    assert [done for done, _ in calls] == sorted(done for done, _ in calls)
    folder = pickle.loads(pickle.dumps(FeatureFolder(tmp_path, encoding=PIXELS)))
    assert folder.info.shape == (256, 2, 2)
    folder.check(shard)
    mean, deviation = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
    for name in shard.manifest.splits:
        split = shard.split(name)
        found = folder(split, range(len(split)))
        assert found.dtype == torch.float16
        for row in (0, len(split) - 1):
            picture = parse_spec(PIXELS).decode(split.image_bytes(row).tobytes())
            pixels = np.asarray(picture.resize((SIDE, SIDE), Image.Resampling.BICUBIC)) / 255
            shown = torch.from_numpy((pixels - mean) / deviation).permute(2, 0, 1).float()
            with torch.inference_mode():
                expected = extractor.trunk(shown[None])[0]
            torch.testing.assert_close(found[row].float(), expected, rtol=2e-3, atol=2e-3)


def test_a_second_time_adds_only_what_is_missing(shard: Shard, tmp_path: Path) -> None:
    extracted(shard, tmp_path, splits=["test"])
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    with pytest.raises(UserError, match=r"features of train, dev of .* got those of other"):
        FeatureFolder(tmp_path).check(shard)
    extracted(shard, tmp_path)
    FeatureFolder(tmp_path).check(shard)
    assert all(path.stat().st_mtime_ns == time for path, time in before.items() if path.is_file())
    there = sorted(tmp_path.iterdir())
    assert [path.name.split("-")[0] for path in there] == ["dev", "test", "train"]
    extracted(shard, tmp_path)
    assert sorted(tmp_path.iterdir()) == there


def test_what_is_broken_off_is_not_there(shard: Shard, tmp_path: Path) -> None:
    def stop(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        extracted(shard, tmp_path, progress=stop)
    assert not list(tmp_path.iterdir())
    assert FeatureFolder(tmp_path).is_empty
    (tmp_path / ".train-0123.partial-elsewhere-1-ab").mkdir()  # what a kill leaves
    (tmp_path / ".train-0123.partial-elsewhere-1-ab" / "manifest.json").write_text("{}")
    extracted(shard, tmp_path)
    FeatureFolder(tmp_path).check(shard)


def test_other_weights_are_refused(shard: Shard, tmp_path: Path) -> None:
    extractor = extracted(shard, tmp_path, splits=["test"])
    with pytest.raises(UserError, match=f"{extractor.digest:.12}"):
        extracted(shard, tmp_path, seed=1)
    assert len(list(tmp_path.iterdir())) == 1


def test_pictures_without_features_are_named(shard: Shard, tmp_path: Path) -> None:
    extracted(shard, tmp_path / "features", splits=["test"])
    with pytest.raises(UserError, match=r"features of CLEVR_train_\d+\.png in .*vqa-bench features"):
        FeatureFolder(tmp_path / "features", encoding=PIXELS)(shard.split("train"), [0])
    with pytest.raises(UserError, match=r"expected features in .*nowhere, got none; extract them"):
        _ = FeatureFolder(tmp_path / "nowhere").info


@pytest.mark.parametrize("damage", ["manifest", "cut", "other"])
def test_damaged_stores_are_named(shard: Shard, tmp_path: Path, damage: str) -> None:
    extracted(shard, tmp_path, splits=["test"])
    (store,) = tmp_path.iterdir()
    if damage == "manifest":
        (store / "manifest.json").write_text(json.dumps({"format": "other"}))
    elif damage == "cut":
        whole = (store / "features.npy").read_bytes()
        (store / "features.npy").write_bytes(whole[:-5])
    else:
        np.save(store / "keys.npy", np.zeros((1, 16), np.uint8))
    with pytest.raises(UserError, match=f"{store.name}.*extract them again"):
        FeatureFolder(tmp_path, encoding=PIXELS)(shard.split("test"), [0])


@pytest.mark.parametrize("model", [POOLED, ATTENTIVE], ids=["CNN+LSTM", "SA"])
def test_a_model_trains_on_features_and_is_read_back(shard: Shard, tmp_path: Path, model: dict[str, object]) -> None:
    features: dict[str, object] = {"folder": str(tmp_path / "features")}
    if model is POOLED:
        features["width"] = 8
    cell = make_cell(model | {"features": features}, train=TRAIN | {"steps": 2})
    with pytest.raises(UserError, match="got none; extract them"):
        MODELS[cell.model.kind].decide(cell, shard)
    extracted(shard, tmp_path / "features", splits=["train"])
    with pytest.raises(UserError, match="features of dev, test"):
        build(cell, MODELS[cell.model.kind].decide(cell, shard)).check(shard)
    extracted(shard, tmp_path / "features")
    (tmp_path / "run").mkdir()
    trained = train(cell, shard, tmp_path / "run")
    trained.check(shard)
    split = shard.split("test")
    batch = trained.collate(split, evaluation_groups(split))
    assert batch.images.shape == (4, 256, 2, 2)
    restored = load_model(tmp_path / "run")
    assert restored.image_shape == (256, 2, 2)
    with torch.inference_mode():
        assert torch.equal(restored.log_probs(batch), trained.log_probs(batch))
    for store in sorted((tmp_path / "features").iterdir()):  # the folder now has another network's
        manifest = json.loads((store / "manifest.json").read_text())
        (store / "manifest.json").write_text(json.dumps(manifest | {"weights": "0" * 64}))
    with pytest.raises(UserError, match="the weights that the model was trained with"):
        load_model(tmp_path / "run").collate(split, evaluation_groups(split))


def test_the_command(
    shard: Shard, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("vqa_bench.models.extract.extract.__kwdefaults__", {**extract.__kwdefaults__, "side": SIDE})
    torch.save(weights_of(small_resnet()), tmp_path / "weights.pth")
    command = ["features", str(shard.path), "--out", str(tmp_path / "out"), "--weights", str(tmp_path / "weights.pth")]
    assert main([*command, "--splits", "test"]) == 0
    (store,) = (tmp_path / "out").iterdir()
    assert str(store) in capsys.readouterr().out
    assert main([*command, "--splits", "test"]) == 0
    assert "all there" in capsys.readouterr().out
    assert main([*command, "--splits", "holiday"]) == 2
    assert "got 'holiday'" in capsys.readouterr().err


def test_weights_in_either_form_of_file_are_the_same_features(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    weights = weights_of(small_resnet())
    save_file(weights, tmp_path / "weights.safetensors")
    of_old = {name: tensor for name, tensor in weights.items() if not name.endswith("num_batches_tracked")}
    torch.save({name: tensor for name, tensor in of_old.items() if not name.startswith("fc.")}, tmp_path / "old.pth")
    found = [Extractor(load_weights(tmp_path / name)) for name in ("weights.safetensors", "old.pth")]
    assert found[0].digest == found[1].digest == Extractor(weights).digest
    assert found[0].digest != Extractor(weights_of(small_resnet(), seed=1)).digest


def test_wrong_weights_are_named(shard: Shard, tmp_path: Path) -> None:
    (tmp_path / "text.pth").write_text("no weights")
    for name in ("text.pth", "missing.pth"):
        with pytest.raises(UserError, match=f"weights of ResNet-101 in .*{name}"):
            load_weights(tmp_path / name)
    torch.save([1, 2], tmp_path / "list.pth")
    with pytest.raises(UserError, match=r"state dict of ResNet-101 in .*list\.pth"):
        load_weights(tmp_path / "list.pth")
    weights = weights_of(small_resnet())
    with pytest.raises(UserError, match=r"got others: .*layer2"):
        Extractor({name: tensor for name, tensor in weights.items() if not name.startswith("layer2")})
    too_large = {name: tensor * 1e9 if name == "conv1.weight" else tensor for name, tensor in weights.items()}
    with pytest.raises(UserError, match="finite features in float16"):
        extract(shard, tmp_path / "out", Extractor(too_large), side=SIDE)


def test_without_a_network_one_line_says_where_to_get_the_file(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(**_: object) -> None:
        raise URLError("no route")

    weights = SimpleNamespace(IMAGENET1K_V1=SimpleNamespace(url="https://there/resnet101.pth", get_state_dict=refuse))
    monkeypatch.setattr(torchvision.models, "ResNet101_Weights", weights)
    with pytest.raises(UserError, match=r"no route.*; fetch https://there/resnet101\.pth .* --weights FILE") as caught:
        load_weights(None)
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.slow
def test_the_features_of_resnet_101(shard: Shard, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With random weights, against torchvision's own transforms and its own way to read an inner layer."""
    from torchvision import transforms
    from torchvision.models.feature_extraction import create_feature_extractor

    monkeypatch.undo()
    network = torchvision.models.resnet101(weights=None)
    weights = weights_of(network)
    for name, tensor in weights.items():
        if name.endswith("bn3.weight"):
            tensor.fill_(0.2)  # else 30 blocks of random weights grow beyond all bounds
    network.load_state_dict(weights)
    extract(shard, tmp_path, Extractor(weights), splits=["dev"])
    split = shard.split("dev")
    found = FeatureFolder(tmp_path, encoding=PIXELS)(split, range(len(split)))
    assert found.shape == (len(split), 1024, 14, 14)
    prepare = transforms.Compose(
        [
            transforms.Resize((224, 224), transforms.InterpolationMode.BICUBIC),
            transforms.ToTensor(),
            transforms.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
        ]
    )
    reader = create_feature_extractor(network.eval(), {"layer3": "features"})
    for row in range(len(split)):
        picture = parse_spec(PIXELS).decode(split.image_bytes(row).tobytes())
        with torch.inference_mode():
            expected = reader(prepare(picture)[None])["features"][0]
        torch.testing.assert_close(found[row].float(), expected, rtol=2e-3, atol=2e-3 * float(expected.max()))
