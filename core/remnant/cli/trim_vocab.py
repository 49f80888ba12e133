"""`remnant trim-vocab`: a drafter that proposes only what its target really writes."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from remnant.cli._output import Json, answer, print_table
from remnant.errors import ConfigError
from remnant.lazy import needs

if TYPE_CHECKING:
    from remnant.progress import Progress
    from remnant.speculative.vocab_chain import Chain
    from remnant.speculative.vocab_checkpoint import Checkpoint
    from remnant.speculative.vocab_measure import Forward
    from remnant.speculative.vocab_settings import Source, Trim
    from remnant.speculative.vocab_tokenizer import Tokenizer

_PART = re.compile(r"(?:(?P<name>[\w.-]+)=)?(?P<file>.+?)(?::(?P<floor>\d*\.?\d+%?))?")
_KEYS = ("step_bytes", "cost", "mbsu")


def trim_vocab(
    model: Annotated[str, typer.Argument(help="A drafter's folder: EAGLE-3, or a causal language model.")],
    out: Annotated[Path, typer.Option(help="Folder of the smaller drafter.", metavar="DIR")],
    tokens: Annotated[
        list[str] | None,
        typer.Option(
            help="Text to count: .txt, .jsonl (text, or ids and loss_mask), .npy, .safetensors. Several as "
            "NAME=FILE:0.95, each with the least share of its tokens that has to be kept.",
            metavar="FILE",
        ),
    ] = None,
    generate: Annotated[
        Path | None, typer.Option(help="Prompts that --target answers; its answers are counted.", metavar="PROMPTS")
    ] = None,
    target: Annotated[str | None, typer.Option(help="The target's folder: for costs, answers, acceptance.")] = None,
    k: Annotated[str, typer.Option(help="Tokens to keep; auto weighs cost against acceptance.")] = "auto",
    objective: Annotated[str, typer.Option(help="counts, or acceptance (reads both models).")] = "counts",
    num_draft: Annotated[int, typer.Option(min=1, help="Draft steps per block.")] = 3,
    acceptance: Annotated[float | None, typer.Option(help="Of the drafter as it is, if known: 0 to 1.")] = None,
    temperature: Annotated[float, typer.Option(min=0.0, help="Of answers and acceptance; 0 is greedy.")] = 0.0,
    tokenizer: Annotated[Path | None, typer.Option(help="Its folder, if not beside a model.")] = None,
    always: Annotated[list[str] | None, typer.Option(help="Keep this token too: its id or text.")] = None,
    max_new: Annotated[int, typer.Option(min=1, help="Tokens of an answer at most.")] = 256,
    learn: Annotated[int, typer.Option(min=1, help="Tokens read for objective acceptance.")] = 32768,
    held_out: Annotated[int, typer.Option(min=0, help="Tokens read to measure acceptance; 0: none.")] = 4096,
    seed: Annotated[int, typer.Option(help="Of answers at a temperature.")] = 0,
    chart: Annotated[bool, typer.Option("--chart/--no-chart", help="Draw the report too.")] = True,
    force: Annotated[bool, typer.Option("--force", help="Replace a checkpoint that is there.")] = False,
    as_json: Json = False,
) -> None:
    """Trim a drafter's head to the tokens its target writes; the output does not change."""

    def work(progress: Progress) -> dict[str, Any]:
        with needs("torch", wanted_by="remnant trim-vocab"):
            from remnant.speculative.vocab_settings import Trim
        if not tokens and generate is None:
            raise ConfigError("nothing to count", accepted="--tokens FILE or --generate PROMPTS")
        if chart:
            with needs("plot", wanted_by="the chart of remnant trim-vocab (--no-chart leaves it out)"):
                import matplotlib  # noqa: F401  # pyright: ignore[reportUnusedImport]
        options: dict[str, Any] = {"num_draft": num_draft, "acceptance": acceptance, "temperature": temperature}
        options |= {"learn": learn, "held_out": held_out, "chart": chart, "force": force, "objective": objective}
        trim = Trim(k=_number(k), **options)
        asked = _Asked(tokens or [], generate, target, tokenizer, always or [], max_new, seed)
        return _work(model, out, trim, asked, progress)

    answer(as_json, work, _show)


@dataclass(frozen=True)
class _Asked:
    """Where the text comes from."""

    tokens: list[str]
    generate: Path | None
    target: str | None
    tokenizer: Path | None
    always: list[str]
    max_new: int
    seed: int


