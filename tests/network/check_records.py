#!/usr/bin/env python3
"""Checks what `shunt bench alltoall --jsonl` wrote: check_records.py FILE --ranks R --nodes N --transport T --tokens T,..."""
import argparse
import json
import sys


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("file")
    parser.add_argument("--ranks", type=int, required=True)
    parser.add_argument("--nodes", type=int, required=True)
    parser.add_argument("--transport", required=True)
    parser.add_argument("--tokens", required=True)
    wanted = parser.parse_args()
    with open(wanted.file, encoding="utf-8") as lines:
        records = [json.loads(line) for line in lines]
    if not records or records[0]["record"] != "context":
        sys.exit("check_records: no context line")
    done, hashes = {}, {}  # method -> token counts; token count -> {method: hash}
    expected = ["shunt", "shunt/flat", "shunt/hier", "shunt/presum"] if wanted.nodes > 1 else ["shunt"]
    for r in records[1:]:
        if r["status"] == "failed" or (r["status"] == "ok" and not r["correct"]):
            sys.exit(f"check_records: {r['method']} with {r['tokens_per_rank']} tokens, {r['phase']}: {r['status']}, {r['reason']}")
        for key in ("ranks", "nodes", "transport"):
            if r[key] != getattr(wanted, key):
                sys.exit(f"check_records: {key} is {r[key]}, not {getattr(wanted, key)}")
        if r["status"] == "ok" and r["phase"] == "total":
            done.setdefault(r["method"], set()).add(r["tokens_per_rank"])
            # Partial sums are rounded on their way.
            if r["result_hash"] and r["method"].startswith("shunt") and r["method"] != "shunt/presum":
                hashes.setdefault(r["tokens_per_rank"], {})[r["method"]] = r["result_hash"]
    for method in expected:
        missing = {int(count) for count in wanted.tokens.split(",")} - done.get(method, set())
        if missing:
            sys.exit(f"check_records: method {method} has no result for {sorted(missing)} tokens")
    for tokens, found in hashes.items():
        if len(set(found.values())) > 1:
            sys.exit(f"check_records: results with {tokens} tokens differ: {found}")
    print(f"check_records: {len(records) - 1} records, {wanted.ranks} ranks on {wanted.nodes} nodes, all correct")


main()
