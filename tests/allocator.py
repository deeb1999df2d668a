"""Memory that a function takes on the CPU, as torch's profiler sees it."""

import json

from torch.profiler import ProfilerActivity, profile


def peak(run, folder):
    """Bytes at most by the profiler, to which the CPU's allocator reports each block as it is handed out and freed."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True, acc_events=True) as seen:
        run()
    seen.export_chrome_trace(str(folder / "trace.json"))
    events = json.loads((folder / "trace.json").read_text())["traceEvents"]
    total = most = 0
    for event in sorted((e for e in events if e.get("name") == "[memory]"), key=lambda e: e["ts"]):
        total += event["args"]["Bytes"]
        most = max(most, total)
    return most
