"""Shards: how tensors lie in a file, how the file is hashed, addressed, encoded for slow links and proven."""
