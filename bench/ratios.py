#!/usr/bin/env python3
"""Reads the rows that peers.py left (rows.jsonl) and prints Holdfast's ratios to each peer, and its targets.

    bench/ratios.py rows.jsonl

Medians. "restore" is until the files are back, "promoted" until the server is out
of recovery and takes writes: Holdfast replays and promotes itself, of the others
it is their restore and the server's start on it.
"""
import json, statistics, sys

OURS = ("holdfast", "holdfast3")
# step, peer, at least so many times as fast, at most this share of its bytes
TARGETS = [
    ("full", "pgbackrest", 1.5, 1.10), ("full", "pgbackrest1", 1.1, 1.03), ("incr", "pgbackrest", 4.0, 0.25), ("incr1", "pgbackrest", 4.0, 0.25),
    ("incr5", "pgbackrest", 4.0, 0.25), ("restore", "pgbackrest", 2.0, None), ("delta", "pgbackrest", 1.5, None),
]
# Of WAL: our step, a peer's, which peer ("local cp": a restore_command that copies from a directory), times as fast.
WAL_TARGETS = [
    ("push-async", "push-async", "pgbackrest", 1.3), ("push-async", "push", "pgbackrest", 3.0),
    ("replay-async", "replay", "local cp", 1 / 1.1),
]
MEMORY = 256 * 1.048576  # MB


def medians(path):
    got = {}
    with open(path) as f:
        for step, tool, repo, m in map(json.loads, f):
            for k, v in m.items():
                if isinstance(v, (int, float)):
                    got.setdefault((repo, step, tool), {}).setdefault(k, []).append(v)
    return {k: {n: statistics.median(v) for n, v in m.items()} for k, m in got.items()}


def derived(med):
    """The steps that are compared: start counts from the restore's beginning."""
    out = {}
    for (repo, step, tool), m in med.items():
        if step != "start":
            out[repo, step, tool] = m
        elif (repo, "restore", tool) in med:
            before = med[repo, "restore", tool]
            out[repo, "promoted", tool] = {**before, "wall": before["wall"] + m["wall"]}
    return out


def ratio_table(rows):
    print("| repository | step | tool | seconds | CPU s | peak MB | stored MB | Holdfast is faster by | its bytes to the peer's |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- | --- |")
    for repo, step in dict.fromkeys((r, s) for r, s, _ in rows):
        here = {t: m for (r, s, t), m in rows.items() if (r, s) == (repo, step)}
        own = here.get("holdfast")
        for tool, m in here.items():
            stored = f"{m['bytes'] / 1e6:.1f}" if "bytes" in m else ""
            cells = [repo, step, tool, f"{m['wall']:.2f}", f"{m.get('cpu', 0):.1f}", f"{m.get('rss', 0) / 1e6:.0f}", stored]
            if own and tool not in OURS:
                cells += [f"{m['wall'] / own['wall']:.2f}", f"{own['bytes'] / m['bytes']:.3f}" if m.get("bytes") and "bytes" in own else ""]
            else:
                cells += ["", ""]
            print("| " + " | ".join(cells) + " |")


def target_table(rows):
    print("| repository | step | against | times as fast | target | bytes | target | |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- |")
    for repo in dict.fromkeys(r for r, _, _ in rows):
        for step, peer, faster, share in TARGETS:
            own, other = rows.get((repo, step, "holdfast")), rows.get((repo, step, peer))
            if not own or not other:
                continue
            times, bytes_ = other["wall"] / own["wall"], own["bytes"] / other["bytes"] if share else 0
            met = times >= faster and (not share or bytes_ <= share)
            print(f"| {repo} | {step} | {peer} | {times:.2f} | {faster} | {f'{bytes_:.3f}' if share else ''} | {share or ''} | {'reached' if met else '**not reached**'} |")
        for step, theirs, peer, faster in WAL_TARGETS:
            own, other = rows.get((repo, step, "holdfast")), rows.get((repo, theirs, peer)) or rows.get(("-", theirs, peer))
            if own and other:
                times = other["wall"] / own["wall"]
                print(f"| {repo} | {step} | {peer}, {theirs} | {times:.2f} | {faster:.2f} | | | {'reached' if times >= faster else '**not reached**'} |")
        peaks = [m["rss"] / 1e6 for (r, _, t), m in rows.items() if r == repo and t == "holdfast" and "rss" in m]
        if peaks:
            print(f"| {repo} | peak memory, every step | | {max(peaks):.0f} MB | {MEMORY:.0f} MB | | | {'reached' if max(peaks) <= MEMORY else '**not reached**'} |")


def main():
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    rows = derived(medians(sys.argv[1]))
    print("### Ratios\n")
    ratio_table(rows)
    print("\n### Targets\n")
    target_table(rows)


if __name__ == "__main__":
    main()
