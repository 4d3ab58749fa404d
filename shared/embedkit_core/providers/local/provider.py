"""Local Hugging Face models, through sentence-transformers."""

from __future__ import annotations

import importlib.util
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

from embedkit_core.common.errors import ConfigurationError
from embedkit_core.common.types import Limits
from embedkit_core.providers.base import Client, ProviderSettings
from embedkit_core.providers.local.base import CPU_LIMITS, LocalProvider, check_width, choose_prompts
from embedkit_core.providers.local.client import LocalClient
from embedkit_core.providers.local.digest import folder_digest
from embedkit_core.providers.local.exports import data_files, find_export
from embedkit_core.providers.local.folder import FolderInfo, find_folder, hub_name
from embedkit_core.providers.local.options import LocalOptions, read_local_options
from embedkit_core.providers.local.pool import PooledModel
from embedkit_core.providers.local.sentence_transformer import SentenceTransformerModel

# Modules of optimum, which runs exported models for sentence-transformers.
BACKEND_MODULES = {"onnx": "optimum.onnxruntime", "openvino": "optimum.intel"}


class Local(LocalProvider):
    """A sentence-transformers model, by its folder or by its name in the local Hugging Face cache."""

    name: ClassVar[str] = "local"
    extra: ClassVar[str | None] = "local"
    needs: ClassVar[tuple[str, ...]] = ("sentence_transformers", "torch")

    def __init__(self, settings: ProviderSettings) -> None:
        super().__init__(settings)
        self._folder = find_folder(settings.name)
        folder_info = FolderInfo(self._folder)
        self._options = read_local_options(settings.options, max_tokens=folder_info.positions)
        self._files: tuple[str, ...] = ()
        if self._options.backend != "torch":
            self._use_export(folder_info.transformer)
        self._digest = folder_digest(self._folder, *self._files)
        self.account = (self.name, str(self._folder), self._digest, self._options)
        self.limits = _limits(self._options)
        self._max_tokens = self._options.max_seq_length or folder_info.max_tokens
        self._asymmetric = folder_info.asymmetric
        self._prompts = choose_prompts(settings, folder_info.prompts)
        self.dimensions = check_width(settings, folder_info.dimensions)

    def _use_export(self, transformer: Path) -> None:
        """Find the file of a model in another format than PyTorch's.

        Raises:
            ConfigurationError: There is no such file, or the packages of the backend are not installed.
        """
        backend = self._options.backend
        file = find_export(transformer, backend, self._options.file_name)
        if not _is_installed(BACKEND_MODULES[backend]):
            raise ConfigurationError(
                f"provider_options: backend={backend!r} needs packages that are not installed. Run: pip install "
                f'"sentence-transformers[{backend}]". They pin older versions of transformers, so no extra has them.'
            )
        self._options = replace(self._options, file_name=file.relative_to(transformer).as_posix())
        self._files = data_files(file)

    @classmethod
    def catalogue_name(cls, name: str) -> str:
        """Return the model's name on the Hugging Face Hub, also for a folder in the Hugging Face cache."""
        return hub_name(name)

    def model_fields(self) -> dict[str, Any]:
        """Return the digest of the model, its backend and the precision of PyTorch."""
        fields = {"model": self._digest, "backend": self._options.backend}
        if self._options.backend == "torch":
            fields["precision"] = self._options.precision
        return fields

    def connect(self) -> Client:
        """Start the thread of the model, which is loaded there at the first request."""
        model_class = PooledModel if self._options.is_pool else SentenceTransformerModel
        return LocalClient(model_class(self._folder, self._digest, self._options, self._files))


def _limits(options: LocalOptions) -> Limits:
    """Return the limits of a request; only a single CPU needs a token limit, because it is slow."""
    return CPU_LIMITS if options.is_cpu and not options.is_pool else replace(CPU_LIMITS, tokens=None)


def _is_installed(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ImportError:  # its package is not
        return False
