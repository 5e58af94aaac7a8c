#!/usr/bin/env python3
"""Achieved TCP rate in Mbit/s between two emulated hosts: tcp_rate.py SENDER_PID RECEIVER_PID RECEIVER_ADDRESS

The two are processes of the hosts, whose network namespaces this enters (by nsenter, so that any python3 will do).
"""
import subprocess
import sys

PORT = 5077
SECONDS = 1.0

RECEIVER = f"""
import socket, time
with socket.create_server(("", {PORT})) as server:
    print("ready", flush=True)
    server.settimeout(20)
    link, _ = server.accept()
    link.settimeout(20)
    # What the queues hold at the start is not counted.
    count, begin, last = 0, None, None
    started = time.monotonic()
    while got := link.recv(1 << 18):
        last = time.monotonic()
        if last - started < 0.2:
            continue
        if begin is None:
            begin = last
        else:
            count += len(got)
    print(count * 8 / (last - begin) / 1e6)
"""

SENDER = f"""
import socket, sys, time
link = socket.create_connection((sys.argv[1], {PORT}), timeout=20)
block, end = bytes(1 << 16), time.monotonic() + 0.2 + {SECONDS}
while time.monotonic() < end:
    link.sendall(block)
"""


def on_host(pid, program, *arguments):
    return subprocess.Popen(["nsenter", "--target", pid, "--net", "--", sys.executable, "-c", program, *arguments],
                            stdout=subprocess.PIPE, text=True)


def main():
    sender_pid, receiver_pid, address = sys.argv[1:]
    receiver = on_host(receiver_pid, RECEIVER)
    if receiver.stdout.readline() != "ready\n":
        sys.exit("tcp_rate: the receiver did not start")
    sender = on_host(sender_pid, SENDER, address)
    rate = receiver.stdout.read()
    if sender.wait() or receiver.wait():
        sys.exit("tcp_rate: the transfer failed")
    print(f"{float(rate):.1f}")


main()
