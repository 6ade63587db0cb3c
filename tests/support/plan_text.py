"""Plans as text: what tests compare and print."""

from tiered_embed.residency import StepPlan


def plan_text(plan: StepPlan) -> str:
    """The plan as text, one line per part; equal plans have equal texts."""

    def row(table: int, key: int, slot: int) -> str:
        return f"{table}:{key}@{slot}"

    rows = [
        row(t, k, s)
        for t, k, s in zip(
            plan.tables.tolist(), plan.keys.tolist(), plan.slots.tolist(), strict=True
        )
    ]
    victims = [
        row(t, k, s) + ("*" if dirty else "")
        for t, k, s, dirty in zip(
            plan.victim_tables.tolist(),
            plan.victim_keys.tolist(),
            plan.victim_slots.tolist(),
            plan.victim_dirty.tolist(),
            strict=True,
        )
    ]
    lines = [
        f"plan {plan.number}",
        "rows " + " ".join(rows),
        "inverse " + " ".join(map(str, plan.inverse.tolist())),
        "staged " + " ".join(rows[u] for u in plan.staged.tolist()),
        "victims " + " ".join(victims),
        f"overflow {plan.overflow}",
    ]
    if len(plan.staged_from) or len(plan.victim_to):
        fallen = [
            row(t, k, s) + ("*" if dirty else "")
            for t, k, s, dirty in zip(
                plan.fallen_tables.tolist(),
                plan.fallen_keys.tolist(),
                plan.fallen_slots.tolist(),
                plan.fallen_dirty.tolist(),
                strict=True,
            )
        ]
        lines += [
            "staged from " + " ".join(map(str, plan.staged_from.tolist())),
            "victims to " + " ".join(map(str, plan.victim_to.tolist())),
            "fallen " + " ".join(fallen),
        ]
    return "\n".join(lines)
