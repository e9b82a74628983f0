"""Fixtures shared by all tests. Everything here works offline and without the optional shared data."""

from pathlib import Path

import pytest

SHARED = Path(__file__).resolve().parents[2] / "shared"


@pytest.fixture(scope="session")
def real_clevr() -> Path | None:
    """A piece of the real CLEVR release in its own layout, or None where it is not at hand."""
    folder = SHARED / "real_clevr"
    return folder if folder.is_dir() else None


@pytest.fixture(scope="session")
def golden() -> Path | None:
    """Reference outputs made with public packages, or None where they are not at hand."""
    folder = SHARED / "golden"
    return folder if folder.is_dir() else None
