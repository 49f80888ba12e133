"""The lookup drafter where engine core and ranks are processes of their own: every rank drafts by itself."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from remnant.kv import get_policy
from remnant.kv.pace import paced

pytestmark = [pytest.mark.vllm, pytest.mark.slow]
BLOCK, BUDGET, NEW = 32, 128, 32

RANKS = """
import json, sys
from vllm import LLM, SamplingParams
from vllm.inputs import TokensPrompt
if __name__ == "__main__":
    model, given, budget, new = json.loads(sys.argv[1])
    llm = LLM(
        model, skip_tokenizer_init=True, enforce_eager=True, dtype="float32", block_size=32, max_model_len=1024,
        kv_cache_memory_bytes=64 * 32 * 512 * 4, max_num_seqs=4, tensor_parallel_size=2, attention_backend="CUSTOM",
        disable_log_stats=False,
        additional_config={"remnant": {
            "policy": "snapkv", "budget": budget, "mode": "prompt", "window": 32, "lookup": {"min_match": 2},
        }},
        speculative_config={
            "method": "custom_class", "model": "remnant_vllm.LookupDrafter", "num_speculative_tokens": 4,
        },
    )
    params = SamplingParams(max_tokens=new, temperature=0, ignore_eos=True, detokenize=False)
    outs = llm.generate([TokensPrompt(prompt_token_ids=p) for p in given], params, use_tqdm=False)
    counts = {m.name: m.value for m in llm.get_metrics() if hasattr(m, "value")}
    found = [[list(o.outputs[0].token_ids) for o in outs], counts["vllm:spec_decode_num_accepted_tokens"]]
    print("FOUND", json.dumps(found), flush=True)
"""


@pytest.mark.timeout(600)
def test_two_ranks(tmp_path: Path, prompts: Any, in_hf: Any) -> None:
    """Two ranks, each with its own heads' survivors and its own drafter, agree on tokens and drafts."""
    from remnant.testbed.model import export

    model, (part,) = export(tmp_path / "model"), prompts(60)
    given = [part * 6, part * 4 + part[:17]]
    script = tmp_path / "ranks.py"
    script.write_text(RANKS)
    done = subprocess.run(
        [sys.executable, str(script), json.dumps([str(model), given, BUDGET, NEW])],
        env={**os.environ, "OMP_NUM_THREADS": "1", "VLLM_ENABLE_V1_MULTIPROCESSING": "1"},
        capture_output=True, text=True, timeout=580, check=False,
    )  # fmt: skip
    found = [line for line in done.stdout.splitlines() if "FOUND" in line]
    assert found, done.stdout[-3000:] + done.stderr[-3000:]
    tokens, accepted = json.loads(found[0].split("FOUND ")[1])
    policy = paced(get_policy("snapkv", window=32), "prompt", BLOCK)
    assert tokens == [in_hf(model, prompt, NEW, policy, BUDGET) for prompt in given]
    assert accepted > 10
