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


def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("gpu") is not None:
        import torch

        if not torch.cuda.is_available():
            pytest.skip(f"needs a GPU that torch {torch.__version__} can use")
