"""How devices run and talk."""

from lib.devices.cluster import Cluster
from lib.devices.errors import DeadlockError, MismatchError
from lib.devices.group import Group
from lib.devices.mesh import Mesh
from lib.devices.meters import Count, Meters
from lib.devices.streams import different_random, same_random

__all__ = ["Cluster", "Count", "DeadlockError", "Group", "Mesh", "Meters", "MismatchError", "different_random", "same_random"]
