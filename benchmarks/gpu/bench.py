"""What a part of the GPU suite is given: the device, tiny sizes or full ones, and measurements that are kept.

A part measures item by item, and its file has each as soon as it is there. An item that was measured before with the
same settings on the same machine and code is not measured again, so a suite that was cut goes on where it was.
"""

from __future__ import annotations

import hashlib
import json
import time
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from benchmarks.common import say
from benchmarks.gpu.device import Device, release_memory
from vqa_bench.runs import write_json

OUT_OF_MEMORY = "out_of_memory"


@dataclass
class Bench:
    """One part's view of the suite.

    part: its name. file: the JSON where its items are kept. seconds: how long it may take, None for as long as it
    needs. about: what an item is only good for, such as the device's name and the code's commit; JSON-able.
    """

    part: str
    device: Device
    file: Path
    tiny: bool
    seconds: float | None = None
    about: Mapping[str, Any] = field(default_factory=dict)
    skipped: list[str] = field(default_factory=list)
    raised: list[str] = field(default_factory=list)
    items: dict[str, Any] = field(default_factory=dict)
    _begin: float = field(default_factory=time.monotonic)
    _kept: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Read what was measured before. Raises ValueError for a file that holds something else."""
        self._kept = dict(read_results(self.file).get("items", {}))

    @property
    def known(self) -> dict[str, Any]:
        """All items of the file: measured now, kept and asked for, and those that this run did not ask for."""
        return self._kept | self.items

    @property
    def left(self) -> float:
        """Seconds that remain of the part's time; infinite where there is no limit."""
        return float("inf") if self.seconds is None else self.seconds - (time.monotonic() - self._begin)

    def item(
        self,
        name: str,
        settings: Mapping[str, Any],
        measure: Callable[[], dict[str, Any]],
        *,
        needs: float = 0.0,
        passed_on: tuple[type[Exception], ...] = (),
    ) -> dict[str, Any] | None:
        """The item's JSON-able result, kept from before or measured now; None where no time is left, or it failed.

        settings: JSON-able; a kept result counts only with equal ones. needs: about how many seconds it takes. Running
        out of the GPU's memory is a result, {"out_of_memory": its message}. Any other error is a failure of the part,
        noted in `raised`, which goes on with its other items; but errors of the kinds `passed_on` are raised.
        """
        key = json.loads(json.dumps({"settings": settings, "about": self.about}))
        other = self._kept.get(name)
        if other is not None and other["key"]["settings"] != key["settings"]:  # such as those of a longer run
            self._kept[_with_settings(name, other["key"]["settings"])] = self._kept.pop(name)
            other = None
        beside = _with_settings(name, key["settings"])
        kept = other or self._kept.get(beside)
        if kept is not None and kept["key"] == key:
            self._kept.pop(beside, None)
            self.items[name] = kept
            say(f"{self.part}: {name}: kept from before")
            return dict(kept["result"])
        if self.left <= needs:
            self.skipped.append(name)
            say(f"{self.part}: {name}: no time left")
            return None
        begin = time.monotonic()
        result: dict[str, Any] | None = None
        try:
            result = measure()
        except torch.OutOfMemoryError as error:
            result = {OUT_OF_MEMORY: str(error).split(". ")[0]}
        except passed_on:
            raise
        except Exception as error:
            traceback.print_exc()
            message = str(error).partition("\n")[0]
            self.raised.append(f"{name}: {type(error).__name__}: {message}")
        if self.device.is_cuda:
            release_memory()
        if result is None:
            return None
        seconds = time.monotonic() - begin
        self._kept.pop(beside, None)
        self.items[name] = {"key": key, "seconds": round(seconds, 3), "result": json.loads(json.dumps(result))}
        self._save()
        say(f"{self.part}: {name}: {seconds:.1f} s")
        return dict(self.items[name]["result"])

    def _save(self) -> None:
        """What is here, beside what was: cut now, nothing is lost."""
        self.file.parent.mkdir(parents=True, exist_ok=True)
        write_json(self.file, read_results(self.file) | {"items": self.known})


def read_results(file: Path) -> dict[str, Any]:
    """The content of a part's file, empty where there is none. Raises ValueError for a file of something else."""
    if not file.exists():
        return {}
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"expected results of a part in {file}, got: {error}; move it away") from error
    if not isinstance(found, dict):
        raise ValueError(f"expected results of a part in {file}, got something else; move it away")
    return found


def _with_settings(name: str, settings: Any) -> str:
    """What an item is called beside another one of its name."""
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()
    return f"{name} [{digest[:8]}]"
