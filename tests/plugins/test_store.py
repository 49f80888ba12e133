"""Every store against lists of lists: whatever is done to it, it holds the slots that it should, in order."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

torch = pytest.importorskip("torch")
pytest.importorskip("transformers", reason="pip install 'remnant[hf]'")

from remnant.kv.view import Keep  # noqa: E402
from remnant_hf.store import ChannelStore, RaggedStore, SimulatedStore, SlotStore  # noqa: E402

SIZE, DROPPED, RECENT = 6, 2, 2
many = settings(max_examples=25, deadline=None)


class Model:
    """The truth: per row and head a list of positions; `bare` are those whose keys lost channels."""

    def __init__(self, rows: int, heads: int) -> None:
        self.heads: list[list[list[int]]] = [[[] for _ in range(heads)] for _ in range(rows)]
        self.seen, self.fresh = 0, 0
        self.bare: set[tuple[int, int, int]] = set()
        self.note = 0.0

    def slots(self) -> list[list[int]]:
        return [head for row in self.heads for head in row]


def key(positions: Any, bare: Any) -> Any:
    k = (positions.float() + 1).unsqueeze(-1) * torch.arange(1, SIZE + 1)
    gone = bare.unsqueeze(-1) & (torch.arange(SIZE) < DROPPED)
    return k.masked_fill(gone, 0.0)


def append(store: Any, model: Model, count: int) -> None:
    rows, heads = len(model.heads), len(model.heads[0])
    pos = torch.arange(model.seen, model.seen + count).expand(rows, heads, count)
    new = {"k": key(pos, torch.zeros_like(pos, dtype=torch.bool)), "v": -pos.float().unsqueeze(-1), "pos": pos}
    store.append({**new, "tag": pos.clone(), "note": torch.full(pos.shape, model.note)})
    for head in model.slots():
        head.extend(range(model.seen, model.seen + count))
    model.seen += count
    model.fresh += count


def keep(store: Any, model: Model, form: str, draw: Any) -> Any:
    """Keep random slots of every head, as many in each unless the form is ragged."""
    widths = [len(head) for head in model.slots()]
    count = draw(st.integers(1, min(widths)))
    counts = [draw(st.integers(1, n)) if "ragged" in form else count for n in widths]
    chosen = [sorted(draw(st.permutations(range(n)))[:c]) for n, c in zip(widths, counts, strict=True)]
    rows, heads = len(model.heads), len(model.heads[0])
    widest = max(counts)
    indices = torch.tensor([c + [-1] * (widest - len(c)) for c in chosen]).view(rows, heads, widest)
    for head, slots in zip(model.slots(), chosen, strict=True):
        head[:] = [head[i] for i in slots]
    model.fresh = 0
    if isinstance(store, SimulatedStore):
        store.apply(indices)
    elif form == "ragged":
        lengths = [[len(head) for head in row] for row in model.heads]
        return RaggedStore(store.dense(), indices, lengths, draw(st.integers(1, 3)))
    elif form == "channels":
        channels = (torch.arange(SIZE) >= DROPPED).expand(rows, heads, SIZE)
        # One and the same position may be recent in one head only: what is bare is told by head.
        for i, row in enumerate(model.heads):
            for j, head in enumerate(row):
                model.bare |= {(i, j, p) for p in head[: max(len(head) - RECENT, 0)]}
        return ChannelStore(store.dense(), Keep(indices, channels=channels, recent=RECENT))
    else:
        store.gather(indices, draw(st.integers(0, 3)))
    return store


def overwrite(store: Any, model: Model, draw: Any) -> None:
    """Drop random slots in place; afterwards only the set is known, so the model takes over the order."""
    n = len(model.heads[0][0])
    if n < 2:
        return
    count = draw(st.integers(1, n - 1))
    victims = [draw(st.permutations(range(n)))[:count] for _ in model.slots()]
    store.overwrite(torch.tensor(victims).view(len(model.heads), -1, count))
    for head, gone, now in zip(model.slots(), victims, store.get("pos").flatten(0, 1).tolist(), strict=True):
        assert sorted(now) == sorted(p for i, p in enumerate(head) if i not in set(gone))
        head[:] = now
    model.fresh = 0


def take_rows(store: Any, model: Model, draw: Any) -> None:
    index = draw(st.lists(st.integers(0, len(model.heads) - 1), min_size=1, max_size=3))
    store.take_rows(torch.tensor(index))
    bare = {(new, j, p) for new, old in enumerate(index) for i, j, p in model.bare if i == old}
    model.heads, model.bare = [[list(head) for head in model.heads[i]] for i in index], bare


def verify(store: Any, model: Model) -> None:
    dense = store.dense()
    assert store.stored == max(map(len, model.slots()))
    assert store.counts() == [[len(head) for head in row] for row in model.heads]
    for i, row in enumerate(model.heads):
        for j, head in enumerate(row):
            exists = dense.pos[i, j] >= 0
            if dense.valid is not None:
                assert torch.equal(dense.valid[i, j], exists)
            pos = dense.pos[i, j][exists]
            assert pos.tolist() == head
            bare = torch.tensor([(i, j, p) in model.bare for p in head], dtype=torch.bool)
            assert torch.equal(dense.k[i, j][exists], key(pos, bare))
            assert torch.equal(dense.v[i, j][exists][:, 0], -pos.float())
            assert torch.equal(dense.side["tag"][i, j][exists], pos)
            assert (dense.side["note"][i, j][exists] == model.note).all()
    total = sum(map(len, model.slots()))
    if isinstance(store, ChannelStore):
        assert store.bytes() == 4 * (total * (SIZE + 1) - store.pruned.shape[2] * len(model.slots()) * DROPPED)
    elif not isinstance(store, SimulatedStore):
        assert store.bytes() == 4 * total * (SIZE + 1)
        assert store.allocated() >= store.bytes()


@pytest.mark.parametrize("form", ["slots", "ragged", "channels", "simulated", "simulated ragged"])
@many
@given(data=st.data())
def test_a_store_equals_lists(form, data):
    draw = data.draw
    store: Any = SimulatedStore() if form.startswith("simulated") else SlotStore()
    model = Model(draw(st.integers(1, 3)), draw(st.integers(1, 3)))
    append(store, model, draw(st.integers(1, 9)))
    verify(store, model)
    actions = ["append", "keep", "undo", "rows", "note", *(["overwrite"] if form == "slots" else [])]
    for action in draw(st.lists(st.sampled_from(actions), min_size=1, max_size=14)):
        if action == "append":
            append(store, model, draw(st.integers(1, 9)))
        elif action == "keep":
            store = keep(store, model, form, draw)
        elif action == "overwrite":
            overwrite(store, model, draw)
        elif action == "undo" and model.fresh:
            gone = draw(st.integers(0, min(model.fresh, min(map(len, model.slots())) - 1)))
            store.drop_newest(gone)
            model.seen, model.fresh = model.seen - gone, model.fresh - gone
            for head in model.slots():
                del head[len(head) - gone :]
        elif action == "rows":
            take_rows(store, model, draw)
        elif action == "note":
            model.note += 1.0
            store.put_side({"note": torch.full(store.dense().pos.shape, model.note)})
        verify(store, model)


def test_the_first_tensors_are_adopted_and_never_written_to_in_place_by_a_later_sequence():
    k = torch.randn(1, 1, 4, SIZE)
    new = {"k": k, "v": k.clone(), "pos": torch.arange(4).expand(1, 1, 4)}
    store = SlotStore()
    store.append(new)
    assert store.get("k").data_ptr() == k.data_ptr()
    before = k.clone()
    store.append({**new, "k": k * 2})
    store.overwrite(torch.tensor([[[0]]]))
    assert torch.equal(k, before)


def test_a_large_compaction_in_place_stays_linear_in_memory():
    """An m x m comparison of victims would be 16 million entries here."""
    n, m = 5000, 4000
    store = SlotStore()
    pos = torch.arange(n).expand(1, 1, n)
    store.append({"k": pos.float().unsqueeze(-1), "v": pos.float().unsqueeze(-1), "pos": pos})
    victims = torch.randperm(n, generator=torch.Generator().manual_seed(0))[:m]
    store.overwrite(victims.view(1, 1, m))
    left = set(range(n)) - set(victims.tolist())
    assert set(store.get("pos").flatten().tolist()) == left
    assert torch.equal(store.get("k")[..., 0], store.get("pos").float())
