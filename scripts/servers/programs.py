"""Programs of others: how they are found, run and, where missing, installed."""

import contextlib
import fcntl
import glob
import hashlib
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

PROJECT = Path(__file__).resolve().parents[2]
RECIPES = PROJECT / "scripts" / "servers"
JARS = PROJECT / "target" / "servers"


class Failure(Exception):
    """Ends the program with exit status 1 and this text on stderr."""


def say(text):
    print(f"services: {text}", file=sys.stderr, flush=True)


def find(name):
    # Debian keeps servers in sbin, which is not on the PATH of everybody.
    return shutil.which(name, path=os.environ.get("PATH", "") + ":/usr/sbin:/sbin")


def find_postgres(name):
    found = glob.glob(f"/usr/lib/postgresql/*/bin/{name}")
    return max(found, key=lambda path: float(path.split("/")[4]), default=None)


def java(server, logging, *arguments):
    archive = classes(server)
    shared = [f"-XX:SharedArchiveFile={archive}"] if archive.exists() else []
    return ["java", *shared, f"-D{logging}", "-cp", f"{JARS / server}/*", *arguments]


def classes(server):
    """The classes of a server as Java has them in memory: with them it starts in two thirds of the time."""
    return JARS / server / "classes.jsa"


def java_home():
    return Path(shutil.which("java")).resolve().parents[1]


def as_account(account):
    return {"user": account.pw_uid, "group": account.pw_gid, "extra_groups": []} if account else {}


def run(failure, command, account=None, input=""):
    out = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "cwd": "/"}
    result = subprocess.run(command, input=input, text=True, **out, **as_account(account))
    if result.returncode != 0:
        raise Failure(f"{failure}:\n{last_lines(result.stdout, 50)}")


def answers(command):
    """Whether the program is there, and ends with status 0."""
    quiet = subprocess.DEVNULL
    if not find(command[0]):
        return False
    return subprocess.run(command, stdin=quiet, stdout=quiet, stderr=quiet, timeout=10).returncode == 0


def last_lines(text, count):
    return "\n".join("  " + line for line in text.splitlines()[-count:])


