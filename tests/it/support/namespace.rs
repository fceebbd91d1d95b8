//! Namespaces of a program's own, in which it sees other files or another host name than everybody else.

use super::{Process, World};

impl World {
    /// ksync-consume in such namespaces (`--mount`, `--uts`), once a shell has done there what `prepare` says. That takes no
    /// root, nor does it make root of anybody elsewhere: they belong to a user namespace.
    pub fn consume_apart(
        &self,
        (namespaces, prepare): (&str, &str),
        arguments: &str,
        environment: &[(&str, &str)],
    ) -> Process {
        // Nothing forks on the way, so that the process is the one that the test has started.
        let script = self.script(&format!("{prepare}\nexec \"$@\""));
        let consume = env!("CARGO_BIN_EXE_ksync-consume");
        self.start("unshare", &format!("--map-root-user {namespaces} {script} {consume} {arguments}"), environment)
    }
}
