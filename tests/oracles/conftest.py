import pytest
import torch
from oracles.world import World, start_server

SIZES = [1, 2, 3]  # an even number and an odd one: a fourth process would see what these see


@pytest.fixture(scope="session", autouse=True)
def server():
    start_server()


@pytest.fixture(scope="session")
def worlds():
    """The real worlds, started when first used and ended with the tests."""
    made = {size: World(size) for size in (*SIZES, 4)}
    yield made
    for world in made.values():
        world.close()


@pytest.fixture(params=SIZES, ids=lambda size: f"{size} processes")
def world(request, worlds):
    torch.manual_seed(request.param)
    return worlds[request.param]
