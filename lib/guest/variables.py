"""The variables by which torchrun tells each process who it is: all of those that it sets."""


def variables(rank: int, size: int, nodes: int = 1) -> dict[str, str]:
    """Of device `rank` among `size`, in `nodes` equal nodes. What the command line may set otherwise has torchrun's
    default here. (Source: `LocalElasticAgent._start_workers` of PyTorch.)"""
    per_node = size // nodes
    return {
        "RANK": str(rank),
        "WORLD_SIZE": str(size),
        "LOCAL_RANK": str(rank % per_node),
        "LOCAL_WORLD_SIZE": str(per_node),
        "GROUP_RANK": str(rank // per_node),  # a "group" of torchrun is the workers of one node
        "GROUP_WORLD_SIZE": str(nodes),
        "ROLE_RANK": str(rank),
        "ROLE_WORLD_SIZE": str(size),
        "ROLE_NAME": "default",
        "MASTER_ADDR": "localhost",
        "MASTER_PORT": "29500",
        "TORCHELASTIC_RESTART_COUNT": "0",
        "TORCHELASTIC_MAX_RESTARTS": "0",
        "TORCHELASTIC_RUN_ID": "none",
        "TORCHELASTIC_USE_AGENT_STORE": "True",
        "TORCH_NCCL_ASYNC_ERROR_HANDLING": "1",
    }
