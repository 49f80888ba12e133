"""Check files for what no formatter catches; exits 1 and says where.

Usage: python tools/check_files.py FILE...   (without files: everything that git tracks)
"""

import re
import subprocess
import sys
from pathlib import Path

LARGEST = 1 << 20  # bytes
LARGE_OK = ("core/remnant/testbed/",)  # the weights that the wheel carries
PACKAGES = ("core/", "kernels/", "plugins/")

# Each of these once was a bug: a budget that kept nothing, a fault that nobody saw, stray output.
FORBIDDEN = {
    "a budget as a float product": re.compile(r"\bint\(.*\*\s*\(1(\.0)?\s*-"),
    "a swallowed error": re.compile(r"except Exception( as \w+)?:\s*(return None|pass)\b"),
    "print in a package": re.compile(r"^\s*print\(", re.MULTILINE),
}


def main(names: list[str]) -> int:
    """Check the files and print one line per fault."""
    paths = [Path(name) for name in names or _tracked()]
    faults = [fault for path in paths if path.is_file() for fault in check(path)]
    sys.stdout.writelines(f"{fault}\n" for fault in faults)
    return 1 if faults else 0


def check(path: Path) -> list[str]:
    """The faults of one file."""
    data, name = path.read_bytes(), path.as_posix()
    faults: list[str] = []
    if len(data) > LARGEST and not name.startswith(LARGE_OK):
        faults.append(f"{name}: {len(data)} bytes, at most {LARGEST}")
    if b"\0" in data:
        return faults
    if data and (not data.endswith(b"\n") or data.endswith(b"\n\n")):
        faults.append(f"{name}: must end with one newline")
    if path.suffix == ".py" and name.startswith(PACKAGES):
        faults += _forbidden(name, data.decode())
    return faults


def _forbidden(name: str, text: str) -> list[str]:
    return [
        f"{name}:{text.count(chr(10), 0, match.start()) + 1}: {what}"
        for what, pattern in FORBIDDEN.items()
        for match in pattern.finditer(text)
    ]


def _tracked() -> list[str]:
    listing = subprocess.run(["git", "ls-files"], capture_output=True, text=True, check=True)
    return listing.stdout.splitlines()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
