"""The parts of the soak: a server with faults, processes that use the library, and the books that must balance."""
