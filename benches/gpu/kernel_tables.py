"""The blocks of the table about operations and kernels one by one."""

from operations import is_wrong, number

COLUMNS = {"milliseconds": 3, "tflops": 0, "gigabytes_per_second": 0}
# Of the profiler's kernels.
ROWS_MAX = 16


def row(*cells: str) -> str:
    return f"| {' | '.join(cells)} |"


def operations(groups: dict) -> list[str]:
    """A line for each group, and one for each operation that is wrong."""
    if not groups:
        return []
    lines = ["| operations against the CPU | right | nearest to its tolerance | |", "|---|---|---|---|"]
    faults = []
    for name, group in groups.items():
        wrong = list(filter(is_wrong, group["operations"]))
        right = [operation for operation in group["operations"] if not is_wrong(operation)]
        outcome = group["outcome"]
        if group["skipped"] and not group["operations"]:
            verdict, outcome = f"skipped: {group['skipped'][0]}", ""
        elif wrong or group.get("stopped"):
            verdict, outcome = "**WRONG**", "" if outcome == f"failed with exit code {len(wrong)}" else outcome
        elif outcome == "done" and right:
            verdict, outcome = "right", ""
        else:
            verdict = "**NOT COMPLETE**"
        count = f"{len(right)} of {len(group['operations'])}"
        lines.append(row(name, count, nearest(right), " ".join(filter(None, [verdict, outcome]))))
        faults += [fault_of(name, operation) for operation in wrong]
        faults += [f"- {name}: {why}" for why in group.get("stopped", [])]
        faults += [f"  - {line}" for line in group.get("sanitizer", [])]
    return lines + ([""] + faults if faults else [])


def nearest(operations: list[dict]) -> str:
    """The operation that comes nearest to its tolerance, as a share of it."""
    shares = [
        (number(operation["error"]) / number(operation["tolerance"]), operation["operation"])
        for operation in operations
        if number(operation["tolerance"]) > 0
    ]
    return "–" if not shares else "{1}, {0:.0%}".format(*max(shares))


def fault_of(group: str, operation: dict) -> str:
    why = operation.get("failure") or f"error {operation.get('error')}, at most {operation.get('tolerance')}"
    return f"- {group}: {operation['operation']}: {why}"


def records_of(content: dict | list | None) -> list[dict]:
    """The records, whether or not they are in an object."""
    if isinstance(content, dict):
        content = next((value for value in content.values() if isinstance(value, list)), [])
    return [record for record in content or [] if isinstance(record, dict)]


def kernels(ours: dict | list | None, theirs: dict | list | None) -> list[str]:
    """The program's kernels, then torch's at the same shapes."""
    records = [(record, "fluxserve") for record in records_of(ours)] + [(record, "torch") for record in records_of(theirs)]
    if not records:
        return []
    lines = ["| kernel | by | shape | ms | TFLOP/s | GB/s |", "|---|---|---|---:|---:|---:|"]
    for record, by in records:
        shape = record.get("shape", "")
        words = "×".join(map(str, shape)) if isinstance(shape, list) else str(shape)
        cells = [digits(record.get(key), places) for key, places in COLUMNS.items()]
        if why := record.get("failure") or record.get("skipped"):
            cells = ["–", str(why).replace("|", "/")[:60], "–"]
        lines.append(row(str(record.get("kernel", "")), by, words, *cells))
    return lines


def digits(value: object, places: int) -> str:
    return f"{value:.{places}f}" if isinstance(value, (int, float)) else "–"


def profiled(content: dict) -> list[str]:
    totals = content.get("kernels", [])[:ROWS_MAX]
    if not totals:
        return []
    lines = ["| kernels of text encoders, one step and the decoder, by ncu | grid | launches | ms |", "|---|---|---:|---:|"]
    for total in totals:
        name = total["kernel"].replace("|", "\\|")
        lines.append(row(name, total["grid"], str(total["launches"]), f"{total['milliseconds']:.3f}"))
    return lines


def best_rate(content: dict | list | None, kind: str) -> float | None:
    """Operations a second of the fastest one."""
    rates = rates_of(content, kind)
    return max(rates) if rates else None


def rates_of(content: dict | list | None, kind: str) -> list[float]:
    return [1e12 * record["tflops"] for record in records_of(content) if record.get("kind") == kind and "tflops" in record]
