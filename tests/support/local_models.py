"""Copies of MiniLM: in a Hugging Face cache, under another name, with other settings, in other formats."""

import json
import shutil
import warnings
from pathlib import Path
from typing import Any

from .embedders import FOLDER, WEIGHTS

REVISION = "0123456789abcdef0123456789abcdef01234567"


def in_hub_cache(hub: Path, name: str, *, prompts: dict[str, str] | None = None) -> Path:
    """Copy MiniLM into a Hugging Face cache under a name; return the folder of its revision."""
    model = hub / f"models--{name.replace('/', '--')}"
    folder = model / "snapshots" / REVISION
    shutil.copytree(FOLDER, folder, ignore=shutil.ignore_patterns(WEIGHTS))
    (folder / WEIGHTS).symlink_to(Path(FOLDER) / WEIGHTS)
    (model / "refs").mkdir()
    (model / "refs" / "main").write_text(REVISION)
    if prompts is not None:
        configure(folder, prompts=prompts)
    return folder


def configure(folder: Path, file: str = "config_sentence_transformers.json", **settings: object) -> None:
    """Change settings in a JSON file of a model."""
    config = json.loads((folder / file).read_text(encoding="utf-8"))
    (folder / file).write_text(json.dumps(config | settings), encoding="utf-8")


def static_model(folder: Path) -> Path:
    """Make a static embedding model, as model2vec does: MiniLM's vocabulary with seeded random vectors."""
    import numpy as np
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.models import StaticEmbedding
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(Path(FOLDER) / "tokenizer.json"))
    tokenizer.no_padding()
    tokenizer.no_truncation()
    weights = np.random.default_rng(0).standard_normal((tokenizer.get_vocab_size(), 32)).astype(np.float32)
    module = StaticEmbedding(tokenizer, embedding_weights=weights)
    SentenceTransformer(modules=[module], device="cpu").save(str(folder), create_model_card=False)
    return folder


def export_to_onnx(folder: Path) -> Path:
    """Copy MiniLM with an ONNX file and without PyTorch's weights, as sentence-transformers names it."""
    import torch
    from transformers import AutoModel

    shutil.copytree(FOLDER, folder, ignore=shutil.ignore_patterns(WEIGHTS))
    (folder / "onnx").mkdir()

    class Layers(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.bert = AutoModel.from_pretrained(FOLDER, local_files_only=True, attn_implementation="eager")

        def forward(self, input_ids: Any, attention_mask: Any, token_type_ids: Any) -> Any:
            return self.bert(input_ids=input_ids, attention_mask=attention_mask, token_type_ids=token_type_ids)[0]

    inputs, output = ["input_ids", "attention_mask", "token_type_ids"], "last_hidden_state"
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # the other exporter takes 20 s, and packages of its own
        torch.onnx.export(
            Layers().eval(),
            (torch.ones(2, 5, dtype=torch.long),) * 3,
            str(folder / "onnx" / "model.onnx"),
            input_names=inputs,
            output_names=[output],
            dynamic_axes={name: {0: "texts", 1: "tokens"} for name in [*inputs, output]},
            opset_version=17,
            dynamo=False,
        )
    return folder


def quantize(folder: Path) -> str:
    """Add a file in int8 to an exported model, whose activations are quantized at run time; return its name."""
    from onnxruntime.quantization import quantize_dynamic

    name = "onnx/model_qint8.onnx"
    quantize_dynamic(str(folder / "onnx" / "model.onnx"), str(folder / name))
    return name


def save_static(folder: Path, width: int = 64, **settings: object) -> Path:
    """Save a model of model2vec: the vectors of MiniLM's tokens, before its layers."""
    from model2vec import StaticModel
    from safetensors.numpy import load_file
    from tokenizers import Tokenizer

    vectors = load_file(Path(FOLDER) / WEIGHTS)["embeddings.word_embeddings.weight"][:, :width]
    tokenizer = Tokenizer.from_file(str(Path(FOLDER) / "tokenizer.json"))
    tokenizer.no_padding()  # which model2vec ignores since 0.10
    StaticModel(vectors, tokenizer).save_pretrained(folder)
    configure(folder, "config.json", **settings)
    return folder
