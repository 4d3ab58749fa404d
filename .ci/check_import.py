"""Check that a package imports no SDK, torch, tokenizer, engine or other framework: `check_import.py <package>`."""

import importlib
import sys
import time

SDKS = {"openai", "voyageai", "cohere", "botocore", "google.genai", "azure.identity"}
SDKS |= {"aiohttp", "httpx", "httpx2", "requests"}
HEAVY = SDKS | {"torch", "transformers", "sentence_transformers", "tokenizers", "tiktoken", "huggingface_hub"}
HEAVY |= {"fastembed", "onnxruntime", "model2vec"}
FRAMEWORKS = {"langchain_core", "llama_index"}
ENGINES = {"ray", "dask", "distributed", "pyarrow", "pandas"}
OWN_FRAMEWORK = {"langchain_embedkit": "langchain_core", "llamaindex_embedkit": "llama_index"}

package = sys.argv[1]
began = time.perf_counter()
module = importlib.import_module(package)
seconds = time.perf_counter() - began

unwanted = sorted((HEAVY | ENGINES | FRAMEWORKS - {OWN_FRAMEWORK.get(package)}) & sys.modules.keys())
if unwanted:
    sys.exit(f"import {package} also imports {', '.join(unwanted)}")
print(f"import {package}: {seconds:.2f} s, {len(sys.modules)} modules, none of them heavy")
