//! The order of candidates: by the number that ZooKeeper gave to their nodes.

/// The number that a candidate's name ends in; `None` if it is no candidate.
///
/// It is ZooKeeper's counter of 32 bits, printed with its sign: `_2147483647` is followed by `_-2147483648`.
pub(super) fn sequence(name: &str) -> Option<u32> {
    let (_, number) = name.rsplit_once('_')?;
    number.parse::<i64>().ok().map(|number| number as u32)
}

/// Of all candidates that come before `own`, the last: the one whose end to wait for.
pub(super) fn next_ahead<'a>(own: &str, names: &'a [String]) -> Option<&'a str> {
    let own_number = sequence(own)?;
    // Modulo 2^32, so that those made before the counter wrapped stay ahead. An equal number only a person can have
    // made: waiting for it is safe, leading beside it is not.
    let lead =
        |name: &str| sequence(name).map(|number| number.wrapping_sub(own_number) as i32).filter(|lead| *lead <= 0);
    names
        .iter()
        .filter(|name| *name != own)
        .filter_map(|name| lead(name).map(|lead| (lead, name.as_str())))
        .max()
        .map(|(_, name)| name)
}

/// The candidates among the names, in the order in which they lead.
pub(super) fn in_order(names: &[String]) -> Vec<&str> {
    let numbered: Vec<_> = names.iter().filter_map(|name| Some((sequence(name)?, name.as_str()))).collect();
    // The first is the one from which all others lie ahead by less than half of the circle.
    let is_first = |own: u32| numbered.iter().all(|(other, _)| other.wrapping_sub(own) as i32 >= 0);
    let first = numbered.iter().map(|(number, _)| *number).find(|number| is_first(*number)).unwrap_or_default();
    let mut ordered = numbered;
    ordered.sort_by_key(|(number, name)| (number.wrapping_sub(first), *name));
    ordered.into_iter().map(|(_, name)| name).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(names: &[&str]) -> Vec<String> {
        names.iter().map(|name| (*name).to_owned()).collect()
    }

    #[test]
    fn a_candidate_has_a_number_behind_its_last_underscore() {
        for (name, number) in [
            ("0123456789abcdef0123456789abcdef_0000000042", Some(42)),
            ("a_b_0000000007", Some(7)),
            ("a_2147483647", Some(0x7fff_ffff)),
            ("a_-2147483648", Some(0x8000_0000)),
            ("a_-000000001", Some(0xffff_ffff)),
            ("a_0000000002147483648", Some(0x8000_0000)),
            ("a_", None),
            ("a_12x", None),
            ("0000000001", None),
            ("lock-0000000001", None),
        ] {
            assert_eq!(sequence(name), number, "{name}");
        }
    }

    #[test]
    fn each_candidate_waits_for_the_one_before_it() {
        let queue = names(&["c_0000000010", "a_0000000007", "noise", "b_0000000009"]);
        assert_eq!(next_ahead("a_0000000007", &queue), None);
        assert_eq!(next_ahead("b_0000000009", &queue), Some("a_0000000007"));
        assert_eq!(next_ahead("c_0000000010", &queue), Some("b_0000000009"));
    }

    #[test]
    fn newcomers_queue_at_the_end_when_the_counter_wraps() {
        let order = ["a_2147483646", "b_2147483647", "c_-2147483648", "d_-2147483647", "e_-2147483646"];
        let mut shuffled = names(&order);
        shuffled.swap(0, 3);
        shuffled.swap(1, 4);
        assert_eq!(next_ahead(order[0], &shuffled), None);
        for pair in order.windows(2) {
            assert_eq!(next_ahead(pair[1], &shuffled), Some(pair[0]), "ahead of {}", pair[1]);
        }
        assert_eq!(in_order(&shuffled), order);
        let around_zero = names(&["b_0000000000", "a_-000000001", "c_0000000001"]);
        assert_eq!(next_ahead("b_0000000000", &around_zero), Some("a_-000000001"));
    }

    #[test]
    fn what_is_no_candidate_has_no_place_in_the_order() {
        assert_eq!(in_order(&names(&["c_0000000010", "noise", "a_0000000007"])), ["a_0000000007", "c_0000000010"]);
        assert_eq!(in_order(&names(&["noise"])), Vec::<&str>::new());
    }

    #[test]
    fn a_node_with_the_same_number_is_waited_for() {
        let queue = names(&["mine_0000000003", "by hand_0000000003"]);
        assert_eq!(next_ahead("mine_0000000003", &queue), Some("by hand_0000000003"));
    }
}
