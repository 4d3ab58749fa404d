"""Shared code of the LangChain and LlamaIndex packages."""
