"""The targets: one file per runtime. Import as ``graphcompress.targets``."""

if __name__ != "graphcompress.targets":
    raise ImportError(f"import this package as 'graphcompress.targets', not as {__name__!r}")
