"""``mesh demo``: the whole mesh on this machine, in one command."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def demo(
    model: Annotated[
        Path | None,
        typer.Option(
            help="A GGUF file or a Hugging Face directory. Default: SmolLM2-135M-Instruct, fetched once."
        ),
    ] = None,
    license_id: Annotated[
        str | None,
        typer.Option(
            "--license", help="Licence of --model. Default: a note that this machine alone uses it."
        ),
    ] = None,
    prompt: Annotated[
        str, typer.Option(help="The question to ask.")
    ] = "What is a torrent? Answer in two sentences.",
    max_tokens: Annotated[int, typer.Option(min=1, help="The longest answer, in tokens.")] = 64,
    nodes: Annotated[int, typer.Option(min=1, max=26, help="How many nodes share the layers.")] = 3,
    engine: Annotated[str, typer.Option(help="What nodes compute with: torch, native or auto.")] = "torch",
    kv_tokens: Annotated[int, typer.Option(min=16, help="Tokens of KV cache per node.")] = 2048,
) -> int | None:
    """Pack, sign and seed a model, run it across separate processes, and check the answer against one process."""
    from mesh.demo.demo_model import LICENSE_ID
    from mesh.demo.story import DemoOptions, run_demo

    text = None
    if model is not None and license_id is None:
        license_id = "LicenseRef-demo"
        text = b"Packed by the demo for use on this machine only; the model's own licence applies.\n"
    return run_demo(
        DemoOptions(
            model=model.expanduser() if model is not None else None,
            license_id=license_id or LICENSE_ID,
            license_text=text,
            prompt=prompt,
            max_tokens=max_tokens,
            num_nodes=nodes,
            kv_tokens=kv_tokens,
            engine=engine,
        )
    )
