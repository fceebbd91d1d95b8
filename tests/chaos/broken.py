"""Breaks ksync on purpose, by programs that stand in its place: a checker that finds nothing then is worth nothing.

Each of these is run instead of one tool, with the tool's own arguments, and makes of them what it will.
"""

import dataclasses
import sys

PROLOGUE = f"""#!{sys.executable}
import os, struct, subprocess, sys, time, zlib
sys.path[:0] = %(paths)r
real, arguments = %(real)r, sys.argv[1:]
"""
LYING_HANDLER = """
# One batch in ten is called done, and nothing was done.
at = arguments.index("--") + 1
script = 'f=$(mktemp); cat >"$f"; if [ $(($(cksum <"$f" | cut -d" " -f1) % 10)) = 0 ]; then rm "$f"; exit 0; fi; ' \\
    '"$@" <"$f"; s=$?; rm "$f"; exit $s'
if "--worker" not in arguments:
    arguments[at:at] = ["sh", "-c", script, "sh"]
os.execv(real, [real, *arguments])
"""
MOVED_OFFSET = """
# Somebody else sets the offset of one partition forward, and asks nobody.
from wire import ask
if "index" in arguments and os.fork() == 0:
    os.setsid()
    time.sleep(20)
    import socket
    servers = arguments[arguments.index("--zookeeper") + 1].split(",")
    path = b"/kafka_sync/consumer/chaos/0/index/offset"
    connect = struct.pack(">iqiqi16s?", 0, 0, 5000, 0, 16, b"", False)
    host, port = servers[0].split(":")
    with socket.create_connection((host, int(port)), timeout=5) as connection:
        ask(connection, connect)
        answer = ask(connection, struct.pack(">iii", 1, 4, len(path)) + path + b"\\0")
        size = struct.unpack_from(">i", answer, 16)[0]
        moved = str(int(answer[20:20 + size]) + 50).encode()
        set_data = struct.pack(">iii", 2, 5, len(path)) + path + struct.pack(">i", len(moved)) + moved
        ask(connection, set_data + struct.pack(">i", -1))
    os._exit(0)
os.execv(real, [real, *arguments])
"""
NO_DELAY_MESSAGES = """
# The action first, and then instant messages alone.
at = arguments.index("--")
lines, size = sys.stdin.buffer.readlines(), int(arguments[arguments.index("--chunk-size") + 1])
for first in range(0, len(lines), size):
    chunk = b"".join(lines[first:first + size])
    done = subprocess.run(arguments[at + 1:], input=chunk)
    if done.returncode != 0:
        sys.exit(1)
    done = subprocess.run([real, *arguments[:at], "--only", "instant"], input=chunk)
    if done.returncode != 0:
        sys.exit(done.returncode)
"""
SHORT_DELAY = """
at = arguments.index("--delay") + 1
arguments[at] = "3s"
os.execv(real, [real, *arguments])
"""


@dataclasses.dataclass(frozen=True)
class Broken:
    tool: str
    program: str
    # What the checker has to find, by its points.
    points: frozenset


KINDS = {
    "handler that lies": Broken("ksync-consume", LYING_HANDLER, frozenset({2, 4})),
    "moved offset": Broken("ksync-consume", MOVED_OFFSET, frozenset({5})),
    "no delay messages": Broken("ksync-stream", NO_DELAY_MESSAGES, frozenset({3, 8})),
    "short delay": Broken("ksync-delayer", SHORT_DELAY, frozenset({8})),
}


def make(kind, binaries, folder, paths):
    """A folder with the tools, one of them broken."""
    folder.mkdir(parents=True, exist_ok=True)
    for tool in ("ksync-consume", "ksync-delayer", "ksync-stream"):
        (folder / tool).unlink(missing_ok=True)
        (folder / tool).symlink_to(binaries / tool)
    broken = KINDS[kind]
    (folder / broken.tool).unlink()
    prologue = PROLOGUE % {"paths": [str(path) for path in paths], "real": str(binaries / broken.tool)}
    (folder / broken.tool).write_text(prologue + broken.program)
    (folder / broken.tool).chmod(0o755)
    return folder
