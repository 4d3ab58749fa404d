"""Other backends of sentence-transformers than PyTorch: ONNX and OpenVINO."""

from importlib.util import find_spec
from typing import ClassVar

import numpy as np
import pytest
from support.embedders import MINILM, copied_model, needs_local_model, reference_vectors

from embedkit_core import Embedder
from embedkit_core.common.errors import ConfigurationError
from embedkit_core.providers.local import provider
from embedkit_core.testing import ProviderSuite

TEXTS = ["the cat sits on the mat", "Ünïcode \U0001f408 und 猫", "x", "word " * 30, "word " * 300]
ONNX = {"backend": "onnx"}

pytestmark = needs_local_model
needs_backend = pytest.mark.skipif(
    find_spec("optimum") is None, reason="no ONNX backend of sentence-transformers: optimum is not installed"
)


def made(folder, **options):
    return Embedder(f"local:{folder}", cache=False, provider_options=options)


@pytest.fixture
def installed(monkeypatch):
    """The packages of the backends count as installed; no model is loaded."""
    monkeypatch.setattr(provider, "_is_installed", lambda module: True)


@pytest.fixture
def folder():
    """MiniLM in PyTorch's format, and in two other ones."""
    with copied_model() as folder:
        for name in ("onnx/model.onnx", "onnx/model_O3.onnx", "openvino/openvino_model.xml"):
            (folder / name).parent.mkdir(exist_ok=True)
            (folder / name).write_text(name)
        yield folder


def test_the_backend_and_its_file_are_in_the_key(installed, folder):
    ways = [{}, ONNX, ONNX | {"file_name": "model_O3.onnx"}, {"backend": "openvino"}]
    embedders = [made(folder, **options) for options in ways]
    assert len({embedder.explain("x").key for embedder in embedders}) == len(ways)
    bodies = [embedder.explain("x").request_body for embedder in embedders]
    assert [body["backend"] for body in bodies] == ["torch", "onnx", "onnx", "openvino"]
    assert ["precision" in body for body in bodies] == [True, False, False, False]
    same = made(folder, **ONNX, file_name="onnx/model.onnx", device="cpu", batch_size=4)
    assert same.explain("x").key == embedders[1].explain("x").key


def test_a_changed_file_is_another_model_for_its_backend_only(installed, folder):
    def keys():
        return [made(folder, **options).explain("x").key for options in ({}, ONNX, {"backend": "openvino"})]

    before = keys()
    assert before[0] == Embedder(MINILM, cache=False).explain("x").key
    (folder / "onnx" / "model.onnx").write_text("changed")
    after = keys()
    assert [old == new for old, new in zip(before, after, strict=True)] == [True, False, True]
    (folder / "onnx" / "model.onnx_data").write_text("weights")
    assert keys()[1] != after[1]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"backend": "tensorrt"}, "backend must be one of 'torch', 'onnx', 'openvino' .got 'tensorrt'."),
        ({"file_name": "model.onnx"}, "file_name needs backend='onnx' or 'openvino'"),
        ({"precision": "float16"} | ONNX, "precision applies to PyTorch only .got backend='onnx'.. Set file_name"),
        ({"device": ["cpu", "cpu"]} | ONNX, "device must be one of 'cpu', 'cuda' with backend='onnx'"),
        ({"device": "cuda", "backend": "openvino"}, "device must be one of 'cpu' with backend='openvino'"),
        ({"file_name": "/model.onnx"} | ONNX, "file_name must be a .onnx file in the folder of the model"),
        ({"file_name": "model.bin"} | ONNX, "file_name must be a .onnx file"),
        ({"file_name": 5} | ONNX, "file_name must be a string .got 5."),
        (
            {"file_name": "a.onnx"} | ONNX,
            "no file a.onnx, nor onnx/a.onnx. Set .*'onnx/model.onnx', 'onnx/model_O3",
        ),
        ({"export": True} | ONNX, "no option 'export'; nothing is exported at run time"),
    ],
    ids=str,
)
def test_an_invalid_option_is_refused_before_the_model_is_loaded(installed, folder, options, message):
    with pytest.raises(ConfigurationError, match=message):
        made(folder, **options)


@pytest.mark.parametrize("backend", ["onnx", "openvino"])
def test_a_folder_without_a_file_of_the_backend_is_refused_with_the_way_to_export_it(backend):
    with pytest.raises(ConfigurationError, match=rf'backend=.{backend}.\).save_pretrained.*transformers\[{backend}\]"'):
        made(MINILM.removeprefix("local:"), backend=backend)


def test_a_missing_backend_is_an_error_with_the_command_that_installs_it(folder, monkeypatch):
    monkeypatch.setattr(provider, "BACKEND_MODULES", {"onnx": "no_such_package.module"})
    with pytest.raises(ConfigurationError, match=r'Run: pip install "sentence-transformers\[onnx\]"'):
        made(folder, **ONNX)


# With the packages of the backend


@needs_backend
def test_vectors_are_those_of_pytorch(onnx_model):
    with made(onnx_model, **ONNX) as onnx, Embedder(MINILM, cache=False) as torch:
        result, expected = onnx.embed(TEXTS), torch.embed(TEXTS)
    np.testing.assert_allclose(result.vectors, reference_vectors(TEXTS), atol=1e-5)
    assert (result.truncated, result.usage) == (expected.truncated, expected.usage)


if find_spec("optimum") is not None:  # else the test above says what is missing, once

    class TestONNXBackend(ProviderSuite):
        wrong_dimensions = 385
        tolerance = 1e-5  # padding changes the rounding
        settings: ClassVar = {"provider_options": ONNX}

        @pytest.fixture(autouse=True)
        def exported(self, onnx_model):
            self.model = f"local:{onnx_model}"
