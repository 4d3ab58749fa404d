"""Check, where the extra `openai` is not installed, that the error names the line that installs it."""

import sys

from embedkit_core import Embedder, MissingExtraError

WAY_OUT = 'pip install "rag-embedkit[openai]"'

try:
    Embedder("openai:text-embedding-3-small", api_key="x", cache=False)
except MissingExtraError as error:
    if WAY_OUT not in str(error):
        sys.exit(f"the error does not name {WAY_OUT}: {error}")
    print(f"MissingExtraError: {error}")
else:
    sys.exit("an Embedder was made without the package it needs")
