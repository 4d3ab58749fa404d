"""Options of local models: cache keys, precision, truncation, batches, dimensions and loading errors."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.embedders import FOLDER, MINILM, copied_model, needs_local_model, reference_vectors, sentence_transformer
from support.local_models import configure, in_hub_cache, static_model

from embedkit_core import Embedder
from embedkit_core.common.errors import BadRequestError, ConfigurationError, UnavailableError
from embedkit_core.common.types import Batch
from embedkit_core.providers.local.batches import BATCH_COST_CHARACTERS, MAX_BATCH_CHARACTERS, batches
from embedkit_core.providers.local.digest import folder_digest
from embedkit_core.providers.local.options import LocalOptions
from embedkit_core.providers.local.pool import PooledModel

pytestmark = needs_local_model

TEXTS = ["the cat sits on the mat", "a query about cats", "Ünïcode \U0001f408 und 猫", "x", "word " * 30]


def local(**options):
    return Embedder(MINILM, cache=False, provider_options=options)


def key(**options):
    return local(**options).explain("x").key


# Cache keys


@pytest.mark.parametrize(
    "options",
    [
        {"precision": "float32"},
        {"max_seq_length": 256},
        {"device": "cuda:1"},
        {"device": ["cpu", "cpu"]},
        {"batch_size": 4},
        {"device": None, "batch_size": None, "max_seq_length": None},
    ],
)
def test_options_that_do_not_change_vectors_are_not_in_the_key(options):
    assert key(**options) == key()


def test_options_that_change_vectors_are_in_the_key():
    others = [{"precision": "float16"}, {"precision": "bfloat16"}, {"max_seq_length": 128}]
    assert len({key(), *(key(**options) for options in others)}) == 4


def test_other_device_or_precision_options_need_another_client():
    """Embedders with another device or precision must not share a model object."""
    ways = [{}, {"device": "cpu"}, {"device": ["cpu", "cpu"]}, {"precision": "bfloat16"}, {"batch_size": 4}]
    accounts = [local(**options).provider.account for options in ways]
    assert len(set(accounts)) == len(ways)
    assert local(device="cpu").provider.account == accounts[1]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"devise": "cpu"}, "no option 'devise'; did you mean 'device'"),
        ({"user": "me"}, "no option 'user'; use device, precision, batch_size, max_seq_length"),
        ({"trust_remote_code": True}, "code of a model is never run here.*base_url="),
        ({"processes": 2}, r"device=\['cpu', 'cpu'\] starts two"),
        ({"truncate_dim": 64}, "use dimensions="),
        ({"device": "gpu"}, "device must be one such as .* .got 'gpu'."),
        ({"device": []}, "must be a device or a list of devices"),
        ({"device": ["cpu", 1]}, "device must be one such as .* .got 1."),
        ({"device": 0}, "must be a device"),
        ({"precision": "int8"}, "precision must be one of 'float32', 'float16', 'bfloat16' .got 'int8'."),
        ({"precision": ["float16"]}, "must be one of"),
        ({"batch_size": 0}, "batch_size must be a whole number of at least 1 .got 0."),
        ({"batch_size": True}, "batch_size must be a whole number of at least 1 .got True."),
        ({"max_seq_length": 513}, "max_seq_length must be at most 512, the maximum of the model .got 513."),
    ],
)
def test_an_invalid_option_is_refused_before_the_model_is_loaded(options, message):
    with pytest.raises(ConfigurationError, match=message):
        local(**options)


# Vectors


@pytest.mark.parametrize(("precision", "apart"), [("bfloat16", 2e-2), ("float16", 4e-3)])
def test_reduced_precision_gives_nearly_the_same_vectors_in_float32(precision, apart):
    """numpy has no bfloat16: vectors are converted to float32 before they are normalized."""
    with local(precision=precision, device="cpu") as half:
        vectors = half.embed(TEXTS).vectors
    assert vectors.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1.0, atol=1e-6)
    exact = reference_vectors(TEXTS)
    np.testing.assert_allclose(vectors, exact, atol=apart)
    assert not np.allclose(vectors, exact, atol=1e-6)


def test_bfloat16_weights_are_computed_in_float32_as_the_key_says(tmp_path):
    """transformers takes the type of the file since version 5, and float32 before; the key is the same for both."""
    import torch

    itself = sentence_transformer()
    with copied_model() as folder:
        whole = folder.with_name("bfloat16")
        shutil.copytree(folder, whole)
        model = type(itself)(str(folder), local_files_only=True).to(torch.bfloat16)
        model[0].auto_model.save_pretrained(whole)
        expected = type(itself)(str(whole), local_files_only=True).float().encode(TEXTS, normalize_embeddings=True)
        with Embedder(f"local:{whole}", cache=False) as embedder:
            np.testing.assert_allclose(embedder.embed(TEXTS).vectors, expected, atol=1e-6)


def test_a_lower_max_seq_length_truncates_texts_and_reports_it():
    long = "word " * 30
    with local(max_seq_length=16) as short, local() as own:
        result = short.embed([long, "x"])
        assert result.truncated == (0,)
        assert result.usage.tokens == 16 + 3
        np.testing.assert_allclose(result.vectors[0], own.embed_query("word " * 14), atol=1e-6)
        assert own.embed([long]).truncated == ()


def test_a_text_at_the_limit_is_not_truncated_and_one_token_more_is():
    fits, longer = "word " * 254, "word " * 255  # with the first and last token of a model that takes 256
    with local() as model:
        result = model.embed([fits, longer, "x"])
    assert result.truncated == (1,)
    assert result.usage.tokens == 256 + 256 + 3


@pytest.mark.parametrize("policy", ["error", "mean"])
def test_a_long_text_is_refused_with_its_length_or_averaged(policy):
    with Embedder(MINILM, cache=False, on_long_text=policy, on_error="return") as model:
        result = model.embed(["x", "word " * 300])
    assert result.truncated == ()
    if policy == "error":
        assert (list(result.failed), str(result.failed[1])[:45]) == (
            [1],
            "A text has 302 tokens, over the limit of 256.",
        )
    else:
        assert not result.failed


def test_batches_of_a_few_texts_give_the_same_vectors():
    texts = [f"{'word ' * (n % 40)}{n}" for n in range(50)]
    with local(batch_size=3) as few, local() as own:
        np.testing.assert_allclose(few.embed(texts).vectors, own.embed(texts).vectors, atol=1e-6)


def test_static_embeddings_have_no_length_limit(tmp_path):
    """Static models (model2vec) have another tokenizer, which never truncates."""
    folder = static_model(tmp_path / "static")
    texts = ["the cat", "word " * 3000, "the cat sits"]
    with Embedder(f"local:{folder}", cache=False) as static:
        result = static.embed(texts)
    np.testing.assert_allclose(result.vectors, reference_vectors(texts, str(folder)), atol=1e-6)
    assert result.truncated == ()
    assert result.usage.tokens == 2 + 3000 + 3


# Batches


@given(st.lists(st.integers(0, 3 * MAX_BATCH_CHARACTERS // 2)), st.integers(1, 40))
def test_each_text_is_in_one_batch_and_no_batch_is_too_large_or_too_uneven(lengths, most):
    found = list(batches(lengths, most))
    assert sorted(place for batch in found for place in batch) == list(range(len(lengths)))
    for batch in found:
        sizes = [lengths[place] for place in batch]
        assert 0 < len(sizes) <= most
        assert sizes == sorted(sizes, reverse=True)
        assert sum(sizes[0] - size for size in sizes) <= BATCH_COST_CHARACTERS
        assert len(sizes) == 1 or sizes[0] * len(sizes) <= MAX_BATCH_CHARACTERS
    firsts = [lengths[batch[0]] for batch in found]
    assert firsts == sorted(firsts, reverse=True)


# Dimensions: truncated by the core, if the catalogue says that the model supports it

ROW = "sentence-transformers/all-MiniLM-L6-v2"


@pytest.fixture
def listed(tmp_path):
    """MiniLM in a folder with a catalogue row, as if it supported fewer dimensions."""
    folder = in_hub_cache(tmp_path / "hub", ROW)

    def make(cut, **arguments):
        known = {"allowed_dimensions": [128, 256, 384], "cut": cut}
        return Embedder(f"local:{folder}", model_info=known, **{"cache": tmp_path / "cache", **arguments})

    return make


def test_shorter_vectors_are_those_of_truncate_dim(listed):
    expected = sentence_transformer().encode(TEXTS, truncate_dim=128, normalize_embeddings=True)
    with listed("prefix", dimensions=128) as short:
        result = short.embed(TEXTS)
    assert result.vectors.shape == (len(TEXTS), 128)
    np.testing.assert_allclose(result.vectors, expected, atol=1e-6)


def test_centered_ones_are_normalized_as_a_layer_before_they_are_cut(listed):
    """As nomic-embed-text-v1.5 documents it: huggingface.co/nomic-ai/nomic-embed-text-v1.5, read 2026-11-20."""
    from torch.nn import functional

    whole = sentence_transformer().encode(TEXTS, convert_to_tensor=True)
    cut = functional.layer_norm(whole, normalized_shape=(whole.shape[1],))[:, :128]
    with listed("centered", dimensions=128) as short:
        np.testing.assert_allclose(short.embed(TEXTS).vectors, functional.normalize(cut).numpy(), atol=1e-6)


@pytest.mark.parametrize("cut", ["prefix", "centered"])
def test_fewer_dimensions_are_served_from_a_cached_vector(listed, cut):
    with listed(cut) as whole, listed(cut, dimensions=128) as short, listed(cut, dimensions=128, cache=False) as anew:
        whole.embed(TEXTS)
        result = short.embed(TEXTS)
        assert (result.usage.cache_hits, result.usage.requests) == (len(TEXTS), 0)
        np.testing.assert_allclose(result.vectors, anew.embed(TEXTS).vectors, atol=1e-6)


def test_unlisted_dimensions_are_refused_with_the_listed_ones(listed):
    with pytest.raises(ConfigurationError, match="does not offer 100 dimensions; it offers 128, 256, 384"):
        listed("prefix", dimensions=100)


def test_a_model_without_a_cut_is_never_truncated(listed):
    with pytest.raises(ConfigurationError, match="cut"):
        listed(None, dimensions=128)


# Loading errors


def failure(folder, **options):
    with Embedder(f"local:{folder}", cache=False, provider_options=options) as embedder:
        with pytest.raises(BadRequestError) as caught:
            embedder.embed(["a secret text", *(f"text {n}" for n in range(40))])
        assert embedder.usage.requests == 1  # waiting texts are not tried
    assert "secret" not in str(caught.value)
    return str(caught.value)


def test_the_error_of_a_deleted_folder_names_it():
    with copied_model() as folder:
        embedder = Embedder(f"local:{folder}", cache=False)
    with embedder, pytest.raises(BadRequestError, match=f"The folder of the model model no longer exists: {folder}"):
        embedder.embed(["x"])


def test_the_error_of_a_missing_device_names_the_model():
    import torch

    if torch.cuda.is_available():
        pytest.skip("the suite names no device that is not here")
    with copied_model() as folder:
        assert "model model cannot be loaded: " in failure(folder, device="cuda")


def test_damaged_weights_are_an_error_that_says_so():
    with copied_model() as folder:
        (folder / "model.safetensors").unlink()
        (folder / "model.safetensors").write_bytes(b"damaged")
        assert "cannot be loaded: " in failure(folder)


def test_a_model_with_custom_modules_is_refused_by_the_constructor():
    """sentence-transformers before version 6 would run it from a local folder."""
    with copied_model() as folder:
        modules = json.loads((folder / "modules.json").read_text())
        modules[0]["type"] = "custom_st.Transformer"
        (folder / "modules.json").write_text(json.dumps(modules))
        (folder / "custom_st.py").write_text("raise SystemExit('this code was run')")
        with pytest.raises(ConfigurationError, match=r"custom_st\.Transformer.*never run here.*base_url="):
            Embedder(f"local:{folder}", cache=False)


def test_a_model_with_a_custom_architecture_is_refused_and_its_code_not_run():
    with copied_model() as folder:
        own = {"AutoConfig": "configuration_mine.MineConfig", "AutoModel": "modeling_mine.MineModel"}
        configure(folder, "config.json", model_type="mine", architectures=["MineModel"], auto_map=own)
        for name in ("configuration_mine.py", "modeling_mine.py"):
            (folder / name).write_text("raise SystemExit('this code was run')")
        assert "has custom code, which is never run here" in failure(folder)


def test_a_file_in_a_linked_folder_is_part_of_the_models_fingerprint(tmp_path):
    """The loader follows links, also a link to a parent folder."""
    with copied_model() as folder:
        (folder / "1_Pooling").rename(tmp_path / "pooling")
        (folder / "1_Pooling").symlink_to(tmp_path / "pooling")
        (folder / "round").symlink_to(folder)
        one = Embedder(f"local:{folder}", cache=False).fingerprint
        assert Embedder(f"local:{folder}", cache=False).fingerprint == one
        config = tmp_path / "pooling" / "config.json"
        config.write_text(config.read_text().replace("mean", "MEAN", 1))
        assert Embedder(f"local:{folder}", cache=False).fingerprint != one


def test_a_killed_process_pool_is_an_outage_and_is_started_again():
    folder = Path(FOLDER)
    model = PooledModel(folder, folder_digest(folder), LocalOptions(device=("cpu", "cpu")))
    batch = Batch(TEXTS, {"truncation": True})
    try:
        rows = model.embed(batch).vectors
        pool = model._pool
        assert np.array_equal(model.embed(batch).vectors, rows)
        assert model._pool is pool
        for process in pool["processes"]:
            process.kill()
        with pytest.raises(UnavailableError, match="2 of 2 model processes have ended"):
            model.embed(batch)
        assert np.array_equal(model.embed(batch).vectors, rows)
    finally:
        model.close()
