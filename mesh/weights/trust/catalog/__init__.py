"""The catalog: a TUF repository whose targets are signed manifests and the revocation list.

It answers what a signature alone cannot: is this still what the publisher says today, may this publisher say it, and has
somebody kept the news from us. ``repository.py`` is the operator's side, ``client.py`` the node's; between them lie plain
files, so that any directory, static HTTP server or the coordinator can hand them out.

The one door to ``tuf`` and ``securesystemslib``. Knows nothing of gRPC, torrents or tensors.

Follows the TUF specification 1.0 (https://theupdateframework.github.io/specification/latest/); the decision and what was
refused are in ``docs/decisions/0005-catalog.md``.
"""
