import pytest
from oracles.world import World, start_server


@pytest.fixture(scope="session")
def worlds():
    """Real processes that talk through gloo, 2 of them and 4, forked when first used."""
    start_server()
    made = {size: World(size) for size in (2, 4)}
    yield made
    for world in made.values():
        world.close()
