"""A small house of its own for each test."""

import pytest
from small_house import SmallHouse


@pytest.fixture
def small(tmp_path):
    house = SmallHouse(tmp_path)
    house.write()
    return house
