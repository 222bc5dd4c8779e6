"""``mesh-coordinator``: keeps membership, places layers, finds routes and drives requests through the stages."""
