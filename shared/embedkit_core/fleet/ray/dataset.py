"""The function that embeds a column of a dataset."""

from __future__ import annotations

import inspect
import logging
import math
import warnings
from collections.abc import Mapping
from typing import Any

import ray
from ray.data import ActorPoolStrategy, Dataset
from ray.data.dataset import MaterializedDataset

from embedkit_core.common.errors import ConfigurationError
from embedkit_core.common.formatting import suggest
from embedkit_core.common.types import InputType
from embedkit_core.common.validation import MIN_SIMILARITY, check_integer
from embedkit_core.costs.tracker import active_trackers
from embedkit_core.embedder import Embedder
from embedkit_core.fleet.column_embedder import ColumnEmbedder
from embedkit_core.fleet.columns import refuse_name
from embedkit_core.fleet.ray.driver import Run, driver
from embedkit_core.fleet.ray.worker import Worker
from embedkit_core.observability.progress import ProgressOption, check_progress

BLOCK_ROWS = 4096
CPUS = 0.25  # of a worker
RAYS_PATIENCE = 1800.0  # seconds without a finished block after which Ray 2.60 ends a run, by default
PATIENCE = 6 * 3600.0
OWN_NAMES = {"batch_size": "block_rows", "compute": "workers", "concurrency": "workers", "max_concurrency": "threads"}
MAX_RESTARTS = 100  # of a worker; a batch that always ends its process ends the run after MAX_ATTEMPTS

logger = logging.getLogger("embedkit_core.fleet")


def embed(
    dataset: Dataset,
    column: str,
    embedder: Embedder | str,
    *,
    workers: int,
    vector_column: str = "vector",
    input_type: InputType = "document",
    error_column: str | None = None,
    threads: int = 4,
    block_rows: int | None = BLOCK_ROWS,
    num_cpus: float | None = None,
    progress: ProgressOption = None,
    **options: Any,
) -> Dataset:
    """Embed a column of a dataset with a pool of workers: processes on any machines of the cluster.

    The dataset is lazy, like all of Ray Data: nothing is sent until it is written, materialized or iterated. The usage
    of all workers is added to `embedder.usage` and to the `track_usage` blocks around this call, batch by batch.

    If a worker dies, Ray starts it again and its batches run again; what was answered before comes from the cache. A
    batch during which a worker has died three times ends the run with an error.

    Args:
        dataset: The dataset.
        column: The name of the column with the texts.
        embedder: An `Embedder`, whose settings the workers use, or the name of a model. On several machines, it needs a
            cache that they share. No API key is sent: the workers read it from their environment.
        workers: The number of workers, each with up to `max_concurrency` requests in flight.
        vector_column: The name of the column to add: a tensor column of shape (n_rows, dimensions).
        input_type: "document" or "query".
        error_column: The name of a column to add for the errors of texts; see `ColumnEmbedder`.
        threads: The number of blocks that a worker embeds at the same time.
        block_rows: The rows of a block, and so the texts of a call; smaller blocks are joined and larger ones divided.
            None for the blocks that the dataset has.
        num_cpus: The CPUs that Ray reserves for a worker, which mostly waits for the provider. By default a quarter of
            one, or so much less that one CPU of a machine is left for reading.
        progress: True for a bar over all workers, or a function that receives a `Progress`. Defaults to the embedder's.
        options: Further arguments of `Dataset.map_batches`, such as `num_gpus=1` for a local model.

    Returns:
        The dataset with the column of vectors. Ray Data keeps the order of the rows only if asked to.

    Raises:
        ConfigurationError: An argument is invalid, or the embedder cannot be sent to workers; see `ColumnEmbedder`.

    Example:
        ```python
        embedder = Embedder("openai:text-embedding-3-small", cache=["vectors", "redis://host:6379/0"])
        embed(ray.data.read_parquet("texts"), "text", embedder, workers=8).write_parquet("vectors")
        print(embedder.usage)
        ```
    """
    if not isinstance(dataset, Dataset):
        raise ConfigurationError(
            f"dataset: must be a ray.data.Dataset (got {type(dataset).__name__}). Create one with, for "
            "example, ray.data.read_parquet or ray.data.from_pandas."
        )
    _check_options(options)
    embedder = Embedder(embedder) if isinstance(embedder, str) else embedder
    embed_column = ColumnEmbedder(embedder, column, vector_column, input_type=input_type, error_column=error_column)
    check_integer("workers", workers, 1)
    check_integer("threads", threads, 1)
    if block_rows is not None:
        check_integer("block_rows", block_rows, 1)
    check_progress(progress)
    schema = dataset.schema(fetch_if_missing=False)
    if schema is not None and column not in schema.names:
        refuse_name("column", column, schema.names)
    if any(tracker.budget is not None for tracker in active_trackers()):
        raise ConfigurationError(
            "track_usage: the budget of a block does not limit workers. Omit it, and create the embedder with "
            "budget_usd= or budget_tokens=, and budget_name=."
        )
    _warn_of_machines(embedder)
    run = Run(
        embedder,
        input_type,
        embedder.settings.progress if progress is None else progress,
        dataset.count() if isinstance(dataset, MaterializedDataset) else None,
    )
    here = driver()
    here.add(run)
    if block_rows is not None:
        exactly: dict[str, Any] = (
            {"strict": True} if "strict" in inspect.signature(Dataset.repartition).parameters else {}
        )
        dataset = dataset.repartition(target_num_rows_per_block=block_rows, **exactly)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "`ray_remote_args`")  # restarts have no other name yet
        embedded = dataset.map_batches(
            Worker,
            fn_constructor_args=(embed_column, run.name, here.ledger),
            batch_size=None,
            batch_format="pyarrow",
            num_cpus=_cpus_for(workers) if num_cpus is None else num_cpus,
            **{**_pool_arguments(workers, threads), **options},
        )
    _extend_patience(embedded)
    return embedded


