"""The published systems that Remnant implements or will implement, one row each."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.resources import files
from importlib.util import find_spec
from typing import Any, Literal

_PACKAGES = {
    "HF": "remnant_hf",
    "vLLM": "remnant_vllm",
    "LangChain": "remnant_langchain",
    "LlamaIndex": "remnant_llamaindex",
}


@dataclass(frozen=True)
class System:
    """A published system.

    Args:
        number: its number in the table of systems.
        name: the name its authors gave it.
        spec: the specification and its section.
        home: where its code lives, below `core/remnant` unless it starts with `kernels`.
        doors: through which hosts it can be reached.
        command: reproduces its claim in direction; empty while the system is planned.
    """

    number: int
    name: str
    spec: str
    home: str
    doors: tuple[str, ...]
    command: str = ""

    @property
    def state(self) -> Literal["ready", "planned"]:
        """Ready once its code is here and a command shows its claim."""
        return "ready" if self.command and _exists(self.home) else "planned"

    def open_doors(self) -> tuple[str, ...]:
        """The doors that exist in this release."""
        if self.state == "planned":
            return ()
        return tuple(door for door in self.doors if _is_open(door))

    def to_dict(self) -> dict[str, Any]:
        """The row as data; a planned system has no command."""
        return {
            "number": self.number,
            "name": self.name,
            "spec": self.spec,
            "home": self.home,
            "doors": list(self.doors),
            "open_doors": list(self.open_doors()),
            "state": self.state,
            "command": self.command if self.state == "ready" else "",
        }


def _exists(home: str) -> bool:
    """Whether a module of ours is here; looked up as a file, since importing it may load torch."""
    return files("remnant").joinpath(f"{home}.py").is_file()


def _is_open(door: str) -> bool:
    return door not in _PACKAGES or find_spec(_PACKAGES[door]) is not None


def _policy(number: int, name: str, section: int, policy: str, doors: tuple[str, ...], claim: str) -> System:
    """A row for a KV policy; `claim` is the task and the budget at which it shows its point, and options if any."""
    task, budget, *options = claim.split()
    run = f"remnant testbed eval --task {task} --policy {policy} --budget {budget} --length 1024"
    run += "".join(f" --option {option}" for option in options)
    return System(number, name, f"kv-cache {section}", f"kv/policies/{policy}", doors, run)


_HF, _VLLM = ("HF",), ("HF", "vLLM")
_AGENTS = ("LangChain", "LlamaIndex")
_STRATEGY = "memory/strategies"
_STREAM = "remnant testbed agents --strategy"

SYSTEMS = (
    _policy(1, "SnapKV", 2, "snapkv", _VLLM, "passkey-early 0.1"),
    _policy(2, "ThinK", 3, "think", _HF, "recall 1.0 evictor=none"),
    _policy(3, "D2O", 4, "d2o", _HF, "perplexity 0.2"),
    _policy(4, "TRIM-KV", 5, "trimkv", _VLLM, "recall 0.1"),
    _policy(5, "LazyEviction", 6, "lazyeviction", _VLLM, "recurrence-rare 0.1"),
    _policy(6, "EpiCache", 7, "epicache", _HF, "episodes 0.2"),
    _policy(7, "TIM / TIMRUN", 8, "tim", _HF, "tree 1.0"),
    System(
        8,
        "Kinetics",
        "attention 1",
        "kv/policies/kinetics",
        ("HF", "CLI"),
        "remnant testbed eval --task recall --policy kinetics --budget 0.1 --length 1024",
    ),
    System(9, "FlashAttention", "attention 5", "kernels/attention", ("kernels",)),
    System(10, "vAttention", "kv-cache 9", "kernels/virtual_kv", _HF),
    System(11, "LongGen", "attention 3", "kv/policies/longgen", _HF),
    System(12, "BASED", "attention 4", "layers/based", ("torch",)),
    System(
        13, "VocabTrim", "speculative 1", "speculative/vocab", ("HF", "vLLM", "CLI"), "remnant bench drafting_vocab"
    ),
    System(
        14,
        "FastDraft",
        "speculative 2",
        "speculative/fastdraft/run",
        ("CLI", "HF", "vLLM"),
        "remnant bench drafting_fastdraft --part claim",
    ),
    System(15, "SpecMemo", "speculative 3", "speculative/planner", ("HF", "CLI"), "remnant bench drafting_plan"),
    System(16, "RAPID", "speculative 4", "speculative/rapid", _VLLM, "remnant bench drafting_rapid"),
    System(
        17, "ReasoningBank + MaTTS", "agent-memory 2", f"{_STRATEGY}/reasoningbank", _AGENTS, f"{_STREAM} reasoningbank"
    ),
    System(18, "ArcMemo", "agent-memory 3", f"{_STRATEGY}/arcmemo", _AGENTS, f"{_STREAM} arcmemo"),
    System(19, "TiM (Think-in-Memory)", "agent-memory 4", f"{_STRATEGY}/tim", _AGENTS, f"{_STREAM} tim"),
    System(20, "ReMe", "agent-memory 5", f"{_STRATEGY}/reme", _AGENTS, f"{_STREAM} reme"),
    System(21, "MemOS (memory cube)", "agent-memory 6", "memory/cube", _AGENTS),
    System(22, "MemOS (scheduler)", "agent-memory 6", "memory/scheduler", _AGENTS),
    System(23, "Mem-alpha", "agent-memory-rl 1", f"{_STRATEGY}/memalpha", (*_AGENTS, "TRL")),
    System(24, "Memory-R1", "agent-memory-rl 2", f"{_STRATEGY}/memoryr1", (*_AGENTS, "TRL")),
    System(25, "MEM1", "agent-memory-rl 3", f"{_STRATEGY}/mem1", ("LangChain", "TRL")),
    System(26, "ConvoMem routing", "routing 1, 3", "routing/router", _AGENTS, "remnant bench routing"),
    System(27, "Long-Context LLMs Meet RAG", "routing 2", "routing/reorder", _AGENTS),
    System(28, "L2MAC", "agent-memory 7", "memory/l2mac", ("LangChain",)),
    System(29, "HCAM", "agent-memory 8", "index/hcam", ("core",)),
    System(30, "SPANN", "spann", "index/spann", ("core", *_AGENTS)),
    System(31, "Titans", "model-memory 1", "layers/fast_weights", ("torch",)),
    System(32, "MLP Memory", "model-memory 2", "layers/knn_memory", _HF),
    System(33, "Hierarchical memories", "model-memory 3", "layers/param_bank", _HF),
    System(34, "WISE", "model-memory 4", "layers/edit", _HF),
    System(35, "CMT", "model-memory 5", "layers/soft_docs", _HF),
    System(36, "PERK", "model-memory 6", "layers/ttt_lora", ("HF", "vLLM LoRA")),
    System(37, "Contextual Memory Reweaving", "model-memory 7", "layers/latent", ("torch",)),
    System(38, "Synaptic Resonance", "model-memory 8", "layers/fast_weights", ("torch",)),
    System(39, "MEMO (7B, 1M tokens)", "training-memory 1", "training/longctx", ("Trainer",)),
    System(40, "WTA-CRS", "training-memory 2", "training/crs", ("Trainer",)),
    System(41, "Mesa", "training-memory 3", "training/codec", ("Trainer",)),
    System(42, "MemAscend", "training-memory 4", "training/store", ("Trainer",)),
    System(43, "LeMo", "training-memory 5", "training/longctx", ("Trainer",)),
    System(44, "LLM in a flash", "training-memory 6", "training/store", _HF),
    System(45, "Low-rank restarts", "training-memory 7", "training/lowrank", ("Trainer",)),
    System(46, "FPF / k-FPF", "training-memory 8", "training/continual", ("Trainer",)),
    System(47, "MEMO (603 exemplars)", "training-memory 9", "training/continual", ("torch",)),
    System(48, "MAMBA memory bank", "training-memory 10", "training/continual", ("torch",)),
)
