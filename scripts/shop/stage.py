"""What both demos share: a folder, servers and processes of their own, and how all of that ends."""

import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

PROJECT = Path(__file__).resolve().parents[2]
BINARIES = PROJECT / os.environ.get("CARGO_TARGET_DIR", "target") / "release"
HANDLERS = PROJECT / "examples" / "handlers"

# For --keep, and for a demo that was killed itself. The numbers may belong to others by then.
END = """\
for pid in {pids}; do
    if tr '\\0' '\\n' 2>/dev/null </proc/$pid/environ | grep -qxF {mark}; then kill $pid; fi
done 2>/dev/null
sleep 1
{down}
rm -rf {dir}
"""


class Failure(Exception):
    """Ends the demo with exit status 1 and this text on stderr."""


class Stage:
    """One run in the folder `dir`; left as a context, it ends all that it has started."""

    def __init__(self, dir, limit_secs, is_kept=False):
        self.dir, self.limit_secs, self.is_kept = dir, limit_secs, is_kept
        self.processes = {}

    def __enter__(self):
        if self.dir.exists():
            raise Failure(f"another demo runs, was kept, or was killed; end it with\n  sh {self.dir}/end")
        self.dir.mkdir(parents=True)
        self.write_end()
        return self

    def __exit__(self, kind, failure, _):
        if isinstance(failure, Failure):
            for log in sorted(self.dir.glob("*.log")):
                # What is logged for each batch hides what went wrong.
                lines = [line for line in log.read_text(errors="replace").splitlines() if " debug: " not in line]
                print(f"the end of {log.name}:", *lines[-15:], sep="\n  ", file=sys.stderr)
        if failure or not self.is_kept:
            for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
                signal.signal(number, signal.SIG_IGN)
            self.end()

    def start(self, name, *command):
        with open(self.dir / f"{name}.log", "ab") as log:
            # In a session of its own: Ctrl-C ends the demo, and the demo ends its processes.
            streams = {"stdin": subprocess.DEVNULL, "stdout": log, "stderr": log, "start_new_session": True}
            environment = {**os.environ, "DEMO_DIR": str(self.dir)}
            self.processes[name] = subprocess.Popen(command, env=environment, **streams)
        self.write_end()

    def log(self, name):
        return (self.dir / f"{name}.log").read_text(errors="replace")

    def wait(self, what, is_true):
        begun = time.monotonic()
        while not is_true():
            for name, process in self.processes.items():
                expect(process.poll() is None, f"{name} has ended with status {process.returncode}")
            expect(time.monotonic() - begun < self.limit_secs, f"{what}: not so after {self.limit_secs} s")
            time.sleep(0.05)

    def services(self, *arguments):
        folder = PROJECT / "target" / f"services-{self.dir.name}"
        return [PROJECT / "scripts" / "services", *arguments, "--dir", folder]

    def servers(self):
        """The variables by which they are found."""
        lines = run(self.services("env"), stdout=subprocess.PIPE).splitlines()
        return dict(shlex.split(line)[1].split("=", 1) for line in lines)

    def write_end(self):
        pids = " ".join(str(process.pid) for process in self.processes.values())
        down = shlex.join(map(str, self.services("down", "--purge")))
        mark, dir = shlex.quote(f"DEMO_DIR={self.dir}"), shlex.quote(str(self.dir))
        (self.dir / "end").write_text(END.format(pids=pids, mark=mark, down=down, dir=dir))

    def end(self):
        for process in self.processes.values():
            process.terminate()
        for process in self.processes.values():
            try:
                process.wait(timeout=10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        subprocess.run(self.services("down", "--purge"))
        shutil.rmtree(self.dir)


def tell(text):
    print(f"demo: {text}", flush=True)


def expect(is_true, text):
    if not is_true:
        raise Failure(text)


def run(command, status=0, input=None, **streams):
    """What the command prints, where it is piped. Whatever ends the demo meanwhile ends the command first."""
    if input is not None:
        streams["stdin"] = subprocess.PIPE
    with subprocess.Popen(command, text=True, **streams) as process:
        try:
            printed, _ = process.communicate(input)
        except BaseException:
            process.terminate()
            process.wait()
            raise
    expect(process.returncode == status, f"{Path(command[0]).name} ended with status {process.returncode}")
    return printed


def build(*more):
    tools = {"cargo": "Rust 1.95", "cc": "build-essential", "make": "build-essential", "pkg-config": "pkg-config"}
    missing = {package for tool, package in tools.items() if not shutil.which(tool)}
    if "pkg-config" not in missing and subprocess.run(["pkg-config", "--exists", "openssl"]).returncode != 0:
        missing.add("libssl-dev")
    expect(not missing, f"please install (names of Debian's packages): {', '.join(sorted(missing))}")
    tell("builds ksync")
    run(["cargo", "build", "--release", "--bins", *more], cwd=PROJECT)


def perform(main):
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda number, _: sys.exit(128 + number))
    try:
        main()
    except (Failure, OSError) as failure:
        print(f"demo: {failure}", file=sys.stderr)
        sys.exit(1)
    except KeyboardInterrupt:
        sys.exit(130)
