"""Carries out a schedule of faults, and writes down what it did and when that was healed."""

import contextlib
import itertools
import os
import signal
import threading
import time

from held import handlers
from members import KINDS
from members import NAMES
from world import listens
from world import node_signal

# A server that does not listen again by then is left to the end, where all are healed.
RETURN_LIMIT_SECS = 20
# By the word in the kinds of their faults.
SERVERS = {"zookeeper": "zookeeper", "broker": "kafka"}
# By the kind of processes whose handlers write to it.
STORES = ("index", "cache")
# In which those runs end, and are committed, that a store has let in before it went away.
LAST_RUNS_SECS = 1
# Whose clocks may be wrong: each member has one of its own, all writers one together.
CLOCKS = (*NAMES, "writers")
JUMP_SECS = 3 * 3600
STROBE_SECS = 2


class Nemesis:
    def __init__(self, world, members, writers):
        self.world, self.members, self.writers = world, members, writers
        # Of the servers of a kind, one fault after the other; else a majority would be away all the time.
        self.locks = {servers: threading.Lock() for servers in SERVERS.values()}
        # Of a store, too, as of a proxy and of a clock: else the end of one would end the other early.
        self.stores = {kind: threading.Lock() for kind in STORES}
        self.threads = []
        self.is_over = False

    def carry_out(self, schedule, deadline):
        """Returns when the last one is healed; none begins after the deadline."""
        begun = time.monotonic()
        for number, planned in enumerate(schedule):
            pause = begun + planned.at_secs - time.monotonic()
            if time.monotonic() + pause > deadline:
                break
            time.sleep(max(0, pause))
            thread = threading.Thread(target=self.carry_out_one, args=(number, planned), daemon=True)
            thread.start()
            self.threads.append(thread)
        for thread in self.threads:
            thread.join(max(0.1, deadline - time.monotonic()))
        self.is_over = True
        # Else those under way, and those that wait for them, would go on while all is being healed.
        for thread in self.threads:
            thread.join()

    def carry_out_one(self, number, planned):
        fault = getattr(self, planned.kind.replace(" ", "_"))
        servers = next((name for word, name in SERVERS.items() if word in planned.kind), None)
        with self.locks.get(servers, contextlib.nullcontext()):
            if self.is_over:
                return
            note = {"number": number, "kind": planned.kind}
            self.world.journal.add("fault", **note)
            try:
                note["victims"] = fault(planned.victim, planned.secs)
            except (OSError, ValueError) as error:
                note["missed"] = str(error)
        # The next one of the kind does not wait for that.
        if not servers or "missed" in note or self.are_whole(servers):
            self.world.journal.add("healed", **note)

    def are_whole(self, servers):
        """Waits until they work together: of brokers that all listen a partition may have no leader for seconds."""
        while not self.world.works(servers):
            if self.is_over:
                return False
            time.sleep(0.2)
        return True

    def member(self, victim):
        return self.members.all[victim % len(self.members.all)]

    def mortal(self, victim):
        return self.members.mortal[victim % len(self.members.mortal)]

    def kill(self, victim, secs):
        member = self.mortal(victim)
        with member.lock:
            member.kill()
            time.sleep(secs)
            member.start()
        return [member.name]

    def kill_all(self, victim, secs):
        members = self.members.mortal_of(KINDS[victim % len(KINDS)])
        with contextlib.ExitStack() as locks:
            for member in members:
                locks.enter_context(member.lock)
            for member in members:
                member.process.kill()
            for member in members:
                member.kill()
            time.sleep(secs)
            for member in members:
                member.start()
        return [member.name for member in members]

    def stop(self, victim, secs):
        member = self.member(victim)
        with member.lock:
            member.signal(signal.SIGSTOP)
            time.sleep(secs)
            member.signal(signal.SIGCONT)
        return [member.name]

    def terminate(self, victim, _secs):
        return [self.restart(self.mortal(victim))]

    def rolling_restart(self, victim, _secs):
        return [self.restart(member) for member in self.members.mortal_of(KINDS[victim % len(KINDS)])]

    def restart(self, member):
        with member.lock:
            begun, pid = time.time(), member.pid
            member.ask_to_end()
            status = member.status_at_its_end()
            self.world.journal.add("terminated", member=member.name, pid=pid, begun=begun, status=status)
            member.start()
        return member.name

    def cut(self, victim, secs):
        return between([self.member(victim)], secs, lambda proxy: proxy.cut())

    def swallow_replies(self, victim, secs):
        return between([self.member(victim)], secs, lambda proxy: proxy.silence(requests_too=False))

    def swallow_all(self, victim, secs):
        return between([self.member(victim)], secs, lambda proxy: proxy.silence(requests_too=True))

    def zookeeper_leader_killed(self, victim, secs):
        leader = self.world.zookeeper_leader() or self.world.zookeepers[victim % 3]
        return self.servers_killed("zookeeper", [leader], secs)

    def zookeeper_follower_killed(self, victim, secs):
        leader = self.world.zookeeper_leader()
        followers = [node for node in self.world.zookeepers if node is not leader]
        return self.servers_killed("zookeeper", [followers[victim % len(followers)]], secs)

    def zookeeper_quorum_lost(self, victim, secs):
        left = self.world.zookeepers[victim % 3]
        return self.servers_killed("zookeeper", [node for node in self.world.zookeepers if node is not left], secs)

    def zookeeper_stopped(self, victim, secs):
        return self.server_stopped(self.world.zookeepers[victim % 3], secs)

    def broker_killed(self, victim, secs):
        return self.servers_killed("kafka", [self.world.brokers[victim % 3]], secs)

    def broker_stopped(self, victim, secs):
        return self.server_stopped(self.world.brokers[victim % 3], secs)

    def servers_killed(self, name, nodes, secs):
        for node in nodes:
            node_signal(node, signal.SIGKILL)
        time.sleep(secs)
        for node in nodes:
            self.world.restart(name, node)
        deadline = time.monotonic() + RETURN_LIMIT_SECS
        while not all(listens(node) for node in nodes) and time.monotonic() < deadline:
            time.sleep(0.2)
        return [node.name for node in nodes]

    def server_stopped(self, node, secs):
        node_signal(node, signal.SIGSTOP)
        time.sleep(secs)
        node_signal(node, signal.SIGCONT)
        return [node.name]

    def handlers_killed(self, _victim, _secs):
        return [handler_signal(pid, signal.SIGKILL) for pid in self.handlers()]

    def handler_stopped(self, victim, secs):
        found = self.handlers()
        if not found:
            raise ValueError("no handler was at work")
        pid = found[victim % len(found)]
        handler_signal(pid, signal.SIGSTOP)
        time.sleep(secs)
        handler_signal(pid, signal.SIGCONT)
        return [pid]

    def handlers(self):
        """Those that the members have started."""
        return [pid for member in self.members.all for pid in handlers(member.pid)]

    def store_away(self, victim, secs):
        kind = STORES[victim % len(STORES)]
        with self.outage(kind):
            time.sleep(secs)
        return [kind]

    def store_away_and_cut(self, victim, secs):
        """While no run succeeds there is no commit either, by which those that work on without ZooKeeper would notice."""
        kind = STORES[victim % len(STORES)]
        with self.outage(kind):
            time.sleep(LAST_RUNS_SECS)
            members = [member for member in self.members.all if member.kind == kind]
            return between(members, secs, lambda proxy: proxy.cut())

    @contextlib.contextmanager
    def outage(self, kind):
        file = self.world.history / f"outage-{kind}"
        with self.stores[kind]:
            file.touch()
            yield
            file.unlink(missing_ok=True)

    def writers_killed(self, _victim, _secs):
        self.writers.kill()
        return []

    def clock_jumps(self, victim, secs):
        """By as much as its number among all victims tells, and back again."""
        return self.with_clock(victim, secs, [(victim / (1 << 15) - 1) * JUMP_SECS], secs)

    def clock_strobes(self, victim, secs):
        return self.with_clock(victim, secs, [STROBE_SECS, -STROBE_SECS], 0.1)

    def with_clock(self, victim, secs, times, each_secs):
        clock = self.world.clocks[clock_of(victim)]
        with clock.lock:
            end = time.monotonic() + secs
            for ahead_secs in itertools.cycle(times):
                clock.set(ahead_secs)
                time.sleep(each_secs)
                if time.monotonic() >= end:
                    break
            clock.set(0)
        return [clock.name]


def between(members, secs, harm):
    """Each of them and ZooKeeper, by its proxy."""
    with contextlib.ExitStack() as locks:
        for member in members:
            locks.enter_context(member.proxy.lock)
        for member in members:
            harm(member.proxy)
        time.sleep(secs)
        for member in members:
            member.proxy.heal()
    return [member.name for member in members]


def clock_of(victim):
    return CLOCKS[victim % len(CLOCKS)]


def with_clocks(schedule):
    """Who needs a clock that can be wrong. The others have none: it wakes each waiting thread a hundred times a second."""
    return {clock_of(planned.victim) for planned in schedule if planned.kind.startswith("clock")}


def handler_signal(pid, number):
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)
    return pid
