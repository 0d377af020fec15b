"""Fixtures of the tests of ordering keys and of the option after.

| fixture | lives | what |
|---|---|---|
| recorder | the test | a worker by hand |
| other | the test | a second one |
"""

from __future__ import annotations

import pytest

from servers.cluster import Database
from servers.recorder import Recorder


@pytest.fixture
def recorder(database: Database) -> Recorder:
    return Recorder(database)


@pytest.fixture
def other(database: Database, recorder: Recorder) -> Recorder:
    return Recorder(database)
