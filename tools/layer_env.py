"""Let this interpreter's environment see the packages of another one behind its own.

Usage: .venv-newest/bin/python tools/layer_env.py .venv
Both must be made from the same Python. What is installed here hides what is installed there; pip
knows both and never removes what is there.
"""

import sys
import sysconfig
from pathlib import Path


def main(base: str) -> None:
    """Write the `.pth` file; `site.addsitedir` also follows the `.pth` files found there."""
    root = str(Path(base).resolve())
    behind = Path(sysconfig.get_path("purelib", vars={"base": root, "platbase": root}))
    if not behind.is_dir():
        sys.exit(f"{behind} does not exist; was {base} made from another Python?")
    here = Path(sysconfig.get_path("purelib"))
    (here / "zz_layer.pth").write_text(f"import site; site.addsitedir({str(behind)!r})\n")


if __name__ == "__main__":
    main(sys.argv[1])
