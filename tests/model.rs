//! A model of election, take-over and commit, gone through state by state: what holds in it holds whatever comes in between.
//!
//! ZooKeeper carries out writes one by one. A server of it may be cut off, a follower or the leader until then: it answers
//! reads with what it knew, and no writes, until it is back. A process may be slow for as long as it likes (a pause), die,
//! lose the answer to any request, and have its session ended at any moment; a request that it has given up may still be
//! carried out. There is no clock: a lease may end at any moment, so that what is shown does not rest on time. That work stops
//! before another process leads does; for that there are tests against real servers.

use std::hash::Hash;

use stateright::{Checker, Model, Property};

/// How many processes queue for one seat, and how far its offset goes.
const PROCESSES: usize = 3;
const END: u8 = 2;

/// What the model leaves out to show that it would be noticed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mistake {
    None,
    /// A commit writes the offset at whatever version it has.
    NoVersion,
    /// A commit does not look whether its candidate is still there.
    NoFence,
    /// A commit without an answer is taken for done.
    BlindAfterLostAnswer,
    /// After a lost answer another candidate is made without a look for the first.
    NeverFindsAgain,
}

struct Election {
    mistake: Mistake,
    /// How many faults there may be.
    faults: u8,
}

/// A candidate; its number is its place in the queue, and its term.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Node {
    number: u8,
    session: Session,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Session {
    process: usize,
    number: u8,
}

/// What is read of ZooKeeper.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct View {
    queue: Vec<Node>,
    offset: u8,
    version: u8,
}

