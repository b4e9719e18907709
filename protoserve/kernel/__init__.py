"""The engine: readiness events, connections, the task trampoline. Knows no protocol."""
