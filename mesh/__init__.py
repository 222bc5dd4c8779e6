"""llama-mesh: LLaMA-family models that no single machine can hold, on machines that need not trust each other.

A tour, in the order the bytes travel:

* ``mesh.weights``: a checkpoint comes in, content-addressed shards and a signed manifest go out.
* ``mesh.swarm``: the one door to libtorrent; moves shards between machines.
* ``mesh.model``: the readable LLaMA; computes any contiguous range of layers.
* ``mesh.wire``: protobuf messages, tensors to bytes, gRPC channels and links.
* ``node`` joins a mesh, fetches its layers, serves them; ``coordinator`` places layers and drives requests.

Importing ``mesh`` is light: torch, libtorrent and grpc are imported where they are used.
"""

__version__ = "0.1.0"