/// What ZooKeeper holds.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
struct Server {
    sessions: Vec<Session>,
    queue: Vec<Node>,
    made: u8,
    offset: u8,
    version: u8,
    /// Of the last take-over or commit.
    term: u8,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Phase {
    Down,
    /// In a session, without a candidate that it knows of. It may have one whose making was never answered.
    Outside {
        may_have: bool,
    },
    Queued(Node),
    /// Nobody was ahead when it looked.
    First(Node),
    /// It has read the offset at that version.
    Read {
        node: Node,
        offset: u8,
        version: u8,
    },
    Leads {
        node: Node,
        offset: u8,
        version: u8,
    },
    /// It waits for an answer.
    Asks(Request),
    /// The lease has ended: the candidate has to go before there is another one.
    Withdraws(Node),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Process {
    session: Session,
    phase: Phase,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Request {
    Enlist(Session),
    /// Both write the offset; a take-over to what it was.
    TakeOver {
        node: Node,
        offset: u8,
        version: u8,
    },
    Commit {
        node: Node,
        offset: u8,
        version: u8,
    },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Answer {
    Made(Node),
    Written { version: u8 },
    NoNode,
    BadVersion,
    SessionExpired,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct State {
    server: Server,
    /// What a server knows that is cut off from the others, and goes on to answer reads.
    cut_off: Option<View>,
    processes: [Process; PROCESSES],
    /// Requests that nobody waits for any more and that may still be carried out.
    stray: Vec<Request>,
    faults: u8,
    broken: Option<&'static str>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Action {
    Starts(usize),
    Goes(usize),
    /// Its read is answered by the server that is cut off.
    GoesByOldView(usize),
    IsAnswered(usize),
    CutOffServerIsBack,
    /// Of a process that has another one since.
    OldSessionEnds(Session),
    // From here on faults.
    AnswerIsLost(usize),
    /// It gives up waiting before the request is carried out.
    AnswerIsLate(usize),
    StrayIsCarriedOut(usize),
    LeaseEnds(usize),
    Dies(usize),
    SessionEnds(usize),
    ServerIsCutOff,
    /// A person sets the offset back,
    OffsetIsMoved,
    /// or removes the candidate that leads.
    CandidateIsRemoved,
}

impl Server {
    fn view(&self) -> View {
        View { queue: self.queue.clone(), offset: self.offset, version: self.version }
    }

    fn has(&self, session: Session) -> bool {
        self.sessions.contains(&session)
    }

    fn expire(&mut self, session: Session) {
        self.sessions.retain(|alive| *alive != session);
        self.queue.retain(|node| node.session != session);
    }
}

impl Request {
    fn session(self) -> Session {
        match self {
            Request::Enlist(session) => session,
            Request::TakeOver { node, .. } | Request::Commit { node, .. } => node.session,
        }
    }
}

impl State {
    /// A session is heard through a new connection: what comes through the old one is refused from then on
    /// (ZooKeeper's SessionMovedException).
    fn heard(&mut self, session: Session) {
        self.stray.retain(|request| request.session() != session);
    }

    /// Carries a request out, and notes what must never be.
    fn carry_out(&mut self, request: Request, mistake: Mistake) -> Answer {
        let server = &mut self.server;
        let (node, offset, version) = match request {
            Request::Enlist(session) if !server.has(session) => return Answer::SessionExpired,
            Request::Enlist(session) => {
                server.made += 1;
                let node = Node { number: server.made, session };
                if server.queue.iter().any(|other| other.session == session) {
                    self.broken = Some("a process has two candidates");
                }
                server.queue.push(node);
                return Answer::Made(node);
            }
            Request::TakeOver { node, offset, version } | Request::Commit { node, offset, version } => {
                (node, offset, version)
            }
        };
        if !server.has(node.session) {
            return Answer::SessionExpired;
        }
        let is_commit = matches!(request, Request::Commit { .. });
        let looks = !(is_commit && mistake == Mistake::NoFence);
        if looks && !server.queue.contains(&node) {
            return Answer::NoNode;
        }
        if server.version != version && !(is_commit && mistake == Mistake::NoVersion) {
            return Answer::BadVersion;
        }
        self.broken = self.broken.or(match () {
            () if server.queue.first() != Some(&node) => Some("the offset is written by one that does not lead"),
            () if version != server.version => Some("what somebody else wrote is overwritten unseen"),
            () if offset < server.offset => Some("the offset goes back"),
            () if offset > server.offset + 1 => Some("the offset passes what was not done"),
            () if node.number < server.term => Some("the term goes back"),
            () => None,
        });
        (server.offset, server.version, server.term) = (offset, server.version + 1, node.number);
        Answer::Written { version: server.version }
    }

    /// What a process does by itself; `known` is the server that answers its reads.
    fn go(&mut self, process: usize, known: &View) {
        let Process { session, phase } = self.processes[process];
        if let Phase::Outside { may_have: true } | Phase::Withdraws(_) = phase {
            self.heard(session);
        }
        self.processes[process].phase = match phase {
            // By its own session; a node of an older one is dying. This read comes after a sync.
            Phase::Outside { may_have: true } => match self.server.queue.iter().find(|node| node.session == session) {
                Some(node) => Phase::Queued(*node),
                None => Phase::Outside { may_have: false },
            },
            Phase::Outside { may_have: false } => Phase::Asks(Request::Enlist(session)),
            Phase::Queued(node) if !known.queue.contains(&node) => Phase::Withdraws(node),
            Phase::Queued(node) => match known.queue.first() == Some(&node) {
                true => Phase::First(node),
                false => phase,
            },
            Phase::First(node) => Phase::Read { node, offset: known.offset, version: known.version },
            Phase::Read { node, offset, version } => Phase::Asks(Request::TakeOver { node, offset, version }),
            Phase::Leads { node, offset, version } => {
                Phase::Asks(Request::Commit { node, offset: offset + 1, version })
            }
            Phase::Withdraws(node) => {
                self.server.queue.retain(|other| *other != node);
                match self.server.has(session) {
                    true => Phase::Outside { may_have: false },
                    false => Phase::Down,
                }
            }
            Phase::Down | Phase::Asks(_) => phase,
        };
    }

    fn answer(&mut self, process: usize, request: Request, answer: Answer) {
        self.processes[process].phase = match (request, answer) {
            (_, Answer::Made(node)) => Phase::Queued(node),
            (
                Request::TakeOver { node, offset, .. } | Request::Commit { node, offset, .. },
                Answer::Written { version },
            ) => Phase::Leads { node, offset, version },
            // Read again: the last commit of the one before has won.
            (Request::TakeOver { node, .. }, Answer::BadVersion) => Phase::First(node),
            (Request::Enlist(_), _) | (_, Answer::SessionExpired) => Phase::Down,
            (Request::TakeOver { node, .. } | Request::Commit { node, .. }, _) => Phase::Withdraws(node),
        };
    }

    /// What a process does whose request has no answer.
    fn give_up(&mut self, process: usize, request: Request, mistake: Mistake) {
        self.processes[process].phase = match request {
            Request::Enlist(_) => Phase::Outside { may_have: mistake != Mistake::NeverFindsAgain },
            Request::Commit { node, offset, version } if mistake == Mistake::BlindAfterLostAnswer => {
                Phase::Leads { node, offset, version: version + 1 }
            }
            // Whether it counts is unknown: what is stored is read again under the next lease.
            Request::TakeOver { node, .. } | Request::Commit { node, .. } => Phase::Withdraws(node),
        };
    }
}

impl Model for Election {
    type State = State;
    type Action = Action;

    fn init_states(&self) -> Vec<State> {
        let down = |process| Process { session: Session { process, number: 0 }, phase: Phase::Down };
        let (server, processes) = (Server::default(), std::array::from_fn(down));
        vec![State { server, cut_off: None, processes, stray: vec![], faults: self.faults, broken: None }]
    }

    fn actions(&self, state: &State, actions: &mut Vec<Action>) {
        if state.broken.is_some() || state.server.offset >= END {
            return;
        }
        if state.cut_off.is_some() {
            actions.push(Action::CutOffServerIsBack);
        } else if state.faults > 0 {
            actions.push(Action::ServerIsCutOff);
        }
        for (number, Process { session, phase }) in state.processes.iter().enumerate() {
            let may_fail = state.faults > 0;
            match phase {
                Phase::Down => actions.push(Action::Starts(number)),
                Phase::Asks(_) => {
                    actions.push(Action::IsAnswered(number));
                    if may_fail {
                        actions.extend([Action::AnswerIsLost(number), Action::AnswerIsLate(number)]);
                    }
                }
                Phase::Queued(node) | Phase::First(node) => {
                    actions.push(Action::Goes(number));
                    // A client is never answered by a server that knows less than the client has written itself.
                    if state.cut_off.as_ref().is_some_and(|view| view.queue.contains(node)) {
                        actions.push(Action::GoesByOldView(number));
                    }
                }
                Phase::Leads { .. } => {
                    actions.push(Action::Goes(number));
                    if may_fail {
                        actions.push(Action::LeaseEnds(number));
                    }
                }
                _ => actions.push(Action::Goes(number)),
            }
            if may_fail && *phase != Phase::Down {
                actions.push(Action::Dies(number));
            }
            if may_fail && state.server.has(*session) {
                actions.push(Action::SessionEnds(number));
            }
        }
        if state.faults > 0 && state.server.offset > 0 {
            actions.push(Action::OffsetIsMoved);
        }
        if state.faults > 0 && !state.server.queue.is_empty() {
            actions.push(Action::CandidateIsRemoved);
        }
        let is_old = |session: &&Session| state.processes[session.process].session != **session;
        actions.extend(state.server.sessions.iter().filter(is_old).copied().map(Action::OldSessionEnds));
        actions.extend((0..state.stray.len()).map(Action::StrayIsCarriedOut));
    }

    fn next_state(&self, before: &State, action: Action) -> Option<State> {
        let mut state = before.clone();
        let asked = |number: usize| match before.processes[number].phase {
            Phase::Asks(request) => request,
            phase => unreachable!("{phase:?} asks nothing"),
        };
        match action {
            Action::Starts(number) => {
                let process = &mut state.processes[number];
                process.session.number += 1;
                process.phase = Phase::Outside { may_have: false };
                state.server.sessions.push(process.session);
                state.server.sessions.sort_by_key(|session| (session.process, session.number));
            }
            Action::Goes(number) => state.go(number, &before.server.view()),
            Action::GoesByOldView(number) => state.go(number, before.cut_off.as_ref()?),
            Action::ServerIsCutOff => {
                state.faults -= 1;
                state.cut_off = Some(before.server.view());
            }
            Action::CutOffServerIsBack => state.cut_off = None,
            Action::OffsetIsMoved => {
                state.faults -= 1;
                (state.server.offset, state.server.version) = (0, state.server.version + 1);
            }
            Action::CandidateIsRemoved => {
                state.faults -= 1;
                state.server.queue.remove(0);
            }
            Action::IsAnswered(number) => {
                state.heard(asked(number).session());
                let answer = state.carry_out(asked(number), self.mistake);
                state.answer(number, asked(number), answer);
            }
            Action::AnswerIsLost(number) => {
                state.faults -= 1;
                state.carry_out(asked(number), self.mistake);
                state.give_up(number, asked(number), self.mistake);
            }
            Action::AnswerIsLate(number) => {
                state.faults -= 1;
                state.stray.push(asked(number));
                state.give_up(number, asked(number), self.mistake);
            }
            Action::StrayIsCarriedOut(index) => {
                let request = state.stray.remove(index);
                state.carry_out(request, self.mistake);
            }
            Action::LeaseEnds(number) => {
                state.faults -= 1;
                if let Phase::Leads { node, .. } = state.processes[number].phase {
                    state.processes[number].phase = Phase::Withdraws(node);
                }
            }
            Action::Dies(number) => {
                state.faults -= 1;
                if let Phase::Asks(request) = state.processes[number].phase {
                    state.stray.push(request);
                }
                state.processes[number].phase = Phase::Down;
            }
            Action::OldSessionEnds(session) => state.server.expire(session),
            Action::SessionEnds(number) => {
                state.faults -= 1;
                state.server.expire(state.processes[number].session);
            }
        }
        (state != *before).then_some(state)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        vec![
            Property::always("nothing is broken", |_, state: &State| state.broken.is_none()),
            // Of all ways that come to an end, none does before all is done: somebody leads at last.
            Property::eventually("all is done", |_, state: &State| state.server.offset == END),
            Property::sometimes("all is done after all faults", |_, state: &State| {
                state.server.offset == END && state.faults == 0
            }),
        ]
    }
}

fn check(mistake: Mistake, faults: u8) -> impl Checker<Election> {
    Election { mistake, faults }.checker().threads(2).spawn_bfs().join()
}

#[test]
fn offset_and_term_never_go_back_only_the_leader_writes_and_at_last_all_is_done() {
    // With a third fault there are 30 times as many states.
    let faults = if std::env::var_os("KSYNC_TEST_FULL").is_some() { 3 } else { 2 };
    let checked = check(Mistake::None, faults);
    eprintln!("{faults} faults: {} states", checked.unique_state_count());
    checked.assert_properties();
}

#[test]
fn each_part_of_the_fence_is_needed() {
    let mistakes = [Mistake::NoVersion, Mistake::NoFence, Mistake::BlindAfterLostAnswer, Mistake::NeverFindsAgain];
    for mistake in mistakes {
        let found = check(mistake, 2).discovery("nothing is broken");
        assert!(found.is_some(), "{mistake:?} breaks nothing");
    }
}
