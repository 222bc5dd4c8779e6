"""A process that fetches a whole release from one peer: for tests that kill it or shrink its disk.

    python fetch_process.py RELEASE_DIR SAVE_PATH PORT [MAX_FILE_BYTES]

RELEASE_DIR holds ``manifest.json`` and ``release.torrent``. Prints the bytes done as they come, then the error or "ok".
"""

from __future__ import annotations

import asyncio
import resource
import signal
import sys
from pathlib import Path

from mesh.errors import MeshError
from mesh.swarm.fetching import FetchProgress, fetch
from mesh.swarm.session import SwarmSession
from mesh.weights.trust.manifest import Manifest


async def main(release: Path, save_path: Path, port: int) -> int:
    manifest = Manifest.parse((release / "manifest.json").read_bytes())

    def show(progress: FetchProgress) -> None:
        print(progress.done_bytes, flush=True)

    try:
        async with SwarmSession() as session:
            await fetch(
                session,
                (release / "release.torrent").read_bytes(),
                manifest,
                manifest.shards,
                save_path,
                lambda: [("127.0.0.1", port)],
                show,
            )
    except MeshError as exc:
        print(f"{type(exc).__name__}: {exc}", flush=True)
        return exc.exit_code
    print("ok", flush=True)
    return 0


if __name__ == "__main__":
    if len(sys.argv) > 4:
        signal.signal(
            signal.SIGXFSZ, signal.SIG_IGN
        )  # writes then fail with EFBIG, as on a full disk with ENOSPC
        resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[4]),) * 2)
    sys.exit(asyncio.run(main(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]))))
