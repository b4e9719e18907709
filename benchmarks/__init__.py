"""The project against its peers: ``python -m benchmarks``, from the project's root."""
