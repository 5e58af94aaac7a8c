#!/usr/bin/env python3
"""Whether the folder of the campaign in slurm_test holds what it must: check_campaign.py FOLDER."""

import json
import pathlib
import sys

import tomllib

folder = pathlib.Path(sys.argv[1])
summary = json.loads((folder / "summary.json").read_text())
status = {test["run"]: test["status"] for test in summary["tests"]}
expected = {
    "hosts.1": "passed",
    "hosts.2": "passed",
    "bench": "passed",
    "fails": "failed",
    "after": "skipped",
    "expected": "passed",
    "waits": "passed",
}
problems = []
if status != expected:
    problems.append(f"statuses are {summary['tests']}, expected {expected}")
for name in ("results.csv", "junit.xml", "slurm.html"):
    if not (folder / name).is_file():
        problems.append(f"{name} is missing")
for test in summary["tests"]:
    own = folder / test["folder"]
    if test["status"] == "skipped":
        continue
    for name in ("cloudai_sbatch_script.sh", "env_vars.sh", "stdout.txt", "stderr.txt", "mapping-stdout.txt"):
        if not (own / name).is_file():
            problems.append(f"{own}/{name} is missing")
    for name in ("test-run.toml", "slurm-job.toml"):
        tomllib.loads((own / name).read_text())
    nodes = list((own / "metadata").glob("node-*.toml"))
    if not nodes:
        problems.append(f"{own}/metadata has no node")
    for node in nodes:
        if "job_id" not in tomllib.loads(node.read_text())["slurm"]:
            problems.append(f"{node} names no job")
hosts = (folder / "hosts/0/1/stdout.txt").read_text().split()
if hosts.count("one") != 2 or len(set(hosts) - {"one", "on"}) != 2:
    problems.append(f"the first point of the sweep did not run on two hosts: {hosts}")
job = tomllib.loads((folder / "fails/0/slurm-job.toml").read_text())
if job["state"] != "FAILED" or job["exit_code"] != "3:0":
    problems.append(f"the failed job is recorded as {job}")
bench = next(test for test in summary["tests"] if test["run"] == "bench")
if not any(row.get("ranks") == 4 and row.get("nodes") == 2 for row in bench["rows"]):
    problems.append("no row of the benchmark says 4 ranks on 2 nodes")
for problem in problems:
    print(f"check_campaign: {problem}", file=sys.stderr)
sys.exit(1 if problems else 0)
