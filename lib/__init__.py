"""One Model, Many Devices: simulated devices, layers that are split over them, and ways to see it.

Three floors, and imports only go down: `lib.show` (how the reader sees it), `lib.parallel` (how a model is split),
`lib.devices` (how devices run and talk). `lib.examples` has programs that use all three.
"""

from lib.devices import Cluster, DeadlockError, Group, Mesh, MismatchError, different_random, same_random
from lib.parallel import ColumnParallelLinear, RowParallelLinear, shard, shard_sizes, unshard

__all__ = [
    "Cluster",
    "ColumnParallelLinear",
    "DeadlockError",
    "Group",
    "Mesh",
    "MismatchError",
    "RowParallelLinear",
    "different_random",
    "same_random",
    "shard",
    "shard_sizes",
    "unshard",
]
