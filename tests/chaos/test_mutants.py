"""The mistakes, and by what they are told from other trouble."""

import contextlib
import io
import re
import tempfile
import types
import unittest
from pathlib import Path
from unittest import mock

import mutants
from history import Violation
from nemesis import Nemesis
from programs import PROJECT
from schedule import KINDS
from schedule import ON_DEMAND

UNSETTLED = Violation(4, "index/0: committed 7 of 9 records in the end")
SLOW = Violation(4, "chaos-not-json: did not halt; the handler was given 20 records and 20 were committed, of 20")
READ_ON = Violation(4, "chaos-not-json: did not halt; the handler was given 60 records and 61 were committed, of 20")
UNFENCED = Violation(5, "index/0: the offset was written by another than the leader /leader/7")
EARLY = Violation(8, "record 7 of transaction 9 was announced 2 times within the delay")


class Mutants(unittest.TestCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.folder = Path(folder.name)

    def caught(self, names, *outcomes):
        """Whether all are, where the runs come to these: violations, or what breaks them."""
        verdicts = [one if isinstance(one, Exception) else types.SimpleNamespace(violations=one) for one in outcomes]
        with (
            mock.patch.object(mutants, "run", side_effect=lambda folder, *_: folder.mkdir(exist_ok=True)) as run,
            mock.patch.object(mutants, "load"),
            mock.patch.object(mutants, "check", side_effect=verdicts),
            contextlib.redirect_stdout(io.StringIO()),
            contextlib.redirect_stderr(io.StringIO()),
        ):
            caught = mutants.all_caught(names, self.folder, None, 1)
        self.runs = [(name, seed) for _, _, seed, _, name in (call.args for call in run.call_args_list)]
        return caught

    def test_there_are_those_of_the_source(self):
        source = (PROJECT / "src" / "mutants.rs").read_text()
        listed = source[source.index("\nmutants! {"):source.index("\nimpl Mutant {")]
        self.assertEqual(list(mutants.ALL), re.findall(r"^    (\w+),$", listed, re.MULTILINE))

    def test_their_faults_can_be_carried_out(self):
        for name, mutant in mutants.ALL.items():
            self.assertLessEqual(set(mutant.profile.kinds), {*KINDS, *ON_DEMAND}, name)
        for kind in (*KINDS, *ON_DEMAND):
            self.assertTrue(hasattr(Nemesis, kind.replace(" ", "_")), kind)

    def test_a_mistake_is_found_by_what_it_alone_does(self):
        self.assertTrue(self.caught(["SkipsInvalid"], [], [READ_ON]))
        self.assertEqual(self.runs, [(None, 1), ("SkipsInvalid", 1)])
        self.assertEqual(list(self.folder.iterdir()), [])

    def test_other_trouble_does_not_stand_for_it(self):
        self.assertFalse(self.caught(["SkipsInvalid"], [UNSETTLED], *[[UNSETTLED, SLOW]] * mutants.TRIES))
        self.assertEqual([folder.name for folder in self.folder.iterdir()], ["SkipsInvalid"])

    def test_what_shows_without_it_tells_nothing(self):
        self.assertFalse(self.caught(["SkipsInvalid", "CommitsUnfenced"], [READ_ON], [UNFENCED]))
        self.assertEqual(self.runs, [(None, 1), ("CommitsUnfenced", 1)])
        self.assertEqual([folder.name for folder in self.folder.iterdir()], ["none-0"])

    def test_a_run_that_breaks_is_tried_again_with_the_next_seed(self):
        self.assertTrue(self.caught(["SkipsInvalid"], KeyError(7), [], TimeoutError("late"), [READ_ON]))
        self.assertEqual(self.runs, [(None, 1), (None, 2), ("SkipsInvalid", 1), ("SkipsInvalid", 2)])

    def test_one_that_breaks_each_time_does_not_end_the_others(self):
        broken = [KeyError(7)] * mutants.TRIES
        self.assertFalse(self.caught(["SkipsInvalid", "BelievesPayload"], [], *broken, [], [EARLY]))
        self.assertEqual(self.runs[-1], ("BelievesPayload", 1))


if __name__ == "__main__":
    unittest.main()
