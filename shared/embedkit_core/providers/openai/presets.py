"""Named servers with OpenAI's API, such as `Embedder("mistral:mistral-embed")`: one row of data each.

Each is the OpenAI provider with the fields and defaults of another server. In cache keys, a service is identified by
its name, any other server by its address, as with `base_url`.

To add a server, add a row to `PRESETS`, its name to `COMPATIBLE` in `common.plugins` and to the entry points, and a
request to tests/fixtures/compatible_requests.json. Facts have their source, read 2026-11-30 unless stated otherwise.
"""

from __future__ import annotations

import types
from collections.abc import Mapping
from dataclasses import replace
from functools import cache
from types import MappingProxyType
from typing import Any, Final

from embedkit_core.common.errors import ConfigurationError
from embedkit_core.common.types import ModelInfo
from embedkit_core.providers import catalogue
from embedkit_core.providers.base import ProviderSettings
from embedkit_core.providers.http.address import canonical_url
from embedkit_core.providers.openai.provider import OpenAI
from embedkit_core.providers.openai.servers import BatchRules, Role, Server, Truncation

CAUTIOUS_TEXTS = 64  # of a request, for services that state no limit

PRESETS: Final[Mapping[str, Server]] = MappingProxyType(
    {
        # Servers that users run.
        #
        # The v1 endpoint needs no api-version. The key is a bearer token, the model is the deployment's name.
        # learn.microsoft.com/azure/ai-foundry/openai/api-version-lifecycle; variables: openai-python's AzureOpenAI.
        "azure": Server(
            "the Azure OpenAI resource",
            None,
            path="/openai/v1",
            address_variables=("AZURE_OPENAI_ENDPOINT",),
            key_variables=("AZURE_OPENAI_API_KEY", "AZURE_OPENAI_AD_TOKEN"),
            needs_key=True,
            refuses_long_texts=True,
            base64=True,
        ),
        # Strings only, never token ids. The server truncates or refuses long texts by num_ctx. Any key is accepted.
        # github.com/ollama/ollama, openai/openai.go, envconfig/config.go, docs/openai.md, 2026-11-25.
        "ollama": Server(
            "Ollama",
            "http://localhost:11434/v1",
            address_variables=("OLLAMA_HOST",),
            key_variables=("OLLAMA_API_KEY",),
        ),
        # `dimensions` only for models configured as Matryoshka models; long texts are refused; docs.vllm.ai, "vllm
        # serve", 2026-11-25.
        "vllm": Server("vLLM", "http://localhost:8000/v1", key_variables=("VLLM_API_KEY",), refuses_long_texts=True),
        # 32 texts (--max-client-batch-size) and 2 MB (--payload-limit) per request; 2 MB of text are at least 500,000
        # estimated tokens. `dimensions` is ignored, `encoding_format` is supported. The server's own key variable,
        # API_KEY, is not read because its name is too general.
        # github.com/huggingface/text-embeddings-inference, router/src/main.rs, http/server.rs, README.md (port 8080),
        # 2026-11-25.
        "tei": Server("text-embeddings-inference", "http://localhost:8080/v1", texts=32, tokens=500_000),
        # No /v1; 2048 texts; long texts are truncated without notice. github.com/michaelfeil/infinity,
        # infinity_emb/env.py, fastapi_schemas/pymodels.py, 2026-11-25.
        "infinity": Server(
            "infinity", "http://localhost:7997", path="", key_variables=("INFINITY_API_KEY",), texts=2048
        ),
        # Strings only; always answers with floats (lmstudio-bug-tracker#756). lmstudio.ai/docs/api/openai-api,
        # /docs/developer/core/authentication, 2026-11-25.
        "lmstudio": Server("LM Studio", "http://localhost:1234/v1", key_variables=("LM_API_TOKEN",)),
        # Long texts are refused with 500. Newer builds announce port 9931 (ggml-org/llama.cpp#26508).
        # github.com/ggml-org/llama.cpp, tools/server/README.md.
        "llamacpp": Server(
            "llama-server", "http://localhost:8080/v1", key_variables=("LLAMA_API_KEY",), refuses_long_texts=True
        ),
        # Long texts are refused, without --allow-auto-truncate. sgl-project/sglang 0.5.23, serving_embedding.py.
        "sglang": Server("SGLang", "http://localhost:30000/v1", refuses_long_texts=True),
        # Unknown fields are passed on to the model. xorbitsai/inference 4.1.0, api/restful_api.py.
        "xinference": Server("Xinference", "http://localhost:9997/v1", key_variables=("XINFERENCE_API_KEY",)),
        # github.com/mudler/LocalAI, core/http/endpoints/openai/embeddings.go.
        "localai": Server("LocalAI", "http://localhost:8080/v1", key_variables=("LOCALAI_API_KEY",)),
        # The engine is llama.cpp. docs.docker.com/ai/model-runner/api-reference.
        "docker": Server("Docker Model Runner", "http://localhost:12434/engines/v1", path="/engines/v1"),
        # Fields are passed on to the host of the model; hosts refuse either value of encoding_format
        # (vectorize-io/hindsight#928, BerriAI/litellm#42421). docs.litellm.ai/docs/providers/litellm_proxy.
        "litellm": Server(
            "the LiteLLM proxy",
            "http://localhost:4000/v1",
            address_variables=("LITELLM_PROXY_API_BASE",),
            key_variables=("LITELLM_PROXY_API_KEY",),
            encoding_field=None,
        ),
        # Texts per request, dimensions and base64 are not documented.
        # docs.databricks.com/aws/en/machine-learning/model-serving/query-embedding-models.
        "databricks": Server(
            "the Databricks workspace",
            None,
            path="/serving-endpoints",
            address_variables=("DATABRICKS_HOST",),
            key_variables=("DATABRICKS_TOKEN",),
            needs_key=True,
            texts=CAUTIOUS_TEXTS,
            base64=False,
            dimensions_field=None,
        ),
        # Services.
        #
        # Unknown fields are refused. 256 texts (rig-core 0.42, tried live) and 16,000 tokens (langchain-mistralai
        # 1.1.6) per request. Base64 is answered with floats (Mintplex-Labs/anything-llm#5794).
        # mistralai/platform-docs-public, openapi.yaml at 222f4ba. Batches: see mistral_batch.
        "mistral": Server(
            "Mistral",
            "https://api.mistral.ai/v1",
            key_variables=("MISTRAL_API_KEY",),
            texts=256,
            tokens=16_000,
            base64=False,
            dimensions_field="output_dimension",
            dtype_field="output_dtype",
            dtypes={"int8": "int8", "uint8": "uint8", "binary": "binary", "ubinary": "ubinary"},
            batch=BatchRules(
                "embedkit_core.providers.openai.mistral_batch:MistralBatches", texts=100_000, lines=100_000
            ),
        ),
        # 50 texts are the default of langchain-nvidia-ai-endpoints 1.5.0. Also for a NIM at NVIDIA_BASE_URL.
        # docs.nvidia.com/nim/nemo-retriever/embedding/2.4/reference.
        "nvidia": Server(
            "NVIDIA",
            "https://integrate.api.nvidia.com/v1",
            address_variables=("NVIDIA_BASE_URL",),
            key_variables=("NVIDIA_API_KEY",),
            texts=50,
            role=Role("input_type", {"query": "query", "document": "passage"}),
            truncation=Truncation("truncate", "NONE", "END"),
        ),
        # The role is passed on to the host of the model. Base64 may be answered with no vectors
        # (plastic-labs/honcho#932).
        # openrouter.ai/docs/api/api-reference/embeddings/create-embeddings; SDK openrouter 1.3.84.
        "openrouter": Server(
            "OpenRouter",
            "https://openrouter.ai/api/v1",
            key_variables=("OPENROUTER_API_KEY",),
            texts=CAUTIOUS_TEXTS,
            base64=False,
            role=Role("input_type", {"query": "search_query", "document": "search_document"}, False),
            host_options={"provider": {"only": ["HOST"]}},
        ),
        # vercel.com/docs/ai-gateway/sdks-and-apis/openai-chat-completions/embeddings.
        "vercel": Server(
            "Vercel's AI gateway",
            "https://ai-gateway.vercel.sh/v1",
            key_variables=("AI_GATEWAY_API_KEY", "VERCEL_OIDC_TOKEN", "VERCEL_AI_GATEWAY_API_KEY"),
            texts=CAUTIOUS_TEXTS,
            base64=False,
            host_options={"providerOptions": {"gateway": {"only": ["HOST"]}}},
        ),
        # Unknown fields are refused, such as encoding_format (QuantumNous/new-api#1941). 2048 texts are those of
        # llama-index-embeddings-jinaai. api.jina.ai/openapi.json.
        "jina": Server(
            "Jina AI",
            "https://api.jina.ai/v1",
            key_variables=("JINA_API_KEY", "JINAAI_API_KEY", "JINA_AI_API_KEY"),
            texts=2048,
            encoding_field="embedding_type",
            role=Role("task", {"query": "retrieval.query", "document": "retrieval.passage"}),
            truncation=Truncation("truncate", False, True),
            refused_options=("late_chunking", "return_multivector"),
            dtype_field="embedding_type",
            dtypes={"binary": "binary", "ubinary": "ubinary"},
        ),
        # The schema has no encoding_format. docs.fireworks.ai/api-reference,
        # creates-an-embedding-vector-representing-the-input-text.
        "fireworks": Server(
            "Fireworks",
            "https://api.fireworks.ai/inference/v1",
            key_variables=("FIREWORKS_API_KEY",),
            texts=2048,
            encoding_field=None,
            always={"normalize": True},
        ),
        # The schema has model and input only; `dimensions` is refused (ogx-ai/ogx#3559). docs.together.ai, openapi.
        "together": Server(
            "Together",
            "https://api.together.ai/v1",
            key_variables=("TOGETHER_API_KEY",),
            texts=100,
            encoding_field=None,
            dimensions_field=None,
        ),
        # Its former address is api.studio.nebius.com. docs.agno.com and docs.pixeltable.com, not its own docs.
        # Batches: docs.tokenfactory.nebius.com/ai-models-inference/batch-inference, with higher limits than OpenAI's.
        "nebius": Server(
            "Nebius Token Factory",
            "https://api.tokenfactory.nebius.com/v1",
            key_variables=("NEBIUS_API_KEY",),
            texts=CAUTIOUS_TEXTS,
            base64=False,
            batch=BatchRules(),
        ),
        # Long texts are truncated without notice. docs.deepinfra.com/api-reference/openai-embeddings-1.
        # Batches: docs.deepinfra.com/batch/introduction, which states no limits.
        "deepinfra": Server(
            "DeepInfra",
            "https://api.deepinfra.com/v1/openai",
            key_variables=("DEEPINFRA_API_KEY", "DEEPINFRA_TOKEN", "DEEPINFRA_API_TOKEN"),
            texts=1024,
            batch=BatchRules(),
        ),
        # Input types only at the native API. alibabacloud.com/help/en/model-studio,
        # embedding-interfaces-compatible-with-openai.
        "dashscope": Server(
            "Alibaba Cloud Model Studio",
            "https://dashscope-intl.aliyuncs.com/compatible-mode/v1",
            key_variables=("DASHSCOPE_API_KEY", "ALIBABA_API_KEY"),
            texts=10,
            base64=False,
            rate_limit_codes=frozenset({"insufficient_quota"}),
        ),
        # Vectors are int8, not normalized; binary is packed from the lowest bit, so it is computed here.
        # docs.perplexity.ai/docs/embeddings; SDK perplexityai 0.46.1.
        "perplexity": Server(
            "Perplexity",
            "https://api.perplexity.ai/v1",
            key_variables=("PERPLEXITY_API_KEY",),
            texts=512,
            tokens=120_000,
            encoding_field=None,
            dtype_field="encoding_format",
            dtypes={"int8": "base64_int8"},
            has_float32=False,
        ),
        # The schema has no encoding_format. docs.bigmodel.cn/api-reference.
        "zhipu": Server(
            "Zhipu AI",
            "https://open.bigmodel.cn/api/paas/v4",
            key_variables=("ZHIPUAI_API_KEY", "ZAI_API_KEY", "ZHIPU_API_KEY"),
            texts=64,
            encoding_field=None,
        ),
        # 32 texts in messages of 2024, 64 of 2025 (coze-dev/coze-studio#291). Outside China: api.siliconflow.com.
        # docs.siliconflow.cn/cn/api-reference/embeddings/create-embeddings.
        "siliconflow": Server(
            "SiliconFlow", "https://api.siliconflow.cn/v1", key_variables=("SILICONFLOW_API_KEY",), texts=32
        ),
        # Base64 is answered with floats (karakeep-app/karakeep#2698); other fields are not documented.
        # developers.cloudflare.com/workers-ai/configuration/open-ai-compatibility.
        "cloudflare": Server(
            "Cloudflare Workers AI",
            "https://api.cloudflare.com/client/v4/accounts/{CLOUDFLARE_ACCOUNT_ID}/ai/v1",
            key_variables=("CLOUDFLARE_API_TOKEN", "CLOUDFLARE_API_KEY"),
            texts=100,
            encoding_field=None,
            dimensions_field=None,
        ),
        # Long texts are truncated without notice. mixedbread.com/api-reference/endpoints/embeddings/create-embeddings.
        "mixedbread": Server(
            "Mixedbread",
            "https://api.mixedbread.com/v1",
            key_variables=("MXBAI_API_KEY", "MIXEDBREAD_API_KEY"),
            texts=256,
            base64=False,
            always={"normalized": True},
        ),
        # encoding_format and dimensions are not supported. scaleway.com/en/docs/generative-apis, using-embeddings-api.
        "scaleway": Server(
            "Scaleway",
            "https://api.scaleway.ai/v1",
            key_variables=("SCW_SECRET_KEY",),
            texts=CAUTIOUS_TEXTS,
            encoding_field=None,
            dimensions_field=None,
        ),
        # novita.ai/docs/api-reference/model-apis-llm-create-embeddings.
        "novita": Server(
            "Novita", "https://api.novita.ai/openai/v1", key_variables=("NOVITA_API_KEY",), texts=CAUTIOUS_TEXTS
        ),
    }
)


