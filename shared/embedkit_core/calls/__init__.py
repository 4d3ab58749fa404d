"""One call through the library, sync or async, whole or as a stream."""
