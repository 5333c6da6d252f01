"""The prisons."""

import pytest

from .prison import PRISONS, Prison


@pytest.fixture(params=PRISONS, ids=lambda prison: prison.id)
def prison(request: pytest.FixtureRequest) -> Prison:
    """Each process's jail, entered by root and by an ordinary user."""
    chosen: Prison = request.param
    return chosen
