"""Which pieces to ask for first, so that one slow seeder sends each piece once: a pure decision.

Left to itself BitTorrent lets newcomers that arrive together ask a lone seeder for the same pieces, since none of them
has told the others yet what it holds: six of them cost it 2.2 to 3.4 times the bytes. Here every newcomer takes another
share, known from the list of peers without a word spoken, and meanwhile of the rest only what somebody else than a seed
holds already. When its shares are there, everything is open to it: an absent neighbour delays nothing.

Knows piece numbers and addresses. Knows nothing of libtorrent or of time. Measured in `benchmarks/spread.py`.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

from mesh.swarm.torrent import Peer

ROUNDS = 2  # the first leaves out the shares of seeds, who fetch nothing; the second divides those again


def share_of(pieces: Sequence[int], me: Peer, others: Collection[Peer], round_: int = 0) -> frozenset[int]:
    """Every ``n``-th piece, by our place among the addresses; all who know the same addresses agree, none overlap.

    In round 1 every ``n``-th row of ``n`` pieces, so that what fell to one member alone falls to all of them.
    """
    members = sorted({me, *others})
    rank, n = members.index(me), len(members)
    return frozenset(piece for at, piece in enumerate(pieces) if at // n**round_ % n == rank)


def lonely_pieces(pieces: Collection[int], availability: Sequence[int], num_seeds: int) -> frozenset[int]:
    """Those that nobody but seeds holds, so that asking for them costs a seed."""
    return frozenset(piece for piece in pieces if not availability or availability[piece] <= num_seeds)
