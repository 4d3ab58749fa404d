"""Settings of both adapters: errors in the user's spelling, and attributes that cannot be set."""

import pytest
from pydantic import model_validator

from embedkit_core import ConfigurationError

MODEL = "openai:text-embedding-3-small"


@pytest.fixture
def made(framework_class):
    return lambda **arguments: framework_class(**{"model": MODEL, "api_key": "unused", "cache": False, **arguments})


def test_an_invalid_value_is_named_as_the_user_wrote_it(made, framework_class):
    options = "model_kwargs" if hasattr(framework_class, "embed_documents") else "additional_kwargs"
    rows = [
        ({"chunk_size": 0}, r"^chunk_size \(max_batch_texts\): must be an integer of at least 1 \(got 0\)"),
        (
            {options: {"dimensions": 3}},
            rf"^{options} \(provider_options\): must not contain dimensions; .* Use dimensions=",
        ),
        ({"output_dimension": 9999}, r"^output_dimension \(dimensions\): "),
        ({"max_batch_texts": 0}, r"^max_batch_texts: must be an integer"),
    ]
    for arguments, message in rows:
        with pytest.raises(ConfigurationError, match=message):
            made(**arguments)
        with pytest.raises(ConfigurationError, match=message):
            made().model_copy(update=arguments)


def test_the_error_of_a_subclass_validator_names_no_empty_field(framework_class):
    class Checked(framework_class):
        @model_validator(mode="after")
        def check(self):
            raise ValueError("no tenant")

    with pytest.raises(ConfigurationError, match=r"^Checked: Value error, no tenant$"):
        Checked(model=MODEL, api_key="unused", cache=False)


def test_a_setting_cannot_be_set_and_the_error_names_the_way(made, framework_class):
    model = made()
    for setting in ("dimensions", "timeout", "cache"):
        with pytest.raises(
            AttributeError, match=rf"^{framework_class.__name__}\.{setting} is read-only\. Use model_copy\(update="
        ) as caught:
            setattr(model, setting, "sk-secret")
        assert "sk-secret" not in repr([caught.value, caught.value.__context__, caught.value.__cause__])
    assert model.model_copy(update={"dimensions": 3}).dimensions == 3
    assert model.dimensions is None


def test_an_attribute_of_llamaindex_can_be_set():
    from llamaindex_embedkit import EmbedKitEmbedding

    model = EmbedKitEmbedding(MODEL, api_key="unused", cache=False)
    model.embed_batch_size = 7
    assert model.embed_batch_size == 7
