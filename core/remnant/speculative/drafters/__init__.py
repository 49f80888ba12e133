"""One file per drafter that can be made by name; every module of this folder is imported, sorted by name."""
