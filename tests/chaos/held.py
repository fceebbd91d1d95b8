"""What a process of ksync holds of the system."""

import contextlib
import os
from collections import Counter
from pathlib import Path

# Our ends of stdin, stdout, stderr and descriptor 3.
PIPES_OF_A_HANDLER = 4
# Both ends of the one by which librdkafka wakes the thread of a broker.
PIPES_OF_A_BROKER = 2
TRIES = 5


def held(pid, broker_ports):
    """Fails with OSError or KeyError if it ends meanwhile."""
    fields = dict(line.split(":\t", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines() if ":\t" in line)
    names = Counter(task.read_text().strip() for task in Path(f"/proc/{pid}/task").glob("*/comm"))
    found = {"threads": sum(names.values()), "rss_kib": int(fields["VmRSS"].split()[0]), "names": names}
    found |= descriptors(pid, sockets_to(broker_ports))
    found["clients"] = names["rdk:main"]
    found["broker_threads"] = sum(count for name, count in names.items() if name.startswith("rdk:broker"))
    # What comes and goes with what is at work is counted by that.
    ours = found["files"] - found["broker_sockets"] - PIPES_OF_A_BROKER * found["broker_threads"]
    return {**found, "own_files": ours - PIPES_OF_A_HANDLER * found["handlers"]}


def descriptors(pid, broker_sockets):
    """Of all, and of handlers, at one time: such that no handler begins or ends meanwhile, if it can be had."""
    for _ in range(TRIES):
        before = handlers(pid)
        links = links_of(pid)
        if handlers(pid) == before:
            break
    count = sum(link in broker_sockets for link in links)
    return {"files": len(links), "broker_sockets": count, "handlers": len(before)}


def links_of(pid):
    """What the descriptors are."""
    found = []
    for entry in os.scandir(f"/proc/{pid}/fd"):
        # It may be closed meanwhile.
        with contextlib.suppress(FileNotFoundError):
            found.append(os.readlink(entry.path))
    return found


def sockets_to(ports):
    """All of this machine that are connected to these, as links of descriptors have them."""
    found = set()
    for table in Path("/proc/net").glob("tcp*"):
        for line in table.read_text().splitlines()[1:]:
            fields = line.split()
            if int(fields[2].rpartition(":")[2], 16) in ports:
                found.add(f"socket:[{fields[9]}]")
    return found


def handlers(pid):
    """Those that this process has started; none if it has ended."""
    found = []
    for children in Path(f"/proc/{pid}/task").glob("*/children"):
        with contextlib.suppress(OSError):
            found += [child for child in map(int, children.read_text().split()) if is_handler(child)]
    return sorted(found)


def is_handler(pid):
    with contextlib.suppress(OSError):
        return b"handler.py" in Path(f"/proc/{pid}/cmdline").read_bytes()
    return False
