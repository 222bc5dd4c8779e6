"""Fetch a published release without joining anything: find it, believe it, plan it.

``source`` reads what the user named, ``finding`` brings the signed manifest and the .torrent from there, ``planning``
says what would be fetched and whether it may be. Fetching itself is ``mesh.swarm.fetching``.
"""
