"""A training that is interrupted: remembering all, it is the one that never stopped, bit by bit."""

import pytest

from lib.devices import Cluster
from lib.examples.resumed import FORGETS, train


@pytest.mark.parametrize("devices", [1, 3])
def test_nothing_forgotten_nothing_changed(devices, tmp_path):
    whole = Cluster(devices).run(train, 8)
    Cluster(devices).run(train, 5, tmp_path)
    found = {what: Cluster(devices).run(train, 8, tmp_path, True, what) for what in FORGETS}
    assert found.pop("nothing") == [losses[5:] for losses in whole]
    assert all(losses != [some[5:] for some in whole] for losses in found.values())
    with pytest.raises(ValueError, match="forget='rate' is not one of moments, data, stream, nothing"):
        Cluster(1).run(train, 1, None, False, "rate")
