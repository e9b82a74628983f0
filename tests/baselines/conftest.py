"""What all tests of the baselines begin with."""

from collections.abc import Iterator

import pytest
import torch


@pytest.fixture(autouse=True)
def _seeded_and_on_one_thread() -> Iterator[None]:
    """Networks this small only lose by threads, most of all on a busy machine."""
    torch.manual_seed(0)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
