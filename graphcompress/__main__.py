"""``python -m graphcompress`` is the command ``graphcompress``."""

from graphcompress.cli import main

if __name__ == "__main__":
    main()
