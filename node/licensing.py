"""The volunteer's word on a licence: the texts are shown, then their word is asked for, then it is recorded.

Who gave ``--accept-license`` sees the texts too. ``--yes`` is a word on the plan and never on a licence.
"""

from __future__ import annotations

import logging
import sys

from mesh.cli.asking import ask
from mesh.clock import Clock
from mesh.weights.trust.acceptance_book import AcceptanceBook
from mesh.weights.trust.signing import PrivateKey
from node.accepting import LicenseNotAccepted
from node.config import NodeConfig
from node.reporting import Reporter

logger = logging.getLogger(__name__)


async def take_word(
    asked: LicenseNotAccepted,
    config: NodeConfig,
    *,
    key: PrivateKey,
    book: AcceptanceBook,
    reporter: Reporter,
    clock: Clock,
) -> None:
    """Returns once the acceptance is recorded; raises ``asked`` itself if the word was not given."""
    license_ = asked.manifest.license
    reporter.license(license_.id, asked.texts)
    if config.accept_license != license_.id and not await _typed(license_.id, config):
        raise asked
    book.record_for(asked.manifest, key, clock.wall())
    logger.info("licence accepted", extra={"license": license_.id, "release": asked.manifest.name})


async def _typed(license_id: str, config: NodeConfig) -> bool:
    """Typing the id is a deliberate act; a habitual Enter or y is not."""
    if config.assume_yes or config.accept_license is not None or not sys.stdin.isatty():
        return False
    return await ask(f"To accept these terms type {license_id}: ") == license_id
