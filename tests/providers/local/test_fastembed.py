"""ONNX models without PyTorch, through fastembed."""

import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from support.embedders import MINILM, needs_local_model, reference_vectors
from support.local_models import REVISION, configure, quantize

from embedkit_core import Embedder, PartialFailureError
from embedkit_core.common.errors import BadRequestError, ConfigurationError, TextTooLongError
from embedkit_core.providers.local.fastembed import FastEmbed

pytestmark = needs_local_model

TEXTS = ["the cat sits on the mat", "a query about cats", "Ünïcode \U0001f408 und 猫", "x", "two\nlines", "word " * 30]
BGE = "BAAI/bge-small-en-v1.5"
BGE_PROMPT = "Represent this sentence for searching relevant passages: "


@pytest.fixture
def copy(onnx_model, tmp_path):
    """A folder with links to the files of the model, and a configuration of its own."""
    folder = tmp_path / "copy"
    folder.mkdir()
    for path in onnx_model.iterdir():
        if path.name == "config_sentence_transformers.json":
            (folder / path.name).write_bytes(path.read_bytes())
        else:
            (folder / path.name).symlink_to(path)
    return folder


@pytest.fixture
def cache(monkeypatch, tmp_path):
    """The cache folder of fastembed."""
    monkeypatch.setenv("FASTEMBED_CACHE_PATH", str(tmp_path / "fastembed"))
    return tmp_path / "fastembed"


def download(cache: Path, repository: str, file: str, onnx_model: Path) -> None:
    """Put MiniLM into fastembed's cache in place of another model."""
    folder = cache / f"models--{repository.replace('/', '--')}"
    snapshot = folder / "snapshots" / REVISION
    snapshot.mkdir(parents=True)
    (folder / "refs").mkdir()
    (folder / "refs" / "main").write_text(REVISION)
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"):
        (snapshot / name).symlink_to(onnx_model / name)
    (snapshot / file).symlink_to(onnx_model / "onnx" / "model.onnx")


def made(folder, **options):
    return Embedder(f"fastembed:{folder}", cache=False, provider_options=options)


def test_vectors_are_those_of_pytorch(onnx_model):
    with made(onnx_model) as onnx, Embedder(MINILM, cache=False) as torch:
        result, expected = onnx.embed(TEXTS), torch.embed(TEXTS)
        assert (onnx.dimensions, onnx.provider.max_text_tokens) == (384, 256)
    np.testing.assert_allclose(result.vectors, expected.vectors, atol=1e-5)
    assert result.usage == expected.usage


def test_pytorch_is_not_imported(onnx_model):
    code = f"""
import sys
from embedkit_core import Embedder
with Embedder({f"fastembed:{onnx_model}"!r}, cache=False) as embedder:
    assert "fastembed" not in sys.modules
    assert embedder.embed_query("x").shape == (384,)
assert "torch" not in sys.modules and "transformers" not in sys.modules
"""
    subprocess.run([sys.executable, "-W", "error", "-c", code], check=True, timeout=100)


def test_queries_and_documents_get_the_prompts_of_the_folder(copy):
    configure(copy, prompts={"query": "query: ", "document": "passage: "})
    with made(copy) as embedder:
        np.testing.assert_allclose(embedder.embed_query("cats"), reference_vectors(["query: cats"])[0], atol=1e-5)
        np.testing.assert_allclose(embedder.embed_documents(["cats"]), reference_vectors(["passage: cats"]), atol=1e-5)


def test_truncated_texts_are_reported_with_the_limit_of_sentence_transformers(onnx_model):
    """fastembed itself takes the 512 tokens of the tokenizer, which the model was not trained for."""
    texts = ["word " * 254, "word " * 255, "x"]
    with made(onnx_model) as embedder, made(onnx_model, max_seq_length=16) as short:
        result = embedder.embed(texts)
        assert result.truncated == (1,)
        assert result.usage.tokens == 256 + 256 + 3
        np.testing.assert_allclose(result.vectors, reference_vectors(texts), atol=1e-5)
        assert short.embed(texts).truncated == (0, 1)
        assert short.explain("x").key != embedder.explain("x").key


def test_a_long_text_is_refused_with_its_length(onnx_model):
    embedder = Embedder(f"fastembed:{onnx_model}", cache=False, on_long_text="error")
    with embedder, pytest.raises(PartialFailureError) as caught:
        embedder.embed(["x", "word " * 300])
    assert isinstance(caught.value.failed[1], TextTooLongError)
    assert "302 tokens, over the limit of 256" in str(caught.value.failed[1])


def test_only_the_file_that_is_loaded_is_in_the_key(onnx_model, copy):
    assert made(copy).explain("x").key == made(onnx_model).explain("x").key
    (copy / "onnx").unlink()
    (copy / "onnx").mkdir()
    (copy / "onnx" / "model.onnx").symlink_to(onnx_model / "onnx" / "model.onnx")
    (copy / "onnx" / "model_quantized.onnx").write_bytes(b"another")
    assert made(copy).explain("x").key == made(onnx_model).explain("x").key
    other = made(copy, file_name="onnx/model_quantized.onnx")
    assert other.explain("x").key != made(onnx_model).explain("x").key
    with other, pytest.raises(BadRequestError, match="model copy cannot be loaded: "):
        other.embed(["a secret text"])


