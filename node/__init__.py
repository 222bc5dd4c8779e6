"""``mesh-node``: joins a mesh, fetches and verifies the shards of its layers, computes them for others."""