def _work(model: str, out: Path, trim: Trim, asked: _Asked, progress: Progress) -> dict[str, Any]:
    from dataclasses import replace

    from remnant.serving.checkpoint import find_config
    from remnant.speculative.vocab_tokenizer import open_tokenizer
    from remnant.speculative.vocab_trim import check_trim, trim_vocab

    checkpoint, _ = check_trim(model, out, trim, asked.target)
    if asked.generate is not None and asked.target is None:
        raise ConfigError("--generate without a target to answer", do="give --target")
    beside = find_config(asked.target).parent if asked.target else None
    words = open_tokenizer([asked.tokenizer])
    if asked.tokenizer is not None and words is None:
        raise ConfigError(f"no tokenizer in {str(asked.tokenizer)!r}", accepted="a folder with tokenizer.json")
    words = words or open_tokenizer([checkpoint.folder, beside])
    if words is not None and words.size > checkpoint.vocab_size:
        given = f"a tokenizer of {words.size} tokens, a drafter of {checkpoint.vocab_size}"
        raise ConfigError(given, accepted="the tokenizer of the model")
    compared = _comparable(checkpoint, trim, asked)
    parts = [_part(text) for text in asked.tokens]
    loaded = _load(asked.target) if asked.target and (asked.generate is not None or compared) else None
    sources = _sources(checkpoint, parts, asked, words, loaded, trim, progress)
    forwards, chain = _pair(loaded, checkpoint, words) if loaded and compared else (None, None)
    trim = replace(trim, always=[_always(text, words) for text in asked.always] + _special(asked, checkpoint))
    found = trim_vocab(model, sources, out, trim, asked.target, forwards, progress, chain)
    found.pop("metadata")
    return found | {"architecture": checkpoint.architecture, **_served(checkpoint, found, out)}


def _comparable(checkpoint: Checkpoint, trim: Trim, asked: _Asked) -> bool:
    """Whether both models are read side by side; what cannot be is refused before any weight is read."""
    if trim.objective == "acceptance" and asked.target is None:
        raise ConfigError("objective acceptance without a target", do="give --target")
    compared = asked.target is not None and (trim.objective == "acceptance" or trim.held_out > 0)
    if compared and checkpoint.kind == "eagle3":
        from remnant.speculative.eagle3_shape import Eagle3Shape

        Eagle3Shape.from_config(checkpoint.config)
    return compared


def _number(text: str) -> int | None:
    if text == "auto":
        return None
    try:
        return int(text)
    except ValueError:
        raise ConfigError(f"k {text!r}", accepted="a number of tokens, or auto") from None


def _part(text: str) -> tuple[str, Path, float]:
    """(name, file, floor) of `NAME=FILE:0.95`, of which name and floor may be absent."""
    if Path(text).is_file():
        return Path(text).stem, Path(text), 0.0
    match = _PART.fullmatch(text)
    if match is None:
        raise ConfigError(f"tokens {text!r}", accepted="FILE, or NAME=FILE:0.95")
    path, floor = Path(match["file"]), match["floor"] or "0"
    share = float(floor[:-1]) / 100 if floor.endswith("%") else float(floor)
    return match["name"] or path.stem, path, share


def _sources(
    checkpoint: Checkpoint,
    parts: list[tuple[str, Path, float]],
    asked: _Asked,
    words: Tokenizer | None,
    loaded: Any,
    trim: Trim,
    progress: Progress,
) -> list[Source]:
    import torch

    from remnant.speculative.vocab_counts import read_prompts, read_tokens
    from remnant.speculative.vocab_measure import written_by
    from remnant.speculative.vocab_settings import Source

    names = [name for name, _, _ in parts]
    if len(set(names)) < len(names):
        raise ConfigError(f"two texts of one name among {names}", do="name them: --tokens NAME=FILE")
    size, sources = checkpoint.vocab_size, list[Source]()
    for name, path, floor in parts:
        texts = list(read_tokens(path, words.plain if words else None, size, progress))
        sources.append(Source(name, texts, floor))
    if asked.generate is not None:
        prompts = read_prompts(asked.generate, words.prompt if words else None, size)
        generator = torch.Generator(loaded.device).manual_seed(asked.seed)
        answers = written_by(loaded, prompts, asked.max_new, trim.temperature, generator, progress)
        sources.append(Source("generated", list(answers)))
    return sources


def _load(folder: str) -> Any:
    with needs("hf", wanted_by="remnant trim-vocab with --target"):
        from transformers import AutoModelForCausalLM
    loader: Any = AutoModelForCausalLM
    return _placed(lambda options: loader.from_pretrained(folder, local_files_only=True, **options))


