"""Prompts of local models: the user's, the model's, the catalogue's; and how the catalogue row is found."""

from importlib.metadata import version

import huggingface_hub.constants
import numpy as np
import pytest
from support.embedders import MINILM, copied_model, needs_local_model, reference_vectors
from support.local_models import configure, in_hub_cache

from embedkit_core import Embedder
from embedkit_core.common.errors import ConfigurationError
from embedkit_core.providers.local.provider import Local

pytestmark = needs_local_model

E5 = "intfloat/e5-small-v2"
QUERY, PASSAGE = "query: ", "passage: "


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """An empty Hugging Face cache."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path / "hub"


def prompts(model, **options):
    embedder = Embedder(f"local:{model}", cache=False, **options)
    return tuple(
        embedder.explain("x", input_type=role).request_body.get("prompt", "") for role in ("query", "document")
    )


def test_a_model_without_prompts_uses_those_of_the_catalogue(hub):
    """E5's configuration has no prompts, and without them it ranks worse: mteb#957."""
    in_hub_cache(hub, E5)
    with Embedder(f"local:{E5}", cache=False) as local:
        np.testing.assert_allclose(local.embed_query("cats"), reference_vectors([f"{QUERY}cats"])[0], atol=1e-6)
        np.testing.assert_allclose(local.embed_documents(["cats"]), reference_vectors([f"{PASSAGE}cats"]), atol=1e-6)


def test_a_folder_in_the_hub_cache_has_the_catalogue_row_of_its_model(hub):
    folder = in_hub_cache(hub, E5)
    assert prompts(folder) == prompts(E5) == (QUERY, PASSAGE)
    keys = {Embedder(f"local:{model}", cache=False).explain("x").key for model in (folder, E5)}
    assert len(keys) == 1


def test_a_folder_elsewhere_has_no_catalogue_row_and_no_prompts():
    with copied_model() as folder:
        assert prompts(folder) == ("", "")


def test_the_models_own_prompts_have_priority_over_the_catalogue(hub):
    in_hub_cache(hub, E5, prompts={"query": "find: ", "document": ""})
    assert prompts(E5) == ("find: ", "")


@pytest.mark.parametrize("named", [{}, {"query": "", "document": ""}, {"clustering": "cluster: "}])
def test_a_folder_with_neither_prompt_uses_the_catalogue(hub, named):
    """sentence-transformers writes empty prompts if a model has none."""
    in_hub_cache(hub, E5, prompts=named)
    assert prompts(E5) == (QUERY, PASSAGE)


def test_the_users_prompts_have_the_highest_priority_and_an_empty_one_means_none(hub):
    in_hub_cache(hub, E5, prompts={"query": "find: ", "document": "found: "})
    assert prompts(E5, query_prompt="mine: ", document_prompt="") == ("mine: ", "")
    assert prompts(E5, document_prompt="") == ("find: ", "")


def test_a_name_without_an_organization_belongs_to_sentence_transformers(hub):
    in_hub_cache(hub, "sentence-transformers/all-MiniLM-L6-v2")
    short, full = (
        Embedder(f"local:{name}", cache=False)
        for name in ("all-MiniLM-L6-v2", "sentence-transformers/all-MiniLM-L6-v2")
    )
    assert short.explain("x").key == full.explain("x").key
    assert short.explain("x").endpoint == "this machine"
    assert Local.catalogue_name("all-MiniLM-L6-v2") == "sentence-transformers/all-MiniLM-L6-v2"
    with pytest.raises(ConfigurationError, match=r"^dimensions: .* does not offer 100 dimensions; it offers 384"):
        Embedder("local:all-MiniLM-L6-v2", cache=False, dimensions=100)


def test_a_path_outside_the_hub_cache_is_its_own_name(tmp_path):
    (tmp_path / "snapshots" / "main").mkdir(parents=True)
    for name in (str(tmp_path / "snapshots" / "main"), "./model", "~/model", "/no/such/folder", "an/owner/too/many"):
        assert Local.catalogue_name(name) == name


def test_an_incomplete_download_is_refused(hub):
    (in_hub_cache(hub, E5) / "modules.json").unlink()
    with pytest.raises(ConfigurationError, match=r"in the local Hugging Face cache has no modules\.json"):
        Embedder(f"local:{E5}", cache=False)


def test_a_folder_whose_model_contradicts_its_catalogue_row_is_refused(hub):
    """The width differs from the catalogue: the folder holds another model."""
    in_hub_cache(hub, "intfloat/e5-base-v2")  # 768 dimensions in the catalogue
    with pytest.raises(ConfigurationError, match=r"384 dimensions, but the catalogue .* states 768"):
        Embedder("local:intfloat/e5-base-v2", cache=False)


@pytest.mark.parametrize("mode", ["mean", ["cls", "mean"]])
def test_the_width_is_read_from_folders_of_newer_versions(mode):
    """sentence-transformers 6 names the pooling modes; earlier versions set one flag per mode."""
    with copied_model() as folder:
        (folder / "1_Pooling" / "config.json").write_text("{}")
        configure(folder, "1_Pooling/config.json", embedding_dimension=384, pooling_mode=mode)
        with Embedder(f"local:{folder}", cache=False) as local:
            assert local.dimensions == (384 if mode == "mean" else 768)
            if int(version("sentence-transformers").partition(".")[0]) >= 6:  # earlier versions cannot load them
                assert len(local.embed_query("x")) == local.dimensions


def test_the_request_body_of_the_packaged_model_is_unchanged():
    """It has no prompt and no catalogue row, since its folder is not in a hub cache."""
    wire = Embedder(MINILM, cache=False).explain("x").request_body
    assert {name: value for name, value in wire.items() if name != "model"} == {
        "backend": "torch",
        "precision": "float32",
        "max_seq_length": 256,
        "normalize": True,
        "truncation": True,
    }
