"""The shipped model as a folder that any server can start from."""

from pathlib import Path

import torch
import transformers

from remnant.testbed import load
from remnant.testbed.cli_api import export


def test_the_folder_is_the_model(tmp_path: Path) -> None:
    said = export(tmp_path / "new" / "folder")
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= set(said["files"])
    ours, tokenizer = load()
    theirs = transformers.AutoModelForCausalLM.from_pretrained(said["folder"], dtype=torch.float32)
    read = transformers.AutoTokenizer.from_pretrained(said["folder"])
    ids = tokenizer("the list of names", return_tensors="pt")["input_ids"]
    assert torch.equal(ids, read("the list of names", return_tensors="pt")["input_ids"])
    with torch.no_grad():
        assert torch.equal(ours(ids).logits, theirs.eval()(ids).logits)
