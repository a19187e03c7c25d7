"""A cluster of two nodes on this machine, one of which is lost in the middle: python -m tests.support.lost_node."""

from __future__ import annotations

from runtime.cluster.connection import connected
from runtime.cluster.pool import find_pool, run_tasks
from tests.support.cluster_jobs import Slow


def main() -> None:
    """Print the answers. Each node has one processor, so a pool of as many actors as before finds no room."""
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    node = cluster.add_node(num_cpus=1)
    answers = []
    with connected(cluster.address) as ray:
        pool = find_pool(ray, None, None)
        assert pool.actors == 2
        for number, answer in enumerate(run_tasks(ray, pool, Slow(), range(24))):
            answers.append(answer)
            if number == 3:
                cluster.remove_node(node, allow_graceful=False)
    cluster.shutdown()
    print(*answers)


if __name__ == "__main__":
    main()
