"""Write the table of policies into README.md, between its markers."""

from pathlib import Path

from remnant.cli.policies import markdown

README = Path(__file__).parents[1] / "README.md"
BEGIN, END = "<!-- policies -->\n", "<!-- /policies -->"


def updated(text: str) -> str:
    """The README with the table of this moment's registry."""
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}{markdown()}{END}{after}"


if __name__ == "__main__":
    README.write_text(updated(README.read_text()))