def _check_options(options: Mapping[str, Any]) -> None:
    """Check that no option is one that `embed` sets, or a misspelled argument of `embed`; Ray checks the others."""
    for name in options:
        if name in OWN_NAMES:
            raise ConfigurationError(f"{name}: is set by embed. Use {OWN_NAMES[name]}=.")
        hint = suggest(name, inspect.signature(embed).parameters.keys(), cutoff=MIN_SIMILARITY)
        if hint and name not in inspect.signature(Dataset.map_batches).parameters:
            raise ConfigurationError(f"{name}: is no argument of embed; {hint}")


def _pool_arguments(workers: int, threads: int) -> dict[str, Any]:
    """Return the arguments of `map_batches` for the pool, as this version of Ray names them."""
    pool: dict[str, Any] = {"size": workers, "enable_true_multi_threading": True}
    arguments: dict[str, Any] = {"max_restarts": MAX_RESTARTS, "max_task_retries": -1}  # while a machine dies, too
    if "max_concurrent_calls_per_actor" in inspect.signature(ActorPoolStrategy).parameters:
        pool["max_concurrent_calls_per_actor"] = threads
    else:
        arguments["max_concurrency"] = threads
    return {**arguments, "compute": ActorPoolStrategy(**pool)}


def _extend_patience(dataset: Dataset) -> None:
    """Extend Ray's default time without a finished block: a low limit per minute makes the first blocks slow."""
    context = dataset.context
    if getattr(context, "execution_no_progress_timeout_s", None) == RAYS_PATIENCE:
        context.execution_no_progress_timeout_s = PATIENCE


def _cpus_for(workers: int) -> float:
    """Return the CPUs to reserve for a worker. If the workers took parts of all CPUs, nothing could be read."""
    cpus = [cpus for node in _machines() if (cpus := float(node["Resources"].get("CPU", 0.0)))]
    if not cpus:  # a cluster that adds machines when they are needed
        return CPUS
    on_each = math.ceil(workers / len(cpus))  # Ray Data spreads them
    return min(CPUS, max(0.0, math.floor((max(cpus) - 1) / on_each * 10_000) / 10_000))


def _machines() -> list[dict[str, Any]]:
    return [node for node in ray.nodes() if node["Alive"]]


def _warn_of_machines(embedder: Embedder) -> None:
    """Log a warning if the cluster has several machines and the embedder's caches are folders of each."""
    machines = len(_machines())
    folders = [tier.folder for tier in embedder.vector_cache.tiers]
    if machines > 1 and folders and all(folders):
        logger.warning(
            "The cluster has %s machines, and the cache is a folder on each of them: a text that several machines "
            "embed is paid for by each. They share limits and named budgets with coordination='redis://host:6379/0', "
            "and vectors too with cache=['folder', 'redis://host:6379/0'].",
            machines,
        )
