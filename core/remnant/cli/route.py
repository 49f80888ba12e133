"""`remnant route`: whether to read a whole history, blocks of it, or what retrieval finds."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from remnant.cli._output import Json, answer, print_table


def route(
    history: Annotated[Path, typer.Option(help="Conversations as JSON or JSON Lines.", metavar="FILE")],
    model_window: Annotated[int, typer.Option(min=1, help="Tokens that fit into the model.")],
    query: Annotated[str, typer.Option(help="The question.")] = "",
    query_type: Annotated[str, typer.Option(help="user_fact, temporal, ...; unknown is told by rules.")] = "unknown",
    price: Annotated[float, typer.Option(min=0, help="USD per million tokens read.")] = 0.0,
    price_cached: Annotated[float | None, typer.Option(min=0, help="The same, from a prefix cache.")] = None,
    price_out: Annotated[float, typer.Option(min=0, help="USD per million tokens written.")] = 0.0,
    tier: Annotated[str, typer.Option(help="How well the model reads: weak, mid or top.")] = "mid",
    model_name: Annotated[str, typer.Option(help="Shown with the decision.")] = "",
    reliable_tokens: Annotated[int | None, typer.Option(min=1, help="Longest prompt it stays accurate at.")] = None,
    cached_tokens: Annotated[int, typer.Option(min=0, help="Tokens in the provider's prefix cache.")] = 0,
    evidence: Annotated[int | None, typer.Option(min=1, max=6, help="Messages that hold the answer.")] = None,
    budget_usd: Annotated[float | None, typer.Option(min=0, help="Most USD of one answer.")] = None,
    budget_s: Annotated[float | None, typer.Option(min=0, help="Most seconds of one answer.")] = None,
    no_index: Annotated[bool, typer.Option("--no-index", help="There is nothing to retrieve from.")] = False,
    low: Annotated[int, typer.Option(min=0, help="Conversations up to which everything is read.")] = 30,
    high: Annotated[int, typer.Option(min=0, help="Conversations above which passages are retrieved.")] = 150,
    as_json: Json = False,
) -> None:
    """Decide how a history reaches the model, with the cost and the reason."""
    from remnant.routing import Budgets, Cache, ContextRouter, Index, Model, Request, Settings, read_history
    from remnant.routing.request import query_type as to_type

    def work(_: Any) -> dict[str, Any]:
        found = read_history(history)
        model = Model(model_window, reliable_tokens, price, price_cached, price_out, tier=tier, name=model_name)
        request = Request(
            query,
            len(found),
            sum(conversation.tokens for conversation in found),
            model,
            to_type(query_type),
            est_evidence=evidence,
            budgets=Budgets(budget_usd, budget_s),
            cache=Cache(cached_tokens, ttl_left_s=1.0 if cached_tokens else 0.0),
            index=Index(ready=not no_index),
        )
        decision = ContextRouter(Settings(low=low, high=high)).decide(request).to_dict()
        size = {"conversations": request.n_conversations, "tokens": request.history_tokens, "estimated": True}
        return {"model": model_name, "history": size, **decision}

    answer(as_json, work, _show)


def _show(found: dict[str, Any]) -> None:
    """The decision, why, its cost, and the other modes."""
    history, cost = found["history"], found["cost"]
    typer.echo(f"history  {history['conversations']} conversations, about {history['tokens']} tokens")
    typer.echo(f"mode     {found['mode'].value}")
    typer.echo(f"why      {found['why']}")
    typer.echo(f"cost     {_usd(cost)} USD, {cost['latency_s']:.3g} s, {cost['tokens_in']:.0f} tokens read")
    if found["escalation"]:
        typer.echo(f"then     {', '.join(mode.value for mode in found['escalation'])}, where the answer is poor")
    if not found["considered"]:
        return
    typer.echo("")
    rows = [
        (o["mode"].value, _usd(o["cost"]), f"{o['cost']['latency_s']:.3g}", f"{o['p_answerable']:.0%}", o["obstacle"])
        for o in found["considered"]
        if o["mode"].value != "none"
    ]
    print_table(("mode", "USD", "seconds", "expected right", "what is against it"), rows)


def _usd(cost: dict[str, Any]) -> str:
    return f"{cost['usd']:.4g}"
