//! The list of servers that `--zookeeper` takes.

use std::fmt;
use std::str::FromStr;

use anyhow::{Context, Result, ensure};

/// Where the servers are: `HOST:PORT,..[/chroot]`, each host also as `tcp+tls://HOST:PORT`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Servers {
    pub(super) hosts: String,
    /// Empty, or a path without a slash at its end.
    pub(super) chroot: String,
}

impl FromStr for Servers {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Servers> {
        let last = text.rfind(',').map_or(0, |comma| comma + 1);
        let host = last + text[last..].find("://").map_or(0, |scheme| scheme + 3);
        let (hosts, chroot) = text.split_at(text[host..].find('/').map_or(text.len(), |slash| host + slash));
        for host in hosts.split(',') {
            check_host(host).with_context(|| format!("'{host}' is not HOST:PORT"))?;
        }
        let chroot = chroot.strip_suffix('/').unwrap_or(chroot);
        let legal = |part: &str| !matches!(part, "" | "." | "..") && !part.contains(|c: char| c.is_control());
        ensure!(chroot.split('/').skip(1).all(legal), "'{chroot}' is not a path that ZooKeeper takes");
        Ok(Servers { hosts: hosts.to_owned(), chroot: chroot.to_owned() })
    }
}

fn check_host(text: &str) -> Result<()> {
    let address = text.strip_prefix("tcp+tls://").or_else(|| text.strip_prefix("tcp://")).unwrap_or(text);
    // The colons of a bare IPv6 address would be taken for the one before the port.
    let (host, port) = match address.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
        Some((host, "")) => (host, "2181"),
        Some((host, rest)) => (host, rest.strip_prefix(':').unwrap_or(rest)),
        None => address.split_once(':').unwrap_or((address, "2181")),
    };
    ensure!(!host.is_empty(), "it names no host");
    ensure!(!host.contains(|c: char| c.is_whitespace() || matches!(c, '/' | '[' | ']')), "'{host}' is not a host");
    ensure!(port.parse::<u16>()? > 0, "no server listens on port 0");
    Ok(())
}

impl fmt::Display for Servers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{}", self.hosts, self.chroot)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn servers_are_hosts_and_perhaps_a_chroot() {
        for (text, hosts, chroot) in [
            ("zk1", "zk1", ""),
            ("zk1:2181,zk2:2182/shop/ksync", "zk1:2181,zk2:2182", "/shop/ksync"),
            ("tcp+tls://zk1:2281,tcp://10.0.0.1:2181/a/", "tcp+tls://zk1:2281,tcp://10.0.0.1:2181", "/a"),
            ("[::1]:2181,[fe80::1]", "[::1]:2181,[fe80::1]", ""),
            ("zk1:2181/", "zk1:2181", ""),
        ] {
            let servers: Servers = text.parse().unwrap();
            assert_eq!((&*servers.hosts, &*servers.chroot), (hosts, chroot), "{text}");
        }
    }

    #[test]
    fn what_is_no_list_of_servers_is_refused() {
        for (text, why) in [
            ("", "'' is not HOST:PORT: it names no host"),
            ("zk1,", "'' is not HOST:PORT: it names no host"),
            ("zk1:x", "'zk1:x' is not HOST:PORT: invalid digit found in string"),
            ("zk1:0", "'zk1:0' is not HOST:PORT: no server listens on port 0"),
            ("zk1, zk2", "' zk2' is not HOST:PORT: ' zk2' is not a host"),
            ("zk1/a,zk2", "'zk1/a' is not HOST:PORT: 'zk1/a' is not a host"),
            ("zk1/a//b", "'/a//b' is not a path that ZooKeeper takes"),
            ("zk1/..", "'/..' is not a path that ZooKeeper takes"),
        ] {
            assert_eq!(format!("{:#}", text.parse::<Servers>().unwrap_err()), why);
        }
    }
}
