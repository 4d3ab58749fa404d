"""What the LangChain and LlamaIndex packages share."""
