"""ksync beside peers that do the same work: each in turns, and a table of their speed, CPU time and memory."""

import dataclasses

from bench import say


@dataclasses.dataclass
class Contender:
    name: str
    # Runs once over so many records and returns the Run.
    run: callable
    # What is wanted of ksync: its speed, in that of a peer, by the peer's name. A peer itself has None.
    wanted: dict = None
    runs: list = dataclasses.field(default_factory=list)

    @property
    def fastest(self):
        return min(self.runs, key=lambda run: run.seconds)


def contest(bench, title, counts, contenders):
    all_records, tenth = counts
    for number in range(1, bench.options.runs + 1):
        for contender in contenders:
            contender.runs.append(contender.run(all_records))
            say(f"run {number}, {contender.runs[-1].seconds:6.2f} s: {contender.name}, {title}")
    peers = [contender for contender in contenders if contender.wanted is None]
    print(f"\n{title:60} {'per second':>10}  {'CPU':>6}  {'RSS':>12}  times a peer")
    for contender in contenders:
        fastest, ratios = contender.fastest, []
        for peer in peers if contender not in peers else []:
            ratio = peer.fastest.seconds / fastest.seconds
            ratios.append(f"{ratio:.2f} {peer.name}")
            if wanted := contender.wanted.get(peer.name):
                text = f"{title}: {contender.name} = {wanted} x {peer.name}"
                bench.hold_to(text, f"{ratio:.2f}", ratio >= wanted)
        peak, less = max(run.peak_kib for run in contender.runs) / 1024, contender.run(tenth).peak_kib / 1024
        figures = f"{all_records / fastest.seconds:10,.0f}  {fastest.cpu_seconds:4.1f} s  {peak:3.0f} ({less:2.0f}) MiB"
        print(f"  {contender.name:58} {figures}  {', '.join(ratios)}".rstrip(), flush=True)
