//! How durations, sizes and times are written on a command line.

use std::str::FromStr;
use std::time::{Duration, SystemTime};

use anyhow::{Context, Result, ensure};
use bytesize::ByteSize;
use jiff::civil::Time;
use jiff::tz::TimeZone;
use jiff::{Timestamp, Zoned};

/// `5m`, `300s`, `1h 30m`; a bare number is seconds.
pub fn duration(text: &str) -> Result<Duration> {
    if let Ok(seconds) = text.parse::<f64>() {
        return Duration::try_from_secs_f64(seconds).with_context(|| format!("'{text}' is not a duration"));
    }
    humantime::parse_duration(text).context("a duration is written as 5m, 300s or 500ms")
}

/// `8MiB`, `64KiB`; a bare number is bytes.
pub fn size(text: &str) -> Result<usize> {
    let size = ByteSize::from_str(text).ok().context("a size is written as 8MiB or 64KiB")?;
    ensure!(size.as_u64() > 0, "a size is more than 0");
    Ok(usize::try_from(size.as_u64())?)
}

/// `2026-11-22T03:00Z`.
pub fn time(text: &str) -> Result<SystemTime> {
    let time = text.parse::<Timestamp>().context("a time is written as 2026-11-22T03:00Z")?;
    Ok(time.into())
}

/// The same, or the next `06:30` by the clock of this machine, as cron has it; `06:30Z` is UTC.
pub fn time_to_come(text: &str) -> Result<SystemTime> {
    let (clock, zone) = match text.strip_suffix('Z') {
        Some(clock) => (clock, TimeZone::UTC),
        None => (text, TimeZone::system()),
    };
    // The parser would take the time out of a date and time, too.
    let is_clock = clock.bytes().all(|c| c.is_ascii_digit() || c == b':');
    match clock.parse::<Time>() {
        Ok(clock) if is_clock => next(clock, &Zoned::new(Timestamp::now(), zone)),
        _ => time(text).context("a time to come is written as 06:30, 06:30Z or 2026-11-22T03:00Z"),
    }
}

fn next(clock: Time, now: &Zoned) -> Result<SystemTime> {
    let today = now.with().time(clock).build()?;
    let next = if today <= *now { now.tomorrow()?.with().time(clock).build()? } else { today };
    Ok(next.timestamp().into())
}

#[cfg(test)]
mod tests {
    use std::time::UNIX_EPOCH;

    use super::*;

    #[test]
    fn durations_sizes_and_times_are_read_as_people_write_them() {
        assert_eq!(duration("5m").unwrap(), Duration::from_secs(300));
        assert_eq!(duration("300").unwrap(), Duration::from_secs(300));
        assert_eq!(duration("0.5").unwrap(), Duration::from_millis(500));
        assert!(duration("-1").is_err() && duration("5 apples").is_err() && duration("").is_err());
        assert_eq!(size("8MiB").unwrap(), 8 << 20);
        assert_eq!(size("1000").unwrap(), 1000);
        assert!(size("0").is_err() && size("-1").is_err() && size("x").is_err());
        assert_eq!(time("1970-01-02T00:00Z").unwrap(), UNIX_EPOCH + Duration::from_secs(86_400));
        assert!(time("tomorrow").is_err());
    }

    #[test]
    fn a_time_of_day_is_the_next_one_by_the_clock_of_the_machine_or_by_utc() {
        let zone = TimeZone::get("Europe/Berlin").unwrap();
        let at = |time: &str| time.parse::<Timestamp>().unwrap().to_zoned(zone.clone());
        let next = |clock: &str, now| Timestamp::try_from(next(clock.parse().unwrap(), &at(now)).unwrap()).unwrap();
        for (clock, now, expected) in [
            ("06:30", "2026-11-22T20:00Z", "2026-11-23T05:30Z"),
            ("23:00", "2026-11-22T20:00Z", "2026-11-22T22:00Z"),
            ("21:00:00", "2026-11-22T20:00Z", "2026-11-23T20:00Z"),
            // The clock is set back in the night between.
            ("06:30", "2026-10-24T20:00Z", "2026-10-25T05:30Z"),
        ] {
            assert_eq!(next(clock, now), expected.parse().unwrap(), "{clock} after {now}");
        }
        let day = Duration::from_secs(86_400);
        let left = time_to_come("06:30Z").unwrap().duration_since(SystemTime::now()).unwrap();
        assert!(left <= day && time_to_come("06:30").unwrap() > SystemTime::now());
        assert_eq!(time_to_come("1970-01-02T00:00Z").unwrap(), UNIX_EPOCH + day);
        for text in ["1970-01-02T00:00", "6", "25:00", "06:30+01", "tomorrow"] {
            assert!(time_to_come(text).is_err(), "{text}");
        }
    }
}
