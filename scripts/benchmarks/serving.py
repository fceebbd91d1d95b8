"""(j): what applications wait for when ksync-stream --serve announces their changes."""

import json
import signal
import socket
import subprocess
import tempfile
import threading
import time
from pathlib import Path

from bench import say
from programs import Failure

CLIENTS = 16
SECONDS = 5
MOST_MS = 10
LEAST_PER_SECOND = 50_000


class Application:
    """The side of an application: requests are lines, and so are answers."""

    def __init__(self, path):
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.connect(str(path))
        self.answers = self.socket.makefile("rb", buffering=1 << 20)

    def ask(self, line):
        self.socket.sendall(line)
        return self.answer()

    def answer(self):
        answer = json.loads(self.answers.readline())
        if not answer["ok"]:
            raise Failure(f"ksync-stream --serve: {answer['error']}")
        return answer


def request(number, op):
    messages = [{"payload": {"id": number}}] if op == "delay" else []
    return (json.dumps({"id": number, "tx": number, "op": op, "messages": messages}) + "\n").encode()


def serving(bench):
    bench.renew_pair("served")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "socket")
        command = [str(word) for word in bench.ksync("stream", "-t", "served", "--serve", path)]
        with subprocess.Popen(command) as stream:
            try:
                until = time.monotonic() + 30
                while not path.exists():
                    if stream.poll() is not None or time.monotonic() > until:
                        raise Failure("ksync-stream --serve does not listen")
                    time.sleep(0.05)
                runs = [(latency(path), pipelined(path, bench.options.records // 10)) for _ in range(bench.options.runs)]
            finally:
                stream.send_signal(signal.SIGTERM)
    milliseconds, per_second = min(ms for ms, _ in runs), max(rate for _, rate in runs)
    title = "(j) ksync-stream --serve"
    print(f"\n{title}")
    print(f"  {CLIENTS} applications, one delay request after the other: 99 % within {milliseconds:.1f} ms")
    print(f"  one application that does not wait for answers: {per_second:,.0f} delay messages/s", flush=True)
    bench.judge(f"{title}: 99 % within {MOST_MS} ms", f"{milliseconds:.1f} ms", milliseconds <= MOST_MS)
    bench.judge(f"{title}: {LEAST_PER_SECOND:,}/s", f"{per_second:,.0f}/s", per_second >= LEAST_PER_SECOND)


def latency(path):
    """The time in ms within which 99 of 100 delay requests are answered."""
    taken = []

    def work(first):
        application, until, number = Application(path), time.monotonic() + SECONDS, first
        while time.monotonic() < until:
            begun = time.monotonic()
            application.ask(request(number, "delay"))
            taken.append(time.monotonic() - begun)
            application.ask(request(number, "forget"))
            number += CLIENTS

    threads = [threading.Thread(target=work, args=(first,)) for first in range(CLIENTS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    taken.sort()
    if len(taken) < 1000:
        raise Failure(f"only {len(taken)} requests were answered")
    say(f"{len(taken):,} requests of {CLIENTS} applications, half within {taken[len(taken) // 2] * 1000:.1f} ms")
    return taken[len(taken) * 99 // 100] * 1000


def pipelined(path, count):
    """How many delay messages a second are acknowledged to an application that goes on asking."""
    application = Application(path)
    lines = b"".join(request(number, "delay") + request(number, "forget") for number in range(count))
    begun = time.monotonic()
    teller = threading.Thread(target=application.socket.sendall, args=(lines,))
    teller.start()
    left = 2 * count
    while left:
        answers = application.answers.read1(1 << 20)
        if not answers or b'"ok":false' in answers:
            raise Failure(f"ksync-stream --serve has ended, or refuses: {answers[:200]}")
        left -= answers.count(b"\n")
    seconds = time.monotonic() - begun
    teller.join()
    say(f"{count:,} delay messages in {seconds:.1f} s")
    return count / seconds
