"""Submit texts through a batch endpoint, one a line, and read its results; the line's number is in its ID."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from embedkit_core.providers.batch_endpoint import BatchEndpoint, BatchOrder, LineResult, RemoteBatch

NONCE = "0f1e2d3c4b5a6978"


def line_id(number: int) -> str:
    return f"{NONCE}-{number}"


async def upload(endpoint: BatchEndpoint, folder: Path, body: Mapping[str, Any], texts: Sequence[str]) -> BatchOrder:
    """Write and upload a file of lines, and return the order of its batch."""
    file = folder / "lines.jsonl"
    lines = [endpoint.line(line_id(number), body, [text]) for number, text in enumerate(texts)]
    assert [endpoint.texts_of(line) for line in lines] == [[text] for text in texts]
    file.write_bytes(b"".join(line + b"\n" for line in lines))
    return BatchOrder(await endpoint.upload(file, f"embedkit-{NONCE}"), NONCE, body, len(texts))


async def read_results(endpoint: BatchEndpoint, folder: Path, batch: RemoteBatch) -> dict[str | None, LineResult]:
    """Download the results of a batch."""
    found: dict[str | None, LineResult] = {}
    file = folder / "results.jsonl"
    file.touch()
    for output in batch.outputs:
        await endpoint.download(output, file)
        found |= {result.custom_id: result for result in map(endpoint.parse, file.read_bytes().splitlines())}
    return found
