"""What `dmsmil methods --check` asks is asked of every method, a new one too."""

import pytest

from dmsmil.models import METHODS
from dmsmil.models.contract import check_contract
from tests.models.test_hagmil import SMALL

SMALLER = {"hagmil": SMALL, "hagmil_hier": SMALL}  # at their own sizes they take a minute


@pytest.mark.slow
@pytest.mark.parametrize("name", METHODS)
def test_a_method_keeps_the_contract(name):
    table = check_contract(name, **SMALLER.get(name, {}))
    assert len(table) == 3 and table.kept.all(), table["why not"].to_dict()
