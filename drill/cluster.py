"""A RabbitMQ of three nodes, whose quorum queues live on all of them."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from deploy import processes
from drill import stores

NODES = 3
PEERS = "cluster_formation.peer_discovery_backend = classic_config\n"


@dataclass(kw_only=True)
class Cluster:
    """The nodes, and their ports."""

    nodes: list[stores.Store] = field(default_factory=list)
    ports: list[int] = field(default_factory=list)
    last: int = -1

    @property
    def url(self) -> str:
        """Names all of them: whoever loses one goes on with the next."""
        return ";".join(f"amqp://guest:guest@127.0.0.1:{port}//" for port in self.ports)

    @contextmanager
    def without_one(self) -> Iterator[None]:
        """A node is killed, another one each time; after, it is back among the others."""
        self.last = (self.last + 1) % len(self.nodes)
        with self.nodes[self.last].gone():
            yield


@contextmanager
def running(folder: Path) -> Iterator[Cluster]:
    mapper = processes.free_port()
    ports = [processes.free_port() for _ in range(NODES)]
    peers = PEERS + "".join(
        f"cluster_formation.classic_config.nodes.{number} = {stores.node_name(port)}\n"
        for number, port in enumerate(ports, 1)
    )
    made = Cluster(ports=ports)
    with ExitStack() as exits:
        for number, port in enumerate(ports, 1):
            home = folder / f"rabbitmq.{number}"
            epmd, node = stores.rabbitmq_programs(home, port, mapper, name=f"RabbitMQ.{number}", settings=peers)
            if number == 1:
                exits.enter_context(stores.running(stores.Store(epmd, lambda: stores.listens(mapper))))
            store = stores.Store(node, lambda port=port: stores.carries(port))  # type: ignore[misc]
            exits.enter_context(stores.running(store))
            made.nodes.append(store)
        yield made
