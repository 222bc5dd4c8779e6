"""The swarm: shards travel between machines over BitTorrent v2. The one package that imports libtorrent.

``metainfo`` writes and checks .torrent files; ``settings``, ``session`` and ``torrent`` put libtorrent into an asyncio
loop; ``fetching`` tells the stories: fetch the shards of some layers, seed a release.
"""
