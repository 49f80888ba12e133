"""Masks of every form, fed by the stock mask functions, after eviction: flash- and flex-like kernels are emulated."""

from collections.abc import Iterator
from typing import Any, cast

import pytest
import torch
import torch.nn.functional as F

from remnant.errors import UnsupportedPolicy


def dense(q: Any, k: Any, v: Any, mask: Any, scaling: float) -> tuple[Any, None]:
    group = q.shape[1] // k.shape[1]
    mask = mask | ~mask.any(-1, keepdim=True)
    out = F.scaled_dot_product_attention(
        q, k.repeat_interleave(group, 1), v.repeat_interleave(group, 1), attn_mask=mask, scale=scaling
    )
    return out.transpose(1, 2).contiguous(), None


def flash_like(
    module: Any, q: Any, k: Any, v: Any, mask: Any, scaling: Any = None, sliding_window: Any = None, **_: Any
):
    """Causal from the bottom right, padding from a 2D mask: what the flash kernels do."""
    n, s = q.shape[2], k.shape[2]
    i, j = torch.arange(s - n, s)[:, None], torch.arange(s)[None]
    seen = (j <= i)[None, None]
    if sliding_window is not None:
        seen = seen & (j > i - sliding_window)[None, None]
    if mask is not None:
        assert mask.shape == (q.shape[0], s)
        seen = seen & mask.bool()[:, None, None]
    return dense(q, k, v, seen, scaling)


def flex_like(module: Any, q: Any, k: Any, v: Any, mask: Any, scaling: Any = None, **_: Any):
    """What a BlockMask says, evaluated everywhere: what the fused flex kernel does."""
    b, n, s = q.shape[0], q.shape[2], k.shape[2]
    assert mask.seq_lengths == (n, s)
    at = torch.arange(b)[:, None, None], torch.zeros((), dtype=torch.long), torch.arange(n)[None, :, None]
    seen = mask.mask_mod(*at, torch.arange(s)[None, None]).expand(b, n, s)[:, None]
    return dense(q, k, v, seen, scaling)


@pytest.fixture(scope="module")
def kernels() -> Iterator[None]:
    from transformers import AttentionInterface, AttentionMaskInterface, masking_utils

    masks = cast(Any, masking_utils)  # `create_block_mask` is torch's, and replaced below

    def block_mask(**kw: Any) -> Any:
        original = masks.create_block_mask
        masks.create_block_mask = lambda *a, **k: original(*a, **{**k, "_compile": False})
        try:
            return masks.flex_attention_mask(**kw)
        finally:
            masks.create_block_mask = original

    AttentionInterface.register("flash_like", flash_like)
    AttentionMaskInterface.register("flash_like", masks.flash_attention_mask)
    AttentionInterface.register("flex_like", flex_like)
    AttentionMaskInterface.register("flex_like", block_mask)
    yield
    for name in ("flash_like", "flex_like"):
        AttentionInterface._global_mapping.pop(name, None)
        AttentionMaskInterface._global_mapping.pop(name, None)


@pytest.fixture
def emulated(lab: Any, kernels: None) -> Any:
    def make(name: str, attn: str) -> Any:
        model = lab.build(lab.config(name))
        for module in model.modules():
            if hasattr(module, "config"):
                module.config._attn_implementation = attn
        return model

    return make


def two_turns(lab: Any, model: Any, ids: Any, mask: Any, more: Any, cache: Any) -> list[Any]:
    first = lab.go(model, ids, cache, attention_mask=mask)
    ids = torch.cat([ids, first, more], 1)
    mask = F.pad(mask, (0, ids.shape[1] - mask.shape[1]), value=1)
    return [first, lab.go(model, ids, cache, attention_mask=mask)]


@pytest.mark.parametrize("policy", ["snapkv", "pyramidkv", "h2o", "streaming", "lazyeviction"])
@pytest.mark.parametrize("attn", ["flash_like", "flex_like"])
@pytest.mark.parametrize("name", ["llama", "gemma3"])
def test_flash_and_flex_forms(lab: Any, emulated: Any, name: str, attn: str, policy: str):
    model, plain = emulated(name, attn), lab.model(name)
    rows, ids, mask = lab.padded((60, 37, 20))
    more = lab.ids(5, rows=3, seed=9)
    got = two_turns(lab, model, ids, mask, more, lab.cache(model, policy))
    want = two_turns(lab, plain, ids, mask, more, lab.cache(plain, policy))
    assert torch.equal(got[0], want[0])
    assert torch.equal(got[1], want[1])
    if policy == "snapkv":
        alone = two_turns(lab, model, rows[1], torch.ones_like(rows[1]), more[1:2], lab.cache(model, policy))
        assert torch.equal(alone[1][0], got[1][1])