@pytest.mark.parametrize(
    "options", [{"threads": 1}, {"batch_size": 2}, {"providers": ["CPUExecutionProvider"]}], ids=str
)
def test_options_that_do_not_change_vectors_are_not_in_the_key(onnx_model, options):
    with made(onnx_model, **options) as embedder:
        assert embedder.explain("x").key == made(onnx_model).explain("x").key
        np.testing.assert_allclose(embedder.embed(TEXTS).vectors, reference_vectors(TEXTS), atol=1e-5)


def test_a_text_has_one_vector_in_every_batch_of_a_quantized_model(onnx_model, tmp_path):
    """The activations of a batch have one scale."""
    shutil.copytree(onnx_model, tmp_path / "copy")
    with made(tmp_path / "copy", file_name=quantize(tmp_path / "copy")) as embedder:
        together = embedder.embed(TEXTS).vectors
        alone = np.concatenate([embedder.embed([text]).vectors for text in TEXTS])
    np.testing.assert_allclose(together, alone, atol=1e-6)
    assert np.einsum("ij,ij->i", together, reference_vectors(TEXTS)).min() > 0.9


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"thread": 1}, "no option 'thread'; did you mean 'threads'"),
        ({"cuda": True}, r"use providers=\['CUDAExecutionProvider'\]"),
        ({"threads": 0}, "threads must be a whole number of at least 1"),
        ({"providers": "CUDAExecutionProvider"}, "providers must be a list"),
        ({"max_seq_length": 513}, "max_seq_length must be at most 512"),
        ({"file_name": "../model.onnx"}, "file_name must be a .onnx file in the folder of the model"),
        ({"file_name": "model_O4.onnx"}, r"no file model_O4.onnx, nor onnx/.*one of 'onnx/model.onnx'"),
    ],
)
def test_an_invalid_option_is_refused_before_the_model_is_loaded(onnx_model, options, message):
    with pytest.raises(ConfigurationError, match=message):
        made(onnx_model, **options)


def test_an_unavailable_execution_provider_is_an_error_that_names_the_available_ones(onnx_model):
    embedder = made(onnx_model, providers=["TensorrtExecutionProvider"])
    with embedder, pytest.raises(BadRequestError, match="Provider TensorrtExecutionProvider is not available"):
        embedder.embed(["x"])


def test_a_folder_without_an_onnx_file_is_refused_with_the_way_to_export_it():
    with pytest.raises(ConfigurationError, match=r"no file model\.onnx.*save_pretrained\(folder\).*sentence-transf"):
        made(MINILM.removeprefix("local:"))


def test_a_folder_with_other_layers_is_refused(copy):
    modules = (copy / "modules.json").read_text()
    (copy / "modules.json").unlink()
    (copy / "modules.json").write_text(modules.replace("models.Normalize", "models.LayerNorm"))
    with pytest.raises(ConfigurationError, match="layers or a pooling that fastembed does not support"):
        made(copy)


# Models that fastembed knows by name


def test_a_known_model_in_the_cache_of_fastembed_has_the_prompt_of_the_catalogue(cache, onnx_model):
    """The folder is spelled as by fastembed before version 0.9."""
    download(cache, "qdrant/bge-small-en-v1.5-onnx-q", "model_optimized.onnx", onnx_model)
    with made(BGE) as embedder, made(BGE, max_seq_length=64) as short:
        assert embedder.provider.max_text_tokens == 512
        vectors = [embedder.embed_query("cats"), embedder.embed_documents([f"{BGE_PROMPT}cats"])[0]]
        assert short.embed(["word " * 70]).truncated == (0,)
        assert "prompt" not in embedder.explain("cats").request_body
    np.testing.assert_allclose(*vectors, atol=1e-6)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (BGE, rf"No files of '{BGE}' in fastembed's cache .*FASTEMBED_CACHE_PATH.*TextEmbedding\('{BGE}'\)"),
        ("BAAI/bge-small-en", "needs prompts, which the catalogue does not have"),
        ("baai/BGE-small-en-v1.5", f"did you mean '{BGE}'"),
        ("no-such/model", r"No model 'no-such/model' on this machine.*\(fastembed:/path/to/model\)"),
    ],
)
def test_a_model_that_cannot_be_used_is_refused_before_any_request(cache, model, message):
    with pytest.raises(ConfigurationError, match=message):
        made(model)
    assert not cache.exists()


def test_a_static_model_is_refused_with_its_provider(monkeypatch):
    """fastembed knows some since version 0.9."""
    potion = {"model": "minishlab/potion-base-8M", "model_file": "model.safetensors"}
    monkeypatch.setattr("embedkit_core.providers.local.fastembed._known_models", lambda: [potion])
    with pytest.raises(ConfigurationError, match=r"is a static model.*Use 'model2vec:minishlab/potion-base-8M'"):
        made("minishlab/potion-base-8M")


def test_catalogue_names_are_those_of_the_hub():
    names = ("nomic-ai/nomic-embed-text-v1.5-Q", "snowflake/snowflake-arctic-embed-m", BGE)
    assert [FastEmbed.catalogue_name(name) for name in names] == [
        "nomic-ai/nomic-embed-text-v1.5",
        "Snowflake/snowflake-arctic-embed-m",
        BGE,
    ]
