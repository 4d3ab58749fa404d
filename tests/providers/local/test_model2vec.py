"""Static models without PyTorch, through model2vec."""

import huggingface_hub.constants
import numpy as np
import pytest
from support.embedders import MINILM, needs_local_model
from support.local_models import REVISION, configure, save_static

from embedkit_core import Embedder, PartialFailureError
from embedkit_core.common.errors import BadTextError, ConfigurationError, TextTooLongError
from langchain_embedkit import EmbedKitEmbeddings
from llamaindex_embedkit import EmbedKitEmbedding

pytestmark = [
    needs_local_model,
    pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning"),  # of model2vec before 0.10
]

TEXTS = ["the cat sits on the mat", "a query about cats", "x", "two\nlines", "word " * 30]


def made(folder, **options):
    return Embedder(f"model2vec:{folder}", cache=False, provider_options=options)


def itself(folder, texts, **options):
    """Return the normalized vectors of model2vec itself."""
    from model2vec import StaticModel

    return StaticModel.from_pretrained(str(folder), normalize=True).encode(texts, **options)


def test_vectors_are_those_of_model2vec(static_model):
    with made(static_model) as embedder:
        result = embedder.embed(TEXTS)
        assert (embedder.dimensions, embedder.provider.max_text_tokens) == (64, 512)
    np.testing.assert_allclose(result.vectors, itself(static_model, TEXTS), atol=1e-6)
    assert result.usage.tokens == 6 + 4 + 1 + 2 + 30
    assert result.usage.cost_usd == 0


def test_vectors_are_those_of_sentence_transformers(static_model):
    with made(static_model) as embedder, Embedder(f"local:{static_model}", cache=False) as torch:
        np.testing.assert_allclose(embedder.embed(TEXTS).vectors, torch.embed(TEXTS).vectors, atol=1e-6)


def test_a_text_is_truncated_to_tokens_and_not_to_characters(static_model):
    """model2vec itself also truncates a text to 6 characters per token of the limit."""
    fits, long = "international " * 512, "international " * 513
    with made(static_model) as embedder, made(static_model, max_seq_length=3) as short:
        result = embedder.embed([fits, long, "x"])
        assert result.truncated == (1,)
        assert result.usage.tokens == 512 + 512 + 1
        np.testing.assert_allclose(
            short.embed(["the cat sits on the mat"]).vectors, embedder.embed(["the cat sits"]).vectors, atol=1e-6
        )
        assert short.explain("x").key != embedder.explain("x").key


@pytest.mark.parametrize(("length", "truncated"), [(None, ()), (700, ()), (600, (0,))])
def test_the_limit_is_that_of_the_models_configuration(tmp_path, length, truncated):
    with made(save_static(tmp_path / "model", 8, max_length=length)) as embedder:
        assert embedder.embed(["word " * 650, "x"]).truncated == truncated


def test_a_long_text_is_refused_with_its_length(static_model):
    embedder = Embedder(f"model2vec:{static_model}", cache=False, on_long_text="error")
    with embedder, pytest.raises(PartialFailureError) as caught:
        embedder.embed(["x", "word " * 600])
    assert isinstance(caught.value.failed[1], TextTooLongError)


def test_a_text_without_a_known_token_is_refused_and_the_others_are_embedded(static_model):
    with made(static_model) as embedder, pytest.raises(PartialFailureError) as caught:
        embedder.embed(["x", "\U0001f408", "y"])
    assert (list(caught.value.failed), len(caught.value.succeeded)) == ([1], 2)
    assert isinstance(caught.value.failed[1], BadTextError)
    assert "it knows none of its tokens" in str(caught.value.failed[1])


def test_a_changed_configuration_is_another_model(static_model, tmp_path):
    folder = save_static(tmp_path / "model")
    assert made(folder).explain("x").key == made(static_model).explain("x").key
    configure(folder, "config.json", comment="changed")
    assert made(folder).explain("x").key != made(static_model).explain("x").key


def test_a_name_without_an_owner_belongs_to_minishlab(static_model, tmp_path, monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    folder = tmp_path / "models--minishlab--potion-base-8M"
    (folder / "refs").mkdir(parents=True)
    (folder / "refs" / "main").write_text(REVISION)
    (folder / "snapshots").mkdir()
    (folder / "snapshots" / REVISION).symlink_to(static_model)
    assert made("potion-base-8M").explain("x").key == made(static_model).explain("x").key


@pytest.mark.parametrize(
    ("model", "options", "message"),
    [
        (MINILM.removeprefix("local:"), {}, "is not a static model. Use 'local:"),
        (".", {}, "has no model.safetensors, so it is not a model2vec model"),
        ("no-such-model", {}, r"No model 'no-such-model' on this machine.*\(model2vec:/path/to/model\)"),
        (MINILM.removeprefix("local:"), {"device": "cpu"}, "no option 'device'; use max_seq_length"),
        (MINILM.removeprefix("local:"), {"max_length": 5}, "no option 'max_length'; use max_seq_length"),
    ],
    ids=["transformer", "no model", "unknown", "device", "max_length"],
)
def test_invalid_settings_are_refused_before_the_model_is_loaded(model, options, message):
    with pytest.raises(ConfigurationError, match=message):
        made(model, **options)


# Through the frameworks


@pytest.mark.parametrize("provider", ["fastembed", "model2vec"])
def test_both_frameworks_embed_documents_and_queries(provider, static_model, onnx_model, tmp_path):
    model = f"{provider}:{static_model if provider == 'model2vec' else onnx_model}"
    expected = Embedder(model, cache=tmp_path).embed(TEXTS).vectors
    langchain, llamaindex = (door(model=model, cache=tmp_path) for door in (EmbedKitEmbeddings, EmbedKitEmbedding))
    for rows in (langchain.embed_documents(TEXTS), llamaindex.get_text_embedding_batch(TEXTS)):
        assert rows == expected.tolist()
    assert langchain.embed_query(TEXTS[0]) == llamaindex.get_query_embedding(TEXTS[0]) == expected[0].tolist()
    assert langchain.usage.requests == llamaindex.usage.requests == 0
