"""The model on an emulated ARM64 processor with the runtime's aarch64 wheel, against this machine's answers.

Without root: Debian's packages are downloaded and unpacked, not installed. The wheels have the versions
that are installed here.
"""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Sequence
from importlib import metadata
from pathlib import Path

import numpy as np

from edge.proof import CannotRunError, Case, Feed, command, main, proof
from graphcompress.targets.mobile.fitted_feeds import fitted
from graphcompress.targets.mobile.interface import read_interface
from graphcompress.targets.mobile.ort_format import MODEL_FILE

SUITE, PYTHON = "bookworm", "3.11"
KEYRING = Path("/usr/share/keyrings/debian-archive-keyring.gpg")
CPU = "neoverse-n1"  # qemu's "max" computes int8 products wrongly
GUEST = (
    *("python3.11-minimal", "libpython3.11-minimal", "libpython3.11-stdlib", "libc6", "libgcc-s1"),
    *("libstdc++6", "zlib1g", "libexpat1", "libssl3", "libffi8", "libbz2-1.0", "liblzma5"),
)
PROGRAM = """
import sys
import numpy as np
import onnxruntime
options = onnxruntime.SessionOptions()
options.intra_op_num_threads = 1
session = onnxruntime.InferenceSession(sys.argv[1], options, providers=["CPUExecutionProvider"])
names = [output.name for output in session.get_outputs()]
with np.load(sys.argv[2]) as feed:
    np.savez(sys.argv[3], **dict(zip(names, session.run(names, dict(feed)))))
"""


def prove(artifact: Path, given: Sequence[Case], cache: Path) -> Sequence[Feed]:
    """What the emulated processor answers to each case."""
    guest = _installed_guest(cache / f"arm64-{metadata.version('onnxruntime')}")
    with tempfile.TemporaryDirectory() as folder:
        files = Path(folder)

        def run(feed: Feed) -> dict[str, np.ndarray]:
            np.savez(files / "in.npz", **feed)
            guest("-c", PROGRAM, artifact / MODEL_FILE, files / "in.npz", files / "out.npz")
            with np.load(files / "out.npz") as outputs:
                return dict(outputs)

        there = fitted(run, read_interface(artifact))
        return [there(case.inputs) for case in given]


class _Guest:
    """Python for aarch64, run by qemu."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def __call__(self, *words: str | Path, by: Callable[..., str] = proof) -> str:
        root = self._folder / "root"
        home = {"PYTHONHOME": str(root / "usr"), "PYTHONPATH": str(self._folder / "site")}
        own = {"PYTHONDONTWRITEBYTECODE": "1", "OMP_NUM_THREADS": "1", "LANG": "C.UTF-8"}
        emulator = self._folder / "qemu" / "usr" / "bin" / "qemu-aarch64-static"
        python = root / "usr" / "bin" / f"python{PYTHON}"
        environment = {"PATH": os.environ.get("PATH", ""), **home, **own}
        return by(emulator, "-cpu", CPU, "-L", root, python, *words, env=environment, timeout=600)


def _installed_guest(folder: Path) -> _Guest:
    guest = _Guest(folder)
    if (folder / "ready").is_file():
        return guest
    if sys.platform != "linux" or not KEYRING.is_file() or shutil.which("dpkg-deb") is None:
        raise CannotRunError("the emulated root is made of Debian's packages: needs apt-get and its keyring")
    folder.mkdir(parents=True, exist_ok=True)
    _download(folder / "arm64", "arm64", GUEST, folder / "root")
    _download(folder / "amd64", _host(), ("qemu-user-static",), folder / "qemu")
    _describe_processor(folder / "root")
    wheels = [f"{name}=={metadata.version(name)}" for name in ("onnxruntime", "numpy")]
    platforms = [f"manylinux_2_{minor}_aarch64" for minor in (17, 27, 28)] + ["manylinux2014_aarch64"]
    command(
        *(sys.executable, "-m", "pip", "install", "-qq", "--disable-pip-version-check", "--no-deps"),
        *("--target", folder / "site", "--only-binary=:all:", "--python-version", PYTHON),
        *(f"--platform={platform}" for platform in platforms),
        *wheels,
    )
    guest("-c", "import onnxruntime", by=command)
    (folder / "ready").touch()
    return guest


def _host() -> str:
    return command("dpkg", "--print-architecture").strip()


def _download(folder: Path, architecture: str, packages: Sequence[str], root: Path) -> None:
    """Fetch Debian's packages with an apt of its own, which needs no root, and unpack them into ``root``."""
    for part in ("state/lists/partial", "cache/archives/partial", "debs"):
        (folder / part).mkdir(parents=True, exist_ok=True)
    (folder / "state" / "status").touch()
    sources = folder / "sources.list"
    sources.write_text(
        f"deb [signed-by={KEYRING}] http://deb.debian.org/debian {SUITE} main\n", encoding="utf-8"
    )
    settings = {
        "Dir::State": folder / "state",
        "Dir::State::status": folder / "state" / "status",
        "Dir::Cache": folder / "cache",
        "Dir::Etc::sourcelist": sources,
        "Dir::Etc::sourceparts": "-",
        "APT::Architecture": architecture,
        "APT::Architectures": architecture,
        "Acquire::Languages": "none",
        "APT::Sandbox::User": "",
    }
    options = [word for key, value in settings.items() for word in ("-o", f"{key}={value}")]
    command("apt-get", *options, "update", "-qq")
    command("apt-get", *options, "download", "-qq", *packages, cwd=folder / "debs")
    for package in sorted((folder / "debs").glob("*.deb")):
        command("dpkg-deb", "-x", package, root)


def _describe_processor(root: Path) -> None:
    """What the runtime reads about the processor; this qemu passes the host's files through otherwise."""
    features = (
        "fp asimd evtstrm aes pmull sha1 sha2 crc32 atomics fphp asimdhp cpuid asimdrdm lrcpc dcpop asimddp"
    )
    lines = {
        **{"processor": "0", "BogoMIPS": "50.00", "Features": features, "CPU implementer": "0x41"},
        **{"CPU architecture": "8", "CPU variant": "0x3", "CPU part": "0xd0c", "CPU revision": "1"},
    }
    files = {"proc/cpuinfo": "".join(f"{key}\t: {value}\n" for key, value in lines.items())}
    files |= {f"sys/devices/system/cpu/{name}": "0\n" for name in ("possible", "present", "online")}
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main(prove, __doc__ or "")
