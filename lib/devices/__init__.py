"""How devices run and talk."""

from lib.devices.bandwidth import algorithm_bandwidth, bus_bandwidth
from lib.devices.cluster import Cluster
from lib.devices.errors import DeadlockError, MismatchError
from lib.devices.group import Group
from lib.devices.handle import Handle
from lib.devices.hardware import Hardware, Link
from lib.devices.mesh import Mesh
from lib.devices.meters import Count, Meters
from lib.devices.streams import different_random, same_random
from lib.devices.trace import Event, Trace

__all__ = [
    "Cluster",
    "Count",
    "DeadlockError",
    "Event",
    "Group",
    "Handle",
    "Hardware",
    "Link",
    "Mesh",
    "Meters",
    "MismatchError",
    "Trace",
    "algorithm_bandwidth",
    "bus_bandwidth",
    "different_random",
    "same_random",
]
