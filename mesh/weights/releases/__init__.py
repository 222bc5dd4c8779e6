"""Releases and shards on disk: as packed, as held, as given back."""