@contextlib.contextmanager
def locked(path):
    while True:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(path, "w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            # A purge may have removed the file while we waited for it.
            if path.exists() and os.path.samestat(path.stat(), os.fstat(file.fileno())):
                yield
                return


def java_version():
    if not shutil.which("java"):
        return 0
    text = subprocess.run(["java", "-version"], capture_output=True, text=True).stderr
    found = re.search(r'version "(\d+)', text)
    return int(found[1]) if found else 0


# What each tool is called in Debian, and whether it is there.
TOOLS = {
    "java": ("default-jre-headless", lambda: java_version() >= 17),
    "mvn": ("maven", lambda: find("mvn")),
    "kcat": ("kcat", lambda: find("kcat")),
    "postgres": ("postgresql", lambda: find_postgres("postgres")),
    # The package mariadb-server would also start a server of its own.
    "mariadbd": ("mariadb-server-core", lambda: find("mariadbd")),
    "mariadb": ("mariadb-client-core", lambda: find("mariadb")),
    "redis-server": ("redis-server", lambda: find("redis-server")),
    "memcached": ("memcached", lambda: find("memcached")),
    "node": ("nodejs", lambda: find("node")),
    # Debian's smallest perl is there without its modules.
    "perl": ("perl", lambda: answers(["perl", "-MJSON::PP", "-e", "1"])),
    "php": ("php-cli", lambda: find("php")),
    "python3": ("python3", lambda: find("python3")),
    "ruby": ("ruby", lambda: answers(["ruby", "-rjson", "-e", "1"])),
    "openssl": ("openssl", lambda: find("openssl")),
    "strace": ("strace", lambda: find("strace")),
    # Of 2022 or later, with --json.
    "curl": ("curl", lambda: find("curl")),
    "npm": ("npm", lambda: find("npm")),
    "pip": ("python3-pip", lambda: answers(["python3", "-m", "pip", "--version"])),
    "activerecord": ("ruby-activerecord", lambda: answers(["ruby", "-ractive_record", "-e", "1"])),
    "ruby-pg": ("ruby-pg", lambda: answers(["ruby", "-rpg", "-e", "1"])),
    "ruby-sqlite3": ("ruby-sqlite3", lambda: answers(["ruby", "-rsqlite3", "-e", "1"])),
}

# What tests need besides servers: what runs the handlers in examples/, what the clients in examples/ plug into and README.md asks
# the shop with, what makes certificates, and what ends a process at a system call.
OTHERS = {
    "interpreters": ("node", "perl", "php", "python3", "ruby"),
    "frameworks": ("node", "npm", "python3", "pip", "ruby", "activerecord", "ruby-pg", "ruby-sqlite3", "curl"),
    "openssl": ("openssl",),
    "strace": ("strace",),
}


def install(servers, yes, others=()):
    """Installs what these servers need, and other tools."""
    tools = list(dict.fromkeys([*(tool for server in servers for tool in server.tools), *others]))
    if missing := missing_packages(tools):
        install_packages(missing, yes)
        if still := missing_packages(tools):
            raise Failure(f"still missing after the installation: what {' '.join(still)} should bring")
    for server in servers:
        if "mvn" in server.tools:
            fetch_jars(server.name)
    if "npm" in others:
        fetch_frameworks()


def missing_packages(tools):
    return [package for package, is_there in (TOOLS[tool] for tool in tools) if not is_there()]


def install_packages(packages, yes):
    names = " ".join(packages)
    on_terminal = sys.stdin.isatty() and sys.stderr.isatty()
    sudo = [] if os.geteuid() == 0 else ["sudo"] if on_terminal else ["sudo", "-n"]
    may = not sudo or (find("sudo") and (on_terminal or answers(["sudo", "-n", "true"])))
    if not find("apt-get") or not may:
        raise Failure(f"please install what is missing, in Debian:\n  apt-get install {names}")
    if on_terminal and not yes:
        line = " ".join([*sudo, "apt-get install", names])
        print(f"services: missing; install it?\n  {line}\n[y/N] ", end="", file=sys.stderr, flush=True)
        if sys.stdin.readline().strip().lower() not in ("y", "yes"):
            raise Failure("not installed")
    say(f"installs {names}")
    options = ["-q", "-y", "--no-install-recommends", "-o", "DPkg::Lock::Timeout=300"]
    apt = [*sudo, "env", "DEBIAN_FRONTEND=noninteractive", "apt-get", *options]
    run("cannot update the lists of packages", [*apt, "update"])
    with no_postgres_cluster(sudo, packages), no_daemons(sudo, packages):
        run(f"cannot install {names}", [*apt, "install", *packages])


@contextlib.contextmanager
def no_postgres_cluster(sudo, packages):
    """Keeps the package postgresql from starting a server of its own."""
    if "postgresql" not in packages:
        yield
        return
    file = "/etc/postgresql-common/createcluster.d/ksync-services.conf"
    write = f"mkdir -p {os.path.dirname(file)} && echo 'create_main_cluster = false' >{file}"
    run(f"cannot write {file}", [*sudo, "sh", "-c", write])
    try:
        yield
    finally:
        run(f"cannot remove {file}", [*sudo, "rm", "-f", file])


@contextlib.contextmanager
def no_daemons(sudo, packages):
    """Keeps packages from starting servers of their own, now and at the next boot."""
    daemons = [package for package in packages if package in ("redis-server", "memcached")]
    policy = "/usr/sbin/policy-rc.d"
    # Where there is one already, as in containers, whoever wrote it has decided.
    if not daemons or os.path.exists(policy):
        yield
        return
    write = f"printf '#!/bin/sh\\nexit 101\\n' >{policy} && chmod 755 {policy}"
    run(f"cannot write {policy}", [*sudo, "sh", "-c", write])
    try:
        yield
    finally:
        run(f"cannot remove {policy}", [*sudo, "rm", "-f", policy])
    if os.path.isdir("/run/systemd/system"):
        run(f"cannot disable {' '.join(daemons)}", [*sudo, "systemctl", "--quiet", "disable", *daemons])


def fetch_jars(server):
    pom = RECIPES / server / "pom.xml"
    maven = ["mvn", "-q", "-B", "-f", pom, "dependency:copy-dependencies"]
    fetch(server, pom, lambda part: [*maven, f"-DoutputDirectory={part}"])


def fetch_frameworks():
    """Those that are newer than Debian's, where programs of tests find them: by PYTHONPATH and NODE_PATH."""
    python, node = RECIPES / "frameworks" / "python.txt", RECIPES / "frameworks" / "node.txt"
    fetch("python", python, lambda part: ["python3", "-m", "pip", "install", "-q", "--target", part, "-r", python])
    fetch("node", node, lambda part: ["npm", "install", "--silent", "--prefix", part, *node.read_text().split()])


def fetch(name, recipe, command):
    """Has the command fill a folder, unless the same recipe has done so already."""
    target = JARS / name
    marker = target / f".complete-{hashlib.sha256(recipe.read_bytes()).hexdigest()[:16]}"
    with locked(JARS / f"{name}.lock"):
        if marker.exists():
            return
        say(f"fetches what {name} needs")
        part = JARS / f"{name}.part"
        shutil.rmtree(part, ignore_errors=True)
        for attempts_left in (2, 1, 0):
            try:
                run(f"cannot fetch what {name} needs", command(part))
                break
            except Failure:
                if attempts_left == 0:
                    raise
        (part / marker.name).touch()
        shutil.rmtree(target, ignore_errors=True)
        part.rename(target)
