"""What every kind of server has."""

import os
import pwd
import signal
import string


class Server:
    """`nodes` are all processes of this kind in one DIR, `homes` their folders, in the same order."""

    name = ""
    # Keys of programs.TOOLS; with "mvn" there is a pom.xml in the folder of this name.
    tools = ()
    # How many nodes there may be.
    counts = (1,)
    # What each node needs a port for; "client" is the one that others are told.
    ports = ("client",)
    # Some servers refuse to run as root; then the first of these accounts that exists runs them.
    accounts = ()
    stop_signal = signal.SIGTERM
    # The same where its data goes, too.
    purge_signal = signal.SIGTERM
    # Whether it is started by programs.java.
    shares_classes = False

    def prepare(self, nodes, homes, account):
        """Writes settings, and creates data where there is none yet."""

    def command(self, node, nodes, home):
        raise NotImplementedError

    def is_ready(self, nodes):
        """True if the server can be used; may also raise OSError if not yet."""
        raise NotImplementedError

    def env(self, nodes, homes):
        """The variables by which tests and programs find it."""
        raise NotImplementedError

    def account(self):
        if os.geteuid() != 0 or not self.accounts:
            return None
        known = {entry.pw_name: entry for entry in pwd.getpwall()}
        return next(known[name] for name in self.accounts if name in known)


def fill_template(template, target, **values):
    target.write_text(string.Template(template.read_text()).substitute(values))
