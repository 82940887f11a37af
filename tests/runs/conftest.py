"""A world to run recipes in."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tiny_world import inside


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The world of one test file, its working directory; runs stay for the tests after."""
    with inside(tmp_path_factory.mktemp("world")) as folder:
        yield folder
