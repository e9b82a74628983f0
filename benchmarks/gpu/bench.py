"""What a part of the GPU suite is given: the device, tiny sizes or full ones, and measurements that are kept.

A part measures item by item, and its file has each as soon as it is there. An item that was measured before with the
same settings on the same machine and code is not measured again, so a suite that was cut goes on where it was.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from benchmarks.common import say
from benchmarks.gpu.device import Device
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
    items: dict[str, Any] = field(default_factory=dict)
    _begin: float = field(default_factory=time.monotonic)
    _kept: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.file.is_file():
            self._kept = json.loads(self.file.read_text(encoding="utf-8")).get("items", {})

    @property
    def left(self) -> float:
        """Seconds that remain of the part's time; infinite where there is no limit."""
        return float("inf") if self.seconds is None else self.seconds - (time.monotonic() - self._begin)

    def item(
        self, name: str, settings: Mapping[str, Any], measure: Callable[[], dict[str, Any]], *, needs: float = 0.0
    ) -> dict[str, Any] | None:
        """The item's JSON-able result, kept from before or measured now; None where no time is left for it.

        settings: JSON-able; a kept result counts only with equal ones. needs: about how many seconds it takes. Running
        out of the GPU's memory is a result, {"out_of_memory": its message}; any other error ends the part.
        """
        key = json.loads(json.dumps({"settings": settings, "about": self.about}))
        kept = self._kept.get(name)
        if kept is not None and kept["key"] == key:
            self.items[name] = kept
            say(f"{self.part}: {name}: kept from before")
            return dict(kept["result"])
        if self.left <= needs:
            self.skipped.append(name)
            say(f"{self.part}: {name}: no time left")
            return None
        begin = time.monotonic()
        try:
            result = measure()
        except torch.OutOfMemoryError as error:
            result = {OUT_OF_MEMORY: str(error).split(". ")[0]}
        if self.device.is_cuda:
            torch.cuda.empty_cache()
        seconds = time.monotonic() - begin
        self.items[name] = {"key": key, "seconds": round(seconds, 3), "result": json.loads(json.dumps(result))}
        self._save()
        say(f"{self.part}: {name}: {seconds:.1f} s")
        return dict(self.items[name]["result"])

    def _save(self) -> None:
        """What is here, and what was kept and has not been asked for yet: cut now, nothing is lost."""
        self.file.parent.mkdir(parents=True, exist_ok=True)
        write_json(self.file, {"items": self._kept | self.items})
