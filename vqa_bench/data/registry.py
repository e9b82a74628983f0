"""A registry of what plugins bring, by name. Knows neither plugins nor what it holds."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from re import fullmatch
from typing import Any, Generic, TypeVar

from vqa_bench.errors import UserError

Entry = TypeVar("Entry", bound=Callable[..., Any])
EntryType = TypeVar("EntryType", bound=Callable[..., Any])


@dataclass(frozen=True)
class Registry(Generic[Entry]):
    """Functions by their names.

    Attributes:
        what: they make, in a word or two.
        entries: by their names.
    """

    what: str
    entries: dict[str, Entry] = field(default_factory=dict)

    def register(self, name: str) -> Callable[[EntryType], EntryType]:
        """A decorator that adds a function, as `@register_dataset("name")`; of the same function it keeps the last.

        Raises:
            ValueError: not a name, or taken by another function.
        """
        if fullmatch("[a-z][a-z0-9_-]*", name) is None:
            raise ValueError(f"expected a name of small letters, digits, _ and -, got {name!r}")

        def add(entry: EntryType) -> EntryType:
            known: Any = self.entries.setdefault(name, entry)  # type: ignore[arg-type]
            if (known.__module__, known.__qualname__) != (entry.__module__, entry.__qualname__):
                raise ValueError(
                    f"expected a name for {self.what} that is not taken, got {name!r}, which {known.__qualname__} has"
                )
            self.entries[name] = entry  # type: ignore[assignment]
            return entry

        return add

    def expect(self, name: str) -> Entry:
        """What has that name; UserError naming those there are."""
        if name not in self.entries:
            known = ", ".join(sorted(self.entries)) or "none are registered; give its file with --plugin"
            raise UserError(f"expected a plugin's {self.what} by its name ({known}), got {name!r}")
        return self.entries[name]
