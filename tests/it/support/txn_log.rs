//! ZooKeeper's own transaction log as a witness: who led a seat when, and who moved its offset.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;
use std::time::SystemTime;

use super::{Seat, Services};

/// One leader of a seat, with what it wrote.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Reign {
    pub session: String,
    /// The offsets that it wrote, its take-over the first.
    pub offsets: Vec<i64>,
}

/// Goes through all transactions since `since`, and proves for each write of the seat's offset that the session which
/// made it owned the first candidate then, that it was fenced by that candidate's node, and that neither the offset nor
/// the term went back. Gives the leaders in their order.
pub fn reigns(services: &Services, since: SystemTime, seat: &Seat) -> Vec<Reign> {
    reigns_in(&transactions(services, since).collect::<Vec<_>>(), seat)
}

/// The same of several seats.
pub fn all_reigns(services: &Services, since: SystemTime, seats: &[Seat]) -> Vec<Vec<Reign>> {
    let txns: Vec<_> = transactions(services, since).collect();
    seats.iter().map(|seat| reigns_in(&txns, seat)).collect()
}

fn reigns_in(txns: &[Txn], seat: &Seat) -> Vec<Reign> {
    let (queue, offset) = (format!("{}/", seat.path("leader")), seat.path("offset"));
    // By sequence number: the candidates, each with its session.
    let mut candidates: BTreeMap<u64, (String, String)> = BTreeMap::new();
    let mut reigns: Vec<Reign> = vec![];
    let (mut highest, mut last_term) = (0, 0);
    for txn in txns {
        let Txn { session, kind, text } = txn;
        match kind.as_str() {
            "create" | "create2" if text.starts_with(&queue) => {
                let path = text.split(',').next().unwrap();
                let sequence = path.rsplit_once('_').unwrap().1.parse().unwrap();
                candidates.insert(sequence, (path.to_owned(), session.clone()));
            }
            "delete" | "deleteContainer" => candidates.retain(|_, (path, _)| path != text.trim_matches('\'')),
            "closeSession" => candidates.retain(|_, (_, owner)| owner != session),
            "setData" | "create" | "create2" => {
                assert!(!text.starts_with(&offset), "the offset was written without a fence: {txn:?}");
            }
            "multi" if text.contains(&offset) => {
                let first = candidates.first_key_value().map(|(_, first)| first);
                let fence =
                    text.split_once("check:").and_then(|(_, check)| check[check.find('/')?..].split('\0').next());
                let (leader, owner) = first.unwrap_or_else(|| panic!("nobody leads: {txn:?}"));
                assert_eq!((fence, session), (Some(leader.as_str()), owner), "not the leader's: {txn:?}");
                if reigns.last().is_none_or(|reign| reign.session != *session) {
                    reigns.push(Reign { session: session.clone(), offsets: vec![] });
                }
                if let Some(written) = written(text, &offset) {
                    assert!(written >= highest, "the offset went back from {highest} to {written}: {txn:?}");
                    highest = written;
                    reigns.last_mut().unwrap().offsets.push(written);
                }
                if let Some((_, term)) = text.rsplit_once("\"term\":") {
                    let term = term.split('}').next().unwrap().parse::<u64>().unwrap();
                    assert!(term >= last_term, "the term went back from {last_term} to {term}: {txn:?}");
                    last_term = term;
                }
            }
            _ => {}
        }
    }
    reigns
}

/// The number that a transaction of several operations writes to the node; `None` where it writes nothing there.
fn written(text: &str, node: &str) -> Option<i64> {
    let data = &text[text.find(node)? + node.len()..];
    // Four bytes that tell the length, then the number, then a version, which may look like more digits.
    let length = data.chars().nth(3)? as usize;
    data.chars().skip(4).take(length).collect::<String>().parse().ok()
}

/// A transaction as ZooKeeper's own tool prints it.
#[derive(Debug)]
struct Txn {
    session: String,
    kind: String,
    text: String,
}

/// What one server has stored: the zxids of its log in their order, and those of its snapshots.
#[derive(Default)]
struct Stored {
    logged: Vec<u64>,
    snapshots: Vec<u64>,
}

impl Stored {
    /// Whether the server has gone on without the transaction, as where that was never committed: it has a later one next, and no
    /// snapshot in between that may hold it.
    fn passes_over(&self, zxid: u64) -> bool {
        let next = self.logged[self.logged.partition_point(|logged| *logged < zxid)..].first();
        next.is_some_and(|next| *next > zxid && !self.snapshots.iter().any(|held| (zxid..*next).contains(held)))
    }
}

/// In their order. Of several servers each may have been away for some of them; and one that was killed may have some more, without
/// which the others have gone on.
fn transactions(services: &Services, since: SystemTime) -> impl Iterator<Item = Txn> {
    let (mut txns, mut servers) = (BTreeMap::new(), vec![]);
    for data in services.get("KSYNC_ZOOKEEPER_DATA").split(':') {
        let mut stored = Stored::default();
        for entry in std::fs::read_dir(Path::new(data).join("version-2")).unwrap() {
            let entry = entry.unwrap();
            let name = entry.file_name().into_string().unwrap();
            if let Some(zxid) = name.strip_prefix("snapshot.").and_then(|zxid| u64::from_str_radix(zxid, 16).ok()) {
                stored.snapshots.push(zxid);
            } else if name.starts_with("log.") && entry.metadata().unwrap().modified().unwrap() >= since {
                let printed = printed(services, &entry.path());
                stored.logged.extend(printed.iter().map(|(zxid, _)| *zxid));
                txns.extend(printed);
            }
        }
        stored.logged.sort_unstable();
        servers.push(stored);
    }
    txns.retain(|zxid, _| !servers.iter().any(|server| server.passes_over(*zxid)));
    txns.into_values()
}

/// Each with its zxid.
fn printed(services: &Services, file: &Path) -> Vec<(u64, Txn)> {
    let print = || {
        Command::new("java")
            .args(["-Dfile.encoding=UTF-8", "-cp", services.get("KSYNC_ZOOKEEPER_CLASSPATH")])
            .args(["org.apache.zookeeper.server.persistence.TxnLogToolkit", "-d"])
            .arg(file)
            .output()
            .unwrap()
    };
    // Its last transaction may be there by half, while other tests write to it.
    let mut output = print();
    for _ in 0..20 {
        if output.status.success() {
            break;
        }
        super::pause();
        output = print();
    }
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let mut txns: Vec<(u64, Txn)> = vec![];
    for line in String::from_utf8_lossy(&output.stdout).split('\n') {
        // DATE session 0x.. cxid 0x.. zxid 0x.. KIND TEXT
        let head = line.split_once(" session 0x").filter(|(_, rest)| rest.contains(" cxid 0x"));
        let Some((_, rest)) = head else {
            // Data with a line break in it.
            if let Some((_, txn)) = txns.last_mut() {
                txn.text.push('\n');
                txn.text.push_str(line);
            }
            continue;
        };
        let mut words = rest.splitn(7, ' ');
        let session = words.next().unwrap().to_owned();
        let zxid = words.nth(3).and_then(|zxid| u64::from_str_radix(zxid.strip_prefix("0x")?, 16).ok()).unwrap();
        let kind = words.next().unwrap_or_default().to_owned();
        txns.push((zxid, Txn { session, kind, text: words.next().unwrap_or_default().to_owned() }));
    }
    txns
}
