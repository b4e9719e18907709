"""Programs that use a Redis as libraries do, each a module with a function ``run``.

The server's URL is in ``$STORE``. ``../test_redis_libraries.py`` runs them.
"""