def _pair(target: Any, checkpoint: Checkpoint, words: Tokenizer | None) -> tuple[tuple[Forward, Forward], Chain | None]:
    """Target and drafter as functions of a text; a drafter that is fed by itself as a chain, too."""
    if checkpoint.kind == "causal":
        return (_reader(target, words), _reader(_load_draft(checkpoint), words)), None
    from remnant.speculative.eagle3 import load_eagle3
    from remnant.speculative.eagle3_pair import Eagle3Pair

    head = load_eagle3(checkpoint.folder, target.dtype).to(target.device)
    pair = Eagle3Pair(target, head, words.prompt("") if words else [])
    return (pair.target, pair.draft), pair.chain


def _load_draft(checkpoint: Checkpoint) -> Any:
    if checkpoint.kept is None:
        return _load(str(checkpoint.folder))
    with needs("hf", wanted_by="remnant trim-vocab with --target"):
        from remnant_hf.trimmed import load_trimmed
    load: Callable[..., Any] = load_trimmed
    return _placed(lambda options: load(checkpoint.folder, **options))


def _placed(load: Callable[[dict[str, Any]], Any]) -> Any:
    import torch

    cuda = torch.cuda.is_available()
    model = load({"dtype": "auto" if cuda else torch.float32})
    return model.to("cuda" if cuda else "cpu").eval()


def _reader(model: Any, words: Tokenizer | None) -> Forward:
    """The model as a function of a stretch of text, which begins as the tokenizer has texts begin."""
    import torch

    begin = torch.tensor([words.prompt("") if words else []], dtype=torch.int64)

    def read(ids: torch.Tensor) -> torch.Tensor:
        whole = torch.cat([begin, ids], 1).to(model.device)
        return model(input_ids=whole, use_cache=False).logits[:, begin.shape[1] :]

    return read


def _special(asked: _Asked, checkpoint: Checkpoint) -> list[int]:
    from remnant.speculative.vocab_specials import special_ids

    return list(special_ids(asked.tokenizer, checkpoint.vocab_size)) if asked.tokenizer else []


def _always(text: str, words: Tokenizer | None) -> int:
    if text.removeprefix("-").isdecimal():
        return int(text)
    ids = words.plain(text) if words else []
    if len(ids) != 1:
        how = f"{len(ids)} tokens" if words else "text, but there is no tokenizer"
        raise ConfigError(f"always {text!r} is {how}", accepted="one token: its id or its text")
    return ids[0]


def _served(checkpoint: Checkpoint, found: dict[str, Any], out: Path) -> dict[str, Any]:
    """Which hosts take the new checkpoint, and how vLLM is told to."""
    from remnant.speculative.vocab_names import SERVED, TRIMMED

    if checkpoint.kind == "eagle3":
        hosts, method = ["vllm"], "eagle3"
    else:
        known = checkpoint.architecture.removeprefix(TRIMMED) in SERVED or found["k"] == checkpoint.vocab_size
        hosts, method = ["hf", *(["vllm"] if known else [])], "draft_model"
    flag = f'{{"method": "{method}", "model": "{out}", "num_speculative_tokens": {found["num_draft"]}}}'
    return {"hosts": hosts, "serve": f"--speculative-config '{flag}'" if "vllm" in hosts else None}


def _show(found: dict[str, Any]) -> None:
    typer.echo(f"kept     {found['k']} of {found['rows_before']} rows, {found['always']} of them always")
    for text in found["texts"]:
        floor = f", floor {text['floor']:.1%}" if text["floor"] else ""
        typer.echo(f"text     {text['name']}: {text['tokens']} tokens, {text['coverage']:.2%} of them kept{floor}")
    sure = found["acceptance"]
    typer.echo(f"accepted {sure['whole']:.3f} before ({sure['whole_is']}), at least {sure['bound']:.3f} after")
    if sure["steps"]:
        typer.echo(f"chains   {', '.join(f'{x:.3f}' for x in sure['steps'])} reach that many right drafts, from 1 on")
    typer.echo("")
    print_table(("", "before", "after"), [(key, *map(_short, found[key].values())) for key in _KEYS])
    typer.echo("")
    columns = ("k", "coverage", "coverage_held_out", "acceptance_bound", "acceptance_measured", "cost", "mbsu")
    print_table(columns, [[_short(row[column]) for column in columns] for row in found["table"]])
    typer.echo(f"\nwritten  {found['out']} (report {Path(found['report']).name})")
    if found["serve"]:
        typer.echo(f"vllm     {found['serve']}")


def _short(x: float | int | None) -> str:
    return "" if x is None else str(x) if isinstance(x, int) else f"{x:.4f}"