@pytest.mark.parametrize("attn", ["sdpa", "eager", "flash_like", "flex_like"])
@pytest.mark.parametrize("padded", [False, True])
def test_unequal_layers_take_many_tokens_at_once(lab: Any, emulated: Any, attn: str, padded: bool):
    """PyramidKV: every layer has its own length, and one mask serves all of them."""
    model = lab.model("llama", attn) if attn in ("sdpa", "eager") else emulated("llama", attn)
    ids, mask = (lab.padded((70, 61))[1:]) if padded else (lab.ids(70), torch.ones(1, 70, dtype=torch.long))
    real, oracle = (lab.cache(model, "pyramidkv", 24, simulate=s) for s in (False, True))
    rows = ids.shape[0]
    with torch.no_grad():
        for n, seed in ((70, 0), (1, 4), (7, 5), (1, 6)):
            x = ids if n == 70 else lab.ids(n, rows=rows, seed=seed)
            if n != 70:
                mask = F.pad(mask, (0, n), value=1)
            positions = (mask.cumsum(-1) - 1).clamp(min=0)[:, -n:]
            a, b = (
                model(x, past_key_values=c, attention_mask=mask, position_ids=positions).logits[:, -1]
                for c in (real, oracle)
            )
            assert (a - b).abs().max() < 1e-4
            if n == 70:
                assert len({layer.stored[0][0] for layer in real.stats().layers}) == 3
    for i in range(3):
        assert torch.equal(real.kept_positions(i), oracle.kept_positions(i))


@pytest.mark.parametrize("attn", ["sdpa", "eager", "flash_like", "flex_like"])
@pytest.mark.parametrize("policy", ["snapkv", "h2o", "streaming"])
def test_padding_in_the_middle_equals_rows(lab: Any, emulated: Any, attn: str, policy: str):
    """A batch whose second turn has rows of unequal length: zeros stand in the middle of the mask."""
    model = lab.model("llama", attn) if attn in ("sdpa", "eager") else emulated("llama", attn)
    rows, ids, mask = lab.padded((40, 33, 30))
    turns, ids2, mask2 = lab.padded((9, 6, 3), seed=20)
    cache = lab.cache(model, policy)
    logits = []
    with torch.no_grad():
        for x, m in ((ids, mask), (ids2, mask2)):
            so_far = m if not logits else torch.cat([mask, mask2], 1)
            positions = (so_far.cumsum(-1) - 1).clamp(min=0)[:, -x.shape[1] :]
            out = model(x, past_key_values=cache, attention_mask=so_far, position_ids=positions)
            logits.append(out.logits[:, -1])
        so_far = torch.cat([mask, mask2], 1)
        for step in range(3):
            x = lab.ids(1, rows=3, seed=30 + step)
            so_far = F.pad(so_far, (0, 1), value=1)
            positions = (so_far.cumsum(-1) - 1)[:, -1:]
            out = model(x, past_key_values=cache, attention_mask=so_far, position_ids=positions)
            logits.append(out.logits[:, -1])
        for i, (row, turn) in enumerate(zip(rows, turns, strict=True)):
            own = lab.cache(model, policy)
            steps = [row, turn, *(lab.ids(1, rows=3, seed=30 + s)[i : i + 1] for s in range(3))]
            for at, x in enumerate(steps):
                alone = model(x, past_key_values=own).logits[0, -1]
                assert (alone - logits[at][i]).abs().max() < 1e-4, f"row {i}, pass {at}"


@pytest.mark.parametrize("policy", ["adakv", "think"])
def test_padding_in_the_middle_is_refused_where_it_cannot_be_held(lab: Any, policy: str):
    model, cache = lab.model("llama"), lab.cache(lab.model("llama"), policy)
    with torch.no_grad():
        model(lab.ids(40, rows=2), past_key_values=cache)
        mask = torch.cat([torch.ones(2, 40), torch.tensor([[1, 1, 1], [0, 1, 1]])], 1).long()
        with pytest.raises(UnsupportedPolicy, match="padding in a later turn"):
            model(lab.ids(3, rows=2), past_key_values=cache, attention_mask=mask)
