#!/usr/bin/env python3
"""Measures what bounds any backup tool on this machine, over one file's bytes, and prints a table.

    bench/limits.py FILE

Reading is from the page cache. zstd and age are the ordinary programs, one
thread each; loopback is one TCP connection of two processes. Each figure is
the best of three.
"""
import os, re, shutil, socket, subprocess, sys, tempfile, time
from pathlib import Path


def best(run, size, times=3):
    out = []
    for _ in range(times):
        t0 = time.monotonic()
        run()
        out.append(time.monotonic() - t0)
    return size / 1e6 / min(out)


def read(path):
    buf = bytearray(1 << 20)
    with open(path, "rb", buffering=0) as f:
        while f.readinto(buf):
            pass


def zstd(path, level):
    """Compression and decompression in memory, MB/s, and the size it comes to."""
    out = subprocess.run(["zstd", "-q", f"-b{level}", "-i2", path], capture_output=True, text=True, check=True)
    size, enc, dec = re.findall(r"([0-9]+) \(.*?\),? +([0-9.]+) MB/s,? +([0-9.]+) MB/s", out.stdout + out.stderr)[-1]
    return int(size), float(enc), float(dec)


def age(path, d):
    key, sealed = d / "key", d / "sealed"
    subprocess.run(["age-keygen", "-o", key], check=True, capture_output=True)
    to = re.search(r"age1\S+", key.read_text()).group(0)
    enc = best(lambda: subprocess.run(["age", "-r", to, "-o", "/dev/null", path], check=True), os.path.getsize(path))
    subprocess.run(["age", "-r", to, "-o", sealed, path], check=True)
    dec = best(lambda: subprocess.run(["age", "-d", "-i", key, "-o", "/dev/null", sealed], check=True), os.path.getsize(path))
    return enc, dec


def loopback(total=1 << 30):
    block = bytes(1 << 20)
    with socket.create_server(("127.0.0.1", 0)) as server:
        pid = os.fork()
        if pid == 0:
            with socket.create_connection(server.getsockname()) as c:
                for _ in range(total // len(block)):
                    c.sendall(block)
            os._exit(0)
        conn, _ = server.accept()
        buf, t0 = bytearray(1 << 20), time.monotonic()
        with conn:
            while conn.recv_into(buf):
                pass
        took = time.monotonic() - t0
        os.waitpid(pid, 0)
    return total / 1e6 / took


def main():
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    path, size = sys.argv[1], os.path.getsize(sys.argv[1])
    rows = [("read from the page cache", best(lambda: read(path), size), "")]
    if shutil.which("zstd"):
        for level in (1, 3):
            n, enc, dec = zstd(path, level)
            rows += [(f"zstd -{level}, one thread", enc, f"{100 * n / size:.1f} % of the size"), ("its decompression", dec, "")]
    if shutil.which("age-keygen"):
        with tempfile.TemporaryDirectory() as d:
            enc, dec = age(path, Path(d))
        rows += [("age, encrypting", enc, ""), ("age, decrypting", dec, "")]
    rows.append(("loopback, one connection", max(loopback() for _ in range(3)), ""))
    print("| limit | MB/s | |\n| --- | --- | --- |")
    for what, rate, more in rows:
        print(f"| {what} | {rate:.0f} | {more} |")


if __name__ == "__main__":
    main()
