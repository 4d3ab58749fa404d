"""Embed jobs of Cohere: a dataset of texts, a job, and a dataset of vectors.

Wire format, read 2026-11-30: cohere-openapi.yaml and fern/pages/v2/text-embeddings/embed-jobs-api.mdx at
github.com/cohere-ai/cohere-developer-experience (e814c8a), cohere 5.21 and 7.3 (datasets, embed_jobs, utils.py). Cohere
publishes no lower price for jobs. A result has the fields of its record that `keep_fields` names, among them its ID.

The requests are sent without the SDK, whose client reads datasets with another HTTP library, without the user's proxy
and certificates. Tested against a local server that follows the documentation, not against the live service.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any, BinaryIO, ClassVar, Self
from urllib.parse import quote, urlencode

from embedkit_core.common.errors import (
    BadReplyError,
    BadRequestError,
    BadTextError,
    BatchNotFoundError,
    ConfigurationError,
    FileNotReadyError,
    ProviderError,
    TextTooLongError,
    UnavailableError,
)
from embedkit_core.common.types import Reply
from embedkit_core.common.vectors import NUMPY_DTYPES, DType
from embedkit_core.providers.base import Provider
from embedkit_core.providers.batch_endpoint import BatchEndpoint, BatchLimits, BatchOrder, LineResult, RemoteBatch
from embedkit_core.providers.cohere import EMBEDDING_TYPES, Cohere, to_provider_error
from embedkit_core.providers.http.batch_lines import dump_line, read_list
from embedkit_core.providers.http.batch_transport import BatchTransport
from embedkit_core.providers.http.decoding import ReplyReader
from embedkit_core.providers.http.public_sdk import RawResponse
from embedkit_core.providers.http.refusals import Refusal, shorten_message
from embedkit_core.providers.secrets import Hidden

# A dataset may have 1.5 GB. Cohere states neither a number of records nor a time; it recommends jobs for 100,000 texts
# and more.
LIMITS = BatchLimits(window=24 * 3600.0, texts=100_000, lines=100_000, file_bytes=200_000_000, line_texts=1)
FIELDS = frozenset({"model", "input_type", "embedding_types", "truncate", "prompt"})  # of a request that a job can do
ID_FIELD = "custom_id"
ENDED = frozenset({"complete", "cancelled", "failed"})
NOT_VALIDATED_YET = frozenset({"unknown", "queued", "processing"})


class CohereEmbedJobs(BatchEndpoint):
    """Embed jobs of an embed v3 model. A cancelled job is billed as far as it went, and has no results."""

    name: ClassVar[str] = "embed-jobs"
    is_opt_in: ClassVar[bool] = True

    def __init__(self, provider: Provider) -> None:
        assert isinstance(provider, Cohere)
        if not provider.model.endswith("-v3.0"):
            raise ConfigurationError(
                f"model: embed jobs have only the embed v3 models (got {provider.model!r}). Embed without a batch."
            )
        if other := sorted(provider.request_body("document").keys() - FIELDS):
            raise ConfigurationError(
                f"{', '.join(other)}: not supported by embed jobs. Remove it, or embed without a batch."
            )
        if provider.on_long_text != "truncate":
            raise ConfigurationError(
                f"on_long_text: embed jobs truncate long texts (got {provider.on_long_text!r}). Use "
                "on_long_text='truncate', or embed without a batch."
            )
        self.limits = LIMITS
        self._provider = provider
        self._reader = ReplyReader()
        [sent_type] = provider.encodings
        self._dtype: DType = next(dtype for dtype, value in EMBEDDING_TYPES.items() if value == sent_type)
        self._embedding_type = "float" if self._dtype == "float32" else sent_type  # jobs have no base64
        self._transport: BatchTransport

    async def __aenter__(self) -> Self:
        import httpx

        self._provider.connection.check_not_lost()
        self._provider.secret.reveal()
        self._transport = BatchTransport(self._provider, httpx, lambda key: {"authorization": f"Bearer {key}"})
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self._transport.aclose()

    def line(self, custom_id: str, body: Mapping[str, Any], texts: Sequence[str]) -> bytes:  # noqa: ARG002
        """Return a record. The other fields of the request are those of the job."""
        [text] = texts
        return dump_line(self._reader, {"text": text, ID_FIELD: custom_id})

    def texts_of(self, line: bytes) -> list[str]:
        """Return the text of a record."""
        return [self._reader.load(line)["text"]]

    async def upload(self, file: Path, name: str) -> str:
        """Create a dataset. Cohere validates it afterwards."""
        query = urlencode({"name": name, "type": "embed-input", "keep_fields": ID_FIELD})
        with file.open("rb") as opened:
            response = await self._transport.send(
                "POST",
                f"{self._provider.address}/v1/datasets?{query}",
                files={"data": (f"{name}.jsonl", opened, "application/jsonl")},
            )
        dataset_id = self._check(response, quotes=False).get("id")
        if not isinstance(dataset_id, str) or not dataset_id:
            raise BadReplyError("Server response does not name the dataset that was created. Check base_url=.")
        return dataset_id

    async def create(self, order: BatchOrder) -> RemoteBatch:
        """Create a job, named by the nonce, from a dataset that is validated."""
        try:
            await self._check_validated(order.file_id)
        except ProviderError as error:
            error.unsent = True
            raise
        body = {
            **{name: order.body[name] for name in ("model", "input_type")},
            "dataset_id": order.file_id,
            "embedding_types": [self._embedding_type],
            "truncate": "END",  # "NONE" is not accepted
            "name": order.nonce,
        }
        job_id = self._check(await self._send("POST", "embed-jobs", body)).get("job_id")
        if not isinstance(job_id, str) or not job_id:
            raise BadReplyError("Server response does not name the job that was created. Check base_url=.")
        return RemoteBatch(job_id, "processing", has_ended=False)

    async def find(self, nonce: str) -> list[RemoteBatch]:
        """Return the jobs whose name is the nonce; the list has no pages."""
        jobs = read_list(self._check(await self._send("GET", "embed-jobs")).get("embed_jobs"))
        return [_read(job) for job in jobs if job.get("name") == nonce]

    async def retrieve(self, batch_id: str) -> RemoteBatch:
        """Return the current state of a job."""
        return _read({"job_id": batch_id, **await self._get("embed-jobs", batch_id, "Embed job")})

    async def download(self, output: str, file: Path) -> None:
        """Write the records of a result dataset, which are in Avro files, as lines of JSON, without their texts."""
        urls = await self._addresses(output)
        with file.open("wb") as lines:
            for url in urls:
                with tempfile.TemporaryFile(dir=file.parent) as part:
                    status = await self._transport.fetch(url, part)
                    if status in (403, 404, 410):
                        raise self._not_found("Result file", status)
                    if status != 200:
                        raise UnavailableError(f"Server failed (HTTP {status}).", provider="cohere", status=status)
                    part.seek(0)
                    self._convert(part, lines)

    async def _cancel(self, batch_id: str) -> None:
        """Send the request that cancels a job. Cohere bills what it has done, and returns nothing."""
        response = await self._send("POST", f"embed-jobs/{quote(batch_id, safe='')}/cancel", {})
        if response.status == 404:
            raise self._not_found("Embed job", response.status)
        self._check(response, is_empty=True)

    async def delete_upload(self, file_id: str) -> None:
        """Delete a dataset, which Cohere otherwise keeps for 30 days."""
        response = await self._send("DELETE", f"datasets/{quote(file_id, safe='')}")
        if response.status != 404:
            self._check(response, is_empty=True)

    def parse(self, line: bytes) -> LineResult:
        """Return the result in a line that `download` wrote. Records have neither a model nor an error."""
        value = self._reader.load(line)
        if not isinstance(value, dict) or "embeddings" not in value:
            raise ValueError("not a record of a result dataset")
        custom_id = value.get(ID_FIELD)
        return LineResult(custom_id if isinstance(custom_id, str) else None, 200, value["embeddings"])

    def decode(self, result: LineResult, n_texts: int) -> Reply:
        """Return the vector of a record. Cohere states the billed tokens of a whole job at most."""
        row = result.reply.get(self._embedding_type) if isinstance(result.reply, dict) else None
        if not isinstance(row, list):
            raise BadReplyError(f"Result of an embed job has no embedding of type {self._embedding_type}")
        return self._reader.read_rows([row], n_texts, NUMPY_DTYPES[self._dtype], None)

    async def _addresses(self, dataset_id: str) -> list[Hidden]:
        """Return the signed addresses of the files of a result dataset."""
        dataset = (await self._get("datasets", dataset_id, "Result dataset")).get("dataset")
        parts = dataset.get("dataset_parts") if isinstance(dataset, dict) else None
        urls = [Hidden(part["url"]) for part in parts or [] if isinstance(part, dict) and part.get("url")]
        is_complete = bool(urls) and len(urls) == len(parts or [])
        del dataset, parts  # tools that report errors show local variables
        if not is_complete:
            raise BadReplyError("Server response has no addresses of the results. Check base_url=.")
        return urls

    async def _check_validated(self, dataset_id: str) -> None:
        """Check that a job can be created from a dataset."""
        response = await self._send("GET", f"datasets/{quote(dataset_id, safe='')}")
        dataset = {} if response.status == 404 else self._check(response).get("dataset")
        status = dataset.get("validation_status", "unknown") if isinstance(dataset, dict) else "unknown"
        if status in NOT_VALIDATED_YET:
            raise FileNotReadyError("Uploaded dataset is not validated yet.", provider="cohere")
        if status != "validated":  # the reason may repeat a text
            raise BadRequestError(
                "Cohere did not accept the uploaded dataset. Embed without a batch.", provider="cohere"
            )

    def _convert(self, avro: BinaryIO, lines: BinaryIO) -> None:
        """Write records as lines with the ID and the vectors of the requested type."""
        flaw = ""
        try:
            self._write_records(avro, lines)
        except OSError:
            raise
        except Exception as error:  # fastavro has no base class of its errors
            flaw = type(error).__name__
        if flaw:
            raise BadReplyError(f"Result dataset cannot be read as Avro ({flaw})")

    def _write_records(self, avro: BinaryIO, lines: BinaryIO) -> None:
        fastavro = import_module("fastavro")  # a dependency of the SDK
        for record in fastavro.reader(avro):
            kept = {self._embedding_type: record["embeddings"][self._embedding_type]}
            lines.write(self._reader.dump({ID_FIELD: record.get(ID_FIELD), "embeddings": kept}) + b"\n")

    async def _send(self, method: str, path: str, body: Mapping[str, Any] | None = None) -> RawResponse:
        content = None if body is None else self._reader.dump(body)
        headers = {} if body is None else {"content-type": "application/json"}
        return await self._transport.send(
            method, f"{self._provider.address}/v1/{path}", headers=headers, content=content
        )

    async def _get(self, kind: str, name: str, what: str) -> dict[str, Any]:
        response = await self._send("GET", f"{kind}/{quote(name, safe='')}")
        if response.status == 404:
            raise self._not_found(what, response.status)
        return self._check(response)

    def _check(self, response: RawResponse, *, quotes: bool = True, is_empty: bool = False) -> dict[str, Any]:
        """Return the JSON object of a success, without `quotes` no message of the server: the request had texts."""
        try:
            reply = self._reader.load(response.body)
        except ValueError:
            reply = None
        if response.status == 200:
            if not isinstance(reply, dict) and not is_empty:
                raise BadReplyError("Server response is not JSON. Check base_url=.")
            return reply if isinstance(reply, dict) else {}
        fields = reply if isinstance(reply, dict) else {}
        message = shorten_message(str(fields.get("message") or "")) if quotes else ""
        headers = {name.lower(): value for name, value in response.headers.items()}
        refusal = Refusal(
            *("cohere", self._provider.model, response.status, message, headers, ()),
            secrets=self._transport.secrets(),
            request_id=str(fields.get("id") or "") or headers.get("x-request-id"),
        )
        failure = to_provider_error(refusal)
        # Requests of this endpoint are about datasets and jobs.
        raise refusal.bad_request() if isinstance(failure, BadTextError | TextTooLongError) else failure

    def _not_found(self, what: str, status: int) -> BatchNotFoundError:
        return BatchNotFoundError(
            f"{what} does not exist at Cohere (HTTP {status}). It was deleted, or belongs to another account.",
            provider="cohere",
            status=status,
        )


def _read(job: Mapping[str, Any]) -> RemoteBatch:
    """Return a job. Its result dataset counts whatever its state; a cancelled one has none."""
    status, output = str(job.get("status") or ""), job.get("output_dataset_id")
    has_ended = status in ENDED
    return RemoteBatch(
        id=str(job.get("job_id") or ""),
        status=status,
        has_ended=has_ended,
        outputs=(output,) if has_ended and isinstance(output, str) and output else (),
        error="Cohere states no reason" if status == "failed" else "",
    )
