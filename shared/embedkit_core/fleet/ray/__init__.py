"""Ray Data: embed a column of a dataset with a pool of workers, on any machines of a cluster."""

from embedkit_core.common.errors import MissingExtraError

try:
    import ray.data  # noqa: F401
except ImportError:
    raise MissingExtraError("embedkit_core.fleet.ray", "ray") from None

from embedkit_core.fleet.ray.dataset import embed

__all__ = ["embed"]
