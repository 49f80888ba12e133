"""Fixtures of the plugin tests: tiny models with random weights, and a tokenizer of single letters."""

from typing import Any, ClassVar

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers", reason="pip install 'remnant[hf]'")


class Letters:
    """One token per ASCII character; 0 and 1 are special."""

    pad_token_id = 0
    bos_token_id = 1

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        return [ord(c) for c in text]

    def decode(self, ids: Any, skip_special_tokens: bool = False) -> str:
        return "".join(chr(i) for i in ids if i > 1)


@pytest.fixture
def letters() -> Letters:
    return Letters()


@pytest.fixture(scope="session")
def letters_model() -> Any:
    """A Llama of two layers over the letters, never changed by a test."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=128,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=4096,
        initializer_range=0.3,
        pad_token_id=0,
        bos_token_id=None,
        eos_token_id=None,
    )
    return LlamaForCausalLM(config).eval()


class Lab:
    """Tiny models of eight architectures with sharpened random weights, and the handful of moves every test makes.

    Models are made once per session and never changed by a test.
    """

    archs = ("llama", "qwen3", "mistral", "phi3", "gemma3", "gptoss", "qwen3next", "dsv3")
    options: ClassVar[dict[str, dict[str, Any]]] = {
        "snapkv": {"window": 8},
        "pyramidkv": {"window": 4, "beta": 4},
        "adakv": {"window": 8},
        "think": {"window": 8, "recent": 8},
        "keydiff": {"slack": 4},
        "trimkv": {"gates": "uniform", "buffer": 4},
        "lazyeviction": {"window": 8},
        "knorm": {"slack": 4},
        "expected": {},
        "d2o": {},
    }

    def __init__(self) -> None:
        self._models: dict[tuple[str, str, int], Any] = {}

    def config(self, name: str, **changes: Any) -> Any:
        import transformers as t

        base: dict[str, Any] = {
            "vocab_size": 128,
            "hidden_size": 64,
            "intermediate_size": 96,
            "num_hidden_layers": 3,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "max_position_embeddings": 4096,
            "pad_token_id": 0,
            "bos_token_id": 1,
            "eos_token_id": None,
        }
        mixed: dict[str, Any] = {"num_hidden_layers": 4, "head_dim": 16, "sliding_window": 16}
        mixed["layer_types"] = ["sliding_attention", "full_attention"] * 2
        moe = {"num_experts_per_tok": 2, "moe_intermediate_size": 32}
        linear = {"linear_num_value_heads": 4, "linear_num_key_heads": 2}
        linear |= {"linear_key_head_dim": 16, "linear_value_head_dim": 16}
        latent = {"q_lora_rank": 32, "kv_lora_rank": 16, "qk_rope_head_dim": 8, "qk_nope_head_dim": 8, "v_head_dim": 16}
        own: dict[str, tuple[Any, dict[str, Any]]] = {
            "llama": (t.LlamaConfig, {"head_dim": 16}),
            "qwen3": (t.Qwen3Config, {"head_dim": 16}),
            "mistral": (t.MistralConfig, {"head_dim": 16, "sliding_window": None}),
            "phi3": (t.Phi3Config, {}),
            "gemma3": (t.Gemma3TextConfig, mixed),
            "gptoss": (t.GptOssConfig, {**mixed, "num_local_experts": 4, "num_experts_per_tok": 2}),
            "qwen3next": (
                t.Qwen3NextConfig,
                {"num_hidden_layers": 4, "head_dim": 16, **linear, **moe}
                | {"num_experts": 4, "shared_expert_intermediate_size": 32},
            ),
            "dsv3": (
                t.DeepseekV3Config,
                {"num_key_value_heads": 4, "n_routed_experts": 4, "n_group": 1, "topk_group": 1, **moe, **latent}
                | {"first_k_dense_replace": 1},
            ),
        }
        cls, extra = own[name]
        return cls(**{**base, **extra, **changes})

    def build(self, config: Any, attn: str = "sdpa", seed: int = 0) -> Any:
        from transformers import AutoModelForCausalLM

        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(config, attn_implementation=attn).eval()
        with torch.no_grad():
            for p in model.parameters():
                if p.dim() > 1:
                    p.mul_(6)  # attention that is not uniform
        return model

    def model(self, name: str, attn: str = "sdpa", seed: int = 0) -> Any:
        key = (name, attn, seed)
        if key not in self._models:
            self._models[key] = self.build(self.config(name), attn, seed)
        return self._models[key]

    def attns(self, name: str) -> tuple[str, ...]:
        return ("eager",) if name == "gptoss" else ("sdpa", "eager")

    def ids(self, n: int, rows: int = 1, seed: int = 3) -> Any:
        return torch.randint(2, 128, (rows, n), generator=torch.Generator().manual_seed(seed))

    def padded(self, lengths: tuple[int, ...], seed: int = 1) -> tuple[list[Any], Any, Any]:
        """(rows, ids left-padded to one rectangle, mask)."""
        rows = [self.ids(n, seed=seed + i) for i, n in enumerate(lengths)]
        width = max(lengths)
        pad = torch.nn.functional.pad
        ids = torch.cat([pad(x, (width - x.shape[1], 0)) for x in rows])
        mask = torch.cat([pad(torch.ones_like(x), (width - x.shape[1], 0)) for x in rows])
        return rows, ids, mask

    def full(self, model: Any) -> Any:
        from transformers import DynamicCache

        return DynamicCache(config=model.config)

    def cache(self, model: Any, policy: str = "snapkv", budget: int | None = 24, **more: Any) -> Any:
        from remnant_hf import RemnantCache

        return RemnantCache(model.config, policy, budget=budget, **{**self.options.get(policy, {}), **more})

    def go(self, model: Any, ids: Any, cache: Any, new: int = 8, **kw: Any) -> Any:
        """New tokens only, `[B, new]`, greedy unless told otherwise."""
        kw.setdefault("do_sample", False)
        kw.setdefault("attention_mask", torch.ones_like(ids))
        out = model.generate(ids, past_key_values=cache, max_new_tokens=new, **kw)
        return out[:, ids.shape[1] :]


@pytest.fixture(scope="session")
def lab() -> Lab:
    return Lab()


class Replay:
    """A drafter that knows how each text goes on, and is wrong at every third token of a draft."""

    name: ClassVar[str] = "replay"
    vocab_size = None

    def __init__(self, full: Any, branches: bool = False) -> None:
        """`full`: per row `[T]`, prompt and answer. With `branches` it drafts trees with a wrong sibling first."""
        self.full, self.branches = full, branches
        self.texts: list[list[int]] = []

    def reset(self, prompts: Any) -> None:
        self.texts = [prompt.tolist() for prompt in prompts]

    def propose(self, limits: Any, sampler: Any = None) -> Any:
        guess = self._tree if self.branches else self._chain
        return [guess(text, full, limit) for text, full, limit in zip(self.texts, self.full, limits, strict=True)]

    def _chain(self, text: list[int], full: Any, limit: int) -> Any:
        from remnant.speculative import Draft

        ids = full[len(text) : len(text) + limit].clone()
        ids[2::3] = (ids[2::3] + 1) % 128
        return Draft(ids)

    def _tree(self, text: list[int], full: Any, limit: int) -> Any:
        from remnant.speculative import Draft, Tree

        ids, parents, at = [text[-1]], [-1], 0
        for token in full[len(text) : len(text) + limit // 2].tolist():
            ids, parents = [*ids, (token + 1) % 128, token], [*parents, at, at]
            at = len(ids) - 1
        tree = Tree.of(torch.tensor(ids), torch.tensor(parents))
        return Draft(tree.ids[1:], tree=tree) if len(ids) > 1 else Draft(tree.ids[1:])

    def observe(self, emitted: Any) -> None:
        for text, ids in zip(self.texts, emitted, strict=True):
            text += ids.tolist()

    def rollback(self, counts: Any) -> None:
        for text, count in zip(self.texts, counts, strict=True):
            del text[len(text) - count :]


@pytest.fixture(scope="session")
def replay() -> type[Replay]:
    return Replay
