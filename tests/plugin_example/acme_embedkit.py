from zlib import crc32

import numpy as np

from embedkit_core.providers import Batch, Limits, Provider, ProviderSettings, Reply


class Acme(Provider):
    name = "acme"

    def __init__(self, settings: ProviderSettings) -> None:
        settings.only("dimensions", "query_prompt", "document_prompt")
        self.model, self.account, self.limits = settings.name, "acme", Limits(texts=100)
        self.dimensions, self.prompts = settings.dimensions or 64, settings.prompts

    def wire(self, input_type):
        return {"model": self.model, "dimensions": self.dimensions, "prompt": self.prompts[input_type]}

    def connect(self):
        return AcmeClient()


class AcmeClient:
    async def embed(self, batch: Batch) -> Reply:
        model, width = batch.wire["model"], batch.wire["dimensions"]
        seeds = [crc32(f"{model} {text}".encode()) for text in batch.prompted()]
        rows = [np.random.default_rng(seed).random(width, np.float32) for seed in seeds]
        return Reply(np.stack(rows), tokens=None)

    async def aclose(self) -> None: ...
