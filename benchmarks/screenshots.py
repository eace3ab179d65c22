"""Pictures for the pages of docs/: the terminal of a run, and its report in headless Chromium.

It compresses a model as a user does and keeps the artifact, with what was printed, in a folder; where that is
there, only the pictures are made anew. Run it on an idle machine, for speeds are in the pictures:

    python benchmarks/screenshots.py MODEL.onnx --folder build/pictures
"""

from __future__ import annotations

import argparse
import io
import re
import shutil
import subprocess
import sys
from pathlib import Path

from rich.console import Console
from rich.terminal_theme import MONOKAI
from rich.text import Text

ROOT = Path(__file__).parents[1]
PICTURES = ROOT / "docs" / "images"
COLUMNS = 100
MOST_BYTES = 200_000
"""A picture of more bytes makes a page slow to open."""

VIEWS = {"report": (1000, 1150, False), "report-phone": (500, 1150, True)}
"""Name of a picture of the report → width and height in pixels, and whether the reader prefers dark."""


def main() -> None:
    asked = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    asked.add_argument("model", help="an ONNX file, with its tokenizer beside it")
    asked.add_argument(
        "--folder", type=Path, default=ROOT / "build" / "pictures", help="where the run is kept"
    )
    given = asked.parse_args()
    browser = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if browser is None:
        sys.exit(
            "there is no Chromium to draw the report; install one, such as with apt-get install chromium"
        )
    artifact, said = given.folder / "small", given.folder / "said.txt"
    if not said.is_file():
        given.folder.mkdir(parents=True, exist_ok=True)
        said.write_text(compressed(given.model, given.folder), encoding="utf-8")
    PICTURES.mkdir(exist_ok=True)
    (PICTURES / "terminal.svg").write_text(terminal(said.read_text(encoding="utf-8")), encoding="utf-8")
    for name, (width, height, dark) in VIEWS.items():
        picture(browser, artifact / "report.html", PICTURES / f"{name}.png", width, height, dark=dark)
    for path in sorted(PICTURES.iterdir()):
        size = path.stat().st_size
        print(f"{path.relative_to(ROOT)}: {size / 1000:.0f} kB")
        if size > MOST_BYTES:
            sys.exit(f"{path} has more than {MOST_BYTES // 1000} kB; make its view smaller")


def command(model: str) -> list[str]:
    data = ROOT / "examples" / "data"
    return [
        *("optimize", model, "--passes", "prune,int8", "--data", str(data / "stsb_calibration.jsonl")),
        *("--metric", "similarity", "--eval-data", str(data / "stsb_dev_sample.jsonl"), "--max-drop", "1%"),
        *("-o", "small", "--overwrite"),
    ]


def compressed(model: str, folder: Path) -> str:
    """Compress ``model`` into ``folder``/small, and give what was printed, below what a user types."""
    typed = command(str(Path(model).resolve()))
    done = subprocess.run(
        [sys.executable, "-m", "graphcompress", *typed],
        cwd=folder,
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    shown = [Path(word).name if word.endswith((".onnx", ".jsonl")) else word for word in typed[:-1]]
    return f"$ graphcompress {' '.join(shown)}\n{done.stdout}"


def terminal(text: str) -> str:
    """A picture of a terminal, in the font of whoever sees it: nothing is fetched."""
    console = Console(record=True, width=COLUMNS, file=io.StringIO())
    for number, line in enumerate(text.splitlines()):
        console.print(Text(line, style="" if number else "bold"))
    svg = console.export_svg(title="graphcompress", theme=MONOKAI, unique_id="terminal")
    return re.sub(r"@font-face \{.*?\}\s*", "", svg, flags=re.DOTALL)


def picture(browser: str, page: Path, path: Path, width: int, height: int, *, dark: bool) -> None:
    """What a browser of that size shows of ``page`` without scrolling."""
    options = ["--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"]
    options += ["--blink-settings=preferredColorScheme=0"] if dark else []
    subprocess.run(
        [
            browser,
            *options,
            f"--window-size={width},{height}",
            f"--screenshot={path}",
            page.resolve().as_uri(),
        ],
        check=True,
        capture_output=True,
        timeout=120,
    )


if __name__ == "__main__":
    main()