class Preset(OpenAI):
    """Base class of the presets. A subclass names its server in `PRESETS`."""

    def __init_subclass__(cls, preset: str, **arguments: Any) -> None:
        cls.name = preset
        cls.server = server = PRESETS[preset]
        cls.default_limits = server.limits
        cls.key_variable = next(iter(server.key_variables), None)
        cls.cache_key_provider = preset if server.is_service else OpenAI.cache_key_provider
        cls.catalogue_providers = (preset, "local") if server.is_service else OpenAI.catalogue_providers
        cls.reserved_fields = OpenAI.reserved_fields | server.own_fields
        cls.dimensions_field = server.dimensions_field or ""
        cls.dtypes = server.offered_dtypes
        cls.returns_normalized = not server.is_service
        cls.takes_dimensions = server.dimensions_field is not None
        cls.takes_roles = server.role is not None
        super().__init_subclass__(**arguments)

    def __init__(self, settings: ProviderSettings) -> None:
        server, info = self.server, settings.info
        if settings.dimensions is not None and info is None and server.dimensions_field is None:
            raise ConfigurationError(
                f"dimensions: {server.title} has no field for it. If the model supports shorter vectors, truncate them "
                f"locally with model_info={{'dimensions': ..., 'allowed_dimensions': [{settings.dimensions}], 'cut': "
                "'prefix'}, where dimensions is the width of the model."
            )
        lacks_host = bool(server.host_options.keys() - settings.options.keys())
        if lacks_host and not catalogue.is_listed(self.name, settings.name):
            raise ConfigurationError(
                f"provider_options: {settings.name} may have several hosts at {server.title}, and their vectors may "
                f"differ. Select one with provider_options={server.host_options!r}."
            )
        super().__init__(settings)

    @classmethod
    def default_info(cls, name: str) -> ModelInfo:
        """Return the assumptions about a model without a catalogue row: it has the role that is usual there."""
        role = cls.server.role
        return replace(super().default_info(name), asymmetric=role is not None and role.is_for_unknown_models)

    @classmethod
    def is_own_host(cls, base_url: str | None) -> bool:
        """Return True if the address is that of the service."""
        if not cls.server.is_service:
            return False
        return cls.server.is_at(canonical_url(cls.locate(base_url)))


@cache
def _make_preset(name: str) -> type[Preset]:
    made: type[Preset] = types.new_class(
        f"{name.capitalize()}Preset", (Preset,), {"preset": name}, lambda body: body.update(__module__=__name__)
    )
    made.__doc__ = f"A model of {PRESETS[name].title}."
    return made


def __getattr__(name: str) -> type[Preset]:
    if name in PRESETS:
        return _make_preset(name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
