"""Checkpoints: a model's files in and out, the reference's in; whether weights fit a model is `mblm.weights`' business.

Knows nothing of training runs. Nothing is fetched but a checkpoint from the Hugging Face hub, where none is local.

Formats: ours is `model.safetensors` + `config.json` in one folder; the reference's (PyPI `mblm`) is a pickled
`{"MODEL": state dict, "LOSS": float}` whose configuration stands elsewhere.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch
import yaml
from pydantic import BaseModel, ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from mblm.model.config import MBLMEncoderModelConfig, MBLMModelConfig
from mblm.model.encoder import MBLMEncoder
from mblm.model.mblm import MBLM
from mblm.weights import AnyConfig, CheckpointError, Model, filled, grow_vocabulary

__all__ = ["CheckpointError", "from_pretrained", "grow_vocabulary", "load_reference", "save_pretrained"]

Config = TypeVar("Config", bound=BaseModel)

WEIGHTS, CONFIG = "model.safetensors", "config.json"
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", re.ASCII)
# The reference up to 0.4.0: indices of a Sequential, for what is called `embedding` and `_post.1`, … since.
OLD_EMBEDDING = re.compile(r"(token_embs_rev\.\d+)(?:\.([0234]))?\.(weight|bias)")
OLD_INDICES = {None: "embedding", "0": "embedding", "2": "_post.1", "3": "_post.2", "4": "_post.3"}
# What `architecture` in `config.json` may be: a model's class name, with the configuration it is built from.
ARCHITECTURES: dict[str, type[AnyConfig]] = {
    MBLM.__name__: MBLMModelConfig,
    MBLMEncoder.__name__: MBLMEncoderModelConfig,
}


# -- ours ---------------------------------------------------------------------------------------------------------


def save_pretrained(model: MBLM | MBLMEncoder, folder: str | Path) -> None:
    """Write `model.safetensors` and `config.json` into a folder, made where it is missing.

    A killed save leaves what was there before, or a folder that `from_pretrained` refuses; never a mixed pair.
    A subclass is saved as what it derives from, compiled stages as the stages themselves. Raises ValueError for a
    wrapped model (its names and class would be the wrapper's) and for a path that is a file.
    """
    folder = Path(folder)
    name = next((base.__name__ for base in type(model).__mro__ if base.__name__ in ARCHITECTURES), None)
    if name is None:
        kind = type(model).__name__
        raise ValueError(f"model: expected one of {', '.join(ARCHITECTURES)}, got {kind}: pass the model it wraps")
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"folder: expected a folder to write to, got the file {folder}: choose another name")
    state = {_uncompiled(name): tensor for name, tensor in model.state_dict().items()}
    sharded = [name for name, tensor in state.items() if hasattr(tensor, "full_tensor")]
    if sharded:
        raise ValueError(
            f"model: expected whole tensors, got {sharded[0]} and {len(sharded) - 1} more that are shared out over "
            f"processes: load their gathered state dict into a model of the same configuration and save that"
        )
    folder.mkdir(parents=True, exist_ok=True)
    settings = {"architecture": name, **model.config.model_dump(mode="json")}
    text = (json.dumps(settings, indent=2) + "\n").encode()
    weights, config = folder / WEIGHTS, folder / CONFIG
    new_weights, new_config = folder / f"{WEIGHTS}.partial", folder / f"{CONFIG}.partial"
    try:
        save_file(_separate(state), new_weights, metadata={"format": "pt"})
        new_config.write_bytes(text)
        # Both files are whole by now. Two renames are not one step, so an old configuration that says something else
        # goes first: between the steps the folder then has no configuration, and is refused, rather than a wrong one.
        # Where it says the same, as in a training run that saves again, the one rename of the weights is all.
        if config.is_file() and config.read_bytes() != text:
            config.unlink()
        os.replace(new_weights, weights)
        os.replace(new_config, config)
    finally:
        new_weights.unlink(missing_ok=True)
        new_config.unlink(missing_ok=True)


def from_pretrained(
    source: str | Path,
    *,
    architecture: type[Model] = MBLM,  # type: ignore[assignment]  # the type variable's default says so too
    revision: str | None = None,
    cache_dir: str | Path | None = None,
    local_files_only: bool = False,
    device: str | torch.device = "cpu",
    dtype: torch.dtype | None = None,
    num_tokens: int | None = None,
    pad_token_id: int | None = None,
) -> Model:
    """The model of a folder, or of a hub id `owner/name` where no such folder exists, in evaluation mode.

    architecture: the class that is expected, MBLM or MBLMEncoder; a checkpoint of the other is refused.
    revision, cache_dir, local_files_only: for the hub, as `huggingface_hub.snapshot_download` takes them; the
    environment variable HF_HUB_OFFLINE holds too. dtype: None keeps what is stored. num_tokens, pad_token_id: None
    keeps the checkpoint's, otherwise the vocabulary grows as in `grow_vocabulary`. Custom blocks must be registered.

    Raises FileNotFoundError where there is no such checkpoint, CheckpointError (a ValueError) where it is damaged or
    its parts do not fit each other, and ValueError for a vocabulary that cannot grow so.
    """
    folder = _find(source, revision=revision, cache_dir=cache_dir, local_files_only=local_files_only)
    for name in (CONFIG, WEIGHTS):
        if not (folder / name).is_file():
            raise FileNotFoundError(
                f"{source}: expected {CONFIG} and {WEIGHTS} in {folder}, got no {name}: name another folder, or save "
                f"again if a save was interrupted here"
            )
    config = _read_config(folder / CONFIG, architecture.__name__)
    path = folder / WEIGHTS
    try:
        weights = load_file(path)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{path}: expected safetensors, got: {error}: fetch or save it again") from error
    model = filled(
        architecture, config, weights, num_tokens=num_tokens, pad_token_id=pad_token_id, dtype=dtype, source=str(path)
    )
    model.eval()
    model.to(device)
    return model


def _uncompiled(name: str) -> str:
    """A tensor's name without what torch.compile puts in."""
    return ".".join(part for part in name.split(".") if part != "_orig_mod")


def _separate(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Contiguous tensors on the CPU that share no memory: safetensors refuses tied tensors; loading ties them again."""
    seen: set[int] = set()
    separate = {}
    for name, value in state.items():
        value = value.detach().cpu().contiguous()
        storage = value.untyped_storage().data_ptr()
        separate[name] = value.clone() if storage in seen else value
        seen.add(storage)
    return separate


def _find(source: str | Path, *, revision: str | None, cache_dir: str | Path | None, local_files_only: bool) -> Path:
    """The folder of a checkpoint, fetched from the hub where it is not a local one."""
    if Path(source).is_dir():
        if revision is not None:
            raise ValueError(f"revision: {source} is a local folder and has none, got {revision!r}: leave it unset")
        return Path(source)
    if not (isinstance(source, str) and HUB_ID.fullmatch(source)):
        raise FileNotFoundError(
            f"expected a folder with {CONFIG} and {WEIGHTS}, or a hub id `owner/name`, got {source}"
        )
    try:
        from huggingface_hub import snapshot_download
    except ImportError as error:
        raise CheckpointError(
            f"{source} is no local folder, and the hub needs a package: pip install 'vqa-bench[hub]', or name a folder"
        ) from error
    try:
        found = snapshot_download(
            source,
            revision=revision,
            cache_dir=cache_dir,
            local_files_only=local_files_only,
            allow_patterns=[CONFIG, WEIGHTS],
        )
    except Exception as error:  # the hub's errors share no base class with those of its network library
        at = "" if revision is None else f" at revision {revision}"
        where = "the local hub cache" if local_files_only else "the hub"
        cause = (str(error).strip().splitlines() or [""])[0]
        raise FileNotFoundError(
            f"looked for {CONFIG} and {WEIGHTS} of {source}{at} in {where}, as there is no such folder, got "
            f"{type(error).__name__}: {cause}: check the name, the access, and the network or HF_HUB_OFFLINE"
        ) from error
    return Path(found)


def _read_config(path: Path, architecture: str) -> AnyConfig:
    """The configuration in `config.json`, which must be of that architecture."""
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise CheckpointError(f"{path}: expected JSON, got: {error}: fetch or save it again") from error
    got = data.pop("architecture", None) if isinstance(data, dict) else None
    if not isinstance(got, str) or got not in ARCHITECTURES:
        raise CheckpointError(
            f"{path}: expected `architecture` to be one of {', '.join(ARCHITECTURES)}, got {got!r}: use a checkpoint "
            f"that `save_pretrained` wrote, or `load_reference` for one of the reference"
        )
    if got != architecture:
        raise CheckpointError(f"{path}: expected a checkpoint of {architecture}, got {got}: pass `architecture={got}`")
    return _parse_config(data, ARCHITECTURES[got], source=str(path))


def _parse_config(data: Mapping[str, Any], kind: type[Config], *, source: str) -> Config:
    try:
        return kind.model_validate(data)
    except ValidationError as error:
        faults = [(".".join(map(str, fault["loc"])), fault["msg"]) for fault in error.errors()]
        text = "; ".join(f"{where}: {what}" if where else what for where, what in faults)
        if any("block" in fault["loc"] for fault in error.errors()):
            text += "; a custom block must be known first: import the module that registers it with `block_registry`"
        raise CheckpointError(f"{source}: {text}") from error


# -- the reference's ------------------------------------------------------------------------------------------------


def load_reference(
    path: str | Path,
    config: MBLMModelConfig | Mapping[str, Any] | str | Path,
    *,
    num_tokens: int | None = None,
    pad_token_id: int | None = None,
) -> MBLM:
    """A `.pth` of the reference, or a bare pickled state dict, in evaluation mode; both of its namings are read.

    config: what the weights were trained with, as an object, a parsed dict, or the path of a YAML or JSON file; the
    reference's own run configuration, with the model under `params`, is read too. num_tokens, pad_token_id: see
    `grow_vocabulary`. Raises as `from_pretrained` does; nothing but tensors and plain values is unpickled.
    """
    path = Path(path)
    weights: dict[str, Tensor] = {}
    for name, value in _read_reference(path).items():
        if weights.setdefault(ours := reference_name(name), value) is not value:
            raise CheckpointError(f"{path}: expected each tensor once, got {ours} twice: keep one of its names")
    parsed = _reference_config(config)
    model = filled(MBLM, parsed, weights, num_tokens=num_tokens, pad_token_id=pad_token_id, source=str(path))
    return model.eval()


def reference_name(name: str) -> str:
    """Our name of a tensor of the reference: without DDP's and torch.compile's prefixes, in the naming since 0.4.1."""
    name = _uncompiled(name).removeprefix("module.")
    old = OLD_EMBEDDING.fullmatch(name)
    return f"{old[1]}.{OLD_INDICES[old[2]]}.{old[3]}" if old else name


def _read_reference(path: Path) -> Mapping[str, Tensor]:
    wanted = "a pickled state dict, bare or as {'MODEL': …, 'LOSS': …}"
    if not path.is_file():
        raise FileNotFoundError(f"{path}: expected {wanted}, got no such file: name another")
    try:
        loaded = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # on what is no pickle, the unpickler fails in whatever way its bytes lead to
        cause = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise CheckpointError(f"{path}: expected {wanted}, got: {cause}: fetch or save it again") from error
    state = loaded["MODEL"] if isinstance(loaded, Mapping) and "MODEL" in loaded else loaded
    if not isinstance(state, Mapping) or not all(isinstance(value, Tensor) for value in state.values()):
        raise CheckpointError(f"{path}: expected {wanted}, got {type(state).__name__} of something else: name another")
    return state


def _reference_config(config: MBLMModelConfig | Mapping[str, Any] | str | Path) -> MBLMModelConfig:
    if isinstance(config, MBLMModelConfig):
        return config
    source = "config"
    if isinstance(config, str | Path):
        source = str(config)
        if not Path(config).is_file():
            raise FileNotFoundError(f"config: expected the path of a YAML or JSON file, got {config}: name another")
        try:
            config = yaml.safe_load(Path(config).read_text(encoding="utf-8"))
        except yaml.YAMLError as error:
            raise CheckpointError(f"{source}: expected YAML or JSON, got: {' '.join(str(error).split())}") from error
    if not isinstance(config, Mapping):
        raise CheckpointError(
            f"{source}: expected the model's configuration, got a {type(config).__name__}: name another"
        )
    if isinstance(run := config.get("params"), Mapping):
        # The trainer keeps its sequence length beside the model's fields.
        config = {name: value for name, value in run.items() if name != "input_seq_len"}
    return _parse_config(config, MBLMModelConfig, source=source)
