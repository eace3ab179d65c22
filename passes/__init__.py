"""The passes: one file each, named as a user types it. Import as ``graphcompress.passes``."""

if __name__ != "graphcompress.passes":
    raise ImportError(f"import this package as 'graphcompress.passes', not as {__name__!r}")
