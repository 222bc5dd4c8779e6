"""What a volunteer sees while a node joins: lines and the view of a torrent client, or one JSON object per event for programs."""

from __future__ import annotations

import json
import sys
from typing import Any, Protocol

from rich.console import Console

from mesh.cli.transfers import ProgressEvents, TransferView
from mesh.sizes import format_size
from mesh.swarm.fetching import FetchProgress, FetchReport
from mesh.weights.trust.license_text import LicenseTexts
from node.accepting import AcceptedOffer


class Reporter(Protocol):
    def license(self, license_id: str, texts: LicenseTexts) -> None: ...

    def plan(self, name: str, accepted: AcceptedOffer, missing_bytes: int, kernel_id: str) -> None: ...

    def reserved(self) -> None: ...

    def fetching(self, progress: FetchProgress) -> None: ...

    def fetched(self, accepted: AcceptedOffer, report: FetchReport) -> None: ...

    def loading(self) -> None: ...

    def ready(self, endpoint: str, load_seconds: float) -> None: ...

    def superseded(self, reason: str) -> None: ...

    def close(self) -> None: ...


class JsonReporter:
    """NDJSON on stdout; the demo and other programs read it."""

    def __init__(self, node_id: str, incarnation: int) -> None:
        self._node_id, self._incarnation = node_id, incarnation
        self._fetching = self._new_fetching()

    def license(self, license_id: str, texts: LicenseTexts) -> None:
        shown = {name: text.decode("utf-8", errors="replace") for name, text in texts.named}
        self._emit("license", id=license_id, text=shown["LICENSE"], texts=shown)

    def plan(self, name: str, accepted: AcceptedOffer, missing_bytes: int, kernel_id: str) -> None:
        self._emit(
            "plan",
            node=name,
            node_id=self._node_id,
            incarnation=self._incarnation,
            model=accepted.manifest.name,
            layers=str(accepted.layers),
            shards=len(accepted.shards),
            shard_bytes=accepted.shard_bytes,
            download_bytes=missing_bytes,
            memory_bytes=accepted.plan.total_bytes,
            kernel=kernel_id,
        )

    def reserved(self) -> None:
        self._emit("reserved")

    def fetching(self, progress: FetchProgress) -> None:
        self._fetching(progress)

    def fetched(self, accepted: AcceptedOffer, report: FetchReport) -> None:
        self._emit(
            "fetched",
            payload_bytes=report.fetched_bytes,
            redundant_bytes=report.redundant_bytes,
            failed_bytes=report.failed_bytes,
            web_seed_bytes=report.web_seed_bytes,
            seconds=round(report.seconds, 3),
        )
        self._fetching = self._new_fetching()  # another release may follow

    def loading(self) -> None:
        self._emit("loading")

    def ready(self, endpoint: str, load_seconds: float) -> None:
        self._emit("ready", stage=endpoint, load_seconds=round(load_seconds, 3))

    def superseded(self, reason: str) -> None:
        self._emit("superseded", reason=reason)

    def close(self) -> None:
        pass

    def _new_fetching(self) -> ProgressEvents:
        return ProgressEvents(lambda facts: self._emit("fetching", **facts), every_seconds=0.0)

    def _emit(self, event: str, **facts: Any) -> None:
        sys.stdout.write(json.dumps({"event": event, **facts}) + "\n")
        sys.stdout.flush()


class ConsoleReporter:
    """For people: everything on stderr, as it is progress and not data."""

    def __init__(self) -> None:
        self._console = Console(stderr=True)
        self._name = ""
        self._view: TransferView | None = None

    def license(self, license_id: str, texts: LicenseTexts) -> None:
        for name, text in texts.named:
            self._console.rule(license_id if name == "LICENSE" else f"{license_id}: {name}")
            self._console.print(text.decode("utf-8", errors="replace"), markup=False, highlight=False)
        self._console.rule()

    def plan(self, name: str, accepted: AcceptedOffer, missing_bytes: int, kernel_id: str) -> None:
        manifest, plan = accepted.manifest, accepted.plan
        self._name = manifest.name
        held = (
            ""
            if missing_bytes == accepted.shard_bytes
            else f" of {format_size(accepted.shard_bytes)}, the rest is here"
        )
        self._console.print(
            f"[bold]{name}[/bold] will host layers [bold]{accepted.layers}[/bold] of {manifest.config.num_layers} "
            f"of {manifest.name} ({manifest.quantization}, {manifest.license.id})\n"
            f"  download {format_size(missing_bytes)}{held} in {len(accepted.shards)} shards, "
            f"memory {format_size(plan.total_bytes)} "
            f"(weights {format_size(plan.weight_bytes)}, KV cache {format_size(plan.kv_bytes)}, "
            f"workspace {format_size(plan.workspace_bytes)}, runtime {format_size(plan.runtime_bytes)})\n"
            f"  computes with {kernel_id}",
            highlight=False,
        )

    def reserved(self) -> None:
        pass  # the plan said it

    def fetching(self, progress: FetchProgress) -> None:
        if self._view is None:
            self._view = TransferView(self._name, self._console)
        self._view.fetching(progress)

    def fetched(self, accepted: AcceptedOffer, report: FetchReport) -> None:
        self.close()
        self._console.print(
            f"verified {format_size(accepted.shard_bytes)}, of these {format_size(report.fetched_bytes)} fetched "
            f"in {report.seconds:.1f} s ({format_size(report.redundant_bytes)} redundant)",
            highlight=False,
        )

    def loading(self) -> None:
        self._console.print("loading")

    def ready(self, endpoint: str, load_seconds: float) -> None:
        self._console.print(
            f"[green]ready[/green] on {endpoint} (loaded in {load_seconds:.1f} s). Ctrl-C leaves the mesh.",
            highlight=False,
        )

    def superseded(self, reason: str) -> None:
        self._console.print(f"{reason}: joining again", markup=False, highlight=False)

    def close(self) -> None:
        if self._view is not None:
            self._view.close()
            self._view = None
