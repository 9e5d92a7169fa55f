"""Asks a Django project what sessionferry must know. Run by its own Python, inside `manage.py shell` or with Django set
up; prints one line that begins with the marker. Connects to nothing, and imports nothing but what Django itself would."""


def _probe():
    import importlib
    import inspect
    import json
    import os
    import platform
    import re

    import django
    from django.apps import apps
    from django.conf import settings
    from django.contrib.sessions.backends import cache as cache_backend
    from django.contrib.sessions.backends import cached_db as cached_db_backend
    from django.core.cache import caches
    from django.db import router

    KEY = "0123456789abcdefghijklmnopqrstuv"

    def text(value):
        return value.decode("utf-8", "surrogateescape") if isinstance(value, bytes) else str(value)

    def dotted(value):
        """A class, a function or its path, as a path."""
        if value is None or isinstance(value, str):
            return value
        return "%s.%s" % (getattr(value, "__module__", "?"), getattr(value, "__qualname__", type(value).__name__))

    def in_environment(value):
        """The variable that holds this secret already, where there is one."""
        names = [name for name, held in os.environ.items() if value and held == value and not name.startswith("SESSIONFERRY_")]
        return min(names, key=lambda name: (len(name), name)) if names else None

    def secret(value):
        return {"value": text(value), "env": in_environment(text(value))}

    def connection(cache):
        """How the backend's own client would connect, without doing it."""
        attempts = [
            lambda: cache._cache.get_client(write=True),  # Django's own
            lambda: cache.client.get_client(write=True),  # django-redis, django-valkey
            lambda: cache.master_client,  # django-redis-cache
        ]
        for attempt in attempts:
            try:
                pool = attempt().connection_pool
                found, kind = dict(pool.connection_kwargs), pool.connection_class.__name__
            except Exception:
                continue
            if "path" not in found and "host" not in found:
                continue  # Sentinel and the like
            return {
                "host": found.get("host"), "port": found.get("port"), "path": found.get("path"), "db": int(found.get("db") or 0),
                "username": found.get("username"), "tls": "SSL" in kind,
                "password": secret(found["password"]) if found.get("password") else None,
                "ca_file": found.get("ssl_ca_certs"), "cert_file": found.get("ssl_certfile"), "key_file": found.get("ssl_keyfile"),
            }
        return None

    def described(alias, prefix):
        configured = settings.CACHES[alias]
        options = {str(key).upper(): value for key, value in (configured.get("OPTIONS") or {}).items()}
        location = configured.get("LOCATION", "")
        answer = {
            "alias": alias,
            "backend": configured.get("BACKEND", ""),
            "locations": len(location) if isinstance(location, (list, tuple)) else len([p for p in text(location).split(",") if p]),
            "key_prefix": text(configured.get("KEY_PREFIX", "")),
            "version": text(configured.get("VERSION", 1)),
            "key_function": dotted(configured.get("KEY_FUNCTION")),
            "serializer": dotted(options.get("SERIALIZER") or options.get("SERIALIZER_CLASS")),
            "compressor": dotted(options.get("COMPRESSOR") or options.get("COMPRESSOR_CLASS")),
            "client_class": dotted(options.get("CLIENT_CLASS")),
            "key": None, "connection": None, "error": None,
        }
        try:
            cache = caches[alias]
            make_key = getattr(cache, "make_and_validate_key", None) or cache.make_key
            answer["key"] = text(make_key(prefix + KEY))
            answer["connection"] = connection(cache)
        except Exception as error:  # whatever a project's cache may raise
            answer["error"] = "%s: %s" % (type(error).__name__, error)
        return answer

    engine = importlib.import_module(settings.SESSION_ENGINE)
    Store = engine.SessionStore
    kind = "other"
    if issubclass(Store, cached_db_backend.SessionStore):
        kind = "cached_db"
    elif issubclass(Store, cache_backend.SessionStore):
        kind = "cache"
    elif settings.SESSION_ENGINE.startswith("django.contrib.sessions.backends."):
        kind = settings.SESSION_ENGINE.rsplit(".", 1)[1]

    database = None
    installed = apps.is_installed("django.contrib.sessions")
    try:
        if hasattr(Store, "get_model_class"):
            model = Store.get_model_class()
        else:
            from django.contrib.sessions.models import Session as model
        alias = router.db_for_write(model)
        configured = settings.DATABASES[alias]
        database = {
            "alias": alias, "table": model._meta.db_table, "engine": configured.get("ENGINE", ""),
            "name": text(configured.get("NAME") or ""), "user": text(configured.get("USER") or ""),
            "host": text(configured.get("HOST") or ""), "port": text(configured.get("PORT") or ""),
            "password": secret(configured["PASSWORD"]) if configured.get("PASSWORD") else None,
            "options": sorted(map(str, configured.get("OPTIONS") or {})),
            "sslmode": (configured.get("OPTIONS") or {}).get("sslmode"),
        }
    except Exception:  # no sessions app, no database
        pass

    # Where the application empties the sessions' cache, as far as its text tells.
    clears, looked_at = [], 0
    alias = settings.SESSION_CACHE_ALIAS
    named = r"caches\[\s*['\"]%s['\"]\s*\]\.clear\(\)" % re.escape(alias)
    pattern = re.compile(named + (r"|(?<![\w.])cache\.clear\(\)" if alias == "default" else ""))
    skipped = {"site-packages", "node_modules", "__pycache__", ".git", ".tox", "venv", ".venv", "env"}
    for folder, folders, files in os.walk(os.getcwd()):
        folders[:] = [name for name in folders if name not in skipped and not name.startswith(".")]
        for name in files:
            path = os.path.join(folder, name)
            if not name.endswith(".py") or looked_at >= 5000 or os.path.getsize(path) > 1000000:
                continue
            looked_at += 1
            with open(path, encoding="utf-8", errors="replace") as file:
                for number, line in enumerate(file, 1):
                    if pattern.search(line):
                        clears.append("%s:%d" % (os.path.relpath(path), number))

    def version(name):
        try:
            return str(importlib.import_module(name).__version__)
        except Exception:
            return None

    prefix = getattr(Store, "cache_key_prefix", "")
    try:
        salt = Store().key_salt
    except Exception:
        salt = "django.contrib.sessions." + Store.__qualname__
    return json.dumps({
        "django": django.get_version(), "python": platform.python_version(), "redis_py": version("redis"),
        "settings_module": os.environ.get("DJANGO_SETTINGS_MODULE"),
        "engine": settings.SESSION_ENGINE, "kind": kind, "store": dotted(Store), "store_prefix": prefix, "salt": salt,
        "stock_store": inspect.getmodule(Store).__name__.startswith("django.contrib.sessions."),
        "session_serializer": dotted(settings.SESSION_SERIALIZER), "cookie_age": int(settings.SESSION_COOKIE_AGE),
        "save_every_request": bool(settings.SESSION_SAVE_EVERY_REQUEST), "sessions_installed": installed,
        "secret_key": secret(settings.SECRET_KEY),
        "fallbacks": [secret(key) for key in getattr(settings, "SECRET_KEY_FALLBACKS", [])],
        "use_tz": bool(settings.USE_TZ), "time_zone": settings.TIME_ZONE or "UTC",
        "routers": len(settings.DATABASE_ROUTERS), "session_alias": alias,
        "caches": [described(name, prefix) for name in settings.CACHES], "database": database, "clears": clears[:20],
    })


print("\nsessionferry-probe " + _probe(), flush=True)
